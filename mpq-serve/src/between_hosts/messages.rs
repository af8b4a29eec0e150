//! What the two ends of a move tell each other: a line of JSON each, and the bytes of an image after the line that names
//! it.

use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mpq_core::printable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::notes::Clients;
use crate::error::Failure;

/// No message is longer, bytes.
const MAX_LENGTH: u64 = 1 << 20;

/// What A says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum ToTarget {
    /// First: what the server needs.
    Offer(Box<Needs>),
    /// An image, whose bytes follow.
    Image {
        /// The name of its file.
        name: String,
        /// Their number.
        bytes: u64,
    },
    /// The images are complete: restore the server, and keep it still.
    Restore {
        /// The manifest of the images.
        manifest: String,
    },
    /// The images at A are of no more use: have the server run.
    Go {
        /// The token of the images.
        token: String,
    },
}

/// What B says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum ToSource {
    /// To the offer.
    Findings(Findings),
    /// The server is restored, and stands still.
    Ready,
    /// It serves.
    Serving {
        /// Its process id.
        pid: i32,
        /// Where it listens.
        listen: SocketAddr,
    },
    /// It serves, and so many of its clients have come along by now.
    Clients(Clients),
    /// B has given up.
    Failed {
        /// Why.
        failure: Failure,
    },
}

/// What a server needs of a host, and how it is to be there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Needs {
    /// The version of mpq-serve.
    pub version: String,
    /// The architecture of the processor,
    pub machine: String,
    /// what it can do,
    pub processor: Vec<String>,
    /// and what CRIU notes of it, in hexadecimal, if there is one.
    #[serde(default)]
    pub processor_of_criu: Option<String>,
    /// The files that are in its memory.
    pub files: Vec<NeededFile>,
    /// Folders that must be there, such as the one that it serves.
    pub required: Vec<PathBuf>,
    /// The folders that it is in, or writes to: made if they are not there.
    pub folders: Vec<PathBuf>,
    /// Its process id and those of its threads.
    pub ids: Vec<i32>,
    /// How much its images may need, bytes.
    pub bytes: u64,
    /// Where it is to listen.
    pub address: SocketAddr,
    /// Where the folder of the images is to be, if not where it usually is.
    pub images: Option<PathBuf>,
    /// Where it is to log to, if not where it did.
    pub log_file: Option<PathBuf>,
    /// How long the restore may take.
    pub time_limit: Duration,
}

/// A file that must be the same on both hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeededFile {
    /// Where it is.
    pub path: PathBuf,
    /// The digest of its contents, in hexadecimal.
    pub sha256: String,
}

/// What B finds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Findings {
    /// What is in the way of the move.
    pub problems: Vec<String>,
    /// The release of its kernel.
    pub kernel: String,
    /// The version of its CRIU, if there is one.
    pub criu: Option<String>,
    /// The time there, seconds since 1970.
    pub clock: f64,
}

/// Sends a message.
///
/// # Errors
/// Nobody is there to read it.
pub fn write(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).expect("plain data");
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Waits for a message; none comes after the end.
///
/// # Errors
/// Something else came.
pub fn read<M: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<M>, String> {
    let mut line = Vec::new();
    match from.take(MAX_LENGTH).read_until(b'\n', &mut line) {
        Ok(_) if line.ends_with(b"\n") => {}
        // Of half a message nobody knows what it was to be.
        Ok(length) if (length as u64) < MAX_LENGTH => return Ok(None),
        Ok(_) => return Err("it said something that has no end".to_owned()),
        Err(_) => return Ok(None),
    }
    let said = || printable(String::from_utf8_lossy(&line[..line.len().min(200)]).trim());
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| format!("it said {:?}: {error}", said()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_bytes_alternate() {
        let mut sent = Vec::new();
        let image = ToTarget::Image {
            name: "pages-1.img".into(),
            bytes: 3,
        };
        write(&mut sent, &image).unwrap();
        sent.extend(b"a\nb");
        let token = "{\n}".to_owned();
        write(&mut sent, &ToTarget::Go { token }).unwrap();
        let mut from = sent.as_slice();
        let Ok(Some(ToTarget::Image { bytes: 3, .. })) = read(&mut from) else {
            panic!("no image");
        };
        let mut bytes = [0; 3];
        from.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"a\nb");
        let Ok(Some(ToTarget::Go { token })) = read(&mut from) else {
            panic!("no token");
        };
        assert_eq!(token, "{\n}");
        assert!(matches!(read::<ToTarget>(&mut from), Ok(None)));
    }

    #[test]
    fn a_failure_arrives_as_it_was() {
        let mut sent = Vec::new();
        let failure = Failure {
            message: "no room".to_owned(),
            code: 9,
        };
        write(&mut sent, &ToSource::Failed { failure }).unwrap();
        let Ok(Some(ToSource::Failed { failure })) = read(&mut sent.as_slice()) else {
            panic!("no failure");
        };
        assert_eq!((failure.message.as_str(), failure.code), ("no room", 9));
    }

    #[test]
    fn what_is_no_message_is_told_and_half_of_one_is_none() {
        let read = |text: &str| read::<ToSource>(&mut text.as_bytes());
        assert!(matches!(
            read("{\"message\":\"ready\"}\n"),
            Ok(Some(ToSource::Ready))
        ));
        assert!(matches!(read("{\"message\":\"ready\"}"), Ok(None)));
        let reason = read("Welcome\x1b[31m!\n").unwrap_err();
        assert!(reason.contains("Welcome\u{fffd}[31m!"), "{reason}");
        let endless = "a".repeat(MAX_LENGTH as usize + 1);
        assert!(read(&endless).unwrap_err().contains("no end"));
    }
}
