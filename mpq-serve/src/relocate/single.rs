//! One move.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mpq_core::proto::server::Announcement;
use mpq_core::server::{Server, Thaw};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::progress::{Progress, Step};
use crate::args::Serve;
use crate::checkpoint::control::{Control, POLL_INTERVAL};
use crate::checkpoint::helper::Dumper;
use crate::checkpoint::notes::{
    CheckpointRequest, Clients, Manifest, RequestId, Serving, Thawed, ToForward, Undumped, Unpark,
    now,
};
use crate::checkpoint::park::{self, Outcome, Parked};
use crate::checkpoint::{forward, heap, helper, images, namespace, preflight, stdio};
use crate::error::{At, Error, Failure};
use crate::presence::{announce, folders, write_pid_file, write_settings};
use crate::site::descriptors;
use crate::tcp::Doors;
use crate::{log, supervisor};

/// A parked server that hears nothing for so long, by its own clock, goes on where it was.
const PARKED_AT_MOST: Duration = Duration::from_secs(60);

/// So long before a server parks it starts the helper, which is ready to dump it then.
const HEAD_START: Duration = Duration::from_millis(500);

/// How often it is looked how many clients have come along, for who wants to know.
const CLIENTS_INTERVAL: Duration = Duration::from_millis(5);

/// What freezes the server once it is parked.
enum Freeze {
    /// Nothing: it is silent for so long.
    InProcess(Duration),
    /// CRIU, which this one runs.
    By(Dumper),
    /// Whoever has it parked, in this time.
    ByOthers(Duration),
}

/// One move of the server.
pub(super) struct Move {
    pub(super) server: Server,
    pub(super) control: Control,
    pub(super) options: Serve,
    pub(super) doors: Arc<tokio::sync::Mutex<Doors>>,
    pub(super) id: RequestId,
    /// Whether clients that cannot follow are kept, and forwarded.
    pub(super) forward: bool,
    pub(super) progress: Arc<Progress>,
    /// Why it was not dumped once it was parked.
    pub(super) undumped: Mutex<Option<Failure>>,
}

impl Move {
    /// Goes through it.
    ///
    /// # Errors
    /// The server stays where it was; why.
    pub(super) async fn run(&self, request: CheckpointRequest) -> Result<(), Error> {
        let targets = match request.migrate_to.is_empty() {
            true => self.options.migrate_to.clone(),
            false => request.migrate_to,
        };
        if targets.is_empty() {
            return Err(Error::Dump("nowhere to move to: give --migrate-to".into()));
        }
        if let Some(silence) = self.options.move_in_process {
            return self.relocate(targets, Freeze::InProcess(silence)).await;
        }
        if let Some(limit) = request.park {
            preflight::check_maps("self")?;
            return self.relocate(targets, Freeze::ByOthers(limit)).await;
        }
        if let Some(dumper) = request.dumper {
            let dumper = Freeze::By(Dumper::Root(dumper));
            return self.relocate(targets, dumper).await;
        }
        let parent = request.images.or_else(|| self.options.images.clone());
        let parent = std::path::absolute(parent.unwrap_or_else(Control::images)).at(".")?;
        // Before anybody is told of a move that cannot be.
        let criu = request.criu;
        let images = preflight::prepare("self", &parent, &self.id, criu.as_deref())?;
        let dumper = Dumper::Helper {
            images: images.clone(),
            criu,
        };
        let moved = self.relocate(targets, Freeze::By(dumper)).await;
        if moved.is_err() {
            // Unless there is something in it, which the helper may still write or remove.
            let _ = std::fs::remove_dir(images);
        }
        moved
    }

