//! The server itself: accepts connections, answers requests, and moves on SIGUSR1.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use mpq_core::h3::{Priority, is_answered};
use mpq_core::proto::server::AlternativeAddresses;
use mpq_core::server::{self, AcceptError, BindError, ServerConfig, Session};
use mpq_core::tls::Identity;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::access::{AccessLog, Entry, Handshake, Secured};
use crate::args::Serve;
use crate::certificate;
use crate::checkpoint::control::{Control, POLL_INTERVAL};
use crate::checkpoint::heap::{self, LOOK_INTERVAL, Leftovers};
use crate::checkpoint::namespace;
use crate::error::{At, Error};
use crate::greeting;
use crate::guests::{Guest, Guests};
use crate::handover::elder::{self, Event, Inheritance};
use crate::handover::heir::Predecessor;
use crate::listeners::Listeners;
use crate::log;
use crate::metrics::Metrics;
use crate::presence::{announce, write_pid_file, write_settings};
use crate::relocate::Mover;
use crate::service::{Running, Service};
use crate::signals::{Signals, Wish};
use crate::site::files::{Root, RootOptions};
use crate::site::random::Random;
use crate::site::{Patience, Site, Terms, descriptors, respond_on};
use crate::stats;
use crate::supervisor;
use crate::tcp::Doors;
use crate::tcp::door::Door;
use crate::tcp::operator::Operator;
use crate::tcp::site::Tls;
use crate::user::User;

/// For what is logged of connections that end with the server.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the server until it is told to leave, or another process has taken over and nothing is left to do. With a
/// predecessor, takes over from that one first.
///
/// # Errors
/// It cannot start.
pub(crate) fn run(mut options: Serve, predecessor: Option<Predecessor>) -> Result<(), Error> {
    // Before anything else is opened.
    let passed_on = supervisor::Sockets::take(options.tcp)?;
    if !passed_on.quic.is_empty() {
        let addresses = passed_on.quic.iter().map(|socket| socket.local_addr());
        options.listen = addresses.collect::<io::Result<_>>().at("UDP")?;
    }
    heap::keep();
    make_absolute(&mut options)?;
    descriptors::allow_many();
    let user = options.user.as_deref().map(User::named).transpose()?;
    let given = certificate::given(&options)?;
    if let Some(user) = user {
        user.take_over(&options)?;
    }
    log::start(options.log_file.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Error::Start(error.to_string()))?
        .block_on(serve(options, passed_on, given, predecessor))
}

