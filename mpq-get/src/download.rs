//! One download, from the name's resolution to the file's last byte, over as many connections as it
//! takes.
//!
//! [`run`] makes attempts until one succeeds or there shall be no other. Each connects and asks for
//! what is missing. Two things run side by side in it, in one task: `fetch` moves the body from
//! the connection to the [`Output`], and `watch` tells of events and progress and listens for
//! signals. What they share, and what outlives an attempt, is in `Transfer`.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h3::error::StreamError;
use h3::quic::OpenStreams;
use headers::{AcceptRanges, HeaderMapExt};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderName, Response};
use mpq_core::Usage;
use mpq_core::client::{Client, ClientConfig, ClientEvent};
use mpq_core::proto::policy::acceptable;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::args::{Protocol, Request};
use crate::ask::{Asked, Failure, Requests, answer};
use crate::body::Body;
use crate::connection::Connection;
use crate::error::Error;
use crate::events::{Event, Path, Summary};
use crate::gap::Gap;
use crate::output::{Kept, Output, Written};
use crate::progress::Snapshot;
use crate::quic::Quic;
use crate::report::Reporter;
use crate::resume::{Answer, Held};
use crate::retry::{self, Schedule};
use crate::sidecar::{self, Sidecar};

/// Between two reports of progress.
const TICK: Duration = Duration::from_millis(100);
/// For what a lost connection still has in its buffers, and for the reason of the loss.
const LOSS_GRACE: Duration = Duration::from_secs(1);
/// For the writer after an error: standard output may be stuck.
const WRITE_GRACE: Duration = Duration::from_secs(5);

/// Downloads, and tells `report` of everything but the failure.
///
/// # Errors
/// What went wrong, and what is left on the disk.
pub async fn run(request: &Request, report: &mut Reporter) -> Result<(), (Error, Kept)> {
    match request.protocol {
        Protocol::Multipath => run_by::<Client>(request, report).await,
        Protocol::Quic => run_by::<Quic>(request, report).await,
    }
}

async fn run_by<C: Connection>(
    request: &Request,
    report: &mut Reporter,
) -> Result<(), (Error, Kept)> {
    let mut signals = Signals::new().map_err(|error| (error, Kept::NOTHING))?;
    let transfer = Transfer::new(request);
    let mut schedule = Schedule::new(request.retry);
    let mut output = None;
    let (client, outcome) = loop {
        let (client, outcome) =
            attempt::<C>(request, &transfer, &mut output, report, &mut signals).await;
        let Err(error) = &outcome else {
            break (client, outcome);
        };
        let elapsed = Duration::from_secs_f64(report.elapsed());
        let next = match transfer.can_go_on(output.as_ref()) {
            true => schedule.next(error, transfer.held.borrow().bytes, elapsed),
            false => None,
        };
        let Some((wait, attempt)) = next else {
            break (client, outcome);
        };
        let retry = Event::Retry {
            reason: error.to_string(),
            wait: wait.as_secs_f64(),
            attempt,
        };
        report.event(Instant::now(), &retry);
        tokio::select! {
            () = pause(client, wait) => {}
            error = signals.recv() => break (None, Err(error)),
        }
    };
    let result = settle(outcome, output, request, &mut signals).await;
    let seconds = report.elapsed();
    if let Some(client) = client {
        client.close().await;
    }

    let written = result?;
    let usage = Usage::now();
    let summary = Summary {
        bytes: written.bytes,
        received: transfer.received.get(),
        seconds,
        sha256: written.sha256,
        handshakes: transfer.handshakes.get(),
        requests: transfer.requests.get(),
        paths: transfer.paths.take(),
        cpu: usage.cpu.as_secs_f64(),
        peak_memory: usage.peak_memory,
    };
    report.done(&request.destination.name(), summary);
    Ok(())
}

