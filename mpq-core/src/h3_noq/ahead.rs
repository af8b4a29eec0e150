//! How far ahead of the network bodies are written.
//!
//! noq keeps what was written until it is acknowledged, up to a window. One that is wide enough for the
//! fastest path would let every body of a slow one lie in memory as a whole, and in the image of a
//! server that moves. So a server's window follows those of the congestion control: as much as may be
//! in flight may wait to be sent, too, since that can double in a round trip, and a little more for the
//! time that a writer takes to be woken.
//!
//! The window is the connection's, and bodies fill it: what must not wait for them has it
//! [widened](Ahead::widen).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::congestion::careful::Careful;
use crate::endpoint::SEND_WINDOW;

/// What may wait in any case, bytes.
const LEAST: u64 = 64 << 10;

/// The send window of one connection.
#[derive(Debug)]
pub(crate) struct Ahead {
    connection: noq::WeakConnectionHandle,
    careful: Arc<Careful>,
    window: AtomicU64,
}

impl Ahead {
    pub(super) fn new(connection: &noq::Connection, careful: Arc<Careful>) -> Self {
        Self {
            connection: connection.weak_handle(),
            careful,
            window: AtomicU64::new(SEND_WINDOW),
        }
    }

    /// To be called before a part of a body is written. Small changes are left out, since each takes
    /// the connection's lock.
    pub(super) fn adapt(&self) {
        let window = (LEAST + 2 * self.careful.windows()).min(SEND_WINDOW);
        let before = self.window.load(Ordering::Relaxed);
        if window.abs_diff(before) > before / 8 {
            self.set(window);
        }
    }

    /// To be called before something else is written. The next part of a body ends it.
    pub(crate) fn widen(&self) {
        self.set(SEND_WINDOW);
    }

    fn set(&self, window: u64) {
        self.window.store(window, Ordering::Relaxed);
        if let Some(connection) = self.connection.upgrade() {
            connection.set_send_window(window);
        }
    }
}
