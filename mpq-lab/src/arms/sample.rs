//! What is counted while an arm downloads: ten times a second the bytes that each interface of the
//! client has received, and what the processes of both sides have used.

use std::fs::File;
use std::io::{self, Seek};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::system::counters::{Usage, usage};
use crate::system::host::{inside, unix};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 345 6 0\n eth10: 7 8\n";
        assert_eq!(received(text, "eth0"), Some(345));
        assert_eq!(received(text, "eth1"), None);
    }
}
