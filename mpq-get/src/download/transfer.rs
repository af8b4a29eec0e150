//! What outlives an attempt, and what the body's way and the reports share.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use mpq_core::client::{ClientError, PathInfo};

use crate::error::Error;
use crate::http::resume::Partial;
use crate::output::place::{Found, Place};
use crate::output::{Leftover, Output};
use crate::report::events::DownloadEvent;
use crate::report::outage::Outage;
use crate::transport::Connection;

/// What the body's way and the reports share.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Where the body will go, until something of it comes.
    place: RefCell<Option<Place>>,
    /// What there is of the body.
    pub(super) partial: RefCell<Partial>,
    /// Bytes of a file that may be all of it.
    pub(super) file: Cell<Option<u64>>,
    /// When the server's file was changed last.
    pub(super) modified: Cell<Option<SystemTime>>,
    /// Body bytes, those given up included.
    pub(super) received: Cell<u64>,
    pub(super) requests: Cell<u64>,
    /// The output is behind.
    pub(super) is_writing: Cell<bool>,
    /// Where the server was last.
    pub(super) remote: Cell<Option<SocketAddr>>,
    /// Who has answered in its place, the last one first, when the connection was lost.
    pub(super) answered: RefCell<Vec<SocketAddr>>,
    /// Where it has said that it would go.
    pub(super) announced: RefCell<Vec<SocketAddr>>,
    /// Where else it may be, as it said itself.
    pub(super) pool: RefCell<Vec<SocketAddr>>,
    pub(super) name: RefCell<Option<String>>,
    /// Of the connections so far.
    pub(super) handshakes: Cell<u64>,
    pub(super) paths: RefCell<Vec<PathInfo>>,
    pub(super) outage: RefCell<Outage>,
    /// What has happened to the body and has not been told yet.
    pub(super) news: RefCell<Vec<(Instant, DownloadEvent)>>,
}

impl Transfer {
    /// Before the first attempt. If it is to go on, a file that is there may be complete.
    pub(super) fn new(found: Found, resume: bool) -> Transfer {
        let transfer = Transfer {
            file: Cell::new(found.file.filter(|bytes| resume && *bytes > 0)),
            modified: Cell::default(),
            partial: RefCell::new(found.partial),
            received: Cell::default(),
            requests: Cell::default(),
            is_writing: Cell::default(),
            remote: Cell::default(),
            answered: RefCell::default(),
            announced: RefCell::default(),
            pool: RefCell::default(),
            name: RefCell::default(),
            handshakes: Cell::default(),
            paths: RefCell::default(),
            outage: RefCell::default(),
            news: RefCell::default(),
            place: RefCell::new(Some(found.place)),
        };
        for left in found.left_alone {
            transfer.tell(DownloadEvent::LeftAlone {
                path: left.path.display().to_string(),
                reason: left.why.to_string(),
            });
        }
        transfer
    }

    /// Where the body goes, now that it comes.
    pub(super) fn place(&self) -> Place {
        self.place.take().expect("an output is made once")
    }

    /// What stays on the disk if nothing has come.
    pub(super) fn leftover(&self) -> Leftover {
        let place = self.place.borrow();
        place.as_ref().map_or(Leftover::NOTHING, Place::leftover)
    }

    /// A chunk of the body is there.
    pub(super) fn arrived(&self) {
        if let Some(end) = self.outage.borrow_mut().chunk(Instant::now()) {
            let event = DownloadEvent::FirstByteAfterMove {
                remote: end.remote,
                parts: end.parts,
            };
            self.news.borrow_mut().push((end.at, event));
        }
    }

    /// Whether it is not the server's fault if nothing comes: it moves, or the output is behind.
    pub(super) fn excuses(&self) -> bool {
        self.is_writing.get() || self.outage.borrow().is_watched()
    }

    /// So many bytes are written, or will be.
    pub(super) fn add(&self, length: u64) {
        self.partial.borrow_mut().bytes += length;
        self.received.set(self.received.get() + length);
    }

    /// The server is there.
    pub(super) fn connected(&self, remote: SocketAddr) {
        self.remote.set(Some(remote));
        self.answered.take();
        self.announced.take();
        // A move is over with its connection.
        self.outage.take();
    }

    /// A connection is lost: what that tells of where another one may find the server, and of the reason.
    pub(super) fn lost(&self, error: ClientError) -> Error {
        if let ClientError::Migration { answered, .. } = &error {
            self.answered.replace(answered.clone());
        }
        error.into()
    }

    /// Notes what is to be told of the body.
    pub(super) fn tell(&self, event: DownloadEvent) {
        self.news.borrow_mut().push((Instant::now(), event));
    }

    /// Counts what a connection has done.
    pub(super) fn count(&self, client: &impl Connection) {
        let handshakes = self.handshakes.get() + client.handshakes();
        self.handshakes.set(handshakes);
        self.paths.borrow_mut().extend(client.paths());
    }

    /// Whether another attempt can add to what there is, or take it back.
    pub(super) fn can_go_on(&self, output: Option<&Output>) -> bool {
        let partial = self.partial.borrow();
        partial.bytes == 0
            || partial.resumable().is_some()
            || output.is_none_or(Output::is_restartable)
    }
}
