//! What the streams of a connection and its supervisor tell each other.
//!
//! The streams know whether somebody waits for the peer: only then does its silence mean anything. The
//! supervisor knows why it gave the connection up, where noq says no more than that it was closed at this
//! end. Both are for the driver of a connection on the one side, and for [`RecvStream`](super::RecvStream),
//! [`SendStream`](super::SendStream) and [`OpenStreams`](super::OpenStreams) on the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use h3::error::Code;
use h3::quic::{ConnectionErrorIncoming, StreamErrorIncoming};
use noq::{ConnectionError, ReadError, WriteError};

use super::NO_ERROR;
use super::error::{connection_error, lost, read_error, varint, write_error};

/// What is known of one connection.
#[derive(Debug, Default)]
pub(crate) struct Supervision {
    /// Reads, writes and openings of requests that wait now.
    waiting: AtomicUsize,
    /// One began to wait since this was last asked for.
    waited: AtomicBool,
    given_up: OnceLock<ConnectionErrorIncoming>,
    closed_by_h3: OnceLock<(Code, String)>,
}

impl Supervision {
    /// Whether a read, a write or the opening of a request waits for the peer, or has since the last call.
    pub(crate) fn is_peer_awaited(&self) -> bool {
        let waited = self.waited.swap(false, Ordering::Relaxed);
        waited || self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Closes the connection. Whatever waits on it ends, and says why.
    pub(crate) fn give_up(
        &self,
        connection: &noq::Connection,
        why: ConnectionErrorIncoming,
        words: &str,
    ) {
        // The first reason is the true one.
        let _ = self.given_up.set(why);
        connection.close(NO_ERROR, words.as_bytes());
    }

    /// h3 closes the connection.
    pub(super) fn close(&self, connection: &noq::Connection, code: Code, reason: &[u8]) {
        let words = String::from_utf8_lossy(reason).into();
        let _ = self.closed_by_h3.set((code, words));
        connection.close(varint(code.value()), reason);
    }

    /// Why h3 closed the connection, if it did.
    pub(crate) fn closed_by_h3(&self) -> Option<(Code, String)> {
        self.closed_by_h3.get().cloned()
    }

    pub(super) fn connection_error(&self, error: ConnectionError) -> ConnectionErrorIncoming {
        match (error, self.given_up.get()) {
            (ConnectionError::LocallyClosed, Some(why)) => why.clone(),
            (error, _) => connection_error(error),
        }
    }
}

/// A stream, or what opens streams, that is supervised.
#[derive(Debug)]
pub(super) struct Supervised {
    by: Arc<Supervision>,
    /// Whether somebody is waited for by it: those beside the requests always wait for something.
    counts: bool,
    waits: bool,
}

impl Supervised {
    /// Of a request.
    pub(super) fn request(by: Arc<Supervision>) -> Self {
        Self::new(by, true)
    }

    /// Of anything else.
    pub(super) fn other(by: Arc<Supervision>) -> Self {
        Self::new(by, false)
    }

    fn new(by: Arc<Supervision>, counts: bool) -> Self {
        Self {
            by,
            counts,
            waits: false,
        }
    }

    /// Notes whether there is something to wait for.
    pub(super) fn note<T>(&mut self, poll: Poll<T>) -> Poll<T> {
        if self.counts {
            self.set(poll.is_pending());
        }
        poll
    }

    /// Nobody waits for it any more.
    pub(super) fn end(&mut self) {
        self.set(false);
    }

    pub(super) fn read_error(&self, error: ReadError) -> StreamErrorIncoming {
        match error {
            ReadError::ConnectionLost(error) => lost(self.by.connection_error(error)),
            error => read_error(error),
        }
    }

    pub(super) fn write_error(&self, error: WriteError) -> StreamErrorIncoming {
        match error {
            WriteError::ConnectionLost(error) => lost(self.by.connection_error(error)),
            error => write_error(error),
        }
    }

    fn set(&mut self, waits: bool) {
        match (self.waits, waits) {
            (false, true) => {
                self.by.waiting.fetch_add(1, Ordering::Relaxed);
                self.by.waited.store(true, Ordering::Relaxed);
            }
            (true, false) => {
                self.by.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.waits = waits;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.end();
    }
}
