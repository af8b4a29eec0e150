//! The process that moves the packets: `cargo lab emulate`, started by [`super::start`].
//!
//! One thread. It sleeps until a packet is due or one has come, and reads its devices at once, so
//! that what is too much is dropped by the model's queue and not by the kernel's.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl::set_timerslack;
use serde::{Deserialize, Serialize};

use super::control::{Control, ControlReply, ControlRequest};
use super::lateness::Lateness;
use super::tun::{self, Tun};
use super::wires::{Direction, Parcel, Wires};
use crate::network::model::{Emulation, Network};

/// What the process is told on its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setting {
    /// The network's name.
    pub(super) id: String,
    /// The file that stands for the client's network namespace.
    pub(super) client: PathBuf,
    /// That of the router.
    pub(super) router: PathBuf,
    /// How the links are at first.
    pub(super) network: Network,
    /// Whether to go on when the standard input ends.
    pub(super) stays: bool,
}

/// While packets come and go, the process looks for them so often: at every single one it would cost
/// the hosts, which share the machine, much of their time.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);

/// Packets read from one device before the others have their turn.
const BATCH: usize = 64;

/// What [`Process::watch`] calls the control socket; the devices have their index.
const CONTROL: u64 = 4;
/// The same of the standard input, from which nothing more is to come.
const GONE: u64 = 5;

/// Makes the devices, says on the standard output that it has, and moves packets until its starter
/// has gone.
///
/// # Errors
/// If the devices cannot be made; the starter is told too.
pub(super) fn run() -> Result<()> {
    // Ctrl-C is for the starter, which ends this process when it is done.
    let _ = nix::unistd::setsid();
    // Timers are to be exact; the usual slack is 50 µs. With a real-time priority there is none.
    let _ = set_timerslack(1);

    let started = start();
    let said = started
        .as_ref()
        .map(drop)
        .map_err(|error| format!("{error:#}"));
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", serde_json::to_string(&said)?)?;
    stdout.flush()?;
    let (mut emulator, control, stays) = started?;
    emulator.run(&control, stays)
}

fn start() -> Result<(Process, Control, bool)> {
    let setting: Setting = serde_json::from_str(&line()?).context("a wrong setting")?;
    let control = Control::open(&setting.id)?;
    let device = |namespace, name: &str| {
        Tun::new(namespace, name, setting.network.offload)
            .with_context(|| format!("cannot make the device {name}"))
    };
    let process = Process {
        devices: [
            [
                device(&setting.client, "eth0")?,
                device(&setting.client, "eth1")?,
            ],
            [
                device(&setting.router, "link0")?,
                device(&setting.router, "link1")?,
            ],
        ],
        wires: Wires::new(&setting.network, &mut Rng::new()),
        taken: vec![0; tun::LARGEST_READ],
        free: Vec::new(),
        lateness: Lateness::new(),
        refused: 0,
        start: Instant::now(),
    };
    Ok((process, control, setting.stays))
}

/// The first line of the standard input, and no byte more.
fn line() -> io::Result<String> {
    let mut line = Vec::new();
    for byte in io::stdin().lock().bytes() {
        match byte? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// Calls again what a signal has interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

struct Process {
    /// By the direction of what they send, then by link.
    devices: [[Tun; 2]; 2],
    wires: Wires<Vec<u8>>,
    /// What was read last.
    taken: Vec<u8>,
    /// Buffers to use again.
    free: Vec<Vec<u8>>,
    lateness: Lateness,
    refused: u64,
    start: Instant,
}

impl Process {
    fn run(&mut self, control: &Control, stays: bool) -> Result<()> {
        let epoll = self.watch(control, stays)?;
        let mut events = [EpollEvent::empty(); 6];
        loop {
            let look = self.now();
            let mut read = 0;
            let ready = retry(|| epoll.wait(&mut events, EpollTimeout::ZERO))?;
            for event in &events[..ready] {
                match event.data() {
                    GONE => return Ok(()),
                    CONTROL => control.serve(|request| self.answer(request)),
                    device => read = read.max(self.receive(device as usize)),
                }
            }
            if self.deliver() || read > 0 {
                if read < BATCH {
                    thread::sleep((look + LOOK_INTERVAL).saturating_sub(self.now()));
                }
            } else {
                let next = self.wires.next();
                let wait = next.map(|due| due.saturating_sub(self.now()).into());
                // It can wait for nanoseconds; epoll's own call counts in milliseconds.
                let mut all = [PollFd::new(epoll.0.as_fd(), PollFlags::POLLIN)];
                retry(|| ppoll(&mut all, wait, None))?;
            }
        }
    }

    /// What wakes the process.
    fn watch(&self, control: &Control, stays: bool) -> Result<Epoll> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let event = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        for (index, device) in (0..).zip(self.devices.iter().flatten()) {
            epoll.add(device, event(index))?;
        }
        epoll.add(control, event(CONTROL))?;
        if !stays {
            epoll.add(io::stdin(), event(GONE))?;
        }
        Ok(epoll)
    }

    /// The time of the model.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Reads what a host has sent by one device. Returns the number of packets.
    fn receive(&mut self, device: usize) -> usize {
        let (direction, link) = (Direction::ALL[device / 2], device % 2);
        for read in 0..BATCH {
            let device = &self.devices[direction as usize][link];
            // None is there, or the device is down.
            let Ok(length) = device.read(&mut self.taken) else {
                return read;
            };
            // Of the packet's own size: most are far smaller than what a device may give.
            let taken = &self.taken[..length];
            let mut packet = self.free.pop().unwrap_or_default();
            packet.clear();
            packet.extend_from_slice(taken);
            let parcel = Parcel {
                direction,
                link,
                bytes: device.on_the_wire(taken) as u64,
                packet,
            };
            if let Err(packet) = self.wires.push(parcel, self.now()) {
                self.free.push(packet);
            }
        }
        BATCH
    }

    /// Hands over what has arrived, if anything has.
    fn deliver(&mut self) -> bool {
        let until = self.now();
        let mut any = false;
        while let Some((due, parcel)) = self.wires.pop(until) {
            any = true;
            let device = &self.devices[1 - parcel.direction as usize][parcel.link];
            self.lateness.add(self.now().saturating_sub(due));
            if device.write(&parcel.packet).is_err() {
                self.refused += 1;
            }
            self.free.push(parcel.packet);
        }
        any
    }

    fn answer(&mut self, request: ControlRequest) -> ControlReply {
        match request {
            ControlRequest::Change(line, change) => {
                match self.wires.change(line, &change, self.now()) {
                    Ok(()) => ControlReply::Changed,
                    Err(reason) => ControlReply::Refused(reason),
                }
            }
            ControlRequest::Network => ControlReply::Network(Box::new(self.wires.network())),
            ControlRequest::Emulation => {
                let lateness = std::mem::replace(&mut self.lateness, Lateness::new());
                let counters = self.wires.take_counters();
                let refused = std::mem::take(&mut self.refused);
                ControlReply::Emulation(Emulation {
                    median_lateness: lateness.median().as_secs_f64(),
                    worst_lateness: lateness.worst().as_secs_f64(),
                    packets: lateness.count() - refused,
                    dropped: counters.dropped,
                    lost: counters.lost,
                    refused,
                })
            }
        }
    }
}
