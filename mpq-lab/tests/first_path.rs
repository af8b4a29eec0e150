//! By which interface and from which address a client connects.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use common::{criu, privileged};
use mpq_core::client::PathInfo;
use mpq_core::net::usable;
use mpq_lab::arms::mpq_get::DownloadEvent;
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::ServerA;
use mpq_lab::system::host::run;
use nix::sched::{CloneFlags, unshare};

mod common;

/// With the handshake over the second link, and its head start.
const MOMENT: Duration = Duration::from_secs(3);

/// A host of its own, with what this script gives it; from where it reaches a server, in order.
fn locals(script: &str, server: &str) -> Vec<String> {
    let server: IpAddr = server.parse().unwrap();
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            // A thread's namespace is its own, and ends with it.
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("sh", ["-ec", script]).unwrap();
            let locals = usable(server, &[]).unwrap();
            let family = |local: &&mpq_core::net::Local| local.ip.is_ipv4() == server.is_ipv4();
            let ips = locals
                .iter()
                .filter(family)
                .map(|local| local.ip.to_string());
            ips.collect()
        });
        host.join().unwrap()
    })
}

/// The first interface leads nowhere, as that of docker does.
const BRIDGE_AND_LINK: &str = "
    ip link add docker0 type veth peer name peer0
    ip link add eth0 type veth peer name peer1
    ip link set peer0 up
    ip link set peer1 up
    ip addr add 172.17.0.1/16 dev docker0
    ip addr add 10.0.0.2/24 dev eth0
    ip link set docker0 up
    ip link set eth0 up
    until ip link show docker0 | grep -q 'state UP'; do sleep 0.01; done
    until ip link show eth0 | grep -q 'state UP'; do sleep 0.01; done
    ip route add default via 10.0.0.1 dev eth0";

#[tokio::test]
async fn the_interface_that_the_routing_table_chooses_comes_first() {
    let Some(_alone) = privileged().await else {
        return;
    };
    assert_eq!(
        locals(BRIDGE_AND_LINK, "10.1.0.2"),
        ["10.0.0.2", "172.17.0.1"]
    );
}

#[tokio::test]
async fn of_an_interfaces_addresses_the_kernel_chooses() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let add = |address: &str, life: &str| {
        format!("ip addr add 2001:db8:1::{address}/64 dev eth0 nodad preferred_lft {life}\n")
    };
    let deprecated = |address| add(address, "0 valid_lft 1000");
    let preferred = |address| add(address, "900 valid_lft 1000");
    for addresses in [
        [deprecated("1"), preferred("2"), deprecated("3")],
        [deprecated("3"), preferred("2"), deprecated("1")],
    ] {
        let script = format!(
            "ip link add eth0 type veth peer name peer0\n\
             ip link set peer0 up\n\
             ip link set eth0 up\n\
             until ip link show eth0 | grep -q 'state UP'; do sleep 0.01; done\n{}\
             ip route add default via fe80::1 dev eth0",
            addresses.concat()
        );
        assert_eq!(locals(&script, "2001:db8:2::1"), ["2001:db8:1::2"]);
    }
}

/// Downloads from two servers of the same file, one after the other, while the first link is dead.
#[tokio::test]
async fn a_first_link_that_is_dead_costs_a_moment_at_the_start_and_at_a_reconnect() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 30_000_000,
        seed: 57,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let run = async {
        testbed.serve(ServerA, content, |_| ()).await?;
        let dead = "up=false".parse().map_err(anyhow::Error::msg)?;
        testbed.topology().set(0, &dead)?;
        let mut download = testbed.download_as("download", ServerA, &["--idle-timeout", "2"])?;
        download.wait_for_bytes(content.size / 10).await?;
        testbed.kill()?;
        // Until its address is free.
        while testbed.serve(ServerA, content, |_| ()).await.is_err() {}
        download.finish().await
    };
    let entries = run
        .await
        .with_context(|| format!("the logs:\n{}", testbed.logs()))
        .unwrap();
    let DownloadEvent::Done(done) = &entries.last().unwrap().event else {
        panic!("the last event is {:?}", entries.last());
    };
    assert_eq!(done.sha256, content.sha256());
    assert_eq!(done.handshakes, 2);
    let second = |path: &PathInfo| path.local.to_string() == "10.0.1.2";
    assert!(done.paths.iter().all(second), "{:?}", done.paths);
    let mut before = 0.0;
    for entry in &entries {
        match &entry.event {
            DownloadEvent::Connected { .. } => {
                assert!(entry.t - before < MOMENT.as_secs_f64(), "{entries:?}");
            }
            DownloadEvent::Retry { wait, .. } => before = entry.t + wait,
            _ => {}
        }
    }
}