/// Connects and downloads what is missing. The connection, if there was one, is not closed yet.
async fn attempt<C: Connection>(
    request: &Request,
    transfer: &Transfer,
    output: &mut Option<Output>,
    report: &mut Reporter,
    signals: &mut Signals,
) -> (Option<C>, Result<(), Error>) {
    let connected = tokio::select! {
        connected = connect::<C>(request, transfer) => connected,
        error = signals.recv() => Err(error),
    };
    let (client, remote) = match connected {
        Ok(connected) => connected,
        Err(error) => return (None, Err(error)),
    };
    let connected = Event::Connected {
        remote,
        multipath: client.multipath(),
        handshakes: transfer.handshakes.get() + client.handshakes(),
        unix: report.unix(),
    };
    report.event(Instant::now(), &connected);

    transfer.remote.set(Some(remote));
    // A move is over with its connection.
    *transfer.gap.borrow_mut() = Gap::default();
    let body = fetch(&client, remote, request, transfer, output);
    let outcome = watch(body, &client, transfer, report, signals).await;
    client.expecting(false);
    transfer.count(&client);
    let outcome = match outcome {
        // All of the body came before the connection broke.
        Err(Error::Idle | Error::Migration(_) | Error::Quic(_))
            if output.is_some() && transfer.held.borrow().is_complete() =>
        {
            Ok(())
        }
        outcome => outcome,
    };
    (Some(client), outcome)
}

/// Waits, and closes the connection meanwhile.
async fn pause<C: Connection>(client: Option<C>, wait: Duration) {
    let close = async {
        if let Some(client) = client {
            client.close().await;
        }
    };
    tokio::join!(close, sleep(wait));
}

/// What the body's way and the reports share.
#[derive(Debug)]
struct Transfer {
    /// What there is of the body.
    held: RefCell<Held>,
    /// Body bytes, those given up included.
    received: Cell<u64>,
    requests: Cell<u64>,
    /// Where the server was last.
    remote: Cell<Option<SocketAddr>>,
    /// Where else it may be, as it said itself.
    pool: RefCell<Vec<SocketAddr>>,
    name: RefCell<Option<String>>,
    /// Of the connections so far.
    handshakes: Cell<u64>,
    paths: RefCell<Vec<Path>>,
    gap: RefCell<Gap>,
    /// What has happened to the body and has not been told yet.
    news: RefCell<Vec<(Instant, Event)>>,
}

impl Transfer {
    fn new(request: &Request) -> Transfer {
        let part = request.destination.part().filter(|_| request.resume);
        let held = part.map(|part| sidecar::held(&part, request.url.as_str()));
        Transfer {
            held: RefCell::new(held.unwrap_or_default()),
            received: Cell::default(),
            requests: Cell::default(),
            remote: Cell::default(),
            pool: RefCell::default(),
            name: RefCell::default(),
            handshakes: Cell::default(),
            paths: RefCell::default(),
            gap: RefCell::default(),
            news: RefCell::default(),
        }
    }

    /// A chunk of the body is there.
    fn arrived(&self) {
        if let Some(end) = self.gap.borrow_mut().chunk(Instant::now()) {
            let event = Event::FirstByteAfterMove {
                remote: end.remote,
                parts: end.parts,
            };
            self.news.borrow_mut().push((end.at, event));
        }
    }

    /// So many bytes are written, or will be.
    fn add(&self, length: u64) {
        self.held.borrow_mut().bytes += length;
        self.received.set(self.received.get() + length);
    }

    fn tell(&self, event: Event) {
        self.news.borrow_mut().push((Instant::now(), event));
    }

    /// Counts what a connection has done.
    fn count(&self, client: &impl Connection) {
        let handshakes = self.handshakes.get() + client.handshakes();
        self.handshakes.set(handshakes);
        let paths = client.paths().into_iter().map(Path::from);
        self.paths.borrow_mut().extend(paths);
    }

    /// Whether another attempt can add to what there is, or take it back.
    fn can_go_on(&self, output: Option<&Output>) -> bool {
        let held = self.held.borrow();
        held.bytes == 0 || held.resumable().is_some() || output.is_none_or(Output::is_restartable)
    }
}

