//! What a process has cost.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Of this process, with all of its threads, since it was started. To the system, a process that
/// CRIU restores is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, in user and kernel mode together.
    pub cpu: Duration,
    /// The most memory that was resident at a time, bytes.
    pub peak_memory: u64,
}

impl Usage {
    /// Asks the system.
    pub fn now() -> Self {
        let usage =
            getrusage(UsageWho::RUSAGE_SELF).expect("getrusage(2) fails for wrong calls only");
        Self {
            cpu: duration(usage.user_time()) + duration(usage.system_time()),
            // In units of 1024 bytes.
            peak_memory: usage.max_rss() as u64 * 1024,
        }
    }
}

fn duration(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_count() {
        let before = Usage::now();
        let mut block = vec![1_u8; 64 << 20];
        while Usage::now().cpu < before.cpu + Duration::from_millis(20) {
            block.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
            std::hint::black_box(&mut block);
        }
        let after = Usage::now();
        assert!(after.peak_memory >= block.len() as u64, "{after:?}");
    }
}