async fn serve(
    mut options: Serve,
    mut passed_on: supervisor::Sockets,
    given: Option<Identity>,
    predecessor: Option<Predecessor>,
) -> Result<(), Error> {
    let service = Arc::new(Service {
        site: site(&options)?,
        access: AccessLog::start(options.access_log.as_deref(), options.access_format)?,
        metrics: Arc::new(Metrics::new()),
        guests: Arc::new(Guests::new(options.limits())),
        send_timeout: Some(options.send_timeout).filter(|limit| !limit.is_zero()),
        leftovers: Leftovers::default(),
    });
    // Nobody is received from now on until this process serves.
    let taken = predecessor.map(Predecessor::take).transpose()?;
    let (gifts, promise) = taken.unzip();
    let gifts = gifts.unwrap_or_default();
    if !gifts.servers.is_empty() {
        let addresses = gifts.servers.iter().map(|one| one.socket.local_addr());
        options.listen = addresses.collect::<io::Result<_>>().at("UDP")?;
        passed_on.tcp = gifts.tcp;
    }
    let listens = options.listen.iter();
    let mut addresses: Vec<_> = listens
        .flat_map(|listen| greeting::addresses(listen.ip()))
        .collect();
    addresses.dedup();
    let identity = certificate::identity(&options, given, &addresses)?;
    let config = ServerConfig {
        congestion: options.congestion,
        elsewhere: AlternativeAddresses {
            pool: options.pool.clone(),
            name: options.name.clone(),
        },
        resume: options.resume,
        ..ServerConfig::default()
    };
    let servers = match gifts.servers.is_empty() {
        true => Listeners::start(passed_on.quic, &options.listen, &identity, config),
        false => Listeners::succeed(gifts.servers, &identity, config),
    };
    let servers = servers.map_err(|error| match error {
        BindError::Listen(address, error) => Error::Listen(address, error),
        error => Error::Start(error.to_string()),
    })?;
    let mut doors = doors(&service, &identity, &options)?;
    for ((door, _), listener) in doors.site.iter_mut().zip(passed_on.tcp) {
        door.pass_on(listener);
    }
    if let (Some((door, operator)), Some(listener)) = (&mut doors.operator, gifts.metrics)
        && listener
            .local_addr()
            .is_ok_and(|address| address == operator.address())
    {
        door.pass_on(listener);
    }
    let doors = Arc::new(Mutex::new(doors));
    let listens = servers.addresses();
    let opened = doors.lock().await.open(&listens);
    opened.map_err(|(address, error)| Error::Listen(address, error))?;
    // Before anybody can find this process and send it one.
    let mut signals = Signals::new()?;
    let control = Control::new().at("/proc/sys/kernel/random/uuid")?;
    control.create()?;
    Control::remove_dead();
    let announced = announce(&control).and_then(|()| write_settings(&control, &options));
    if let Err(error) = announced {
        tracing::warn!("`checkpoint` will not find this server: {error}");
    }
    let takes_over = promise.is_some();
    match promise {
        None => write_pid_file(&options)?,
        Some(promise) => {
            promise.serves().inspect_err(|_| control.remove())?;
            if let Err(error) = write_pid_file(&options) {
                tracing::error!("the pid file names the old server: {error}");
            }
        }
    }
    for listen in &listens {
        tracing::info!("listening on {listen}");
    }
    if let Some((_, operator)) = &doors.lock().await.operator {
        tracing::info!("metrics at http://{}/metrics", operator.address());
    }
    greeting::tell(&listens, &identity, &service.site);

    let mut mover = Mover::new(
        servers.first().clone(),
        control.clone(),
        options.clone(),
        doors.clone(),
        service.metrics.clone(),
    );
    let mut sessions = JoinSet::new();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    match takes_over {
        true => supervisor::taken_over(&listens),
        false => supervisor::ready(&listens),
    }
    let mut inheritance = Inheritance::default();
    loop {
        tokio::select! {
            handshake = servers.accept() => {
                let Some(handshake) = handshake else { break };
                let begun = Handshake::new(handshake.remote(), Secured::Quic);
                match service.guests.check(handshake.remote().ip()) {
                    Ok(()) => drop(sessions.spawn(welcome(handshake, begun, service.clone()))),
                    Err(full) => {
                        service.refused(&begun, full);
                        handshake.refuse();
                    }
                }
            }
            Some(_) = sessions.join_next() => service.leftovers.add(),
            _ = looks.tick() => if service.leftovers.look() {
                heap::give_back();
            },
            () = mover.begin_next() => {}
            wish = signals.next() => match wish {
                Wish::Leave => {
                    if mover.leave().await {
                        break;
                    }
                }
                Wish::Move => mover.begin(),
                Wish::Reload => {
                    supervisor::reloading();
                    let read = reload(&servers, &*doors.lock().await, &options);
                    supervisor::reloaded(&servers.addresses(), &read);
                }
                Wish::HandOver => inheritance.offer(&control, &servers, &*doors.lock().await),
            },
            event = inheritance.next() => match event {
                Event::TakenOver => doors.lock().await.hand_over(),
                Event::Kept => servers.take_back(),
                Event::Look if elder::is_done(&servers, &service.metrics) => break,
                Event::Look => {}
                Event::End => break,
            },
        }
    }
    if !inheritance.is_over() {
        supervisor::leaving();
    }
    servers.go_away();
    doors.lock().await.leave();
    // Whoever reads this finds it so.
    tracing::info!(
        "leaving; {} responses are running",
        service.metrics.running.get()
    );
    let finished = async {
        while service.metrics.running.get() > 0 {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        () = finished => {}
        // Refuses who comes now.
        _ = servers.accept() => {}
        () = tokio::time::sleep(options.grace) => tracing::warn!("some responses are cut off"),
        () = signals.leave() => {}
    }
    servers.close().await;
    doors.lock().await.close().await;
    // They have their figures to log, unless a response clings to its connection.
    let _ = timeout(LAST_WORDS, async {
        while sessions.join_next().await.is_some() {}
    })
    .await;
    service.access.flush();
    mover.is_heard().await;
    control.remove();
    if let Some(file) = &options.pid_file
        && fs::read_to_string(file).is_ok_and(|pid| pid.trim() == namespace::own_id().to_string())
    {
        let _ = fs::remove_file(file);
    }
    Ok(())
}

/// Names the files that are written to wherever the server wakes.
fn make_absolute(options: &mut Serve) -> Result<(), Error> {
    let access_log = options.access_log.as_mut();
    let files = [
        options.pid_file.as_mut(),
        options.log_file.as_mut(),
        // The standard output stream has no folder.
        access_log.filter(|file| file.as_os_str() != "-"),
    ];
    for file in files.into_iter().flatten() {
        *file = std::path::absolute(&file).at(&*file)?;
    }
    Ok(())
}

/// What the command line has to offer.
fn site(options: &Serve) -> Result<Site, Error> {
    let how = RootOptions {
        dotfiles: options.dotfiles,
        tags: options.etag,
    };
    let root = options.root().map(|dir| Root::with(dir, how).at(dir));
    let mut header = HeaderMap::new();
    for (name, value) in &options.header {
        header.append(name, value.clone());
    }
    Ok(Site {
        random: options.random.map(|size| Random::new(size, options.seed)),
        root: root.transpose()?,
        listing: options.listing,
        cors: options.cors,
        header,
        limit_rate: options.limit_rate,
    })
}

/// Reads the certificate and its key again, for connections that are made from now on.
///
/// # Errors
/// It stays as it was; why.
fn reload(servers: &Listeners, doors: &Doors, options: &Serve) -> Result<(), Error> {
    let (Some(cert), Some(key)) = (&options.cert, &options.key) else {
        tracing::info!("there is no --cert to be read again");
        return Ok(());
    };
    let set = certificate::read(cert, key).and_then(|identity| {
        let mut set = servers.set_identity(&identity);
        for (_, tls) in &doors.site {
            set = set.and_then(|()| tls.set_identity(&identity));
        }
        set.map_err(|error| Error::Start(error.to_string()))?;
        Ok(identity.fingerprint())
    });
    match &set {
        Ok(fingerprint) => tracing::info!("certificate sha256 {fingerprint}, read again"),
        Err(error) => {
            let user = options.user.as_ref();
            let hint = user.map(|name| format!("; user {name} reads it now"));
            let hint = hint.unwrap_or_default();
            tracing::error!("the certificate stays as it was: {error}{hint}");
        }
    }
    set.map(drop)
}

/// What listens over TCP, closed yet.
fn doors(service: &Arc<Service>, identity: &Identity, options: &Serve) -> Result<Doors, Error> {
    let mut doors = Doors::default();
    for _ in options.listen.iter().filter(|_| options.tcp) {
        let tls = Tls::new(service.clone(), identity);
        let tls = Arc::new(tls.map_err(|error| Error::Start(error.to_string()))?);
        let serve = tls.clone();
        let service = service.clone();
        let door = Door::new(move |guest| {
            let served = serve.clone().serve(guest);
            let service = service.clone();
            served.map(move |()| service.leftovers.add())
        });
        doors.site.push((door, tls));
    }
    if let Some(address) = options.metrics {
        let operator = Arc::new(Operator::new(service.metrics.clone(), address));
        let serve = operator.clone();
        let door = Door::new(move |guest| serve.clone().serve(guest.stream));
        doors.operator = Some((door, operator));
    }
    Ok(doors)
}

/// Ends a handshake, and then answers the client, if there is still room for it.
async fn welcome(handshake: server::Handshake, begun: Handshake, service: Arc<Service>) {
    let remote = handshake.remote();
    match handshake.await {
        Ok(session) => match service.guests.enter(remote.ip()) {
            Ok(guest) => answer(session, service, guest).await,
            // Closes the connection.
            Err(full) => service.refused(&begun, full),
        },
        Err(error) => {
            service.metrics.failed_handshakes.inc();
            service.access.failed(&begun, &error.to_string());
            match error {
                // Also what anybody may send who only looks for open ports.
                AcceptError::Timeout(_) => tracing::debug!("{remote}: {error}"),
                _ => tracing::info!("{remote}: {error}"),
            }
        }
    }
}

/// Answers the requests of one connection.
async fn answer(session: Session, service: Arc<Service>, guest: Guest) {
    let Session {
        mut h3,
        remote,
        turns,
        traffic,
    } = session;
    tracing::info!("{remote} connected");
    service.metrics.connections.inc();
    service.metrics.open_connections.inc();
    let terms = Terms {
        paces: guest.paces.clone(),
        patience: service.send_timeout.map(|limit| Patience {
            limit,
            turns: turns.clone(),
        }),
    };
    let mut requests = JoinSet::new();
    while let Ok(Some(request)) = h3.accept().await {
        let (service, turns, terms) = (service.clone(), turns.clone(), terms.clone());
        requests.spawn(async move {
            let (mut request, mut stream) = match request.resolve_request().await {
                Ok(request) => request,
                Err(error) if is_answered(&error) => {
                    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                    return service.responded(&Entry::unread(remote, Version::HTTP_3, status));
                }
                Err(_) => return,
            };
            let _running = Running::new(&service.metrics);
            if let Some(priority) = priority(request.headers()) {
                turns.asked(stream.id(), priority);
            }
            *request.version_mut() = Version::HTTP_3;
            let mut entry = Entry::new(remote, &request);
            let served = respond_on(&terms, &service.site, &request, &mut stream).await;
            (entry.status, entry.bytes, entry.cut) = (served.status, served.bytes, served.cut);
            service.responded(&entry);
        });
        while requests.try_join_next().is_some() {}
    }
    let responses = async {
        // Also where the client makes no more requests (GOAWAY): it waits for those that it has made.
        while requests.join_next().await.is_some() {}
        // Closes the connection, if it is not closed yet.
        drop(h3);
    };
    // Not when the responses are over: it may be long before they have their turn, and find that it is gone.
    let connection = async {
        let traffic = traffic.await;
        drop(guest);
        traffic
    };
    let ((), traffic) = tokio::join!(responses, connection);
    tracing::info!("{remote} disconnected");
    service.metrics.open_connections.dec();
    if let Ok(traffic) = traffic {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::args::Args;

    #[test]
    fn files_are_found_again_wherever_the_server_wakes() {
        let absolute = |line: &str| {
            let mut options = Args::parse_from(line.split(' ')).serve;
            make_absolute(&mut options).unwrap();
            [options.pid_file, options.log_file, options.access_log].map(Option::unwrap)
        };
        let line = "mpq-serve d --pid-file a --log-file a --access-log";
        let a = std::env::current_dir().unwrap().join("a");
        assert_eq!(absolute(&format!("{line} a")), [&*a; 3]);
        assert_eq!(absolute(&format!("{line} -")), [&*a, &*a, Path::new("-")]);
    }
}
