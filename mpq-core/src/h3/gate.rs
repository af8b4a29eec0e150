//! The gate in front of a connection's bodies: closed while its server is parked.
//!
//! A server that is about to be frozen must have nothing in flight, so its streams hand nothing more to
//! noq. They wait here by themselves; whoever writes to them need not know.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use noq::StreamId;

/// Stops and releases the streams of one connection. Clones share one gate, which is open at first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Changed under the lock only.
    closed: AtomicBool,
    waiting: Mutex<BTreeMap<StreamId, Waker>>,
}

impl Gate {
    /// Holds every stream before its next write.
    pub(crate) fn close(&self) {
        let _waiting = self.0.waiting.lock().unwrap();
        self.0.closed.store(true, Ordering::Release);
    }

    /// Releases the streams.
    pub(crate) fn open(&self) {
        let released = {
            let mut waiting = self.0.waiting.lock().unwrap();
            self.0.closed.store(false, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        released.into_values().for_each(Waker::wake);
    }

    /// Ready while the gate is open.
    pub(super) fn poll_passed(&self, stream: StreamId, cx: &Context<'_>) -> Poll<()> {
        if !self.0.closed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting.lock().unwrap();
        if !self.0.closed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        waiting.insert(stream, cx.waker().clone());
        Poll::Pending
    }
}
