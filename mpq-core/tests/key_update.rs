//! When a connection's keys are updated.
//!
//! Only noq's log tells. One test has this program to itself: what is logged is the same for all threads, and
//! whoever logs first decides whether the rest is seen.

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use support::{Bench, both_paths};

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn updates(&self) -> usize {
        let log = self.0.lock().unwrap();
        String::from_utf8_lossy(&log)
            .matches("executing key update")
            .count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// See `transport::update_keys`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_updated_while_there_is_one_path_only() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("noq_proto::connection::packet_crypto=trace")
        .with_writer(move || writer.clone())
        .init();
    let bench = Bench::new(1);
    let client = bench.connect(bench.server.local_addr()).await;
    both_paths(&mut client.events()).await;
    assert_eq!(log.updates(), 2, "one at each end");
    let download = bench.download(&client).await;
    // Many more packets than noq would update after.
    download.grows(16 << 20).await;
    download.whole().await;
    assert_eq!(log.updates(), 2);
    client.close().await;
}
