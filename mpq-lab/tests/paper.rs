//! What the paper's method puts on the wire during a move, packet by packet.

use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{criu, privileged};
use mpq_core::client::{ClientEvent, PathEvent, PathInfo};
use mpq_lab::arms::mpq_get::DownloadEvent;
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{Client, ServerA, ServerB};
use mpq_lab::system::host::{inside, unix};
use socket2::{Domain, Protocol, Socket, Type};

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

/// A UDP datagram that was seen.
#[derive(Debug)]
struct Datagram {
    /// Unix time, in seconds.
    at: f64,
    from: SocketAddrV4,
    to: SocketAddrV4,
    length: usize,
    /// The version of a packet with a long header (RFC 8999 §5.1).
    version: Option<[u8; 4]>,
}

impl Datagram {
    /// Of an IPv4 packet; `None` if it is another.
    fn parse(at: f64, packet: &[u8]) -> Option<Datagram> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let is_udp = packet[0] >> 4 == 4 && *packet.get(9)? == 17;
        let (source, destination) = (packet.get(12..16)?, packet.get(16..20)?);
        let udp = packet.get(header..)?;
        let port = |offset| Some(u16::from_be_bytes(*udp.get(offset..)?.first_chunk()?));
        let address = |ip: &[u8], port| {
            let ip: [u8; 4] = ip.try_into().ok()?;
            Some(SocketAddrV4::new(ip.into(), port))
        };
        let payload = udp.get(8..)?;
        let is_long = payload.first()? & 0x80 != 0;
        let version = payload.get(1..)?.first_chunk().copied();
        is_udp.then_some(Datagram {
            at,
            from: address(source, port(0)?)?,
            to: address(destination, port(2)?)?,
            length: payload.len(),
            version: version.filter(|_| is_long),
        })
    }

    /// Whether it is meant to be answered by Version Negotiation only (RFC 9000 §15).
    fn is_probe(&self) -> bool {
        let reserved = |version: [u8; 4]| version.iter().all(|byte| byte & 0x0f == 0x0a);
        self.version.is_some_and(reserved)
    }
}

/// A thread that keeps what the interfaces of a host send and receive.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Datagram>>>,
}

impl Capture {
    /// In a network namespace, given as a file.
    fn start(namespace: PathBuf) -> io::Result<Capture> {
        // Protocols of packet sockets are in the network's order of bytes.
        let all = i32::from((nix::libc::ETH_P_ALL as u16).to_be());
        let mut socket = inside(&namespace, || {
            Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all)))
        })?;
        socket.set_recv_buffer_size(64 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match socket.read(&mut buffer) {
                    Ok(length) => seen.extend(Datagram::parse(unix(), &buffer[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(seen)
        });
        Ok(Capture { stop, thread })
    }

    fn finish(self) -> io::Result<Vec<Datagram>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread has not panicked")
    }
}

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
