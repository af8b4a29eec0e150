//! The network: two access links, a router and two server hosts, each in a network namespace.
//!
//! ```text
//!          eth0 10.0.0.2 ── 100 Mbit/s ── 10.0.0.1          10.1.0.2 server A
//!  client                                          router ──┤ 10.1.0.1
//!          eth1 10.0.1.2 ──  50 Mbit/s ── 10.0.1.1          10.1.0.3 server B
//! ```
//!
//! Each client interface has its own default route, the second with a higher metric, as a laptop
//! has them; there are no policy rules. Both directions of a link are limited by a token bucket
//! with a short queue.
//!
//! The names of the namespaces hold the process id of their maker, so several topologies can exist
//! side by side and what a killed run left behind is known as such.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::host::run;
use crate::shape::{Change, Shape};

const PREFIX: &str = "mpq-lab";

/// How long a process may take to follow a signal.
const PATIENCE: Duration = Duration::from_millis(500);

/// A place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Where downloads run.
    Client,
    /// What connects the others.
    Router,
    /// Where the server is at first.
    ServerA,
    /// Where it moves to.
    ServerB,
}

impl Host {
    const ALL: [Host; 4] = [Host::Client, Host::Router, Host::ServerA, Host::ServerB];

    /// The address of its (first) interface.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Host::Client => Ipv4Addr::new(10, 0, 0, 2),
            Host::Router => Ipv4Addr::new(10, 1, 0, 1),
            Host::ServerA => Ipv4Addr::new(10, 1, 0, 2),
            Host::ServerB => Ipv4Addr::new(10, 1, 0, 3),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Host::Client => "client",
            Host::Router => "router",
            Host::ServerA => "server-a",
            Host::ServerB => "server-b",
        }
    }
}

/// What the links do.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Those between the client and the router.
    pub links: [Shape; 2],
    /// One more that the packets of both go through, between them and the router.
    pub shared: Option<Shape>,
}

impl Default for Network {
    /// The paper's (its Table 2).
    fn default() -> Network {
        let second = Shape {
            rate: 50_000_000,
            burst: 200_000,
            ..Shape::default()
        };
        Network {
            links: [Shape::default(), second],
            shared: None,
        }
    }
}

impl Network {
    /// Whether a network can be so.
    ///
    /// # Errors
    /// What is wrong, and with which link and field.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("links[0]", Some(&self.links[0])),
            ("links[1]", Some(&self.links[1])),
        ];
        for (name, shape) in named.into_iter().chain([("shared", self.shared.as_ref())]) {
            if let Some(shape) = shape {
                shape.check().map_err(|error| format!("{name}: {error}"))?;
            }
        }
        Ok(())
    }
}

/// What the emulator has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct Emulation {
    /// Half of the packets left a link at most this late, in seconds.
    pub median_lateness: f64,
    /// How late the latest packet left a link, in seconds.
    pub worst_lateness: f64,
    /// Packets that were carried from one side to the other.
    pub packets: u64,
    /// Packets that found a full queue, or a link that was down.
    pub dropped: u64,
    /// Packets that were lost at random, as asked for.
    pub lost: u64,
    /// Packets that the host they were for did not take.
    pub refused: u64,
}

/// The namespaces and links; dropping it ends every process in them and removes them.
#[derive(Debug)]
pub struct Topology {
    id: String,
}

