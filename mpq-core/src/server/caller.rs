//! Whoever asked for a move, and the task that makes it.
//!
//! The caller has the freeze, and may lose interest at any time: it is a future, which can be dropped. The
//! move is made by a task, so that there is somebody to undo it then.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};

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
}

/// The right to the next move.
pub(super) struct Claim<'a>(&'a Moves);

impl Moves {
    pub(super) fn new(outputs: Outputs) -> Self {
        Self {
            outputs: Arc::new(Mutex::new(outputs)),
            claimed: AtomicBool::new(false),
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
pub(super) struct Caller(mpsc::UnboundedSender<Request>);

/// The task, as the caller knows it.
pub(super) struct Requests(mpsc::UnboundedReceiver<Request>);

/// Both ends.
pub(super) fn pair() -> (Caller, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Caller(sender), Requests(receiver))
}

impl Caller {
    /// Resolves when it has lost interest.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }

    /// Has the server frozen; never resolves if the caller is gone.
    pub(super) async fn freeze(&self) -> Thaw {
        let (thaw, thawed) = oneshot::channel();
        let _ = self.0.send(Request::Freeze(thaw));
        match thawed.await {
            Ok(thaw) => thaw,
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) fn reopened(&self, listen: SocketAddr) {
        let _ = self.0.send(Request::Reopened(listen));
    }

    pub(super) fn is_over(&self, moved: Result<SocketAddr, MoveError>) {
        let _ = self.0.send(Request::Over(moved));
    }
}

impl Requests {
    /// Does what the task wants, until the move is over.
    pub(super) async fn serve(
        mut self,
        freeze: impl Future<Output = Thaw>,
        on_reopened: impl FnOnce(SocketAddr),
    ) -> Result<SocketAddr, MoveError> {
        let (mut freeze, mut on_reopened) = (Some(freeze), Some(on_reopened));
        while let Some(request) = self.0.recv().await {
            match request {
                Request::Freeze(thaw) => {
                    if let Some(freeze) = freeze.take() {
                        let _ = thaw.send(freeze.await);
                    }
                }
                Request::Reopened(listen) => {
                    if let Some(on_reopened) = on_reopened.take() {
                        on_reopened(listen);
                    }
                }
                Request::Over(moved) => return moved,
            }
        }
        Err(MoveError::Interrupted)
    }
}
