//! The journal of systemd, for a service whose standard streams lead there.
//!
//! A stream of it cannot go along when the server is frozen, and is not found again when it goes on. So each line goes
//! there by itself, in the journal's own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): nothing is open
//! between two lines, and the journal of the host that the server wakes on has them from there on.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::stat::fstat;
use tracing::Level;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How much a line matters, as in syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Priority(u8);

impl Priority {
    pub(crate) const INFO: Self = Self(6);

    pub(crate) fn of(level: Level) -> Self {
        match level {
            Level::ERROR => Self(3),
            Level::WARN => Self(4),
            Level::INFO => Self::INFO,
            _ => Self(7),
        }
    }
}

/// Whether there is one on this host.
pub(crate) fn is_here() -> bool {
    Path::new(SOCKET).exists()
}

/// Whether this stream leads to it (systemd.exec(5), `JOURNAL_STREAM`).
pub(crate) fn is_at(stream: impl AsFd) -> bool {
    let leads_there = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(stream).is_ok_and(|stat| leads_there == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Puts a line into it.
///
/// # Errors
/// Those of the system: nobody listens there.
pub(crate) fn write(priority: Priority, line: &[u8]) -> io::Result<()> {
    send(Path::new(SOCKET), priority, line)
}

fn send(socket: &Path, Priority(priority): Priority, line: &[u8]) -> io::Result<()> {
    let line = line.trim_ascii();
    let mut fields =
        format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=mpq-serve\nMESSAGE\n").into_bytes();
    fields.extend((line.len() as u64).to_le_bytes());
    fields.extend(line);
    fields.push(b'\n');
    UnixDatagram::unbound()?.send_to(&fields, socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_there_with_its_priority_and_without_a_second_meaning() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let journal = UnixDatagram::bind(&socket).unwrap();
        send(
            &socket,
            Priority::of(Level::WARN),
            b"  WARN a\nPRIORITY=0\n",
        )
        .unwrap();
        let mut buffer = [0; 256];
        let length = journal.recv(&mut buffer).unwrap();
        let wanted = b"PRIORITY=4\nSYSLOG_IDENTIFIER=mpq-serve\nMESSAGE\n\x11\0\0\0\0\0\0\0WARN a\nPRIORITY=0\n";
        assert_eq!(&buffer[..length], wanted);
        drop(journal);
        std::fs::remove_file(&socket).unwrap();
        assert!(send(&socket, Priority::INFO, b"a").is_err());
    }
}
