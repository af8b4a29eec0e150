//! The server itself: accepts connections, answers requests, and moves on SIGUSR1.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mpq_core::proto::frame::MAX_ADDRESSES;
use mpq_core::proto::server::{AlternativeAddresses, Announcement};
use mpq_core::server::{BindError, Server, ServerConfig, Session, Thaw};
use mpq_core::tls::Identity;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::args::Serve;
use crate::checkpoint;
use crate::control::{Control, Failed, Manifest, POLL, Request, Serving, Thawed, now};
use crate::criu::Criu;
use crate::error::{At, Error, Failure};
use crate::files::Root;
use crate::heap;
use crate::http::{Site, respond};
use crate::random::Random;
use crate::stats;
use crate::streams;

/// A parked server that hears nothing for so long, by its own clock, goes on where it was.
const PARKED_AT_MOST: Duration = Duration::from_secs(60);

/// So long before a server parks it starts the helper, which is ready to dump it then.
const HEAD_START: Duration = Duration::from_millis(500);

/// For what is logged of connections that end with the server.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the server until it is told to leave.
///
/// # Errors
/// It cannot start.
pub fn run(options: Serve) -> Result<(), Error> {
    heap::keep();
    let log_file = options.log_file.clone();
    if let Some(file) = &log_file {
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .at(file)?;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || Log(log_file.clone()))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Error::Start(error.to_string()))?
        .block_on(serve(options))
}

/// Writes a line of the log. The file is not held open, so that the server can be frozen between
/// any two lines, and the file be rotated.
struct Log(Option<PathBuf>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(file) => fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(file)?
                .write(line),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn serve(options: Serve) -> Result<(), Error> {
    if options.pool.len() > MAX_ADDRESSES {
        let message = format!("at most {MAX_ADDRESSES} addresses can be given with --pool");
        return Err(Error::Start(message));
    }
    let identity = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => Identity::from_pem(cert, key),
        _ => Identity::self_signed(&["localhost".to_owned()]),
    };
    let identity = identity.map_err(|error| Error::Start(error.to_string()))?;
    let root = options
        .root
        .as_deref()
        .map(|dir| Root::new(dir).at(dir))
        .transpose()?;
    let site = Arc::new(Site {
        random: Random::new(options.random, options.seed),
        root,
        limit_rate: options.limit_rate,
    });
    let config = ServerConfig {
        congestion: options.congestion,
        elsewhere: AlternativeAddresses {
            pool: options.pool.clone(),
            name: options.name.clone(),
        },
        slow_start: options.slow_start,
    };
    let server = Server::bind(options.listen, &identity, config).map_err(|error| match error {
        BindError::Listen(address, error) => Error::Listen(address, error),
        error => Error::Start(error.to_string()),
    })?;
    let control = Control::of(std::process::id() as i32);
    control.remove();
    control.create()?;
    if let Some(file) = &options.pid_file {
        fs::write(file, std::process::id().to_string()).at(file)?;
    }
    let stop = |kind| signal(kind).map_err(|error| Error::Start(error.to_string()));
    let mut move_signal = stop(SignalKind::user_defined1())?;
    let (mut terminate, mut interrupt) = (
        stop(SignalKind::terminate())?,
        stop(SignalKind::interrupt())?,
    );
    tracing::info!("listening on {}", server.local_addr());
    tracing::info!("certificate sha256 {}", identity.fingerprint());

    let running = Arc::new(AtomicUsize::new(0));
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            handshake = server.accept() => {
                let Some(handshake) = handshake else { break };
                let (site, running) = (site.clone(), running.clone());
                sessions.spawn(async move {
                    if let Some(session) = handshake.await {
                        answer(session, site, running).await;
                    }
                });
            }
            Some(_) = sessions.join_next() => {}
            _ = move_signal.recv() => {
                let mover = Mover {
                    server: server.clone(),
                    control: control.clone(),
                    options: options.clone(),
                };
                tokio::spawn(mover.relocate());
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!(
        "leaving; {} responses are running",
        running.load(Ordering::Relaxed)
    );
    let finished = async {
        while running.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        () = finished => {}
        () = tokio::time::sleep(options.grace) => tracing::warn!("some responses are cut off"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.close().await;
    // They have their figures to log, unless a response clings to its connection.
    let _ = timeout(LAST_WORDS, async {
        while sessions.join_next().await.is_some() {}
    })
    .await;
    control.remove();
    if let Some(file) = &options.pid_file {
        let _ = fs::remove_file(file);
    }
    Ok(())
}

/// Answers the requests of one connection.
async fn answer(session: Session, site: Arc<Site>, running: Arc<AtomicUsize>) {
    let Session {
        mut h3,
        gate,
        remote,
        traffic,
    } = session;
    tracing::info!("{remote} connected");
    while let Ok(Some(request)) = h3.accept().await {
        let (site, gate, running) = (site.clone(), gate.clone(), running.clone());
        tokio::spawn(async move {
            let Ok((request, mut stream)) = request.resolve_request().await else {
                return;
            };
            running.fetch_add(1, Ordering::Relaxed);
            let served = respond(&site, &gate, &request, &mut stream).await;
            running.fetch_sub(1, Ordering::Relaxed);
            tracing::info!(
                "{remote} {} {} {} {} bytes{}",
                request.method(),
                request.uri().path(),
                served.status.as_u16(),
                served.bytes,
                if served.complete { "" } else { " cut off" }
            );
        });
    }
    // Closes the connection, if it is not closed yet.
    drop(h3);
    tracing::info!("{remote} disconnected");
    if let Ok(traffic) = traffic.await {
        stats::log(remote, &traffic);
    }
}

/// One move of the server.
struct Mover {
    server: Server,
    control: Control,
    options: Serve,
}

impl Mover {
    async fn relocate(self) {
        let request: Request = self.control.read().unwrap_or_default();
        self.control.clear::<Request>();
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

    async fn try_relocate(&self, request: Request) -> Result<(), Error> {
        let targets = match request.migrate_to.is_empty() {
            true => self.options.migrate_to.clone(),
            false => request.migrate_to,
        };
        if targets.is_empty() {
            return Err(Error::Dump("nowhere to move to: give --migrate-to".into()));
        }
        if targets.len() > MAX_ADDRESSES {
            let message = format!("at most {MAX_ADDRESSES} addresses can be announced");
            return Err(Error::Dump(message));
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
            outage: Duration::ZERO,
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
                    Ok(Err(error)) => Thaw::Failed(error.to_string()),
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
        streams::detach();
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
            return Thaw::Failed(error.to_string());
        }
        let since = tokio::time::Instant::now();
        loop {
            if let Some(thawed) = self.control.read::<Thawed>() {
                streams::take_over(thawed.streams_of);
                self.control.clear::<Thawed>();
                return Thaw::At(thawed.listen);
            }
            let failed = self.control.read::<Failed>();
            // The helper lends its streams; a second move, refused meanwhile, has none to lend.
            if let Some(failed) = failed.filter(|failed| failed.streams_of != 0) {
                streams::take_over(failed.streams_of);
                return Thaw::Failed(failed.failure.message);
            }
            if since.elapsed() > PARKED_AT_MOST {
                return Thaw::Failed("nobody dumped it".into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
