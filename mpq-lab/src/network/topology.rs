//! The network: two access links, a router and two server hosts, each in a network namespace.
//!
//! ```text
//!          eth0 10.0.0.2 ── link 0 ── 10.0.0.1          10.1.0.2 server A
//!  client                                      router ──┤ 10.1.0.1
//!          eth1 10.0.1.2 ── link 1 ── 10.0.1.1          10.1.0.3 server B
//! ```
//!
//! Each client interface has its own default route, the second with a higher metric, as a laptop
//! has them; there are no policy rules. The two links are [emulated](crate::network::emulator).
//!
//! The names of the namespaces hold the process id of their maker, so several topologies can exist
//! side by side and what a killed run left behind is known as such. One that is to stay after its
//! maker has names without it.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::network::emulator;
use crate::network::link_model::{Change, MTU};
use crate::network::model::{Emulation, Line, Network};
use crate::system::host::run;

const PREFIX: &str = "mpq-lab";

/// Packets that may wait for the emulator to read them; so many come in tens of milliseconds.
const DEVICE_QUEUE: u32 = 10_000;

/// Where servers listen.
const PORT: u16 = 4433;

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

    /// Where a server on this host is reached.
    pub fn server_address(self) -> SocketAddr {
        SocketAddrV4::new(self.address(), PORT).into()
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

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Host, String> {
        let found = Host::ALL.into_iter().find(|host| host.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Host::ALL.map(Host::name).join(", ")))
    }
}

/// The namespaces and links. Dropping it ends every process in them and removes them, unless it was
/// made to stay.
#[derive(Debug)]
pub struct Topology {
    id: String,
    /// The emulator; none if another process has started it.
    emulator: Option<Child>,
    stays: bool,
}