/// Connects to the first of the host's addresses that answers; they share the time there is. After
/// them come those that the server was known at.
async fn connect<C: Connection>(
    request: &Request,
    transfer: &Transfer,
) -> Result<(C, SocketAddr), Error> {
    let host = request.host();
    let start = Instant::now();
    let limit = request.client.connect_timeout;
    let unknown = |source| Error::Host {
        host: host.clone(),
        source,
    };
    let look_up = async |name: &str| {
        let overrides = &request.overrides;
        overrides.look_up(name, request.port(), limit).await
    };
    let mut known = Vec::from_iter(transfer.remote.get());
    known.extend(transfer.pool.borrow().iter());
    let name = transfer.name.borrow().clone().filter(|name| *name != host);
    let by_name = async {
        let (Some(name), Some(before)) = (name, transfer.remote.get()) else {
            return Vec::new();
        };
        let mut found = look_up(&name).await.unwrap_or_default();
        // Its word may send us no further than an announcement may.
        found.retain(|address| acceptable(before.ip(), *address));
        found
    };
    let (found, by_name) = tokio::join!(look_up(&host), by_name);
    known.extend(by_name);
    let addresses = candidates(found, &known).map_err(unknown)?;

    let mut last = unknown(io::ErrorKind::NotFound.into());
    for (index, remote) in addresses.iter().copied().enumerate() {
        let waiting = (addresses.len() - index) as u32;
        let connect_timeout = limit.saturating_sub(start.elapsed()) / waiting;
        let config = ClientConfig {
            connect_timeout,
            ..request.client.clone()
        };
        last = match C::connect(config, remote, &host).await {
            Ok(client) => return Ok((client, remote)),
            Err(error) => Error::connecting(error, remote, &host),
        };
        // Anything else, a bad certificate say, is the answer; another address would only hide it.
        if !matches!(
            last,
            Error::Refused(_)
                | Error::Unreachable { .. }
                | Error::Timeout(_)
                | Error::Interface { .. }
                | Error::NoInterface(_)
        ) {
            break;
        }
    }
    Err(last)
}

/// Where to look for a server: where its name says and then where it was `known`, since a name does
/// not follow every move, and may not be found at all.
fn candidates(
    found: io::Result<Vec<SocketAddr>>,
    known: &[SocketAddr],
) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = match found {
        Err(_) if !known.is_empty() => Vec::new(),
        found => found?,
    };
    for address in known {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    Ok(addresses)
}

/// Asks for what is missing and hands it to `output`, which it opens when the server has answered
/// with something to write. Also ends when the output has failed; that error comes from
/// [`Output::close`].
async fn fetch(
    client: &impl Connection,
    remote: SocketAddr,
    request: &Request,
    transfer: &Transfer,
    output: &mut Option<Output>,
) -> Result<(), Failure> {
    let mut requests = Requests::new(client.requests(), &request.url, &transfer.requests);
    client.expecting(true);
    let mut segments = request.segments;
    let end = loop {
        let begun = begin(&mut requests, remote, request, transfer, output).await?;
        let (Some(Begun { asked, end, ranges }), Some(output)) = (begun, output.as_ref()) else {
            return Ok(());
        };
        if !ranges {
            segments = 1;
        }
        let held = transfer.held.borrow().clone();
        let mut body = Body::new(asked, end, held, segments);
        loop {
            let position = transfer.held.borrow().bytes;
            let next = body.next(position, &mut requests, || client.paths());
            let Some(chunk) = next.await? else { break };
            transfer.arrived();
            let length = chunk.len() as u64;
            // While the writer is behind, the server's silence is of our making.
            let wait = !output.has_room();
            if wait {
                client.expecting(false);
            }
            if !output.write(chunk).await {
                return Ok(());
            }
            // Not before: if the connection is lost while the writer is waited for, it will not be
            // written, and must be asked for again.
            transfer.add(length);
            if wait {
                client.expecting(true);
            }
        }
        if !body.was_refused() {
            break end;
        }
        segments = 1;
    };
    // Neither QUIC nor h3 compares the body with its announced length (RFC 9114, section 4.1.2).
    let held = transfer.held.borrow();
    let received = held.bytes;
    if let Some(end) = end.filter(|end| received > *end) {
        let reason = format!("{received} bytes came where {end} were announced");
        return Err(Error::Http3(reason).into());
    }
    match held.length.or(end) {
        Some(expected) if received < expected => Err(Error::Short { received, expected }.into()),
        _ => Ok(()),
    }
}

/// An answer whose body is to come.
struct Begun<S: OpenStreams<Bytes>> {
    asked: Asked<S>,
    /// Offset at which it ends, where known.
    end: Option<u64>,
    /// Whether parts of it can be asked for.
    ranges: bool,
}

