//! The emulated links are as asked for, and the network that stays does and goes.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::privileged;
use mpq_lab::network::calibrate::calibrate;
use mpq_lab::network::link_model::{Change, Shape};
use mpq_lab::network::model::{Emulation, Network};
use mpq_lab::network::topology::{Host, Topology};
use mpq_lab::system::host::{built, inside, run};

mod common;

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn change(text: &str) -> Change {
    text.parse().unwrap()
}

/// A UDP socket on a host.
fn socket(topology: &Topology, host: Host) -> UdpSocket {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let socket = inside(&topology.namespace_file(host), bind).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends so many datagrams of 1,500 bytes, headers included, by the client's first interface, as fast
/// as it can. Returns what the emulator has done when it has seen them all.
fn burst(topology: &Topology, count: u64) -> Emulation {
    let (client, server) = (
        socket(topology, Host::Client),
        socket(topology, Host::ServerA),
    );
    let port = server.local_addr().unwrap().port();
    topology.emulation().unwrap();
    for _ in 0..count {
        let sent = client.send_to(&[0; 1472], (Host::ServerA.address(), port));
        assert_eq!(sent.unwrap(), 1472);
    }
    let mut sum = Emulation::default();
    let end = Instant::now() + PATIENCE;
    while sum.packets + sum.dropped + sum.lost < count && Instant::now() < end {
        let more = topology.emulation().unwrap();
        sum.packets += more.packets;
        sum.dropped += more.dropped;
        sum.lost += more.lost;
        thread::sleep(Duration::from_millis(10));
    }
    sum
}

#[tokio::test]
async fn the_papers_links_are_as_asked_for() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // It checks every figure itself.
    let calibration = calibrate(&Network::default()).await.unwrap();
    eprintln!("{calibration}");
    assert!(calibration.links.iter().all(|link| link.rtt_min >= 0.05));
}

#[tokio::test]
async fn other_links_are_as_asked_for() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let shape = |text| {
        let mut shape = Shape::default();
        shape.apply(&change(text));
        shape
    };
    let network = Network {
        links: [
            shape("rate=40M,delay=10ms,loss=0.02"),
            shape("rate=10M,burst=40k,delay=5ms,jitter=2ms"),
        ],
        shared: Some(shape("rate=20M,burst=100k,delay=3ms")),
        ..Network::default()
    };
    let calibration = calibrate(&network).await.unwrap();
    eprintln!("{calibration}");
    let loss = calibration.links[0].loss.unwrap();
    assert!(loss.lost > 0 && loss.lost < loss.sent, "{loss:?}");
    assert_eq!(calibration.links[1].loss, None);
}

/// At rates that the hosts, too, can fill on a small machine.
#[tokio::test]
async fn links_that_carry_many_packets_in_one_keep_their_rates() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let network = Network {
        offload: true,
        ..Network::default()
    };
    let calibration = calibrate(&network).await.unwrap();
    eprintln!("{calibration}");
    // Of packets of 1,500 bytes it would carry, in at least 2 s each way, more than 50,000.
    assert!(calibration.emulation.packets < 25_000, "{calibration}");
}

#[tokio::test]
async fn what_is_too_much_is_dropped_by_the_links_queue_and_nowhere_else() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();
    let count = 20_000;
    let Emulation {
        packets,
        dropped,
        lost,
        ..
    } = burst(&topology, count);
    assert_eq!((packets + dropped, lost), (count, 0));
    // The bucket, 266 packets, and the queue, 275, pass in any case.
    assert!(packets >= 541 && dropped > 0, "{packets}, {dropped}");

    // With a bucket of ten and a queue for one more they are fewer, however long the sending takes.
    topology
        .set(0, &change("rate=1M,burst=15k,latency=1ms"))
        .unwrap();
    thread::sleep(Duration::from_millis(200));
    let Emulation {
        packets, dropped, ..
    } = burst(&topology, 200);
    assert_eq!(packets + dropped, 200);
    assert!((20..100).contains(&packets), "{packets}");
}

