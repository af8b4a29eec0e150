//! `mpq-serve move`: the end at A, which decides.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mpq_core::printable;
use serde_json::json;

use super::channel::Channel;
use super::interruption::Interruption;
use super::messages::{Findings, Needs, ToSource, ToTarget};
use super::needs;
use super::options::{MoveOptions, Transfer};
use super::timing::Timing;
use crate::checkpoint::command::{Dumped, RunningServer};
use crate::checkpoint::forward;
use crate::checkpoint::images::Images;
use crate::checkpoint::notes::{Clients, Manifest, now};
use crate::checkpoint::restore::{Restore, bring_back};
use crate::checkpoint::say;
use crate::checkpoint::token::Claim;
use crate::error::{At, Error};
use crate::log;

/// How long B may take to answer the offer; somebody may have to type a password.
const OFFER_LIMIT: Duration = Duration::from_secs(120);
/// How much longer than the restore is given B may take to say what became of it.
const REPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long B may take to serve once the server was handed over.
const SERVING_LIMIT: Duration = Duration::from_secs(30);
/// How long the server can be woken at B once it was handed over: longer than clocks may differ.
const TOKEN_LIMIT: Duration = Duration::from_secs(60);

/// By how much the clocks of the two hosts may differ, seconds: a token is valid for a while.
const MAX_CLOCK_DIFFERENCE: f64 = 30.0;

/// Why a server does not serve at B.
enum Failed {
    /// It was not handed over.
    Before(String),
    /// It was.
    After(String),
}

/// Where it does.
struct Served {
    pid: i32,
    timing: Timing,
}

/// Moves a server to another host, or finds out what would be in the way. Prints what the steps took.
///
/// # Errors
/// Why the server serves at A; or that it serves nowhere, as far as it is known.
pub fn run(options: &MoveOptions) -> Result<(), Error> {
    let server = RunningServer::find(options.pid, options.pid_file.as_deref())?;
    let interruption = Interruption::watch()?;
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let options = &MoveOptions {
        transfer: Transfer {
            images: absolute(&options.transfer.images).at(".")?,
            ..options.transfer.clone()
        },
        log_file: absolute(&options.log_file).at(".")?,
        ..options.clone()
    };
    let needs = needs::of(&server, options)?;
    let program = PathBuf::from(format!("/proc/{}/exe", server.pid));
    let program = fs::read_link(&program).at(program)?;
    let mut channel = Channel::open(options, &program)?;
    look(&mut channel, &server, &needs, options, &interruption)?;
    if options.transfer.dry_run {
        return Ok(());
    }

    log::tell(&format!(
        "announcing the move to {}, and parking",
        options.transfer.address
    ));
    let images = options.transfer.images.clone();
    let dumped = server.checkpoint(images, vec![options.transfer.address], options.forward);
    let Dumped {
        images: folder,
        forwarder,
    } = dumped.inspect_err(|_| {
        if !server.has_ended() {
            log::tell("serving at A");
        }
    })?;
    let dumped = now();
    let stranded = |reason: &str, error: Error| {
        Error::Stranded(reason.to_owned(), error.to_string(), folder.clone())
    };
    let images =
        Images::open(&folder).map_err(|error| stranded("the images are of no use", error))?;
    let bytes = images.bytes();
    match hand_over(&mut channel, &images, dumped, options, &interruption) {
        Ok(Served { pid, mut timing }) => {
            images.remove();
            let clients = await_clients(&mut channel, options.await_clients, &interruption);
            timing.clients_back = clients.as_ref().and_then(|(_, took)| *took);
            let clients = clients.map(|(clients, _)| clients);
            report(options, pid, bytes, &timing, clients.as_ref());
            Ok(())
        }
        Err(Failed::After(reason)) => Err(Error::Unconfirmed(reason, folder)),
        Err(Failed::Before(reason)) => {
            // B ends what it has, which has no token.
            drop(channel);
            log::tell(&format!("bringing the server back to A: {reason}"));
            if let Some(forwarder) = &forwarder {
                forward::end(forwarder, server.owner);
            }
            let undo = Restore {
                listen: None,
                pid_file: None,
                log_file: None,
                time_limit: options.time_limit,
                // No copy has had a token.
                claim: Claim::Forced,
                undone: Some(reason.clone()),
            };
            match bring_back(&images, undo) {
                Ok(_) => Err(Error::Returned(reason)),
                Err(error) => Err(stranded(&reason, error)),
            }
        }
    }
}

/// Looks on both hosts for what is in the way of the move, and tells it.
///
/// # Errors
/// Something is.
fn look(
    channel: &mut Channel,
    server: &RunningServer,
    needs: &Needs,
    options: &MoveOptions,
    interruption: &Interruption,
) -> Result<(), Error> {
    let sent = channel.send(&ToTarget::Offer(Box::new(needs.clone())));
    let own = needs::problems(server, needs);
    let answer = sent.and_then(|()| channel.receive(OFFER_LIMIT, Some(interruption)));
    let theirs = match answer {
        Ok(ToSource::Findings(findings)) => {
            // It was on its way for a moment only.
            let ahead = findings.clock - now();
            tell(&options.transfer.to, &findings, ahead);
            let problems = findings.problems.into_iter();
            problems.chain(other_time(ahead)).collect()
        }
        Ok(_) => vec!["it answers something else".to_owned()],
        Err(reason) => vec![reason],
    };
    let to = &options.transfer.to;
    let own = own
        .into_iter()
        .map(|problem| format!("in the way at A: {}", printable(&problem)));
    let theirs = theirs
        .iter()
        .map(|problem| format!("in the way at B, {to}: {}", printable(problem)));
    let problems: Vec<_> = own.chain(theirs).collect();
    judge(&problems)
}