    async fn relocate(&self, targets: Vec<SocketAddr>, freeze: Freeze) -> Result<(), Error> {
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
            forwarded: self.forward,
        };
        tracing::info!("moving to {targets:?}");
        supervisor::moving(&targets);
        let announced = now();
        let (starts_helper, helper) = oneshot::channel::<Result<i32, Error>>();
        let frozen = async {
            self.progress.step.send_replace(Step::Parked);
            self.doors.lock().await.close().await;
            let thaw = match &freeze {
                Freeze::InProcess(silence) => tokio::select! {
                    () = tokio::time::sleep(*silence) => Thaw::At(targets[0]),
                    () = self.told_to_leave() => Thaw::Failed(Error::Leaving.into()),
                },
                Freeze::ByOthers(limit) => {
                    let parked = self.manifest(targets.clone(), announced);
                    self.stand_by(&parked, *limit).await
                }
                Freeze::By(dumper) => match helper.await {
                    Ok(Ok(helper)) => {
                        let parked = self.manifest(targets.clone(), announced);
                        self.freeze(&parked, helper, dumper.images()).await
                    }
                    Ok(Err(error)) => Thaw::Failed(error.into()),
                    Err(_) => Thaw::Failed("the helper was not started".into()),
                },
            };
            self.progress.step.send_replace(match &thaw {
                Thaw::Failed(_) => Step::Stayed,
                Thaw::At(_) => Step::Woken(Instant::now()),
            });
            let pid_file = write_pid_file(&self.options);
            let settings = write_settings(&self.control, &self.options);
            for error in [pid_file, settings].into_iter().filter_map(Result::err) {
                tracing::warn!("{error}");
            }
            thaw
        };
        let told_to_leave_before = async {
            self.told_to_leave().await;
            if *self.progress.step.borrow() != Step::Announced {
                std::future::pending::<()>().await;
            }
        };
        let start_helper = async {
            if let Freeze::By(dumper) = &freeze {
                tokio::time::sleep(self.options.lead.saturating_sub(HEAD_START)).await;
                let (control, id) = (self.control.clone(), self.id.clone());
                let dumper = dumper.clone();
                let start = move || helper::start(&control, &id, &dumper);
                if let Ok(result) = tokio::task::spawn_blocking(start).await {
                    let _ = starts_helper.send(result);
                }
            }
            std::future::pending().await
        };
        let on_reopened = |listen| {
            let _ = self.control.write(&Serving { listen });
            supervisor::moved(listen);
            let doors = self.doors.clone();
            tokio::spawn(async move { doors.lock().await.reopen(listen) });
            tokio::spawn(tell_of_clients(self.server.clone(), self.control.clone()));
        };
        let moved = tokio::select! {
            // First of all, since a move that cannot begin needs no helper.
            biased;
            moved = self.server.relocate(announcement, frozen, on_reopened) => moved,
            // The move is undone, and the clients are told.
            () = told_to_leave_before => return Err(Error::Leaving),
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

    /// What is known of the images of this server, which is parked.
    fn manifest(&self, targets: Vec<SocketAddr>, announced: f64) -> Manifest {
        Manifest {
            program: Manifest::PROGRAM.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id() as i32,
            id_outside: Some(namespace::own_id()),
            control: self.control.path().to_owned(),
            listen: self.server.local_addr(),
            targets,
            sequence: self.server.sequence(),
            announced,
            parked: now(),
            dump_started: 0.0,
            dumped: 0.0,
            pid_file: self.options.pid_file.clone(),
            log_file: self.options.log_file.clone(),
            logs_to_journal: log::is_in_journal(),
            owner: None,
            folders: folders(&self.options),
            files: Default::default(),
        }
    }

    /// Removes what notes there are from earlier moves: these, and those that a server leaves that has woken.
    fn clear(&self, these: fn(&Control)) {
        for clear in [these, Control::clear::<Serving>, Control::clear::<Clients>] {
            clear(&self.control);
        }
    }

    /// Waits until somebody else has dumped the process and restored it, or it is to go on.
    async fn stand_by(&self, parked: &Manifest, limit: Duration) -> Thaw {
        self.clear(Control::clear::<Unpark>);
        let _no_file_is_open = descriptors::close().await;
        // The standard streams are left to whoever dumps it.
        log::flush();
        heap::give_back();
        let standing = match Parked::new(Instant::now(), limit) {
            Ok(standing) => standing,
            Err(error) => return Thaw::Failed(error.into()),
        };
        if let Err(error) = self.control.write_on(&self.id, parked) {
            return Thaw::Failed(error.into());
        }
        let outcome = loop {
            let is_to_leave = *self.progress.leave.borrow();
            if let Some(outcome) = standing.look(Instant::now(), &self.control, is_to_leave) {
                break outcome;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        self.control.clear_on::<Manifest>(&self.id);
        match outcome {
            Outcome::Restored => {
                let told = self.control.create().and_then(|()| announce(&self.control));
                if let Err(error) = told {
                    tracing::warn!("`park` will not find this server: {error}");
                }
                tracing::info!("restored");
                Thaw::At(park::address(parked))
            }
            Outcome::Unparked => Thaw::Failed(Error::Dump("told to go on".into()).into()),
            Outcome::Forgotten => Thaw::Failed(Error::Dump("nobody dumped it".into()).into()),
            Outcome::ToldToLeave => {
                // Its clients may be with the restored one by now: a word from here would end that.
                tracing::info!("leaving without a word, parked");
                log::flush();
                self.control.remove();
                std::process::exit(0)
            }
        }
    }

    /// Has the helper dump the process, into `images` if it has them itself, and resolves when it has woken, here or there.
    async fn freeze(&self, parked: &Manifest, helper: i32, images: Option<&Path>) -> Thaw {
        self.clear(Control::clear::<Thawed>);
        let _no_file_is_open = descriptors::close().await;
        stdio::detach();
        heap::give_back();
        // Without clients a forwarder ends at once.
        let forwarding = self.server.forwarding();
        let forwarding = forwarding.filter(|forwarding| !forwarding.clients.is_empty());
        let to_forward = forwarding.map(|forwarding| {
            let to_forward = ToForward::new(parked.listen, parked.targets[0], &forwarding);
            self.control.write_on(&self.id, &to_forward)
        });
        let told = to_forward.unwrap_or(Ok(()));
        if let Err(error) = told.and_then(|()| self.control.write_on(&self.id, parked)) {
            return Thaw::Failed(error.into());
        }
        let since = tokio::time::Instant::now();
        let given_up = |reason: &str| Failure::of(&Error::Dump(reason.to_owned()));
        let mut leave = self.progress.leave.subscribe();
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
            if *leave.borrow_and_update() {
                // It has those that the server had.
                stdio::take_over(helper.unsigned_abs());
                break Failure::of(&Error::Leaving);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        // From here on a dump does not count. One from before does: this may be the restored server, which finds
        // no helper where it is now.
        self.control.clear_on::<Manifest>(&self.id);
        self.thawed().unwrap_or_else(|| {
            forward::end_of(&self.control, &self.id);
            // The helper and CRIU may have been killed when they were complete. Another server would wake from them.
            images.into_iter().for_each(images::discard);
            let message = failure.message.clone();
            *self.undumped.lock().expect("nobody panics") = Some(failure);
            Thaw::Failed(message.into())
        })
    }

    /// Resolves when the server is to leave.
    async fn told_to_leave(&self) {
        let mut leave = self.progress.leave.subscribe();
        let _ = leave.wait_for(|leave| *leave).await;
    }

    /// Where a restored server is to go on.
    fn thawed(&self) -> Option<Thaw> {
        let thawed = self.control.take::<Thawed>()?;
        namespace::restored(thawed.pid);
        stdio::take_over(thawed.streams_of);
        if let Some(file) = thawed.log_file {
            log::go_on_in(file);
        }
        Some(match thawed.undone {
            Some(reason) => Thaw::Failed(reason.into()),
            None => Thaw::At(thawed.listen),
        })
    }
}

/// Leaves notes of what becomes of the clients of a server that has just moved, until nobody is waited for.
async fn tell_of_clients(server: Server, control: Control) {
    let sequence = server.sequence();
    let mut told = None;
    loop {
        let clients = Clients::from(server.arrivals());
        let is_over = clients.is_over;
        if told.as_ref() != Some(&clients) {
            let _ = control.write(&clients);
            told = Some(clients);
        }
        if is_over || server.sequence() != sequence {
            return;
        }
        tokio::time::sleep(CLIENTS_INTERVAL).await;
    }
}
