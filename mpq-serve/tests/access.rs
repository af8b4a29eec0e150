//! What the access log has of clients that are not served.

mod support;

use std::io::{Read, Write};
use std::path::Path;

use quinn::VarInt;
use serde_json::Value;
use support::{Client, Server, connect_for, lines_of, start};

/// Starts a server with such an access log, and with TCP.
fn logging(log: &Path, format: &str) -> (Server, std::net::SocketAddr) {
    let log = log.to_str().unwrap();
    start(&["--tcp", "--access-log", log, "--access-format", format])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_fails_is_logged_with_its_reason_and_the_clients_address() {
    let folder = tempfile::tempdir().unwrap();
    for format in ["common", "combined", "json"] {
        let log = folder.path().join(format);
        let (_server, address) = logging(&log, format);
        connect_for(address, "hq-29", VarInt::MAX)
            .await
            .unwrap_err();
        let line = &lines_of(&log, 1)[0];
        let why = "the client does not speak HTTP/3";
        if format == "json" {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["protocol"], "QUIC");
            assert!(line["remote"].as_str().unwrap().starts_with("127.0.0.1:"));
            assert!(
                line["handshake_failed"].as_str().unwrap().contains(why),
                "{line}"
            );
            assert!(line["duration"].is_f64() && line["status"].is_null());
        } else {
            let fields = if format == "common" {
                ""
            } else {
                " \"-\" \"-\""
            };
            assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
            let end = format!("] \"-\" 000 0{fields} \"{why}");
            assert!(line.contains(&end), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_one_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (_server, address) = logging(&log, "json");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = stream.read(&mut [0; 100]);
    let line: Value = serde_json::from_str(&lines_of(&log, 1)[0]).unwrap();
    let client = stream.local_addr().unwrap().to_string();
    assert_eq!(
        (&line["remote"], &line["protocol"]),
        (&client.into(), &"TLS".into())
    );
    assert!(!line["handshake_failed"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_header_is_too_large_is_logged_with_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (_server, address) = logging(&log, "json");
    let mut client = Client::connect(address).await;
    // One is too large by its frame, the other by its fields.
    for fields in [60_000, 2_000] {
        let mut answer = client.ask(&vec![("a", "b"); fields]).await;
        (&mut answer.end).await.unwrap().unwrap();
        assert!(answer.refuses());
    }
    for line in lines_of(&log, 2) {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["status"], &line["protocol"]),
            (&431.into(), &"HTTP/3.0".into())
        );
        assert!(line["remote"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert!(line["target"].is_null());
    }
}
