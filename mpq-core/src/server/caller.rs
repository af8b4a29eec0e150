//! Whoever asked for a move, and the task that makes it.
//!
//! The caller has the freeze, and may lose interest at any time: it is a future, which can be dropped. The
//! move is made by a task, so that there is somebody to undo it then.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};

use crate::error::{Cause, MoveError};
use crate::proto::server::Output;

/// What became of a frozen server.
#[derive(Debug)]
pub enum Thaw {
    /// It woke, and is to listen here.
    At(SocketAddr),
    /// It was not frozen, and goes on where it was; why.
    Failed(Cause),
}

/// What the machine wants from a move in progress.
type Outputs = mpsc::UnboundedReceiver<Output>;

/// The moves of one server, one at a time.
#[derive(Debug)]
pub(super) struct Moves {
    outputs: Arc<Mutex<Outputs>>,
    claimed: AtomicBool,
    /// The server closes: no move goes on, as if its caller were gone.
    closing: watch::Sender<bool>,
}

/// The right to the next move.
pub(super) struct Claim<'a>(&'a Moves);

impl Moves {
    pub(super) fn new(outputs: Outputs) -> Self {
        Self {
            outputs: Arc::new(Mutex::new(outputs)),
            claimed: AtomicBool::new(false),
            closing: watch::Sender::new(false),
        }
    }

    /// None while somebody else waits for a move.
    pub(super) fn claim(&self) -> Option<Claim<'_>> {
        let was_claimed = self.claimed.swap(true, Ordering::AcqRel);
        (!was_claimed).then_some(Claim(self))
    }

    /// Whether there is none, not even one whose caller is gone.
    pub(super) fn are_over(&self) -> bool {
        self.outputs.try_lock().is_ok()
    }

    /// For the task of a move; waits until one that was dropped has come to its end.
    pub(super) async fn outputs(&self) -> OwnedMutexGuard<Outputs> {
        self.outputs.clone().lock_owned().await
    }

    /// Both ends of the next move.
    pub(super) fn pair(&self) -> (Caller, Requests) {
        let (requests, incoming) = mpsc::unbounded_channel();
        let closing = self.closing.subscribe();
        (Caller { requests, closing }, Requests(incoming))
    }

    /// Has a move undone, if there is one and that is still possible, and every later one.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Release);
    }
}

/// What the task wants from its caller.
enum Request {
    /// Freeze the server, and say what became of it.
    Freeze(oneshot::Sender<Thaw>),
    /// The sockets are open again, at this address.
    Reopened(SocketAddr),
    /// That was all.
    Over(Result<SocketAddr, MoveError>),
}

/// The caller, as the task knows it.
pub(super) struct Caller {
    requests: mpsc::UnboundedSender<Request>,
    closing: watch::Receiver<bool>,
}

/// The task, as the caller knows it.
pub(super) struct Requests(mpsc::UnboundedReceiver<Request>);

impl Caller {
    /// Resolves when it has lost interest, or the server closes.
    pub(super) async fn gone(&self) {
        let mut closing = self.closing.clone();
        tokio::select! {
            () = self.requests.closed() => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }

    /// Has the server frozen; never resolves if the caller is gone.
    pub(super) async fn freeze(&self) -> Thaw {
        let (thaw, thawed) = oneshot::channel();
        let _ = self.requests.send(Request::Freeze(thaw));
        match thawed.await {
            Ok(thaw) => thaw,
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) fn reopened(&self, listen: SocketAddr) {
        let _ = self.requests.send(Request::Reopened(listen));
    }

    pub(super) fn is_over(&self, moved: Result<SocketAddr, MoveError>) {
        let _ = self.requests.send(Request::Over(moved));
    }
}

impl Requests {
    /// Does what the task wants, until the move is over.
    pub(super) async fn serve(
        mut self,
        freeze: impl Future<Output = Thaw>,
        on_reopened: impl FnOnce(SocketAddr),
    ) -> Result<SocketAddr, MoveError> {
        let (mut freeze, mut on_reopened) = (pin!(freeze), Some(on_reopened));
        let mut awaits_thaw: Option<oneshot::Sender<Thaw>> = None;
        loop {
            tokio::select! {
                // Whatever becomes of the freeze, the move may be over.
                biased;
                request = self.0.recv() => match request {
                    Some(Request::Freeze(thaw)) => awaits_thaw = Some(thaw),
                    Some(Request::Reopened(listen)) => {
                        awaits_thaw = None;
                        if let Some(on_reopened) = on_reopened.take() {
                            on_reopened(listen);
                        }
                    }
                    Some(Request::Over(moved)) => return moved,
                    None => return Err(MoveError::Interrupted),
                },
                thaw = &mut freeze, if awaits_thaw.is_some() => {
                    if let Some(awaits_thaw) = awaits_thaw.take() {
                        let _ = awaits_thaw.send(thaw);
                    }
                }
            }
        }
    }
}
