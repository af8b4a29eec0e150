//! The server itself: accepts connections, answers requests, and moves on SIGUSR1.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use mpq_core::h3::Priority;
use mpq_core::proto::server::AlternativeAddresses;
use mpq_core::server::{AcceptError, BindError, Server, ServerConfig, Session};
use mpq_core::tls::{Identity, TlsError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::Serve;
use crate::checkpoint::control::{Control, POLL_INTERVAL};
use crate::checkpoint::heap;
use crate::checkpoint::process;
use crate::error::{At, Error};
use crate::log;
use crate::relocate::Mover;
use crate::signals::{Signals, Wish};
use crate::site::files::Root;
use crate::site::random::Random;
use crate::site::{Site, respond};
use crate::stats;

/// For what is logged of connections that end with the server.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the server until it is told to leave.
///
/// # Errors
/// It cannot start.
pub fn run(options: Serve) -> Result<(), Error> {
    heap::keep();
    log::start(options.log_file.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Error::Start(error.to_string()))?
        .block_on(serve(options))
}

async fn serve(options: Serve) -> Result<(), Error> {
    let identity = match certificate(&options) {
        Some(identity) => identity,
        None => Identity::self_signed(&["localhost".to_owned()]),
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
        resume: options.resume,
        ..ServerConfig::default()
    };
    let server = Server::bind(options.listen, &identity, config).map_err(|error| match error {
        BindError::Listen(address, error) => Error::Listen(address, error),
        error => Error::Start(error.to_string()),
    })?;
    // Before anybody can find this process and send it one.
    let mut signals = Signals::new()?;
    let control = Control::of(std::process::id() as i32);
    control.create_anew()?;
    Control::remove_dead();
    if let Err(error) = announce(&control) {
        tracing::warn!("`checkpoint` will not find this server: {error}");
    }
    if let Some(file) = &options.pid_file {
        fs::write(file, std::process::id().to_string()).at(file)?;
    }
    tracing::info!("listening on {}", server.local_addr());
    tracing::info!("certificate sha256 {}", identity.fingerprint());

    let mut mover = Mover::new(server.clone(), control.clone(), options.clone());
    let running = Arc::new(AtomicUsize::new(0));
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            handshake = server.accept() => {
                let Some(handshake) = handshake else { break };
                let (site, running) = (site.clone(), running.clone());
                sessions.spawn(async move {
                    let remote = handshake.remote();
                    match handshake.await {
                        Ok(session) => answer(session, site, running).await,
                        // Also what anybody may send who only looks for open ports.
                        Err(error @ AcceptError::Timeout(_)) => tracing::debug!("{remote}: {error}"),
                        Err(error) => tracing::info!("{remote}: {error}"),
                    }
                });
            }
            Some(_) = sessions.join_next() => {}
            wish = signals.next() => match wish {
                Wish::Leave => break,
                Wish::Move => mover.begin(),
                Wish::Reload => reload(&server, &options),
                Wish::Nothing => tracing::info!("SIGUSR2 has no meaning here"),
            },
        }
    }
    tracing::info!(
        "leaving; {} responses are running",
        running.load(Ordering::Relaxed)
    );
    server.go_away();
    let finished = async {
        while running.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        () = finished => {}
        // Refuses who comes now.
        _ = server.accept() => {}
        () = tokio::time::sleep(options.grace) => tracing::warn!("some responses are cut off"),
        () = signals.leave() => {}
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

/// That of the command line, if it names one.
fn certificate(options: &Serve) -> Option<Result<Identity, TlsError>> {
    let (cert, key) = (options.cert.as_ref()?, options.key.as_ref()?);
    Some(Identity::from_pem(cert, key))
}

/// Reads the certificate and its key again, for connections that are made from now on.
fn reload(server: &Server, options: &Serve) {
    let Some(identity) = certificate(options) else {
        return tracing::info!("there is no --cert to be read again");
    };
    let set = identity.and_then(|identity| {
        server.set_identity(&identity)?;
        Ok(identity.fingerprint())
    });
    match set {
        Ok(fingerprint) => tracing::info!("certificate sha256 {fingerprint}, read again"),
        Err(error) => tracing::error!("the certificate stays as it was: {error}"),
    }
}

/// Says which process this is.
fn announce(control: &Control) -> Result<(), Error> {
    let pid = std::process::id() as i32;
    control.write(&process::Identity::of(pid).at("/proc")?)
}

/// Answers the requests of one connection.
async fn answer(session: Session, site: Arc<Site>, running: Arc<AtomicUsize>) {
    let Session {
        mut h3,
        remote,
        turns,
        traffic,
    } = session;
    tracing::info!("{remote} connected");
    let mut requests = JoinSet::new();
    while let Ok(Some(request)) = h3.accept().await {
        let (site, turns, running) = (site.clone(), turns.clone(), Running::new(&running));
        requests.spawn(async move {
            let _running = running;
            let Ok((request, mut stream)) = request.resolve_request().await else {
                return;
            };
            if let Some(priority) = priority(request.headers()) {
                turns.asked(stream.id(), priority);
            }
            let served = respond(&site, &request, &mut stream).await;
            tracing::info!(
                "{remote} {} {} {} {} bytes{}",
                request.method(),
                request.uri().path(),
                served.status.as_u16(),
                served.bytes,
                served.cut.map_or(String::new(), |why| format!(
                    " cut off: {}",
                    why.escape_debug()
                ))
            );
        });
        while requests.try_join_next().is_some() {}
    }
    // Also where the client makes no more requests (GOAWAY): it waits for those that it has made.
    while requests.join_next().await.is_some() {}
    // Closes the connection, if it is not closed yet.
    drop(h3);
    tracing::info!("{remote} disconnected");
    if let Ok(traffic) = traffic.await {
        stats::log(remote, &traffic);
    }
}

/// What a request says of when it is to be answered (RFC 9218 §5).
fn priority(header: &HeaderMap) -> Option<Priority> {
    let lines = header.get_all("priority").iter();
    let lines: Result<Vec<_>, _> = lines.map(HeaderValue::to_str).collect();
    let field = lines.ok().filter(|lines| !lines.is_empty())?.join(",");
    field.parse().ok()
}

/// A response that is running, for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