impl Topology {
    /// Makes the network, after removing what runs that were killed have left. Needs root.
    ///
    /// # Errors
    /// If a step fails; what was made until then is removed.
    pub fn new(network: &Network) -> Result<Topology> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}-{}-{number}", std::process::id());
        Topology::make(id, network, false)
    }

    /// As [`Topology::new`], but it stays until [`Topology::take_down`]. There is one such network.
    ///
    /// # Errors
    /// If a step fails; what was made until then is removed.
    pub fn put_up(network: &Network) -> Result<Topology> {
        // Half of it may be there.
        Topology::take_down()?;
        let mut topology = Topology::make(PREFIX.into(), network, true)?;
        topology.stays = true;
        Ok(topology)
    }

    /// The network that stays, if it is whole.
    pub fn already_up() -> Option<Topology> {
        let topology = Topology {
            id: PREFIX.into(),
            emulator: None,
            stays: true,
        };
        let exists = |host| topology.namespace_file(host).exists();
        let whole = Host::ALL.into_iter().all(exists) && topology.network().is_ok();
        whole.then_some(topology)
    }

    /// Removes the network that stays, as far as it is there, and what runs that were killed have
    /// left.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn take_down() -> Result<()> {
        remove_leftovers()?;
        clear(PREFIX)
    }

    fn make(id: String, network: &Network, stays: bool) -> Result<Topology> {
        network.check().map_err(|error| anyhow!(error))?;
        remove_leftovers()?;
        // From here on it is removed if a step fails.
        let mut topology = Topology {
            id,
            emulator: None,
            stays: false,
        };
        topology.make_hosts()?;
        let emulator = emulator::start(
            &topology.id,
            topology.namespace_file(Host::Client),
            topology.namespace_file(Host::Router),
            network,
            stays,
        )?;
        topology.emulator = Some(emulator);
        topology.connect()?;
        Ok(topology)
    }

    /// Changes a link, 0 or 1, from now on.
    ///
    /// # Errors
    /// If there is no such link, or it cannot be so.
    pub fn set(&self, link: usize, change: &Change) -> Result<()> {
        self.set_line(Line::Link(link), change)
    }

    /// Changes a link, or the shared one, from now on.
    ///
    /// # Errors
    /// If there is no such link, or it cannot be so.
    pub fn set_line(&self, line: Line, change: &Change) -> Result<()> {
        emulator::change(&self.id, line, change)
    }

    /// The links as they are now.
    ///
    /// # Errors
    /// If the emulator has ended.
    pub fn network(&self) -> Result<Network> {
        emulator::network(&self.id)
    }

    /// What the emulator has done since the last call, or the start.
    ///
    /// # Errors
    /// If the emulator has ended.
    pub fn emulation(&self) -> Result<Emulation> {
        emulator::emulation(&self.id)
    }

    /// The name of a host's namespace.
    pub fn namespace(&self, host: Host) -> String {
        namespace(&self.id, host)
    }

    /// The file that stands for a host's namespace.
    pub fn namespace_file(&self, host: Host) -> PathBuf {
        file(&self.namespace(host))
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

    fn make_hosts(&self) -> Result<()> {
        for host in Host::ALL {
            run("ip", ["netns", "add", &self.namespace(host)])?;
            let forward = u8::from(host == Host::Router);
            let settings = format!(
                "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
                 echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
                 echo {forward} >/proc/sys/net/ipv4/ip_forward"
            );
            self.run(host, "sh", &["-ec", &settings])?;
            self.ip(host, "link set lo up")?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        for link in 0..2 {
            let near = (Host::Client, format!("eth{link}"), 2);
            let far = (Host::Router, format!("link{link}"), 1);
            for (host, device, number) in [near, far] {
                // Without a link-local IPv6 address, nothing is sent that nobody has asked for. Before the device
                // is up: both in one, it would have the address first.
                self.ip(host, &format!("link set {device} addrgenmode none"))?;
                self.ip(
                    host,
                    &format!("link set {device} mtu {MTU} txqueuelen {DEVICE_QUEUE} up"),
                )?;
                self.ip(
                    host,
                    &format!("addr add 10.0.{link}.{number}/24 dev {device}"),
                )?;
            }
            let metric = 100 + link;
            self.ip(
                Host::Client,
                &format!("route add default via 10.0.{link}.1 dev eth{link} metric {metric}"),
            )?;
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
        let namespace = self.namespace(host);
        let arguments = ["-netns", &namespace]
            .into_iter()
            .chain(arguments.split_whitespace());
        run("ip", arguments).map(drop)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = clear(&self.id) {
            eprintln!("cannot remove the network: {error:#}");
        }
        if let Some(mut emulator) = self.emulator.take() {
            // It was ended just now, and is collected here.
            let _ = emulator.kill();
            let _ = emulator.wait();
        }
    }
}

fn namespace(id: &str, host: Host) -> String {
    format!("{id}-{}", host.name())
}

fn file(namespace: &str) -> PathBuf {
    Path::new("/var/run/netns").join(namespace)
}

/// Removes all there is of a network: the processes on its hosts, its emulator, its namespaces with
/// their devices.
fn clear(id: &str) -> Result<()> {
    let namespaces = Host::ALL.map(|host| namespace(id, host));
    let namespaces = namespaces.iter().filter(|name| file(name).exists());
    for namespace in namespaces.clone() {
        end(namespace)?;
    }
    // Its devices would keep the namespaces alive.
    emulator::stop(id)?;
    for namespace in namespaces {
        run("ip", ["netns", "delete", namespace])?;
    }
    Ok(())
}

/// Ends the processes in a namespace.
fn end(namespace: &str) -> Result<()> {
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
    ensure!(
        pids(namespace)?.is_empty(),
        "processes in {namespace} do not end"
    );
    Ok(())
}

fn pids(namespace: &str) -> Result<Vec<Pid>> {
    let list = run("ip", ["netns", "pids", namespace])?;
    let pids = list.lines().filter_map(|line| line.trim().parse().ok());
    Ok(pids.map(Pid::from_raw).collect())
}

fn remove_leftovers() -> Result<()> {
    let namespaces = run("ip", ["netns", "list"])?;
    let names = namespaces
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut ids = emulator::ids();
    ids.extend(names.filter_map(network_of).map(str::to_owned));
    ids.sort();
    ids.dedup();
    for id in ids {
        if let Some(maker) = maker(&id)
            && !Path::new("/proc").join(maker.to_string()).exists()
        {
            // Another run may be removing the same ones.
            let _ = clear(&id);
        }
    }
    Ok(())
}

/// The network that a namespace of this name is of.
fn network_of(namespace: &str) -> Option<&str> {
    let names = Host::ALL.map(Host::name);
    names
        .iter()
        .find_map(|name| namespace.strip_suffix(name)?.strip_suffix('-'))
}

/// The process that made a network, if it is one of the lab's and was not to stay.
fn maker(id: &str) -> Option<u32> {
    let (maker, number) = id
        .strip_prefix(PREFIX)?
        .strip_prefix('-')?
        .split_once('-')?;
    number.parse::<u32>().ok()?;
    maker.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_networks_have_a_maker() {
        for name in ["client", "server-a"] {
            let namespace = format!("mpq-lab-123-0-{name}");
            assert_eq!(network_of(&namespace).and_then(maker), Some(123));
            let stays = format!("mpq-lab-{name}");
            assert_eq!(network_of(&stays), Some(PREFIX));
        }
        for name in [
            "mpq-lab",
            "mpq-lab-x-0",
            "mpq-lab-1",
            "other-123-0",
            "ask-1",
            "",
        ] {
            assert_eq!(maker(name), None, "{name}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for host in Host::ALL {
            assert_eq!(host.name().parse(), Ok(host));
        }
        assert!("server".parse::<Host>().is_err());
    }
}
