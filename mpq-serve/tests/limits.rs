//! How many clients there may be, how fast they are sent what they ask for, and how long they may not take it.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;
use mpq_core::client::{Client as Follower, ClientConfig};
use mpq_core::tls::Trust;
use nix::sys::signal::Signal;
use quinn::{ConnectionError, ReadError, RecvStream, TransportErrorCode, VarInt};
use serde_json::Value;
use support::web::{Protocol, ask};
use support::{Client, connect, connect_for, lines_of, request, start};
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(60);
/// H3_INTERNAL_ERROR (RFC 9114 §8.1).
const INTERNAL_ERROR: VarInt = VarInt::from_u32(0x102);

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(LIMIT, test).await.expect("the test hangs")
}

/// The options of an access log that programs read.
fn logged(log: &Path) -> [&str; 4] {
    let log = log.to_str().unwrap();
    ["--access-log", log, "--access-format", "json"]
}

fn random() -> http::request::Builder {
    Request::get("https://localhost/random").header("host", "localhost")
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_there_is_no_room_is_refused_until_somebody_leaves() {
    let test = async |option: &'static str, expected: &'static str| {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let options = ["--tcp", "--random", "1k", option, "1"];
        let (_server, address) = start(&[&options[..], &logged(&log)].concat());
        let mut first = Client::connect(address).await;
        first.ask(&[]).await.end.await.unwrap().unwrap();
        let refused = connect(address).await.unwrap_err();
        let ConnectionError::ConnectionClosed(refused) = refused else {
            panic!("{refused}");
        };
        assert_eq!(refused.error_code, TransportErrorCode::CONNECTION_REFUSED);
        let over_tcp = async || ask(address, Protocol::Http2, random()).await;
        assert!(over_tcp().await.is_err());
        let lines: Vec<_> = lines_of(&log, 3).iter().map(|line| json(line)).collect();
        for protocol in ["QUIC", "TLS"] {
            let line = lines.iter().find(|line| line["protocol"] == protocol);
            assert_eq!(line.unwrap()["handshake_failed"], expected);
        }
        first.connection.close(VarInt::from_u32(0x100), b"");
        while over_tcp().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    in_time(async {
        let all = "refused: there are 1 connections, as many as may be";
        test("--max-connections", all).await;
        let one = "refused: this address has 1 connections, as many as it may have";
        test("--max-connections-address", one).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_makes_room_whatever_the_rate() {
    in_time(async {
        // The next kilobyte is due in 100 s.
        let options = ["--random", "1M", "--max-connections", "1"];
        let (_server, address) = start(&[&options[..], &["--limit-rate", "80"]].concat());
        let mut first = Client::connect(address).await;
        let answer = first.ask(&[]).await;
        while answer.received.load(Ordering::Relaxed) < 1_024 {
            sleep(Duration::from_millis(1)).await;
        }
        first.connection.close(VarInt::from_u32(0x100), b"");
        while connect(address).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_shared() {
    in_time(async {
        // Two halves of a megabyte, at a megabyte in a second.
        for option in [
            "--limit-rate-connection",
            "--limit-rate-address",
            "--limit-rate-total",
        ] {
            let (_server, address) = start(&["--tcp", "--random", "500k", option, "8Mbit/s"]);
            let begun = Instant::now();
            let mut client = Client::connect(address).await;
            let one = client.ask(&[]).await;
            if option == "--limit-rate-connection" {
                client.ask(&[]).await.end.await.unwrap().unwrap();
            } else {
                let other = ask(address, Protocol::Http1, random()).await.unwrap();
                let body = other.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), 500_000);
            }
            one.end.await.unwrap().unwrap();
            let took = begun.elapsed().as_secs_f64();
            assert!(took > 0.8, "{option}: {took} s");
        }
    })
    .await;
}

/// Asks for `/random` with a window of 64 KiB for the answer, which nobody reads yet.
async fn ask_without_reading(server: SocketAddr) -> (quinn::Connection, RecvStream) {
    let window = VarInt::from_u32(64 << 10);
    let connection = connect_for(server, "h3", window).await.unwrap();
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[0x00, 0x04, 0x00]).await.unwrap();
    let (mut send, answer) = connection.open_bi().await.unwrap();
    send.write_all(&request(&[])).await.unwrap();
    send.finish().unwrap();
    // It would end the connection.
    std::mem::forget(control);
    (connection, answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_cut_and_one_that_is_slow_is_not() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let options = ["--random", "250k", "--send-timeout", "1s"];
        let (_server, address) = start(&[&options[..], &logged(&log)].concat());
        let (_connection, mut slow) = ask_without_reading(address).await;
        let (_other, mut stuck) = ask_without_reading(address).await;
        let mut received = 0;
        let mut piece = [0; 10_000];
        // That takes seconds, and more than one for each piece that the server reads.
        while let Some(length) = slow.read(&mut piece).await.unwrap() {
            received += length;
            sleep(Duration::from_millis(250)).await;
        }
        assert!(received > 250_000);
        let lines: Vec<_> = lines_of(&log, 2).iter().map(|line| json(line)).collect();
        let cut: Vec<_> = lines
            .iter()
            .filter_map(|line| line["cut"].as_str())
            .collect();
        assert_eq!(cut, ["the client took nothing for 1s"]);
        let error = loop {
            match stuck.read(&mut piece).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a body that was cut was finished"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, ReadError::Reset(INTERNAL_ERROR));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_one_over_tcp() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let options = ["--tcp", "--random", "1G", "--send-timeout", "1s"];
        let (_server, address) = start(&[&options[..], &logged(&log)].concat());
        let _unread = ask(address, Protocol::Http1, random()).await.unwrap();
        let line = json(&lines_of(&log, 1)[0]);
        assert_eq!(
            (&line["status"], &line["cut"]),
            (&200.into(), &"the connection ended".into())
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_no_fault_of_the_client() {
    in_time(async {
        let port = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
        let target = port.local_addr().unwrap().to_string();
        drop(port);
        let body = [
            "--random",
            "2M",
            "--limit-rate",
            "8Mbit/s",
            "--send-timeout",
            "2s",
        ];
        let moving = ["--migrate-to", &target, "--move-in-process", "6s"];
        let (server, address) = start(&[&body[..], &moving[..]].concat());
        let config = ClientConfig {
            trust: Trust::Insecure,
            ..ClientConfig::default()
        };
        let client = Follower::connect(config, address, "localhost")
            .await
            .unwrap();
        let mut body = client.get("/random").await.unwrap().into_body();
        let mut length = body.chunk().await.unwrap().unwrap().len();
        server.tell(Signal::SIGUSR1);
        while let Some(chunk) = body.chunk().await.unwrap() {
            length += chunk.len();
        }
        assert_eq!(length, 2_000_000);
        server.wait_for(&format!("listening on {target}"));
        client.close().await;
    })
    .await;
}
