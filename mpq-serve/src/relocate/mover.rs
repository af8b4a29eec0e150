//! One move after the other, for who wants one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mpq_core::server::Server;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::progress::{Progress, Step};
use super::single::Move;
use crate::args::Serve;
use crate::checkpoint::control::{Control, LockOf, POLL_INTERVAL};
use crate::checkpoint::notes::{CheckpointRequest, Failed, RequestId, Undumped, Waiting};
use crate::error::{Error, Failure};
use crate::listeners::NO_MOVE;
use crate::metrics::Metrics;
use crate::supervisor;
use crate::tcp::Doors;

/// How long a `checkpoint` may take to read that there is none.
const READING_LIMIT: Duration = Duration::from_secs(1);

/// What is logged of a signal that was in the images of a server.
const OLD_SIGNAL: &str = "a signal from before the move is ignored";

/// How long a server that is told to leave waits until its move is ended, or it knows that it has woken elsewhere.
const ENDING_LIMIT: Duration = Duration::from_secs(5);

/// Moves the server, once at a time.
pub(crate) struct Mover {
    server: Server,
    control: Control,
    options: Serve,
    doors: Arc<tokio::sync::Mutex<Doors>>,
    metrics: Arc<Metrics>,
    under_way: Option<UnderWay>,
    /// The next one, which waits for the clients of this one.
    next: Option<Wanted>,
}

/// A move that was begun, and may be over.
struct UnderWay {
    task: JoinHandle<()>,
    progress: Arc<Progress>,
}

/// A move that somebody wants; whoever waits for what becomes of it made the request.
type Wanted = Option<CheckpointRequest>;

impl Mover {
    pub(crate) fn new(
        server: Server,
        control: Control,
        options: Serve,
        doors: Arc<tokio::sync::Mutex<Doors>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            server,
            control,
            options,
            doors,
            metrics,
            under_way: None,
            next: None,
        }
    }

    /// Begins a move, as the command line and the `checkpoint` command want it, unless one is under way. If that
    /// only waits for its clients, this one begins afterwards. A failure is logged, and left as a note for whoever waits
    /// for the checkpoint.
    pub(crate) fn begin(&mut self) {
        let request = self.request();
        match self.step() {
            None => self.start(request),
            Some(step) if request.is_none() && step.hears_old_signals() => {
                tracing::warn!("{OLD_SIGNAL}");
            }
            Some(Step::Woken(_)) if self.next.is_none() => {
                tracing::info!(
                    "the next move begins once the clients of this one have come, or in 30 s"
                );
                if let Some(request) = &request {
                    let _ = self.control.write_on(&request.id, &Waiting {});
                }
                self.next = Some(request);
            }
            Some(_) => {
                tracing::warn!("a second move is refused: one is under way");
                if let Some(request) = request {
                    fail(&self.control, &request.id, &Error::Busy);
                }
            }
        }
    }

    /// Begins the move that waits for the end of another one, when that is over.
    pub(crate) async fn begin_next(&mut self) {
        match (&mut self.under_way, &self.next) {
            (Some(last), Some(_)) if last.task.is_finished() => {}
            (Some(last), Some(_)) => drop((&mut last.task).await),
            _ => std::future::pending().await,
        }
        match self.next.take().flatten() {
            Some(_) if !self.is_awaited() => {
                tracing::info!("the next move is off: nobody waits for it any more");
            }
            request => self.start(request),
        }
    }

    /// The server is told to leave. Ends a move as long as the server is here, and tells its clients so. Whether it is
    /// to leave: not if it has woken elsewhere meanwhile, since it was told before.
    pub(crate) async fn leave(&mut self) -> bool {
        if let Some(Some(request)) = self.next.take() {
            fail(&self.control, &request.id, &Error::Leaving);
        }
        let Some(UnderWay { task, progress }) = &mut self.under_way else {
            return true;
        };
        let mut step = progress.step.subscribe();
        progress.leave.send_replace(true);
        let is_elsewhere = |step: &Step| matches!(step, Step::Woken(_));
        if !task.is_finished() {
            tokio::select! {
                _ = task => {}
                _ = step.wait_for(is_elsewhere) => {}
                () = tokio::time::sleep(ENDING_LIMIT) => {}
            }
        }
        let step = *progress.step.borrow();
        let is_old = self.options.move_in_process.is_none() && step.hears_old_signals();
        if is_old {
            tracing::warn!("{OLD_SIGNAL}");
            progress.leave.send_replace(false);
        }
        !is_old
    }

    /// How far the move is that is under way, or that has ended so soon that a signal from its images may still come.
    fn step(&self) -> Option<Step> {
        let under_way = self.under_way.as_ref()?;
        let step = *under_way.progress.step.borrow();
        let has_images = self.options.move_in_process.is_none();
        let counts = !under_way.task.is_finished() || has_images && step.hears_old_signals();
        counts.then_some(step)
    }

    /// Waits until who has asked for a move has read what became of it, as long as that should take.
    pub(crate) async fn is_heard(&self) {
        let heard = async {
            while self.is_awaited() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let _ = timeout(READING_LIMIT, heard).await;
    }

    fn start(&mut self, request: Wanted) {
        if self.options.listen.len() > 1 {
            tracing::error!("the server does not move: {NO_MOVE}");
            if let Some(request) = &request {
                fail(&self.control, &request.id, &Error::Dump(NO_MOVE.to_owned()));
            }
            return;
        }
        if let (Some(request), Some(_)) = (&request, self.options.move_in_process) {
            let reason =
                "it was started with --move-in-process, which leaves no images: send it SIGUSR1";
            return fail(&self.control, &request.id, &Error::Dump(reason.to_owned()));
        }
        let is_awaited = request.is_some();
        let request = request.unwrap_or_default();
        let progress = Arc::new(Progress {
            step: watch::Sender::new(Step::Announced),
            leave: watch::Sender::new(false),
        });
        let one = Move {
            server: self.server.clone(),
            control: self.control.clone(),
            options: self.options.clone(),
            doors: self.doors.clone(),
            id: request.id.clone(),
            forward: request.forward,
            progress: progress.clone(),
            undumped: Mutex::default(),
        };
        let metrics = self.metrics.clone();
        let task = tokio::spawn(async move {
            let moved = one.run(request).await;
            metrics.moved(moved.is_ok());
            let Err(error) = moved else {
                return;
            };
            tracing::error!("{error}");
            supervisor::stays(one.server.local_addr(), &error);
            one.control.clear_on::<Undumped>(&one.id);
            // Whoever has parked it waits no longer.
            if is_awaited && self::is_awaited(&one.control) {
                fail(&one.control, &one.id, &error);
            }
        });
        self.under_way = Some(UnderWay { task, progress });
    }

    /// What the `checkpoint` command that has sent the signal wants. Without one the signal came from elsewhere.
    fn request(&self) -> Option<CheckpointRequest> {
        let request = self.control.take::<CheckpointRequest>()?;
        // One that was ended before it could send the signal left its wish behind.
        self.is_awaited().then_some(request)
    }

    fn is_awaited(&self) -> bool {
        is_awaited(&self.control)
    }
}

/// Whether there is a command that waits for what becomes of the move.
fn is_awaited(control: &Control) -> bool {
    let locked = control.try_lock(LockOf::Command);
    locked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

fn fail(control: &Control, id: &RequestId, error: &Error) {
    let failed = Failed {
        failure: Failure::of(error),
    };
    let _ = control.write_on(id, &failed);
}