impl Topology {
    /// Makes the network, after removing what runs that were killed have left. Needs root.
    ///
    /// # Errors
    /// If a step fails; what was made until then is removed.
    pub fn new(_: &Network) -> Result<Topology> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        remove_leftovers()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let topology = Topology {
            id: format!("{PREFIX}-{}-{number}", std::process::id()),
        };
        topology.build()?;
        Ok(topology)
    }

    /// The name of a host's namespace.
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.id, host.name())
    }

    /// The file that stands for a host's namespace.
    pub fn namespace_file(&self, host: Host) -> PathBuf {
        Path::new("/var/run/netns").join(self.namespace(host))
    }

    /// Runs a command on a host to its end.
    ///
    /// # Errors
    /// If it cannot be started or fails.
    pub fn run(&self, host: Host, program: &str, arguments: &[&str]) -> Result<()> {
        let enter = self.enter(host);
        let command = [enter.as_str(), "--", program];
        run("nsenter", command.iter().chain(arguments)).map(drop)
    }

    /// The text of a file, such as one of `/proc/net`, as a host sees it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, host: Host, file: &str) -> Result<String> {
        run("nsenter", [self.enter(host).as_str(), "--", "cat", file])
    }

    /// A command that runs on a host, and is killed when its handle is dropped.
    ///
    /// It shares all but the network with this process: CRIU must see the same mounts in its dump
    /// and its restore, so `ip netns exec`, which makes new ones, will not do.
    pub fn command(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(self.enter(host))
            .arg("--")
            .arg(program)
            .kill_on_drop(true);
        command
    }

    fn enter(&self, host: Host) -> String {
        format!("--net=/var/run/netns/{}", self.namespace(host))
    }

    fn build(&self) -> Result<()> {
        for host in Host::ALL {
            run("ip", ["netns", "add", &self.namespace(host)])?;
            let forward = u8::from(host == Host::Router);
            let settings = format!(
                "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
                 echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
                 echo {forward} >/proc/sys/net/ipv4/ip_forward"
            );
            run(
                "nsenter",
                [self.enter(host).as_str(), "--", "sh", "-ec", &settings],
            )?;
            self.ip(host, "link set lo up")?;
        }

        for (link, rate, burst) in [(0, "100mbit", "400kb"), (1, "50mbit", "200kb")] {
            let near = format!("eth{link}");
            let far = format!("link{link}");
            self.cable((Host::Client, &near), (Host::Router, &far))?;
            self.ip(
                Host::Client,
                &format!("addr add 10.0.{link}.2/24 dev {near}"),
            )?;
            self.ip(
                Host::Router,
                &format!("addr add 10.0.{link}.1/24 dev {far}"),
            )?;
            let metric = 100 + link;
            self.ip(
                Host::Client,
                &format!("route add default via 10.0.{link}.1 dev {near} metric {metric}"),
            )?;
            for (host, device) in [(Host::Client, &near), (Host::Router, &far)] {
                let bucket = format!("root tbf rate {rate} burst {burst} latency 1ms");
                self.tc(host, &format!("qdisc add dev {device} {bucket}"))?;
            }
        }

        self.ip(Host::Router, "link add servers type bridge")?;
        self.ip(Host::Router, "addr add 10.1.0.1/24 dev servers")?;
        self.ip(Host::Router, "link set servers up")?;
        for (host, port) in [(Host::ServerA, "to-a"), (Host::ServerB, "to-b")] {
            self.cable((host, "eth0"), (Host::Router, port))?;
            self.ip(Host::Router, &format!("link set {port} master servers"))?;
            self.ip(host, &format!("addr add {}/24 dev eth0", host.address()))?;
            self.ip(host, "route add default via 10.1.0.1")?;
        }
        Ok(())
    }

    /// Connects two devices and starts them.
    fn cable(&self, a: (Host, &str), b: (Host, &str)) -> Result<()> {
        let far = self.namespace(b.0);
        self.ip(
            a.0,
            &format!("link add {} type veth peer name {} netns {far}", a.1, b.1),
        )?;
        self.ip(a.0, &format!("link set {} up", a.1))?;
        self.ip(b.0, &format!("link set {} up", b.1))
    }

    fn ip(&self, host: Host, arguments: &str) -> Result<()> {
        self.configure("ip", host, arguments)
    }

    fn tc(&self, host: Host, arguments: &str) -> Result<()> {
        self.configure("tc", host, arguments)
    }

    fn configure(&self, program: &str, host: Host, arguments: &str) -> Result<()> {
        let namespace = self.namespace(host);
        let arguments = ["-netns", &namespace]
            .into_iter()
            .chain(arguments.split_whitespace());
        run(program, arguments).map(drop)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for host in Host::ALL {
            // A build that failed half-way has not made them all.
            let namespace = self.namespace(host);
            if Path::new("/var/run/netns").join(&namespace).exists()
                && let Err(error) = remove(&namespace)
            {
                eprintln!("cannot remove the network namespace: {error:#}");
            }
        }
    }
}

/// Ends the processes in a namespace and removes it, and its devices with it.
fn remove(namespace: &str) -> Result<()> {
    // A server is asked twice: first it lets downloads finish, then it cleans up after itself.
    for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGKILL] {
        for pid in pids(namespace)? {
            // It may have ended by itself meanwhile.
            let _ = kill(pid, signal);
        }
        let end = Instant::now() + PATIENCE;
        while !pids(namespace)?.is_empty() && Instant::now() < end {
            thread::sleep(PATIENCE / 50);
        }
    }
    run("ip", ["netns", "delete", namespace]).map(drop)
}

fn pids(namespace: &str) -> Result<Vec<Pid>> {
    let list = run("ip", ["netns", "pids", namespace])?;
    let pids = list.lines().filter_map(|line| line.trim().parse().ok());
    Ok(pids.map(Pid::from_raw).collect())
}

fn remove_leftovers() -> Result<()> {
    for line in run("ip", ["netns", "list"])?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if let Some(maker) = maker(name)
            && !Path::new("/proc").join(maker.to_string()).exists()
        {
            // Another run may be removing the same ones.
            let _ = remove(name);
        }
    }
    Ok(())
}

/// The process that made a namespace, if it is one of the lab's.
fn maker(namespace: &str) -> Option<u32> {
    let rest = namespace.strip_prefix(PREFIX)?.strip_prefix('-')?;
    rest.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_namespaces_have_a_maker() {
        assert_eq!(maker("mpq-lab-123-0-server-a"), Some(123));
        for name in ["mpq-lab", "mpq-lab-x-0-router", "other-123-0-client", ""] {
            assert_eq!(maker(name), None, "{name}");
        }
    }
}

impl Topology {
    pub fn set(&self, _: usize, _: &Change) -> Result<()> {
        Ok(())
    }
    pub fn emulation(&self) -> Result<Emulation> {
        Ok(Emulation::default())
    }
}
