//! Many who begin a handshake and never go on.

#[path = "../../mpq-core/tests/support/initial.rs"]
#[allow(dead_code, reason = "another test uses all of it")]
mod initial;
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use initial::Initials;
use support::{Client, start};

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 300_000;
/// As many who never go on.
const FLOOD: u64 = 10_000;
/// So many of them come at once, and then a pause.
const AT_ONCE: u64 = 10;
const PAUSE: Duration = Duration::from_millis(2);
/// What the server may need with them, kB.
const MEMORY: u64 = 64 << 10;
/// By how much longer a client that goes on may take, each time: its first datagrams may be lost among the others.
const LATER: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_first_datagrams_costs_little_and_holds_nobody_up() {
    let work = async {
        let (server, address) = start(&["--random", &SIZE.to_string()]);
        let alone = served(address).await;
        let before = server.peak_memory();
        let is_flooded = Arc::new(AtomicBool::new(true));
        let flooded = is_flooded.clone();
        let flood = std::thread::spawn(move || {
            let retries = flood(address);
            flooded.store(false, Ordering::Relaxed);
            retries
        });
        let mut longest = Duration::ZERO;
        while is_flooded.load(Ordering::Relaxed) {
            longest = longest.max(served(address).await);
        }
        let retries = flood.join().unwrap();
        let memory = server.peak_memory();
        println!("{retries} of {FLOOD} were asked to prove their address");
        println!("a client took {alone:?} alone, and {longest:?} at the most in the flood");
        println!("memory: {before} kB before, {memory} kB at the most; {MEMORY} kB are allowed");
        assert!(retries > FLOOD / 2, "{retries}");
        assert!(longest < alone + LATER, "{longest:?}");
        assert!(memory < MEMORY, "{memory} kB");
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

/// How long a client takes to connect and to get its answer.
async fn served(address: SocketAddr) -> Duration {
    let start = Instant::now();
    let mut client = Client::connect(address).await;
    let answer = client.ask(&[]).await;
    answer.end.await.unwrap().unwrap();
    client.connection.close(0x100_u32.into(), b"");
    start.elapsed()
}

/// Begins many handshakes. How many answers were Retry.
fn flood(address: SocketAddr) -> u64 {
    let initials = Initials::new();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut retries = 0;
    let mut count = || {
        let mut answer = [0; 2048];
        while let Ok(length) = socket.recv(&mut answer) {
            retries += u64::from(initial::retry(&answer[..length]).is_some());
        }
    };
    for number in 0..FLOOD {
        socket.send(&initials.datagram(number)).unwrap();
        if number % AT_ONCE == 0 {
            count();
            std::thread::sleep(PAUSE);
        }
    }
    std::thread::sleep(100 * PAUSE);
    count();
    retries
}
