//! A move of the server: announced, prepared, and gone through, by CRIU or within the process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mpq_core::proto::server::Announcement;
use mpq_core::server::{Server, Thaw};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::args::Serve;
use crate::checkpoint::control::{Control, LockOf, POLL_INTERVAL};
use crate::checkpoint::notes::{
    CheckpointRequest, Failed, Manifest, RequestId, Serving, Thawed, Undumped, now,
};
use crate::checkpoint::{heap, helper, preflight, stdio};
use crate::error::{At, Error, Failure};
use crate::metrics::Metrics;
use crate::tcp::Doors;

/// A parked server that hears nothing for so long, by its own clock, goes on where it was.
const PARKED_AT_MOST: Duration = Duration::from_secs(60);

/// So long before a server parks it starts the helper, which is ready to dump it then.
const HEAD_START: Duration = Duration::from_millis(500);

/// Moves the server, once at a time.
pub(crate) struct Mover {
    server: Server,
    control: Control,
    options: Serve,
    doors: Arc<tokio::sync::Mutex<Doors>>,
    metrics: Arc<Metrics>,
    under_way: Option<JoinHandle<()>>,
}

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
        }
    }

    /// Begins a move, as the command line and the `checkpoint` command want it, unless one is under way. A failure
    /// is logged, and left as a note for whoever waits for the checkpoint.
    pub(crate) fn begin(&mut self) {
        let request = self.request();
        let busy = self
            .under_way
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        if busy {
            tracing::warn!("a second move is refused: one is under way");
            if let Some(request) = request {
                fail(&self.control, &request.id, &Error::Busy);
            }
            return;
        }
        if let (Some(request), Some(_)) = (&request, self.options.move_in_process) {
            let reason =
                "it was started with --move-in-process, which leaves no images: send it SIGUSR1";
            return fail(&self.control, &request.id, &Error::Dump(reason.to_owned()));
        }
        let is_awaited = request.is_some();
        let request = request.unwrap_or_else(|| CheckpointRequest {
            id: RequestId::new(),
            images: None,
            migrate_to: Vec::new(),
        });
        let one = Move {
            server: self.server.clone(),
            control: self.control.clone(),
            options: self.options.clone(),
            doors: self.doors.clone(),
            id: request.id.clone(),
            undumped: Mutex::default(),
        };
        let metrics = self.metrics.clone();
        self.under_way = Some(tokio::spawn(async move {
            let moved = one.run(request).await;
            metrics.moved(moved.is_ok());
            let Err(error) = moved else {
                return;
            };
            tracing::error!("{error}");
            one.control.clear_on::<Undumped>(&one.id);
            if is_awaited {
                fail(&one.control, &one.id, &error);
            }
        }));
    }

    /// What the `checkpoint` command that has sent the signal wants. Without one the signal came from elsewhere.
    fn request(&self) -> Option<CheckpointRequest> {
        let request = self.control.take::<CheckpointRequest>()?;
        // One that was ended before it could send the signal left its wish behind.
        self.control
            .try_lock(LockOf::Command)
            .is_err()
            .then_some(request)
    }
}

fn fail(control: &Control, id: &RequestId, error: &Error) {
    let failed = Failed {
        failure: Failure::of(error),
    };
    let _ = control.write_on(id, &failed);
}

/// One move of the server.
struct Move {
    server: Server,
    control: Control,
    options: Serve,
    doors: Arc<tokio::sync::Mutex<Doors>>,
    id: RequestId,
    /// Why it was not dumped once it was parked.
    undumped: Mutex<Option<Failure>>,
}

impl Move {
    async fn run(&self, request: CheckpointRequest) -> Result<(), Error> {
        let targets = match request.migrate_to.is_empty() {
            true => self.options.migrate_to.clone(),
            false => request.migrate_to,
        };
        if targets.is_empty() {
            return Err(Error::Dump("nowhere to move to: give --migrate-to".into()));
        }
        if self.options.move_in_process.is_some() {
            return self.relocate(targets, Path::new("")).await;
        }
        let parent = request.images.or_else(|| self.options.images.clone());
        let parent = std::path::absolute(parent.unwrap_or_else(Control::images)).at(".")?;
        // Before anybody is told of a move that cannot be.
        let images = preflight::prepare(&parent, &self.id)?;
        let moved = self.relocate(targets, &images).await;
        if moved.is_err() {
            // Unless there is something in it, which the helper may still write or remove.
            let _ = std::fs::remove_dir(&images);
        }
        moved
    }

