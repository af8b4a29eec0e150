//! Datagrams at a steady rate from one host to another, and how many of them arrive.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::task::spawn_blocking;

use crate::network::link_model::MTU;
use crate::system::host::inside;

/// Headers of IPv4 and UDP, in bytes.
const HEADERS: usize = 28;
/// What one carries, in bytes.
const DATAGRAM: usize = MTU - HEADERS;
/// Between two batches of datagrams.
const PAUSE: Duration = Duration::from_micros(500);
/// A sender that was kept from sending makes up for this much of it.
const CATCH_UP: Duration = Duration::from_millis(5);
/// Datagrams sent in one over devices that take them so.
const SEGMENTS: usize = 10;
/// What is received in one at most, in bytes.
const LARGEST_READ: usize = 1 << 16;
/// For datagrams that wait for the receiver, in bytes.
const RECEIVE_BUFFER: usize = 8 << 20;
/// After such a silence, nothing more is on its way.
const SILENCE: Duration = Duration::from_millis(500);

/// Where datagrams go from and to; hosts are the files of their network namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Flood {
    pub(crate) from: PathBuf,
    /// The device they leave by, where the routes do not say so.
    pub(crate) device: Option<String>,
    pub(crate) to: PathBuf,
    /// An address of the receiver.
    pub(crate) address: Ipv4Addr,
    /// Send and receive many in one.
    pub(crate) offload: bool,
}

/// How much is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Bit/s of IP packets.
    pub(crate) rate: f64,
    /// What arrives in this time after the first datagram does not count for the rate.
    pub(crate) settle: Duration,
    /// For so long the rate is measured then.
    pub(crate) measure: Duration,
}

/// A flood that is under way. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    threads: Option<(JoinHandle<io::Result<u64>>, JoinHandle<Received>)>,
}

/// What has come of a flood.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Received {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Datagrams that arrived.
    pub(crate) arrived: u64,
    /// Bit/s of IP packets that arrived while it was measured.
    pub(crate) rate: f64,
}

impl Flood {
    pub(crate) fn start(&self, pace: Pace) -> Result<Running> {
        let receiver = self.receiver().context("cannot receive datagrams")?;
        let port = receiver.local_addr()?.port();
        let sender = self.sender(port).context("cannot send datagrams")?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let segments = if self.offload { SEGMENTS } else { 1 };
        let sending = thread::spawn(move || send(&sender, segments, pace, &stopped));
        let stopped = stop.clone();
        let receiving = thread::spawn(move || receive(&receiver, pace, &stopped));
        Ok(Running {
            stop,
            threads: Some((sending, receiving)),
        })
    }

    fn receiver(&self) -> io::Result<UdpSocket> {
        let socket = socket(&self.to)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::UdpGroSegment, &self.offload)?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(socket)
    }

    fn sender(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = socket(&self.from)?;
        if let Some(device) = &self.device {
            setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device))?;
        }
        if self.offload {
            setsockopt(&socket, sockopt::UdpGsoSegment, &(DATAGRAM as i32))?;
        }
        socket.connect((self.address, port))?;
        Ok(socket)
    }
}

impl Running {
    /// Waits for the end of it.
    pub(crate) async fn finish(mut self) -> Result<Received> {
        let (sender, receiver) = self.threads.take().context("already finished")?;
        let join = || (sender.join(), receiver.join());
        let (sender, receiver) = spawn_blocking(join).await?;
        let died = |_| anyhow!("a thread has died");
        let sent = sender.map_err(died)?.context("cannot send datagrams")?;
        Ok(Received {
            sent,
            ..receiver.map_err(died)?
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn socket(namespace: &Path) -> io::Result<UdpSocket> {
    inside(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
}

fn send(socket: &UdpSocket, segments: usize, pace: Pace, stop: &AtomicBool) -> io::Result<u64> {
    let datagrams = vec![0; segments * DATAGRAM];
    let time = Duration::from_secs_f64((segments * MTU) as f64 * 8.0 / pace.rate);
    let (start, mut due) = (Instant::now(), Duration::ZERO);
    let mut sent = 0;
    while due < pace.settle + pace.measure && !stop.load(Ordering::Relaxed) {
        let now = start.elapsed();
        due = due.max(now.saturating_sub(CATCH_UP));
        while due <= now {
            socket.send(&datagrams)?;
            sent += segments as u64;
            due += time;
        }
        thread::sleep(PAUSE);
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, pace: Pace, stop: &AtomicBool) -> Received {
    let mut buffer = vec![0; LARGEST_READ];
    let mut received = Received::default();
    let (mut first, mut counted) = (None, None::<(Instant, Instant, usize)>);
    while !stop.load(Ordering::Relaxed) {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // Silence.
            Err(_) => break,
        };
        let now = Instant::now();
        let datagrams = length.div_ceil(DATAGRAM);
        received.arrived += datagrams as u64;
        let from = *first.get_or_insert(now) + pace.settle;
        if (from..from + pace.measure).contains(&now) {
            // The first one is where the time starts from.
            let (start, _, bytes) = counted.unwrap_or((now, now, 0));
            let more = if counted.is_some() {
                length + datagrams * HEADERS
            } else {
                0
            };
            counted = Some((start, now, bytes + more));
        }
    }
    if let Some((start, end, bytes)) = counted.filter(|(start, end, _)| end > start) {
        received.rate = bytes as f64 * 8.0 / (end - start).as_secs_f64();
    }
    received
}
