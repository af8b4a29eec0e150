//! A move of the server: announced, prepared, and gone through, by CRIU or within the process.

use std::net::SocketAddr;
use std::time::Duration;

use mpq_core::proto::server::Announcement;
use mpq_core::server::{Server, Thaw};
use tokio::sync::oneshot;

use crate::args::Serve;
use crate::checkpoint;
use crate::checkpoint::control::{
    CheckpointRequest, Control, Failed, Manifest, POLL_INTERVAL, Serving, Thawed, now,
};
use crate::checkpoint::criu::Criu;
use crate::checkpoint::{heap, stdio};
use crate::error::{At, Error, Failure};

/// A parked server that hears nothing for so long, by its own clock, goes on where it was.
const PARKED_AT_MOST: Duration = Duration::from_secs(60);

/// So long before a server parks it starts the helper, which is ready to dump it then.
const HEAD_START: Duration = Duration::from_millis(500);

/// One move of the server.
pub(crate) struct Mover {
    pub(crate) server: Server,
    pub(crate) control: Control,
    pub(crate) options: Serve,
}

impl Mover {
    /// Moves, as the command line and the `checkpoint` command want it. A failure is logged, and left
    /// as a note for whoever waits for the checkpoint.
    pub(crate) async fn relocate(self) {
        let request: CheckpointRequest = self.control.read().unwrap_or_default();
        self.control.clear::<CheckpointRequest>();
        if let Err(error) = self.try_relocate(request).await {
            tracing::error!("{error}");
            let failure = Failure {
                message: error.to_string(),
                code: error.code(),
            };
            // The helper has said it already, if there was one.
            if self.control.read::<Failed>().is_none() {
                let _ = self.control.write(&Failed {
                    failure,
                    streams_of: 0,
                });
            }
        }
    }

    async fn try_relocate(&self, request: CheckpointRequest) -> Result<(), Error> {
        let targets = match request.migrate_to.is_empty() {
            true => self.options.migrate_to.clone(),
            false => request.migrate_to,
        };
        if targets.is_empty() {
            return Err(Error::Dump("nowhere to move to: give --migrate-to".into()));
        }
        if self.options.move_in_process.is_none() {
            // Before anybody is told of a move that cannot be.
            Criu::find("mpq-serve")?;
        }
        let images = request.images.or_else(|| self.options.images.clone());
        let images =
            std::path::absolute(images.unwrap_or_else(|| self.control.images())).at(".")?;
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
        let (starts_helper, helper) = oneshot::channel::<Result<(), Error>>();
        let freeze = async {
            match self.options.move_in_process {
                Some(silence) => {
                    tokio::time::sleep(silence).await;
                    Thaw::At(targets[0])
                }
                None => match helper.await {
                    Ok(Ok(())) => self.freeze(targets.clone(), announced).await,
                    Ok(Err(error)) => Thaw::Failed(error.into()),
                    Err(_) => Thaw::Failed("the helper was not started".into()),
                },
            }
        };
        let start_helper = async {
            if self.options.move_in_process.is_none() {
                tokio::time::sleep(self.options.lead.saturating_sub(HEAD_START)).await;
                let control = self.control.clone();
                let start = move || checkpoint::start_helper(&control, &images);
                if let Ok(result) = tokio::task::spawn_blocking(start).await {
                    let _ = starts_helper.send(result);
                }
            }
            std::future::pending().await
        };
        let on_reopened = |listen| {
            let _ = self.control.write(&Serving { listen });
        };
        let moved = tokio::select! {
            // First of all, since a move that cannot begin needs no helper.
            biased;
            moved = self.server.relocate(announcement, freeze, on_reopened) => moved,
            never = start_helper => match never {},
        };
        let listen = moved.map_err(|error| Error::Dump(error.to_string()))?;
        tracing::info!(
            "listening on {listen}, {} handshakes",
            self.server.handshakes()
        );
        Ok(())
    }

    /// Has the helper dump the process, and resolves when it has woken, here or there.
    async fn freeze(&self, targets: Vec<SocketAddr>, announced: f64) -> Thaw {
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
        };
        if let Err(error) = self.control.write(&parked) {
            return Thaw::Failed(error.into());
        }
        let since = tokio::time::Instant::now();
        loop {
            if let Some(thawed) = self.control.read::<Thawed>() {
                stdio::take_over(thawed.streams_of);
                self.control.clear::<Thawed>();
                return Thaw::At(thawed.listen);
            }
            let failed = self.control.read::<Failed>();
            // The helper lends its streams; a second move, refused meanwhile, has none to lend.
            if let Some(failed) = failed.filter(|failed| failed.streams_of != 0) {
                stdio::take_over(failed.streams_of);
                return Thaw::Failed(failed.failure.message.into());
            }
            if since.elapsed() > PARKED_AT_MOST {
                return Thaw::Failed("nobody dumped it".into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
