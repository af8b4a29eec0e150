//! The network is as described, and goes away with all that ran in it.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::privileged;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::{Host, Topology};
use mpq_lab::system::host::{inside, run};
use socket2::{Domain, Socket, Type};

mod common;

const HOSTS: [Host; 4] = [Host::Client, Host::Router, Host::ServerA, Host::ServerB];

fn exists(namespace: &str) -> bool {
    Path::new("/var/run/netns").join(namespace).exists()
}

async fn on(topology: &Topology, host: Host, line: &str) -> String {
    let output = topology
        .command(host, "sh")
        .args(["-ec", line])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn each_client_interface_has_a_route_and_a_link_of_its_own() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();

    let routes = on(&topology, Host::Client, "ip route show default").await;
    let routes: Vec<_> = routes.lines().map(str::trim).collect();
    assert_eq!(
        routes,
        [
            "default via 10.0.0.1 dev eth0 metric 100",
            "default via 10.0.1.1 dev eth1 metric 101",
        ]
    );
    let rules = on(&topology, Host::Client, "ip rule").await;
    assert_eq!(rules.lines().count(), 3, "{rules}");

    for (host, device) in [
        (Host::Client, "eth0"),
        (Host::Client, "eth1"),
        (Host::Router, "link0"),
        (Host::Router, "link1"),
    ] {
        let shown = on(&topology, host, &format!("ip link show dev {device}")).await;
        assert!(shown.contains("mtu 1500"), "{device}: {shown}");
    }
    assert_eq!(topology.network().unwrap(), Network::default());
}

/// Solicitations of routers would be counted among what the hosts send.
#[tokio::test]
async fn links_carry_nothing_that_nobody_has_asked_for() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();
    for (host, device) in [(Host::Client, "eth0"), (Host::Router, "link1")] {
        let addresses = on(&topology, host, &format!("ip -6 addr show dev {device}")).await;
        assert_eq!(addresses, "", "{device}");
    }
}

/// A UDP socket on a host, bound to a device there.
fn socket(topology: &Topology, host: Host, device: &str) -> UdpSocket {
    let made = inside(&topology.namespace_file(host), || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.bind(&SocketAddr::from(([0; 4], 4433)).into())?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(UdpSocket::from(socket))
    });
    made.unwrap()
}

#[tokio::test]
async fn datagrams_go_to_both_servers_and_back_over_both_links() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();
    let mut buffer = [0; 16];
    for host in [Host::ServerA, Host::ServerB] {
        let server = socket(&topology, host, "eth0");
        for (device, address) in [("eth0", "10.0.0.2:4433"), ("eth1", "10.0.1.2:4433")] {
            let client = socket(&topology, Host::Client, device);
            client.send_to(b"there", (host.address(), 4433)).unwrap();
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], from),
                (&b"there"[..], address.parse().unwrap())
            );
            server.send_to(b"back", from).unwrap();
            let (length, _) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"back");
        }
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_dropped_network() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();
    let other = Topology::new(&Network::default()).unwrap();
    // It does not go when it is asked to.
    let mut inside = topology
        .command(Host::ServerB, "env")
        .args(["--ignore-signal=TERM", "sleep", "3600"])
        .spawn()
        .unwrap();
    let namespaces = HOSTS.map(|host| topology.namespace(host));
    assert!(namespaces.iter().all(|namespace| exists(namespace)));

    drop(topology);
    let status = inside.wait().await.unwrap();
    assert_eq!(status.signal(), Some(9));
    assert!(!namespaces.iter().any(|namespace| exists(namespace)));
    assert!(
        HOSTS
            .map(|host| other.namespace(host))
            .iter()
            .all(|namespace| exists(namespace))
    );
}

#[tokio::test]
async fn leftovers_of_a_dead_run_are_removed() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // A process that has ended is the maker of one, a living one that of the other.
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let leftover = format!("mpq-lab-{}-0-client", dead.id());
    let living = format!("mpq-lab-{}-999-client", std::process::id());
    for namespace in [&leftover, &living] {
        run("ip", ["netns", "add", namespace]).unwrap();
    }

    let topology = Topology::new(&Network::default());
    let remain = [&leftover, &living].map(|namespace| exists(namespace));
    run("ip", ["netns", "delete", &living]).unwrap();
    topology.unwrap();
    assert_eq!(remain, [false, true]);
}
