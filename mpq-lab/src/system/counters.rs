//! What the kernel counts: CPU time and memory of processes, and the time that the machine lost to its
//! neighbours.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// CPU time is told for so many bytes.
pub(crate) const GB: f64 = 1e9;

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of CPU, user and system, of all of them.
    pub cpu: f64,
    /// Peak of resident memory of the largest, in bytes.
    pub peak_memory: u64,
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
    fn the_peak_of_memory_is_found() {
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