#[tokio::test]
async fn a_link_that_is_down_carries_nothing_until_it_is_up() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let topology = Topology::new(&Network::default()).unwrap();
    let answers = async |link: usize| {
        let ping = topology
            .command(Host::Client, "ping")
            .args(["-n", "-c", "1", "-W", "1", "-I", &format!("eth{link}")])
            .arg(Host::ServerB.address().to_string())
            .output();
        ping.await.unwrap().status.success()
    };
    assert_eq!([answers(0).await, answers(1).await], [true, true]);
    topology.set(1, &change("up=false")).unwrap();
    assert_eq!([answers(0).await, answers(1).await], [true, false]);
    topology.set(1, &change("up=true")).unwrap();
    assert_eq!([answers(0).await, answers(1).await], [true, true]);

    let refused = topology.set(0, &change("loss=2")).unwrap_err();
    assert!(refused.to_string().contains("loss"), "{refused:#}");
    assert!(topology.set(2, &change("up=false")).is_err());
}

fn lab(arguments: &str) -> Output {
    let output = Command::new(built("mpq-lab").unwrap())
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .output();
    output.unwrap()
}

fn namespaces(prefix: &str) -> usize {
    let list = run("ip", ["netns", "list"]).unwrap();
    list.lines().filter(|line| line.starts_with(prefix)).count()
}

#[tokio::test]
async fn nothing_is_left_of_an_owner_that_was_killed() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut owner = Command::new(built("mpq-lab").unwrap())
        .arg("calibrate")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let id = format!("mpq-lab-{}-0", owner.id());
    let socket = Path::new("/run/mpq-lab").join(&id);
    let end = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < end, "no emulator was started");
        thread::sleep(Duration::from_millis(10));
    }
    owner.kill().unwrap();
    owner.wait().unwrap();

    // The emulator ends by itself, the rest is removed by whoever is next.
    let asks = UnixDatagram::unbound().unwrap();
    while asks.connect(&socket).is_ok() {
        assert!(Instant::now() < end + PATIENCE, "the emulator goes on");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(namespaces(&id) > 0);
    drop(Topology::new(&Network::default()).unwrap());
    assert_eq!(namespaces(&id), 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_network_that_stays_comes_works_and_goes() {
    let Some(_alone) = privileged().await else {
        return;
    };
    assert!(
        Topology::already_up().is_none(),
        "one is up and may be in use; run `cargo lab down` first"
    );
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let refused = lab("exec client -- true");
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cargo lab up"));

    let up = lab("up --link 1:rate=20M,delay=10ms");
    assert!(up.status.success(), "{up:?}");
    assert!(said(&up).contains("rate=20M"), "{up:?}");

    let ping = lab("exec client -- ping -n -c 1 -I eth1 10.1.0.3");
    assert!(ping.status.success(), "{ping:?}");
    let failing = lab("exec server-a -- ip link show nothing");
    assert_eq!(failing.status.code(), Some(1), "{failing:?}");
    let shown = lab("exec server-b -- ip -o -4 addr show eth0");
    assert!(said(&shown).contains("10.1.0.3/24"), "{shown:?}");

    let set = lab("link set 1 up=false loss=0.5");
    assert!(set.status.success(), "{set:?}");
    let shown = said(&lab("link show"));
    assert!(shown.contains("loss=0.5 reorder=0 up=false"), "{shown}");
    // Neither another `up` nor a network that comes and goes changes it.
    drop(Topology::new(&Network::default()).unwrap());
    assert!(lab("up").status.success());
    assert_eq!(said(&lab("link show")), shown);
    for wrong in [
        "link set 2 up=true",
        "link set shared up=true",
        "link set 0 loss=2",
    ] {
        assert!(!lab(wrong).status.success(), "{wrong}");
    }

    assert!(lab("down").status.success());
    assert!(Topology::already_up().is_none());
    assert_eq!(namespaces("mpq-lab-client"), 0);
    assert!(lab("down").status.success(), "nothing to do is no failure");
}
