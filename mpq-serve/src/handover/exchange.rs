//! What the two processes say to each other: lines of JSON over a Unix socket, and descriptors with them.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use mpq_core::server::Estate;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::control::Control;

/// The most descriptors in one message (`SCM_MAX_FD` of Linux).
const MAX_DESCRIPTORS: usize = 253;
/// The longest line, bytes: longer ones are not read.
const MAX_LINE: usize = 1 << 20;
/// How long each end waits for a word of the other.
pub(super) const WORD_LIMIT: Duration = Duration::from_secs(10);

/// Where the new process waits for the old one, whose directory this is.
pub(super) fn meeting_point(control: &Control) -> PathBuf {
    control.path().join("handover.sock")
}

/// All that the old process listens with.
#[derive(Debug, Default)]
pub(crate) struct Gifts {
    pub(crate) servers: Vec<Estate>,
    /// For the site over TCP, at the same addresses.
    pub(crate) tcp: Vec<TcpListener>,
    pub(crate) metrics: Option<TcpListener>,
}

/// The old process gives what it has, or does not.
#[derive(Debug, Serialize, Deserialize)]
enum Offer {
    /// The descriptors that come along: for each server two, which is known by these; then those for TCP.
    Gifts {
        servers: Vec<Vec<[u8; 32]>>,
        tcp: usize,
        metrics: bool,
    },
    Refused(String),
}

/// The new process serves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Its process id, for people.
    pub(super) pid: u32,
    /// How long what is running may take.
    pub(super) drain: Duration,
}

/// The old process takes nobody in any more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Agreed {}

/// Why the other end has said nothing that could be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unheard {
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("it has ended or given up")]
    Ended,
    #[error("it says nothing for {} s", WORD_LIMIT.as_secs())]
    Silent,
    #[error("the two cannot talk: {0}")]
    Failed(#[from] io::Error),
    #[error("it is of another version: {0}")]
    Foreign(#[from] serde_json::Error),
    #[error("it is of another version: other descriptors come than it says")]
    Descriptors,
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Conversation(UnixStream);

impl Conversation {
    /// # Errors
    /// Those of the system calls.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(WORD_LIMIT))?;
        stream.set_write_timeout(Some(WORD_LIMIT))?;
        Ok(Self(stream))
    }

    pub(super) fn give(&self, gifts: &Gifts) -> Result<(), Unheard> {
        let offer = Offer::Gifts {
            servers: gifts.servers.iter().map(|one| one.ids.clone()).collect(),
            tcp: gifts.tcp.len(),
            metrics: gifts.metrics.is_some(),
        };
        let of_servers = gifts.servers.iter();
        let of_servers = of_servers.flat_map(|one| [one.socket.as_fd(), one.stream.as_fd()]);
        let of_tcp = gifts.tcp.iter().chain(&gifts.metrics);
        let descriptors: Vec<_> = of_servers.chain(of_tcp.map(AsFd::as_fd)).collect();
        self.send(&line(&offer)?, &descriptors)
    }

    pub(super) fn refuse(&self, why: String) -> Result<(), Unheard> {
        self.send(&line(&Offer::Refused(why))?, &[])
    }

    pub(super) fn receive(&self) -> Result<Gifts, Unheard> {
        let (line, descriptors) = self.read_line()?;
        let (servers, tcp, metrics) = match serde_json::from_slice(&line)? {
            Offer::Gifts {
                servers,
                tcp,
                metrics,
            } => (servers, tcp, metrics),
            Offer::Refused(why) => return Err(Unheard::Refused(why)),
        };
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(Unheard::Descriptors);
        let mut gifts = Gifts::default();
        for ids in servers {
            let (socket, stream) = (UdpSocket::from(next()?), UnixStream::from(next()?));
            let estate = Estate {
                socket,
                stream,
                ids,
            };
            gifts.servers.push(estate);
        }
        for _ in 0..tcp {
            gifts.tcp.push(next()?.into());
        }
        if metrics {
            gifts.metrics = Some(next()?.into());
        }
        Ok(gifts)
    }

    pub(super) fn say(&self, word: &impl Serialize) -> Result<(), Unheard> {
        self.send(&line(word)?, &[])
    }

    pub(super) fn hear<T: DeserializeOwned>(&self) -> Result<T, Unheard> {
        let (line, _) = self.read_line()?;
        Ok(serde_json::from_slice(&line)?)
    }

    fn send(&self, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Unheard> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong).into());
        }
        let parts = [IoSlice::new(line)];
        // Signals are for other threads.
        let send = || sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL);
        let sent = retry_on_intr(send);
        let sent = sent.map_err(|error| failed(error.into()))?;
        (&self.0).write_all(&line[sent..]).map_err(failed)
    }

    /// The next line, and the descriptors that came with it.
    fn read_line(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), Unheard> {
        let (mut line, mut descriptors) = (Vec::new(), Vec::new());
        let mut buffer = [0; 4096];
        while line.last() != Some(&b'\n') && line.len() < MAX_LINE {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let receive = || recvmsg(&self.0, &mut parts, &mut control, flags);
            let came = retry_on_intr(receive);
            let came = came.map_err(|error| failed(error.into()))?.bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(these) = message {
                    descriptors.extend(these);
                }
            }
            if came == 0 {
                return Err(Unheard::Ended);
            }
            line.extend_from_slice(&buffer[..came]);
        }
        Ok((line, descriptors))
    }
}

fn line(word: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    Ok(line)
}

fn failed(error: io::Error) -> Unheard {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unheard::Silent,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Unheard::Ended,
        _ => error.into(),
    }
}
