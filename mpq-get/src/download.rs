//! One download, from the name's resolution to the file's last byte.
//!
//! Two things run side by side in one task: [`fetch`] moves the body from the connection to the
//! [`Output`], and [`watch`] tells of events and progress and listens for signals. What they share
//! is in [`Transfer`].

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Buf;
use h3::error::StreamError;
use http::StatusCode;
use http::header::{ACCEPT, CONTENT_LENGTH, LOCATION, USER_AGENT};
use mpq_core::Usage;
use mpq_core::client::{Client, ClientConfig, ClientEvent};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::args::{Protocol, Request};
use crate::connection::Connection;
use crate::error::Error;
use crate::events::{Event, Summary};
use crate::gap::{Gap, Pause};
use crate::output::{Kept, Output, Written};
use crate::progress::Snapshot;
use crate::quic::Quic;
use crate::report::Reporter;

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
    let nothing = |error| (error, Kept::NOTHING);
    let mut signals = Signals::new().map_err(nothing)?;
    let (client, remote) = tokio::select! {
        connected = connect::<C>(request) => connected.map_err(nothing)?,
        error = signals.recv() => return Err(nothing(error)),
    };
    let connected = Event::Connected {
        remote,
        multipath: client.multipath(),
        handshakes: client.handshakes(),
        unix: report.unix(),
    };
    report.event(Instant::now(), &connected);

    let transfer = Transfer::default();
    let mut output = None;
    let body = fetch(&client, request, &transfer, &mut output);
    let outcome = watch(body, &client, &transfer, report, &mut signals).await;
    client.expecting(false);
    let result = settle(outcome, output, request, &mut signals).await;
    let seconds = report.elapsed();
    let (handshakes, paths) = (client.handshakes(), client.paths());
    client.close().await;

    let written = result?;
    let usage = Usage::now();
    let summary = Summary {
        bytes: written.bytes,
        seconds,
        sha256: written.sha256,
        handshakes,
        requests: transfer.requests.get(),
        paths: paths.into_iter().map(Into::into).collect(),
        cpu: usage.cpu.as_secs_f64(),
        peak_memory: usage.peak_memory,
    };
    report.done(&request.destination.name(), summary);
    Ok(())
}

/// What the body's way and the reports share.
#[derive(Debug, Default)]
struct Transfer {
    requests: Cell<u64>,
    bytes: Cell<u64>,
    total: Cell<Option<u64>>,
    gap: RefCell<Gap>,
    /// The pause of a move that has just ended and has not been told yet.
    pause: Cell<Option<(SocketAddr, Pause)>>,
}

impl Transfer {
    fn chunk(&self, length: usize) {
        self.bytes.set(self.bytes.get() + length as u64);
        if let Some(pause) = self.gap.borrow_mut().chunk(Instant::now()) {
            self.pause.set(Some(pause));
        }
    }
}

/// Connects to the first of the host's addresses that answers; they share the time there is.
async fn connect<C: Connection>(request: &Request) -> Result<(C, SocketAddr), Error> {
    let host = request.host();
    let start = Instant::now();
    let limit = request.client.connect_timeout;
    let unknown = |source| Error::Host {
        host: host.clone(),
        source,
    };
    let addresses: Vec<_> = timeout(
        limit,
        tokio::net::lookup_host((host.as_str(), request.port())),
    )
    .await
    .map_err(|_| unknown(io::ErrorKind::TimedOut.into()))?
    .map_err(unknown)?
    .collect();

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

/// Why [`fetch`] ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Told(#[from] Error),
}

/// Asks for the body and hands it to `output`, which it opens when the server has answered with
/// one. Also ends when the output has failed; that error comes from [`Output::close`].
async fn fetch(
    client: &impl Connection,
    request: &Request,
    transfer: &Transfer,
    output: &mut Option<Output>,
) -> Result<(), Failure> {
    let get = http::Request::get(request.url.as_str())
        .header(USER_AGENT, concat!("mpq-get/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .body(())
        .map_err(|e| Error::Url {
            url: request.url.to_string(),
            reason: e.to_string(),
        })?;
    // The connection closes with the last of these.
    let mut requests = client.requests();
    client.expecting(true);
    let mut stream = requests.send_request(get).await?;
    transfer.requests.set(transfer.requests.get() + 1);
    stream.finish().await?;

    let response = loop {
        let response = stream.recv_response().await?;
        if !response.status().is_informational() {
            break response;
        }
    };
    let header = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    // A part of the body, which nobody asked for, is not what the file should hold.
    let status = response.status();
    if !status.is_success() || status == StatusCode::PARTIAL_CONTENT {
        return Err(Error::Status {
            status,
            location: header(LOCATION).map(str::to_owned),
        }
        .into());
    }
    let expected = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    transfer.total.set(expected);

    let output = output.insert(Output::create(&request.destination)?);
    while let Some(mut data) = stream.recv_data().await? {
        transfer.chunk(data.remaining());
        let chunk = data.copy_to_bytes(data.remaining());
        // While the writer is behind, the server's silence is of our making.
        let wait = !output.has_room();
        if wait {
            client.expecting(false);
        }
        if !output.write(chunk).await {
            return Ok(());
        }
        if wait {
            client.expecting(true);
        }
    }
    // Neither QUIC nor h3 compares the body with its announced length (RFC 9114, section 4.1.2).
    match (transfer.bytes.get(), expected) {
        (received, Some(expected)) if received < expected => {
            Err(Error::Short { received, expected }.into())
        }
        (received, Some(expected)) if received > expected => {
            let reason = format!("{received} bytes came where {expected} were announced");
            Err(Error::Http3(reason).into())
        }
        _ => Ok(()),
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
                report.progress(&Snapshot {
                    bytes: transfer.bytes.get(),
                    total: transfer.total.get(),
                    paths: client.paths(),
                });
            }
        }
        tell_pause(transfer, report);
    };
    // What happened just before the end is told too, such as why the connection was lost.
    while let Ok((at, event)) = events.try_recv() {
        tell(at, event, transfer, report);
    }
    tell_pause(transfer, report);
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
        ClientEvent::Announced { .. } | ClientEvent::Parked { .. } | ClientEvent::Silent => {
            gap.watch();
        }
        ClientEvent::Cancelled { .. } => gap.cancel(),
        ClientEvent::Moved { remote, .. } => gap.moved(*remote),
        _ => {}
    }
    report.event(at, &event.into());
}

fn tell_pause(transfer: &Transfer, report: &mut Reporter) {
    if let Some((remote, pause)) = transfer.pause.take() {
        let gap = pause.length.as_secs_f64();
        report.event(pause.end, &Event::FirstByteAfterMove { remote, gap });
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
        return Err((error, Kept::NOTHING));
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
