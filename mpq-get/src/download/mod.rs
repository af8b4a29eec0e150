//! One download, from the name's resolution to the file's last byte, over as many connections as it
//! takes.
//!
//! [`run`] makes attempts until one succeeds or there shall be no other. Each connects and asks for
//! what is missing. Two things run side by side in it, in one task: `fetch` moves the body from
//! the connection to the [`Output`], and `watch` tells of events and progress and listens for
//! signals. What they share, and what outlives an attempt, is in `Transfer`.
//!
//! [`request`] is what is to be done; `connect` finds the server; `fetch` is the way of the body;
//! [`retry`] says whether and when there is another attempt; `signals` end it all.

mod connect;
mod fetch;
pub mod pace;
pub mod request;
pub mod retry;
pub mod signals;
mod transfer;

use std::pin::pin;
use std::time::{Duration, Instant};

use h3::error::StreamError;
use mpq_core::Usage;
use mpq_core::client::{Client, ClientEvent, MigrationEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::connect::connect;
use self::fetch::fetch;
use self::pace::{Pace, SpeedLimit};
use self::request::{DownloadRequest, Protocol};
use self::retry::Schedule;
use self::signals::Signals;
use self::transfer::Transfer;
use crate::error::Error;
use crate::http::request::Failure;
use crate::output::place::Place;
use crate::output::{Leftover, Output, Written};
use crate::report::Reporter;
use crate::report::events::{DownloadEvent, Summary};
use crate::report::progress::Snapshot;
use crate::transport::Connection;
use crate::transport::plain_quic::PlainQuic;

/// Between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// For what a lost connection still has in its buffers, and for the reason of the loss.
const LOSS_GRACE: Duration = Duration::from_secs(1);
/// For the writer after an error: standard output may be stuck.
const WRITE_GRACE: Duration = Duration::from_secs(5);
/// The same, and for the server, when somebody wants the program to end.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Downloads, and tells `report` of everything but the failure.
///
/// # Errors
/// What went wrong, and what is left on the disk.
pub async fn run(
    request: &DownloadRequest,
    report: &mut Reporter,
) -> Result<(), (Error, Leftover)> {
    match request.protocol {
        Protocol::Multipath => run_by::<Client>(request, report).await,
        Protocol::Quic => run_by::<PlainQuic>(request, report).await,
    }
}

async fn run_by<C: Connection>(
    request: &DownloadRequest,
    report: &mut Reporter,
) -> Result<(), (Error, Leftover)> {
    let signals = Signals::new().map_err(|error| (error, Leftover::NOTHING))?;
    let mut signals = signals.within(request.max_time);
    let found = Place::find(&request.destination, request.url.as_str());
    let found = found.map_err(|error| (error, Leftover::NOTHING))?;
    let transfer = Transfer::new(found, request.resume);
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
            true => schedule.next(error, transfer.partial.borrow().bytes, elapsed),
            false => None,
        };
        let Some((wait, attempt)) = next else {
            break (client, outcome);
        };
        let retry = DownloadEvent::Retry {
            reason: error.to_string(),
            wait: wait.as_secs_f64(),
            attempt,
        };
        report.event(Instant::now(), retry);
        tokio::select! {
            () = pause(client, wait) => {}
            error = signals.recv() => break (None, Err(error)),
        }
    };
    let result = settle(outcome, output, request, &transfer, &mut signals).await;
    let seconds = report.elapsed();
    let stopped = matches!(result, Err((Error::Signal(_) | Error::MaxTime(_), _)));
    if let Some(client) = client {
        match stopped {
            true => drop(timeout(STOP_GRACE / 2, client.close()).await),
            false => client.close().await,
        }
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
    request: &DownloadRequest,
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
    let connected = DownloadEvent::Connected {
        remote,
        multipath: client.multipath(),
        handshakes: transfer.handshakes.get() + client.handshakes(),
        unix: report.unix(),
    };
    report.event(Instant::now(), connected);

    transfer.connected(remote);
    let body = fetch(&client, remote, request, transfer, output);
    let pace = Pace::new(request.speed_limit);
    let outcome = watch(body, pace, &client, transfer, report, signals).await;
    transfer.count(&client);
    let outcome = match outcome {
        // All of the body came before the connection broke.
        Err(Error::Idle | Error::Migration(_) | Error::Reset(_) | Error::Quic(_))
            if output.is_some() && transfer.partial.borrow().is_complete() =>
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

/// Reports while `body` runs; ends with it, with a signal, or soon after the connection is lost.
async fn watch(
    body: impl Future<Output = Result<(), Failure>>,
    mut pace: Pace,
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
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            outcome = &mut body => break outcome,
            error = &mut lost => break Err(Failure::Told(transfer.lost(error))),
            error = signals.recv() => break Err(Failure::Told(error)),
            (at, event) = next(&mut events) => tell(at, event, transfer, report),
            _ = ticks.tick() => {
                let (bytes, total) = {
                    let partial = transfer.partial.borrow();
                    (partial.bytes, partial.length)
                };
                if pace.look(Instant::now(), transfer.received.get(), transfer.excuses()) {
                    let SpeedLimit { rate, time } = pace.limit();
                    break Err(Failure::Told(Error::Slow { rate, time }));
                }
                let paths = client.paths();
                report.progress(Snapshot { bytes, total, paths });
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
                Ok(cause) => transfer.lost(cause),
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
    if let ClientEvent::Migration(event) = &event {
        note(at, event, transfer);
    }
    report.event(at, event.into());
}

/// What the body's gap is measured by, and another connection would begin with.
fn note(at: Instant, event: &MigrationEvent, transfer: &Transfer) {
    let mut outage = transfer.outage.borrow_mut();
    match event {
        MigrationEvent::Announced { targets, .. } => {
            transfer.announced.replace(targets.clone());
            outage.announced(at);
        }
        MigrationEvent::Parked { .. } | MigrationEvent::Silent => outage.parked(at),
        MigrationEvent::Detected { .. } => outage.detected(at),
        MigrationEvent::Moved { remote, .. } => {
            transfer.remote.set(Some(*remote));
            outage.moved(at, *remote);
        }
        MigrationEvent::Cancelled { .. } => {
            transfer.announced.take();
            outage.cancel();
        }
        MigrationEvent::Addresses { pool, name } => {
            transfer.pool.replace(pool.clone());
            transfer.name.replace(name.clone());
        }
        _ => {}
    }
}

fn tell_news(transfer: &Transfer, report: &mut Reporter) {
    for (at, event) in transfer.news.take() {
        report.event(at, event);
    }
}

/// Waits for the writer and, if all is well, gives the file its name.
async fn settle(
    outcome: Result<(), Error>,
    output: Option<Output>,
    request: &DownloadRequest,
    transfer: &Transfer,
    signals: &mut Signals,
) -> Result<Written, (Error, Leftover)> {
    let Some(output) = output else {
        let error = outcome.expect_err("a body that has come has an output");
        return Err((error, transfer.leftover()));
    };
    let grace = async {
        match &outcome {
            Ok(()) => std::future::pending().await,
            Err(Error::Signal(_) | Error::MaxTime(_)) => sleep(STOP_GRACE).await,
            Err(_) => sleep(WRITE_GRACE).await,
        }
    };
    let closed = tokio::select! {
        closed = output.close() => Some(closed),
        error = signals.recv() => Some(Err((error, Leftover::NOTHING))),
        () = grace => None,
    };
    match (outcome, closed) {
        (Ok(()), Some(Ok(written))) => match &request.checksum {
            Some(expected) if *expected != written.sha256 => {
                let (expected, actual) = (expected.clone(), written.sha256.clone());
                let leftover = written.reject()?;
                Err((Error::Checksum { expected, actual }, leftover))
            }
            _ => written.publish(transfer.modified.get().filter(|_| request.remote_time)),
        },
        // A failed writer is the cause of whatever else has failed.
        (_, Some(Err(failure))) => Err(failure),
        (Err(error), Some(Ok(written))) => Err((error, written.keep())),
        (Err(error), None) => Err((error, Leftover::NOTHING)),
        (Ok(()), None) => unreachable!("a complete body's writer is given all the time it needs"),
    }
}
