//! Clients whose bytes are meant to do harm.

mod support;

use std::time::Duration;

use quinn::VarInt;
use support::{Client, start};

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: u64 = 300_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_more_fields_than_fit_costs_its_request_only() {
    let work = async {
        let (server, address) = start(&["--random", &SIZE.to_string()]);
        let mut client = Client::connect(address).await;
        // One field counts as much as its bytes, and 32 (RFC 9114 §4.2.2); more than 24,576 do not fit into what
        // holds them.
        for (fields, is_taken) in [
            (1_000, true),
            (2_000, false),
            (25_000, false),
            (60_000, false),
        ] {
            let mut answer = client.ask(&vec![("a", "b"); fields]).await;
            let end = (&mut answer.end).await.unwrap();
            match end {
                Ok(()) => assert!(is_taken && answer.received() > SIZE, "{fields}"),
                Err(error) => assert!(!is_taken, "{fields}: {error}"),
            }
        }
        let good = client.ask(&[]).await;
        good.end.await.unwrap().unwrap();
        client.connection.close(VarInt::from_u32(0x100), b"");
        let mut said = Vec::new();
        while let Ok(line) = server.log.recv_timeout(LIMIT) {
            let is_last = line.contains("disconnected");
            said.push(line);
            if is_last {
                break;
            }
        }
        assert!(!said.iter().any(|line| line.contains("panic")), "{said:#?}");
    };
    tokio::time::timeout(2 * LIMIT, work).await.unwrap();
}
