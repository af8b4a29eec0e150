//! What the kernel counts while an experiment runs: bytes an interface has received, CPU time and
//! memory of processes, time the machine lost to its neighbours.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::inside;

/// CPU time is told for so many bytes.
pub(crate) const GB: f64 = 1e9;

/// Between two samples.
const PERIOD: Duration = Duration::from_millis(100);

/// The client's interfaces, in the order of the links.
const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// What the client's interfaces had received at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unix time in seconds.
    pub unix: f64,
    /// Bytes of IP packets received by each interface since it was made.
    pub received: [u64; 2],
}

/// Whose processes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The downloader.
    Client,
    /// The server, before and after its move.
    Server,
}

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of CPU, user and system, of all of them.
    pub cpu: f64,
    /// Peak of resident memory of the largest, in bytes.
    pub peak_memory: u64,
}

/// A thread that samples the counters ten times a second until it is asked for them.
#[derive(Debug)]
pub struct Sampler {
    stop: Sender<()>,
    processes: Arc<Mutex<Vec<Process>>>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

/// A process that is counted.
#[derive(Debug)]
struct Process {
    pid: i32,
    side: Side,
    /// As it was last seen.
    usage: Usage,
    /// Its number is another's now: a restored server has that of the dumped one.
    replaced: bool,
}

impl Process {
    fn look(&mut self) {
        // One that has ended keeps what it was last seen to have used.
        if let (false, Some(now)) = (self.replaced, usage(self.pid)) {
            self.usage = now;
        }
    }
}

/// What a [`Sampler`] has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// The interfaces, in order of time.
    pub samples: Vec<Sample>,
    /// The downloader's processes.
    pub client: Usage,
    /// The server's processes.
    pub server: Usage,
}

impl Sampler {
    /// Starts sampling the interfaces in this network namespace, given as a file.
    pub fn start(namespace: PathBuf) -> Sampler {
        let (stop, stopped) = mpsc::channel();
        let processes = Arc::<Mutex<Vec<Process>>>::default();
        let seen = processes.clone();
        let thread = thread::spawn(move || {
            // It goes on to tell of the namespace in which it was opened.
            let mut counters = inside(&namespace, || File::open("/proc/thread-self/net/dev"))
                .with_context(|| format!("{}", namespace.display()))?;
            let mut samples = vec![interfaces(&mut counters)?];
            loop {
                let goes_on = stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout);
                samples.push(interfaces(&mut counters)?);
                lock(&seen).iter_mut().for_each(Process::look);
                if !goes_on {
                    return Ok(samples);
                }
            }
        });
        Sampler {
            stop,
            processes,
            thread,
        }
    }

    /// Counts this process too.
    pub fn watch(&self, side: Side, pid: i32) {
        let mut processes = lock(&self.processes);
        for process in processes.iter_mut().filter(|process| process.pid == pid) {
            process.replaced = true;
        }
        processes.push(Process {
            pid,
            side,
            usage: usage(pid).unwrap_or_default(),
            replaced: false,
        });
    }

    /// Ends the sampling.
    ///
    /// # Errors
    /// If a counter could not be read.
    pub fn finish(self) -> Result<Counted> {
        drop(self.stop);
        let samples = self.thread.join();
        let samples = samples.map_err(|_| anyhow!("the sampling thread has died"))??;
        let of = |side| {
            let mut sum = Usage::default();
            for process in lock(&self.processes).iter().filter(|p| p.side == side) {
                sum.cpu += process.usage.cpu;
                sum.peak_memory = sum.peak_memory.max(process.usage.peak_memory);
            }
            sum
        };
        Ok(Counted {
            samples,
            client: of(Side::Client),
            server: of(Side::Server),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// Unix time in seconds.
pub fn unix() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// What `/proc/net/dev` says now.
fn interfaces(counters: &mut File) -> Result<Sample> {
    counters.rewind()?;
    let text = io::read_to_string(counters)?;
    let unix = unix();
    let received = INTERFACES.map(|name| received(&text, name));
    let [Some(first), Some(second)] = received else {
        return Err(anyhow!("the client has no interfaces any more"));
    };
    Ok(Sample {
        unix,
        received: [first, second],
    })
}

/// An interface's received bytes, from the text of `/proc/net/dev`.
fn received(text: &str, interface: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Seconds of CPU, user and system, that a process has used so far; also of one that has ended and
/// that nobody has waited for yet.
///
/// By its own clock, in nanoseconds: `/proc/PID/stat` has hundredths of a second only, in which 10 MB
/// are served.
pub fn cpu(pid: i32) -> Option<f64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok()?;
    Some(Duration::from(clock.now().ok()?).as_secs_f64())
}

/// What a process has used so far.
pub fn usage(pid: i32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Usage {
        cpu: cpu(pid)?,
        peak_memory: peak_memory(&status)?,
    })
}

/// What is resident of a process now, in bytes. A zombie has nothing.
pub fn resident(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    memory(&status, "VmRSS:")
}

/// The peak of resident memory from `/proc/PID/status`, in bytes. A zombie has none.
fn peak_memory(status: &str) -> Option<u64> {
    memory(status, "VmHWM:")
}

fn memory(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// A measurement that loses more than this share of its time to the machine's other tenants is
/// repeated.
pub const MOST_STEAL: f64 = 0.05;

/// A moment of the machine's CPU time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steal {
    stolen: u64,
    all: u64,
}

impl Steal {
    /// Now.
    ///
    /// # Errors
    /// If `/proc/stat` is not as proc(5) has it.
    pub fn now() -> Result<Steal> {
        let text = fs::read_to_string("/proc/stat")?;
        Steal::read(&text).context("/proc/stat is of another kind")
    }

    fn read(text: &str) -> Option<Steal> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; guests are counted in user.
        let times: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        Some(Steal {
            stolen: *times.get(7)?,
            all: times.iter().sum(),
        })
    }

    /// The share of all CPU time since then that the machine's host gave to others.
    ///
    /// # Errors
    /// As [`Steal::now`].
    pub fn share(self) -> Result<f64> {
        Ok(self.share_until(Steal::now()?))
    }

    fn share_until(self, later: Steal) -> f64 {
        let all = later.all.saturating_sub(self.all).max(1);
        later.stolen.saturating_sub(self.stolen) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 345 6 0\n eth10: 7 8\n";
        assert_eq!(received(text, "eth0"), Some(345));
        assert_eq!(received(text, "eth1"), None);
        assert_eq!(peak_memory("VmPeak:\t 9 kB\nVmHWM:\t  3 kB\n"), Some(3072));
    }

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = Steal::read("cpu  10 0 10 80 0 0 0 0 5 5\ncpu0 1").unwrap();
        let after = Steal::read("cpu  20 0 20 130 0 5 5 20 9 9\n").unwrap();
        assert_eq!(before.share_until(after), 0.2);
        assert_eq!(before.share_until(before), 0.0);
    }

    #[test]
    fn a_process_is_seen_to_work() {
        let pid = std::process::id() as i32;
        let before = usage(pid).unwrap();
        assert!(before.peak_memory > 100_000);
        while usage(pid).unwrap().cpu <= before.cpu {}
    }
}
