//! What a crowd of clients needed, once it is gone.

mod support;

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use support::{Client, start_in};

const LIMIT: Duration = Duration::from_secs(60);
const CLIENTS: usize = 200;
/// How long the server may keep what they needed.
const KEPT: Duration = Duration::from_secs(10);
/// How much more than before them it may need then, kB: what the heaps of three threads keep free, 16 MiB each. Without
/// giving back it was some 100 MB.
const MORE: u64 = 3 * (16 << 10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crowd_needed_is_given_back() {
    let work = async {
        // Each thread has a heap of its own.
        let threads = [("TOKIO_WORKER_THREADS", OsStr::new("2"))];
        let (server, address) = start_in(&["--random", "1M"], &threads);
        let mut stays = Client::connect(address).await;
        stays.ask(&[]).await.end.await.unwrap().unwrap();
        let before = server.memory();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(address).await);
        }
        let mut answers = Vec::new();
        for client in &mut clients {
            answers.push(client.ask(&[]).await);
        }
        for answer in answers {
            answer.end.await.unwrap().unwrap();
        }
        let most = server.memory();
        for client in clients {
            client.connection.close(0x100_u32.into(), b"");
        }
        let gone = Instant::now();
        let mut after = most;
        while after > before + MORE && gone.elapsed() < KEPT {
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = server.memory();
        }
        let took = gone.elapsed();
        println!(
            "memory: {before} kB before, {most} kB with {CLIENTS} clients, {after} kB {took:?} after them"
        );
        assert!(most > before + 2 * MORE, "they need little: {most} kB");
        assert!(after <= before + MORE, "{after} kB");
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}
