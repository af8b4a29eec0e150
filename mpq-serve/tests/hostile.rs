//! Clients whose bytes are meant to do harm.

mod support;

use std::time::Duration;

use quinn::{ReadToEndError, VarInt};
use support::{Client, start};

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: u64 = 300_000;

/// A request with so many fields, each `a: b`.
fn request(fields: usize) -> Vec<u8> {
    let mut block = vec![0x00, 0x00, 0xd1, 0xd7];
    for (name, value) in [(0x50, "localhost"), (0x51, "/random")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.bytes());
    }
    block.extend([0x21, b'a', 0x01, b'b'].repeat(fields));
    let mut frame = vec![0x01];
    frame.extend((block.len() as u32 | 0x80 << 24).to_be_bytes());
    frame.extend(block);
    frame
}

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
            let (mut send, mut receive) = client.connection.open_bi().await.unwrap();
            send.write_all(&request(fields)).await.unwrap();
            send.finish().unwrap();
            let answer = receive.read_to_end(2 * SIZE as usize).await;
            match answer {
                Ok(body) => assert!(is_taken && body.len() as u64 > SIZE, "{fields}"),
                Err(ReadToEndError::Read(error)) => assert!(!is_taken, "{fields}: {error}"),
                Err(error) => panic!("{fields}: {error}"),
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
