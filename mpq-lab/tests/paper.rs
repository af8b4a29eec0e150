//! What the paper's method puts on the wire during a move, packet by packet.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use capture::{Capture, Datagram};
use common::{criu, privileged};
use mpq_core::client::{ClientEvent, PathEvent, PathInfo};
use mpq_lab::arms::mpq_get::DownloadEvent;
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{Client, ServerA, ServerB};
use mpq_lab::system::host::unix;

#[path = "common/capture.rs"]
mod capture;
mod common;

/// Longer than the intervals at which an opening is repeated, which double up to 2 s.
const OUTAGE: Duration = Duration::from_secs(9);
/// Between two packets that open a path, in seconds: noq's largest interval, and some time to send.
const MOST_BETWEEN: f64 = 2.2;
/// After the freeze, in seconds: until the client has noticed the silence, and has acted.
const NOTICED: f64 = 1.0;
/// What a packet that opens a path is padded to, bytes (RFC 9000 §8.2.1).
const PADDED: usize = 1200;
/// The client's addresses.
const LOCALS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 1, 2)];

/// The longest time in which nothing happens, in seconds.
fn longest_pause(start: f64, end: f64, happens: impl Iterator<Item = f64>) -> f64 {
    let (mut longest, mut last) = (0.0_f64, start);
    for at in happens.filter(|at| (start..end).contains(at)).chain([end]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

#[test]
fn a_pause_is_found_wherever_it_is() {
    let pause = |times: &[f64]| longest_pause(1.0, 9.0, times.iter().copied());
    assert_eq!(pause(&[]), 8.0);
    assert_eq!(pause(&[0.5, 4.0, 5.0, 9.5]), 4.0);
    assert_eq!(pause(&[2.0, 3.0, 7.5]), 4.5);
}

#[tokio::test]
async fn paper_sends_no_probe_and_opens_paths_through_the_whole_outage() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 60_000_000,
        seed: 60,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    testbed.serve(ServerA, content, |_| ()).await.unwrap();
    let options = ["--interface", "eth0", "--interface", "eth1", "--strategy"];
    let options = [&options[..], &["paper"]].concat();
    let mut download = testbed.download_as("paper", ServerA, &options).unwrap();
    let second = |path: &PathInfo| path.local == LOCALS[1];
    download
        .wait_for(|event| matches!(event, DownloadEvent::Connection(ClientEvent::Path(PathEvent::Validated(path))) if second(path)))
        .await
        .unwrap();
    download.wait_for_bytes(content.size / 4).await.unwrap();

    let capture = Capture::start(testbed.topology().namespace_file(Client)).unwrap();
    let dump = testbed.checkpoint(ServerA, ServerB).await.unwrap();
    let frozen = dump.dump_started;
    let left = OUTAGE.as_secs_f64() - (unix() - frozen);
    tokio::time::sleep(Duration::from_secs_f64(left)).await;
    let thawed = testbed.restore(ServerB).await.unwrap().thawed;
    let there = |event: &DownloadEvent| matches!(event, DownloadEvent::FirstByteAfterMove { .. });
    download.wait_for(there).await.unwrap();
    let seen = capture.finish().unwrap();
    let entries = download.finish().await.unwrap();
    let DownloadEvent::Done(done) = &entries.last().unwrap().event else {
        panic!("{:?}", entries.last());
    };
    assert_eq!((done.handshakes, done.requests), (1, 1), "{done:?}");
    assert_eq!(done.sha256, content.sha256());

    let sent = |datagram: &&Datagram| LOCALS.contains(datagram.from.ip());
    let sent: Vec<_> = seen.iter().filter(sent).collect();
    assert!(
        seen.len() > sent.len() && sent.len() > 100,
        "the capture works"
    );
    let long = sent.iter().filter(|datagram| datagram.version.is_some());
    let long: Vec<_> = long.collect();
    assert!(!long.iter().any(|datagram| datagram.is_probe()), "{long:?}");
    assert!(long.is_empty(), "the handshake is long over: {long:?}");

    let to = |place: SocketAddr| {
        sent.iter()
            .filter(move |datagram| datagram.to == place_of(place))
    };
    let outage = frozen + NOTICED..thawed;
    // The path that was ended at the announcement looks from the freeze on; the other one from the silence on.
    for local in LOCALS {
        let opening = to(ServerB.server_address())
            .filter(|datagram| *datagram.from.ip() == local && datagram.length == PADDED)
            .map(|datagram| datagram.at);
        let pause = longest_pause(outage.start, outage.end, opening);
        assert!(pause <= MOST_BETWEEN, "nothing from {local} for {pause} s");
    }
    let left: Vec<_> = to(ServerA.server_address())
        .filter(|datagram| outage.contains(&datagram.at))
        .collect();
    assert!(
        left.is_empty(),
        "the continuation path has ended at {frozen}: {left:?}"
    );
}

fn place_of(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("{address} is not of this network"),
    }
}
