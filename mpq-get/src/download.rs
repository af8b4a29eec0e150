//! One download, from the name's resolution to the file's.
//!
//! Two things run side by side in one task: [`fetch`] moves the body from the connection to the
//! [`Output`], and the loop in [`run`] tells of events and progress and listens for signals. What
//! they share is in [`Transfer`].

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Buf;
use h3::error::StreamError;
use http::header::{ACCEPT, CONTENT_LENGTH, LOCATION, USER_AGENT};
use mpq_core::client::{Client, ClientConfig, ClientEvent};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout, timeout_at};

use crate::args::Request;
use crate::error::Error;
use crate::events::{Event, Summary};
use crate::gap::{Gap, Pause};
use crate::output::{Destination, Kept, Output, Written};
use crate::progress::Snapshot;
use crate::report::Reporter;

/// Between two reports of progress.
const TICK: Duration = Duration::from_millis(100);
/// For what a lost connection has still in its buffers, and for the reason of the loss.
const LOSS_GRACE: Duration = Duration::from_secs(1);
/// For the writer after an error; standard output may be stuck.
const WRITE_GRACE: Duration = Duration::from_secs(5);

/// Downloads, and tells `report` of it all but the failure.
///
/// # Errors
/// What went wrong, and what is left on the disk.
pub async fn run(request: &Request, report: &mut Reporter) -> Result<(), (Error, Kept)> {
    let nothing = |error| (error, Kept::NOTHING);
    let mut signals = Signals::new().map_err(nothing)?;
    let (client, remote) = tokio::select! {
        connected = connect(request) => connected.map_err(nothing)?,
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
    let outcome = transfer
        .watch(&client, report, &mut signals, fetch(&client, request, &transfer, &mut output))
        .await;
    client.expecting(false);
    let result = match output {
        Some(output) => settle(outcome, output, &mut signals, request).await,
        None => Err(nothing(outcome.err().unwrap_or_else(|| {
            Error::Http3("the answer was not read".to_owned())
        }))),
    };
    let result = result.map(|written| Summary {
        bytes: written.bytes,
        seconds: report.elapsed(),
        sha256: written.sha256,
        handshakes: client.handshakes(),
        requests: transfer.requests.get(),
        paths: client.paths().into_iter().map(Into::into).collect(),
    });
    client.close().await;
    report.done(request.destination.name(), result?);
    Ok(())
}
