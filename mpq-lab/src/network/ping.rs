//! Round-trip times, by the system's ping.

use anyhow::{Result, ensure};

use crate::network::topology::{Host, Topology};

/// Seconds between two pings.
const INTERVAL: &str = "0.05";

/// Pings server A from the client over a link, and returns the round-trip times of the answers in
/// seconds, in order.
///
/// # Errors
/// If nothing is answered.
pub(crate) async fn ping(topology: &Topology, link: usize, count: usize) -> Result<Vec<f64>> {
    let output = topology
        .command(Host::Client, "ping")
        .args(["-n", "-c", &count.to_string(), "-i", INTERVAL])
        .args(["-I", &format!("eth{link}")])
        .arg(Host::ServerA.address().to_string())
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let times = times(&said);
    ensure!(!times.is_empty(), "ping over link {link}: {said}");
    Ok(times)
}

/// The times in what ping says, in seconds.
fn times(said: &str) -> Vec<f64> {
    let milliseconds = |line: &str| -> Option<f64> {
        let (_, time) = line.split_once("time=")?;
        time.strip_suffix(" ms")?.parse().ok()
    };
    let times = said.lines().filter_map(milliseconds);
    times.map(|ms| ms / 1e3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_ping_are_found() {
        let said = "64 bytes from 10.1.0.2: icmp_seq=1 ttl=63 time=50.3 ms\n\n\
                    rtt min/avg/max/mdev = 50.300/50.300/50.300/0.000 ms\n";
        assert_eq!(times(said), [0.0503]);
    }
}
