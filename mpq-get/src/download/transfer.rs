//! What outlives an attempt, and what the body's way and the reports share.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Instant;

use super::request::Request;
use crate::http::resume::Held;
use crate::output::{Output, part_meta};
use crate::report::events::{Event, Path};
use crate::report::outage::Gap;
use crate::transport::Connection;

/// What the body's way and the reports share.
#[derive(Debug)]
pub(super) struct Transfer {
    /// What there is of the body.
    pub(super) held: RefCell<Held>,
    /// Body bytes, those given up included.
    pub(super) received: Cell<u64>,
    pub(super) requests: Cell<u64>,
    /// Where the server was last.
    pub(super) remote: Cell<Option<SocketAddr>>,
    /// Where else it may be, as it said itself.
    pub(super) pool: RefCell<Vec<SocketAddr>>,
    pub(super) name: RefCell<Option<String>>,
    /// Of the connections so far.
    pub(super) handshakes: Cell<u64>,
    pub(super) paths: RefCell<Vec<Path>>,
    pub(super) gap: RefCell<Gap>,
    /// What has happened to the body and has not been told yet.
    pub(super) news: RefCell<Vec<(Instant, Event)>>,
}

impl Transfer {
    /// Before the first attempt, with what an earlier run has left if that is to be gone on with.
    pub(super) fn new(request: &Request) -> Transfer {
        let part = request.destination.part().filter(|_| request.resume);
        let held = part.map(|part| part_meta::held(&part, request.url.as_str()));
        Transfer {
            held: RefCell::new(held.unwrap_or_default()),
            received: Cell::default(),
            requests: Cell::default(),
            remote: Cell::default(),
            pool: RefCell::default(),
            name: RefCell::default(),
            handshakes: Cell::default(),
            paths: RefCell::default(),
            gap: RefCell::default(),
            news: RefCell::default(),
        }
    }

    /// A chunk of the body is there.
    pub(super) fn arrived(&self) {
        if let Some(end) = self.gap.borrow_mut().chunk(Instant::now()) {
            let event = Event::FirstByteAfterMove {
                remote: end.remote,
                parts: end.parts,
            };
            self.news.borrow_mut().push((end.at, event));
        }
    }

    /// So many bytes are written, or will be.
    pub(super) fn add(&self, length: u64) {
        self.held.borrow_mut().bytes += length;
        self.received.set(self.received.get() + length);
    }

    /// Notes what is to be told of the body.
    pub(super) fn tell(&self, event: Event) {
        self.news.borrow_mut().push((Instant::now(), event));
    }

    /// Counts what a connection has done.
    pub(super) fn count(&self, client: &impl Connection) {
        let handshakes = self.handshakes.get() + client.handshakes();
        self.handshakes.set(handshakes);
        let paths = client.paths().into_iter().map(Path::from);
        self.paths.borrow_mut().extend(paths);
    }

    /// Whether another attempt can add to what there is, or take it back.
    pub(super) fn can_go_on(&self, output: Option<&Output>) -> bool {
        let held = self.held.borrow();
        held.bytes == 0 || held.resumable().is_some() || output.is_none_or(Output::is_restartable)
    }
}