/// Asks for everything or for what is missing until the server's answer has it, and opens the output.
/// Nothing follows if nothing is missing, or the output has failed.
async fn begin<S: OpenStreams<Bytes>>(
    requests: &mut Requests<'_, S>,
    remote: SocketAddr,
    request: &Request,
    transfer: &Transfer,
    output: &mut Option<Output>,
) -> Result<Option<Begun<S>>, Failure> {
    loop {
        let held = transfer.held.borrow().clone();
        let offset = held.bytes;
        let rest = format!("{offset}-");
        let part = held.resumable().map(|version| (rest.as_str(), version));
        let mut asked = requests.send(part).await?;
        let head = answer::<S>(&mut asked).await?;
        let judged = held.judge(head.status(), head.headers());
        let answer = judged.map_err(|misfit| Error::Http3(misfit.to_string()))?;
        if matches!(answer, Answer::Rest { .. } | Answer::Complete) && output.is_none() {
            *output = Some(Output::go_on(&request.destination, offset)?);
        }
        match answer {
            Answer::Whole(lost) => {
                if let Some(why) = lost {
                    if output
                        .as_ref()
                        .is_some_and(|output| !output.is_restartable())
                    {
                        return Err(Error::CannotStartOver(why).into());
                    }
                    let reason = why.to_string();
                    transfer.tell(Event::Restarted { reason });
                }
                let start = Held::start(head.headers());
                let record = Sidecar::of(request.url.as_str(), &start);
                let end = start.length;
                *transfer.held.borrow_mut() = start;
                if let Some(output) = output.as_ref() {
                    if !output.start_over(record).await {
                        return Ok(None);
                    }
                } else {
                    *output = Some(Output::create(&request.destination, record.as_ref())?);
                }
                let ranges = head.headers().typed_get() == Some(AcceptRanges::bytes());
                return Ok(Some(Begun { asked, end, ranges }));
            }
            Answer::Rest { end, length } => {
                transfer.held.borrow_mut().length = length;
                transfer.tell(Event::Resumed {
                    sequence: None,
                    offset: Some(offset),
                    remote,
                });
                return Ok(Some(Begun {
                    asked,
                    end: Some(end),
                    ranges: true,
                }));
            }
            Answer::Complete => return Ok(None),
            // The next request is for everything.
            Answer::StartOver(why) => transfer.held.borrow_mut().version = Err(why),
            Answer::Refused => return Err(refused(&head).into()),
        }
    }
}

/// The error that an answer stands for.
fn refused(head: &Response<()>) -> Error {
    let header = |name: HeaderName| head.headers().get(name)?.to_str().ok();
    Error::Status {
        status: head.status(),
        location: header(LOCATION).map(str::to_owned),
        retry_after: header(RETRY_AFTER)
            .and_then(|value| retry::retry_after(value, SystemTime::now())),
    }
}

/// Reports while `body` runs; ends with it, with a signal, or soon after the connection is lost.
async fn watch(
    body: impl Future<Output = Result<(), Failure>>,
    client: &impl Connection,
    transfer: &Transfer,
    report: &mut Reporter,
    signals: &mut Signals,
) -> Result<(), Error> {
    let mut body = pin!(body);
    let mut lost = pin!(async {
        let error = client.failed().await;
        // All of the body may have come before the connection broke.
        sleep(LOSS_GRACE).await;
        error
    });
    let mut events = client.events();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            outcome = &mut body => break outcome,
            error = &mut lost => break Err(Failure::Told(error.into())),
            error = signals.recv() => break Err(Failure::Told(error)),
            (at, event) = next(&mut events) => tell(at, event, transfer, report),
            _ = ticks.tick() => {
                let (bytes, total) = {
                    let held = transfer.held.borrow();
                    (held.bytes, held.length)
                };
                let paths = client.paths();
                report.progress(&Snapshot { bytes, total, paths });
            }
        }
        tell_news(transfer, report);
    };
    // What happened just before the end is told too, such as why the connection was lost.
    while let Ok((at, event)) = events.try_recv() {
        tell(at, event, transfer, report);
    }
    tell_news(transfer, report);
    match outcome {
        Ok(()) => Ok(()),
        Err(Failure::Told(error)) => Err(error),
        // The client knows better than h3 why its connection ended.
        Err(Failure::Stream(error @ StreamError::ConnectionError { .. })) => {
            Err(match timeout(LOSS_GRACE, client.failed()).await {
                Ok(cause) => cause.into(),
                Err(_) => Error::Http3(error.to_string()),
            })
        }
        Err(Failure::Stream(
            error @ (StreamError::RemoteTerminate { .. } | StreamError::RemoteClosing { .. }),
        )) => Err(Error::Reset(error.to_string())),
        Err(Failure::Stream(error)) => Err(Error::Http3(error.to_string())),
    }
}

