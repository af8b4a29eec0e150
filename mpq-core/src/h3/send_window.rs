//! How far ahead of the network bodies are written.
//!
//! noq keeps what was written until it is acknowledged, up to a window. One that is wide enough for the
//! fastest path would let every body of a slow one lie in memory as a whole, and in the image of a
//! server that moves. So a server's window follows those of the congestion control: as much as may be
//! in flight may wait to be sent, too, since that can double in a round trip, and a little more for the
//! time that a writer takes to be woken.
//!
//! The window is the connection's, and bodies fill it: what must not wait for them has it
//! [widened](SendWindow::widen).
//!
//! **One body over several paths.** If a path dies, what is in flight there keeps its part of the stream's
//! flow-control window until the path is given up. noq's receiver announces more only when an eighth of
//! the window was read, so with seven eighths on the dead path the body would stand still on all others.
//! No path may hold as much while a client has asked for one body only; with several, the others go on.
//! Upstream: <https://github.com/n0-computer/noq/issues/516>; `tests/noq.rs` tells when this can go.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use noq::StreamId;

use super::gate::Gate;
use super::turns::Room;
use crate::congestion::send_control::SendControl;
use crate::limits::{SEND_WINDOW, STREAM_WINDOW};

/// What may wait in any case, bytes.
const MIN_WAITING: u64 = 64 << 10;
/// For an answer that is not the first, in times of what may be in flight: the paths stay full where the first leaves
/// them idle, also as their windows grow by what goes unnoticed.
const PART: f64 = 1.25;
/// What one of several paths may hold of the only body, bytes: the others have a sixteenth of a window at
/// least, and as much as was read since the last announcement.
const MAX_IN_FLIGHT_OF_ONE_BODY: u64 = STREAM_WINDOW as u64 / 16 * 13;

/// The send window of one connection.
#[derive(Debug)]
pub(crate) struct SendWindow {
    connection: noq::WeakConnectionHandle,
    send_control: Arc<SendControl>,
    window: Mutex<u64>,
    /// Bodies being written.
    bodies: AtomicUsize,
    /// There were several at a time.
    several: AtomicBool,
}

impl SendWindow {
    pub(super) fn new(connection: &noq::Connection, send_control: Arc<SendControl>) -> Self {
        Self {
            connection: connection.weak_handle(),
            send_control,
            window: Mutex::new(SEND_WINDOW),
            bodies: AtomicUsize::new(0),
            several: AtomicBool::new(false),
        }
    }

    /// So many times what the congestion control lets be in flight. Small changes are left out, since each takes
    /// the connection's lock.
    fn adapt(&self, times: f64) {
        let (paths, windows) = self.send_control.windows();
        let one_body = !self.several.load(Ordering::Relaxed);
        let most = if paths > 1 && one_body {
            MAX_IN_FLIGHT_OF_ONE_BODY
        } else {
            u64::MAX
        };
        self.send_control.limit(most);

        let window = MIN_WAITING + (times * windows as f64) as u64;
        let window = window.min(SEND_WINDOW);
        let mut now = self.window.lock().unwrap();
        if window.abs_diff(*now) > *now / 8 {
            self.set(&mut now, window);
        }
    }

    /// To be called before something else is written. The next part of a body ends it.
    pub(crate) fn widen(&self) {
        self.set(&mut self.window.lock().unwrap(), SEND_WINDOW);
    }

    fn set(&self, now: &mut u64, window: u64) {
        *now = window;
        if let Some(connection) = self.connection.upgrade() {
            connection.set_send_window(window);
        }
    }
}

/// A body that is being written.
pub(super) struct Body {
    window: Arc<SendWindow>,
    gate: Gate,
}

impl Body {
    pub(super) fn new(window: Arc<SendWindow>, gate: Gate) -> Self {
        if window.bodies.fetch_add(1, Ordering::Relaxed) > 0 {
            window.several.store(true, Ordering::Relaxed);
        }
        Self { window, gate }
    }

    /// Ready if a part of it may be written, to this stream.
    pub(super) fn poll_room(&self, stream: StreamId, room: Room, cx: &Context<'_>) -> Poll<()> {
        ready!(self.gate.poll_passed(stream, cx));
        match room {
            Room::AtOnce(_) => self.window.widen(),
            Room::Whole => self.window.adapt(2.0),
            Room::Part => self.window.adapt(PART),
        }
        Poll::Ready(())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.window.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}