/// Tells what is in the way of a move.
///
/// # Errors
/// Something is.
pub(crate) fn judge(problems: &[String]) -> Result<(), Error> {
    for problem in problems {
        log::tell(problem);
    }
    match problems.len() {
        0 => {
            log::tell("nothing is in the way of the move");
            Ok(())
        }
        1 => Err(Error::InTheWay("something is".to_owned())),
        count => Err(Error::InTheWay(format!("{count} things are"))),
    }
}

fn other_time(ahead: f64) -> Option<String> {
    (ahead.abs() > MAX_CLOCK_DIFFERENCE).then(|| {
        format!(
            "its clock is {ahead:+.0} s ahead of that of A; {MAX_CLOCK_DIFFERENCE} s are allowed"
        )
    })
}

fn tell(host: &str, findings: &Findings, ahead: f64) {
    let kernel = printable(&findings.kernel);
    let criu = findings.criu.as_deref().map(printable);
    let criu = criu.map_or("no CRIU".to_owned(), |version| format!("CRIU {version}"));
    let own = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    log::tell(&format!(
        "A has Linux {}; B, {host}, has Linux {kernel} and {criu}, and its clock is {ahead:+.3} s ahead",
        own.trim()
    ));
}

/// Brings the images to B, and gives them up here once the server is restored there.
fn hand_over(
    channel: &mut Channel,
    images: &Images,
    dumped: f64,
    options: &MoveOptions,
    interruption: &Interruption,
) -> Result<Served, Failed> {
    let manifest = &images.manifest;
    log::tell(&format!(
        "dumped in {:.3} s, copying {} bytes",
        dumped - manifest.parked,
        images.bytes()
    ));
    let text = String::from_utf8_lossy(images.text()).into_owned();
    let copy = channel.copy(images, interruption);
    let sent = copy.and_then(|()| channel.send(&ToTarget::Restore { manifest: text }));
    sent.map_err(Failed::Before)?;
    let copied = now();
    log::tell("copied, restoring at B");
    match channel.receive(options.time_limit + REPORT_LIMIT, Some(interruption)) {
        Ok(ToSource::Ready) => {}
        Ok(_) => return Err(Failed::Before("B answers something else".to_owned())),
        Err(reason) => return Err(Failed::Before(reason)),
    }
    let restored = now();
    log::tell("restored at B, handing over");
    let token = images.hand_over(TOKEN_LIMIT);
    let token = token.map_err(|error| Failed::Before(error.to_string()))?;
    let sent = channel.send(&ToTarget::Go { token });
    let answer = sent.and_then(|()| channel.receive(SERVING_LIMIT, None));
    let (pid, listen) = match answer {
        Ok(ToSource::Serving { pid, listen }) => (pid, listen),
        Ok(_) => return Err(Failed::After("it answers something else".to_owned())),
        Err(reason) => return Err(Failed::After(reason)),
    };
    let serving = now();
    log::tell(&format!("serving at B: process {pid} listens on {listen}"));
    let Manifest {
        announced,
        parked,
        dump_started,
        ..
    } = *manifest;
    Ok(Served {
        pid,
        timing: Timing {
            announce: parked - announced,
            wait: dump_started - parked,
            dump: dumped - dump_started,
            copy: copied - dumped,
            restore: restored - copied,
            hand_over: serving - restored,
            pause: serving - parked,
            total: serving - announced,
            clients_back: None,
        },
    })
}

/// Waits until the clients of a server that serves are back, but no longer than this, nor if the operator does not want
/// to; what has become of them then, as far as that is known, and how long it took until the last one was back.
fn await_clients(
    channel: &mut Channel,
    limit: Duration,
    interruption: &Interruption,
) -> Option<(Clients, Option<f64>)> {
    if limit.is_zero() {
        return None;
    }
    let since = Instant::now();
    let mut last: Option<(Clients, Option<f64>)> = None;
    while !last.as_ref().is_some_and(|(clients, _)| clients.is_over) {
        let left = limit.saturating_sub(since.elapsed());
        let Ok(ToSource::Clients(clients)) = channel.receive(left, Some(interruption)) else {
            break;
        };
        let (before, at) = match &last {
            Some((before, at)) => (before.back, *at),
            None => (0, None),
        };
        let at = match clients.back > before {
            true => Some(since.elapsed().as_secs_f64()),
            false => at,
        };
        last = Some((clients, at));
    }
    log::tell(&match &last {
        Some((clients, _)) => clients.to_string(),
        None => "it is not known how many clients are back: B has not said it".to_owned(),
    });
    last
}

fn report(options: &MoveOptions, pid: i32, bytes: u64, timing: &Timing, clients: Option<&Clients>) {
    match options.transfer.json {
        true => say(&json!({
            "serving_at": "B",
            "host": options.transfer.to,
            "address": options.transfer.address,
            "pid": pid,
            "bytes": bytes,
            "seconds": timing,
            "clients": clients.map(|clients| json!({
                "expected": clients.expected,
                "back": clients.back,
                "missing": clients.missing(),
                "gone": clients.gone,
                "dismissed": clients.dismissed,
            })),
        })),
        false => {
            let clients = clients.map(|clients| {
                let count = format!("{} of {}", clients.back, clients.expected);
                format!("\n{:<15}{count:>8}", "clients")
            });
            let clients = clients.unwrap_or_default();
            say(&format!(
                "{timing}{:<15}{bytes:>8} bytes{clients}",
                "images"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_a_little() {
        assert_eq!(other_time(-29.0), None);
        let said = other_time(-31.0).unwrap();
        assert!(said.contains("-31 s"), "{said}");
        assert!(other_time(f64::INFINITY).is_some());
    }
}