/// The next event. There is none any more when the connection is lost, which is told elsewhere.
async fn next(events: &mut Receiver<(Instant, ClientEvent)>) -> (Instant, ClientEvent) {
    loop {
        match events.recv().await {
            Ok(event) => return event,
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn tell(at: Instant, event: ClientEvent, transfer: &Transfer, report: &mut Reporter) {
    let mut gap = transfer.gap.borrow_mut();
    match &event {
        ClientEvent::Announced { .. } => gap.announced(at),
        ClientEvent::Parked { .. } | ClientEvent::Silent => gap.parked(at),
        ClientEvent::Detected { .. } => gap.detected(at),
        ClientEvent::Moved { remote, .. } => {
            transfer.remote.set(Some(*remote));
            gap.moved(at, *remote);
        }
        ClientEvent::Cancelled { .. } => gap.cancel(),
        ClientEvent::Addresses { pool, name } => {
            transfer.pool.replace(pool.clone());
            transfer.name.replace(name.clone());
        }
        _ => {}
    }
    report.event(at, &event.into());
}

fn tell_news(transfer: &Transfer, report: &mut Reporter) {
    for (at, event) in transfer.news.take() {
        report.event(at, &event);
    }
}

/// Waits for the writer and, if all is well, gives the file its name.
async fn settle(
    outcome: Result<(), Error>,
    output: Option<Output>,
    request: &Request,
    signals: &mut Signals,
) -> Result<Written, (Error, Kept)> {
    let Some(output) = output else {
        let error = outcome.expect_err("a body that has come has an output");
        let kept = match request.resume {
            true => Kept::earlier(&request.destination),
            false => Kept::NOTHING,
        };
        return Err((error, kept));
    };
    let grace = async {
        match &outcome {
            Ok(()) => std::future::pending().await,
            Err(_) => sleep(WRITE_GRACE).await,
        }
    };
    let closed = tokio::select! {
        closed = output.close() => Some(closed),
        error = signals.recv() => Some(Err((error, Kept::NOTHING))),
        () = grace => None,
    };
    match (outcome, closed) {
        (Ok(()), Some(Ok(written))) => match &request.checksum {
            Some(expected) if *expected != written.sha256 => {
                let (expected, actual) = (expected.clone(), written.sha256.clone());
                Err((Error::Checksum { expected, actual }, written.keep()))
            }
            _ => written.publish(),
        },
        // A failed writer is the cause of whatever else has failed.
        (_, Some(Err(failure))) => Err(failure),
        (Err(error), Some(Ok(written))) => Err((error, written.keep())),
        (Err(error), None) => Err((error, Kept::NOTHING)),
        (Ok(()), None) => unreachable!("a complete body's writer is given all the time it needs"),
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Error> {
        let listen = |kind| {
            signal(kind).map_err(|e| Error::Usage(format!("cannot listen for signals: {e}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn recv(&mut self) -> Error {
        tokio::select! {
            _ = self.interrupt.recv() => Error::Signal(2),
            _ = self.terminate.recv() => Error::Signal(15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_looked_for_where_its_name_says_and_where_it_was() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (old, new) = (address("10.1.0.2:443"), address("10.1.0.3:443"));
        let ok = |found: &[SocketAddr], known: &[SocketAddr]| {
            candidates(Ok(found.to_vec()), known).unwrap()
        };
        assert_eq!(ok(&[old, new], &[]), [old, new]);
        assert_eq!(ok(&[old], &[new, new, old]), [old, new]);
        assert_eq!(ok(&[new, old], &[old]), [new, old]);
        let lost = || Err(io::ErrorKind::TimedOut.into());
        assert_eq!(candidates(lost(), &[new]).unwrap(), [new]);
        let error = candidates(lost(), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
