//! `mpq-serve forward`, which stays where a server was, for clients that know nothing of moves. The helper starts it
//! once the server is parked, and ends it if the server goes on.

use std::io::Read;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mpq_core::forwarder::Forwarder;

use super::control::{Control, wait_for};
use super::notes::{Forwards, Manifest, RequestId, ToForward};
use super::owner::Owner;
use super::process::{Identity, Process};
use crate::error::{At, Error};
use crate::log;

/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// A client to whom the server has said nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(60);

/// A forwarder that goes on if its starter ends.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// Ends it: the server goes on where it was.
    pub fn end(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one if the server that has just parked wants it. Returns when the old address is in its hands.
///
/// # Errors
/// It cannot be started, or cannot have the address.
pub fn start(control: &Control, request: &RequestId) -> Result<Option<Started>, Error> {
    if control.read_on::<ToForward>(request).is_none() {
        return Ok(None);
    }
    let program = std::env::current_exe().at("/proc/self/exe")?;
    let mut child = Command::new(&program)
        .arg("forward")
        .arg("--control")
        .arg(control.path())
        .args(["--request", &request.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .at(&program)?;
    let has_begun = || {
        let begun = control.read_on::<Forwards>(request).is_some();
        let ended = !matches!(child.try_wait(), Ok(None));
        (begun || ended).then_some(begun)
    };
    if wait_for(START_LIMIT, has_begun) == Some(true) {
        return Ok(Some(Started(child)));
    }
    let _ = child.kill();
    let _ = child.wait();
    let mut words = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut words);
    }
    let reason = format!("nothing can be forwarded: {}", words.trim());
    Err(Error::Dump(reason))
}

/// Ends the one of this request, if there is one, also where the helper that started it is gone or stuck: the server,
/// whose note of being parked is removed, wants its address back.
pub fn end_of(control: &Control, request: &RequestId) {
    if let Some(forwards) = control.read_on::<Forwards>(request) {
        end(&forwards, None);
    }
}

/// Ends one of a server that comes back. If that is an ordinary user's, it has said which process it is: none but of that
/// user.
pub fn end(forwards: &Forwards, owner: Option<Owner>) {
    let pid = forwards.process.pid;
    let process = Process::open(pid);
    if let Ok(process) = process
        && forwards.process.is_alive()
        && Owner::of(pid).is_ok_and(|of| of == owner)
        && process.kill().is_ok()
    {
        process.ends_within(END_LIMIT);
    }
}

/// Forwards until there is no client any more.
///
/// # Errors
/// Those of the socket; the server goes on where it was.
pub fn run(control: &Control, request: &RequestId) -> Result<(), Error> {
    let order = control.read_on::<ToForward>(request);
    control.clear_on::<ToForward>(request);
    let unreadable = || Error::Dump("the server did not say what to forward".to_owned());
    let order = order.ok_or_else(unreadable)?;
    let forwarding = order.forwarding().ok_or_else(unreadable)?;
    // Where the server logs, which may have no file; nobody reads this process's streams once it has begun.
    let log_file = control
        .read_on::<Manifest>(request)
        .and_then(|manifest| manifest.log_file);
    log::start(log_file).or_else(|_| log::start(None))?;
    let failed = |error: std::io::Error| Error::Dump(format!("{}: {error}", order.listen));
    let socket = UdpSocket::bind(order.listen).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let forwarder = Forwarder::new(socket, order.server, &forwarding, IDLE);
        let forwarder = forwarder.await.map_err(failed)?;
        control.write_on(
            request,
            &Forwards {
                process: Identity::of(std::process::id() as i32).at("/proc")?,
                server: order.server,
            },
        )?;
        // Either the server finds that note when it goes on, or its own is gone here.
        if control.read_on::<Manifest>(request).is_none() {
            return Err(Error::Dump("the server has gone on".to_owned()));
        }
        tracing::info!("forwarding from {} to {}", order.listen, order.server);
        forwarder.run().await.map_err(failed)?;
        tracing::info!(
            "forwarding from {} has ended: no client is left",
            order.listen
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_names_no_process_of_another_one() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let forwards = Forwards {
            process: Identity::of(sleeper.id() as i32).unwrap(),
            server: "127.0.0.1:4433".parse().unwrap(),
        };
        let uid = nix::unistd::geteuid().as_raw() + 1;
        end(&forwards, Some(Owner { uid, gid: uid }));
        assert!(sleeper.try_wait().unwrap().is_none());
        end(&forwards, None);
        sleeper.wait().unwrap();
    }
}
