//! `mpq-serve park`: has a server stand still for whoever dumps it and restores it by other means, such as a container
//! engine. And how the server finds out that it was.
//!
//! Nobody has to tell it: a restored process is a new one, which started later than the one that was dumped.
//! Nothing here keeps the one that was dumped from going on as well: whoever dumps it has to end it.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::command::RunningServer;
use super::control::Control;
use super::notes::{Manifest, Unpark};
use super::process::Birth;
use crate::error::{At, Error};

/// Has a server tell its clients that it moves, and returns when it stands still, with nothing in flight and no socket
/// open. After `limit` it goes on where it was, if it was not dumped.
///
/// # Errors
/// There is no such server, or it moves already, or it does not park and goes on.
pub fn run(
    pid: Option<i32>,
    pid_file: Option<PathBuf>,
    migrate_to: Vec<SocketAddr>,
    limit: Duration,
) -> Result<(), Error> {
    RunningServer::find(pid, pid_file.as_deref())?.park(migrate_to, limit)
}

/// Has a parked server go on where it was, and returns when it serves.
///
/// # Errors
/// There is no such server, or it is not parked.
pub fn undo(pid: Option<i32>, pid_file: Option<PathBuf>) -> Result<(), Error> {
    RunningServer::find(pid, pid_file.as_deref())?.unpark()
}

/// A server of this process, which waits to be dumped.
#[derive(Debug)]
pub struct Parked {
    birth: Birth,
    end: Instant,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// This is the restored one.
    Restored,
    /// It is to go on where it was.
    Unparked,
    /// Nobody has dumped it in time.
    Forgotten,
    /// It is to end.
    ToldToLeave,
}

impl Parked {
    /// From now on, for so long.
    ///
    /// # Errors
    /// Those of `/proc`.
    pub fn new(now: Instant, limit: Duration) -> Result<Self, Error> {
        let birth = Birth::of_this_process().at("/proc/self")?;
        let end = now + limit;
        Ok(Self { birth, end })
    }

    /// What has become of it, if anything.
    pub fn look(&self, now: Instant, control: &Control, is_to_leave: bool) -> Option<Outcome> {
        let outcome = if is_to_leave {
            Some(Outcome::ToldToLeave)
        } else if control.take::<Unpark>().is_some() {
            Some(Outcome::Unparked)
        } else {
            (now >= self.end).then_some(Outcome::Forgotten)
        };
        // Looked at last: a restored server finds what there was before.
        if Birth::of_this_process().is_ok_and(|now| now != self.birth) {
            return Some(Outcome::Restored);
        }
        outcome
    }
}

/// Where a restored server is to listen: where it did, if that was all addresses of its host, or else at the first one
/// that was announced which its host has. If it has none of these the server was restored where it was.
pub fn address(parked: &Manifest) -> SocketAddr {
    let is_here = |target: &&SocketAddr| UdpSocket::bind(target).is_ok();
    match parked.listen.ip().is_unspecified() {
        true => parked.listen,
        false => *parked
            .targets
            .iter()
            .find(is_here)
            .unwrap_or(&parked.listen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_server_goes_on_for_what_comes_first_and_a_restored_one_whatever_there_was() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::at(folder.path());
        let start = Instant::now();
        let mut parked = Parked::new(start, Duration::from_secs(1)).unwrap();
        assert_eq!(parked.look(start, &control, false), None);
        let end = start + Duration::from_secs(1);
        assert_eq!(parked.look(end, &control, false), Some(Outcome::Forgotten));
        let told = parked.look(end, &control, true);
        assert_eq!(told, Some(Outcome::ToldToLeave));
        control.write(&Unpark {}).unwrap();
        assert_eq!(parked.look(end, &control, false), Some(Outcome::Unparked));
        assert_eq!(
            parked.look(start, &control, false),
            None,
            "it is heard once"
        );

        parked.birth = parked.birth.earlier();
        for leave in [false, true] {
            let restored = parked.look(end, &control, leave);
            assert_eq!(restored, Some(Outcome::Restored));
        }
    }
}