    async fn relocate(&self, targets: Vec<SocketAddr>, images: &Path) -> Result<(), Error> {
        let announcement = Announcement {
            targets: match self.options.unannounced {
                true => Vec::new(),
                false => targets.clone(),
            },
            lead: self.options.lead,
            outage: self
                .options
                .outage
                .or(self.options.move_in_process)
                .unwrap_or_default(),
        };
        tracing::info!("moving to {targets:?}");
        let announced = now();
        let (starts_helper, helper) = oneshot::channel::<Result<i32, Error>>();
        let freeze = async {
            self.doors.lock().await.close().await;
            match self.options.move_in_process {
                Some(silence) => {
                    tokio::time::sleep(silence).await;
                    Thaw::At(targets[0])
                }
                None => match helper.await {
                    Ok(Ok(helper)) => self.freeze(targets.clone(), announced, helper).await,
                    Ok(Err(error)) => Thaw::Failed(error.into()),
                    Err(_) => Thaw::Failed("the helper was not started".into()),
                },
            }
        };
        let start_helper = async {
            if self.options.move_in_process.is_none() {
                tokio::time::sleep(self.options.lead.saturating_sub(HEAD_START)).await;
                let (control, id) = (self.control.clone(), self.id.clone());
                let images = PathBuf::from(images);
                let start = move || helper::start(&control, &images, &id);
                if let Ok(result) = tokio::task::spawn_blocking(start).await {
                    let _ = starts_helper.send(result);
                }
            }
            std::future::pending().await
        };
        let on_reopened = |listen| {
            let _ = self.control.write(&Serving { listen });
            let doors = self.doors.clone();
            tokio::spawn(async move { doors.lock().await.reopen(listen) });
        };
        let moved = tokio::select! {
            // First of all, since a move that cannot begin needs no helper.
            biased;
            moved = self.server.relocate(announcement, freeze, on_reopened) => moved,
            never = start_helper => match never {},
        };
        let undumped = || self.undumped.lock().expect("nobody panics").take();
        let listen = moved.map_err(|error| match undumped() {
            Some(failure) => Error::Told(failure),
            None => Error::Dump(error.to_string()),
        })?;
        tracing::info!(
            "listening on {listen}, {} handshakes",
            self.server.handshakes()
        );
        Ok(())
    }

    /// Has the helper dump the process, and resolves when it has woken, here or there.
    async fn freeze(&self, targets: Vec<SocketAddr>, announced: f64, helper: i32) -> Thaw {
        for clear in [Control::clear::<Thawed>, Control::clear::<Serving>] {
            clear(&self.control);
        }
        stdio::detach();
        heap::give_back();
        let parked = Manifest {
            program: Manifest::PROGRAM.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id() as i32,
            control: self.control.path().to_owned(),
            listen: self.server.local_addr(),
            targets,
            sequence: self.server.sequence(),
            announced,
            parked: now(),
            dump_started: 0.0,
            dumped: 0.0,
            files: Default::default(),
        };
        if let Err(error) = self.control.write_on(&self.id, &parked) {
            return Thaw::Failed(error.into());
        }
        let since = tokio::time::Instant::now();
        let given_up = |reason: &str| Failure::of(&Error::Dump(reason.to_owned()));
        let failure = loop {
            if let Some(thaw) = self.thawed() {
                return thaw;
            }
            if let Some(undumped) = self.control.read_on::<Undumped>(&self.id) {
                // The helper lends its streams.
                stdio::take_over(undumped.streams_of);
                break undumped.failure;
            }
            // Looked at after its last word would have been read.
            if kill(Pid::from_raw(helper), None).is_err() {
                break given_up("its helper has ended without a word");
            }
            if since.elapsed() > PARKED_AT_MOST {
                break given_up("nobody dumped it");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        // From here on a dump does not count. One from before does: this may be the restored server, which finds
        // no helper where it is now.
        self.control.clear_on::<Manifest>(&self.id);
        self.thawed().unwrap_or_else(|| {
            let message = failure.message.clone();
            *self.undumped.lock().expect("nobody panics") = Some(failure);
            Thaw::Failed(message.into())
        })
    }

    /// Where a restored server is to go on.
    fn thawed(&self) -> Option<Thaw> {
        let thawed = self.control.take::<Thawed>()?;
        stdio::take_over(thawed.streams_of);
        Some(Thaw::At(thawed.listen))
    }
}
