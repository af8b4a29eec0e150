//! A server that leaves, or whose client does, finishes what is running.

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use quinn::{ConnectionError, ReadError, VarInt};
use support::{Answer, Client, Server, connect, link, start};
use tokio::time::timeout;

/// What an answer has, bytes: the link carries it in a second.
const LONG: u64 = 10_000_000;
const LIMIT: Duration = Duration::from_secs(30);
/// RFC 9114 §8.1.
const H3_REQUEST_REJECTED: u32 = 0x10b;

/// A server that leaves at once after its grace, and a client in the midst of an answer.
async fn begin() -> (Server, std::net::SocketAddr, Client, Answer) {
    let options = ["--random", &LONG.to_string(), "--grace", "20s"];
    let (server, address) = start(&options);
    let mut client = Client::connect(link(address).await).await;
    let answer = client.ask(&[]).await;
    while answer.received() < LONG / 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (server, address, client, answer)
}

/// The line of the log about the request.
fn logged(server: &Server) -> String {
    let mut lines = server.log.iter();
    lines.find(|line| line.contains(" GET ")).unwrap()
}

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(LIMIT, test).await.expect("the test hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_running_is_finished_within_the_grace() {
    in_time(async {
        let (mut server, address, mut client, answer) = begin().await;
        server.tell(Signal::SIGTERM);
        server.wait_for("leaving");
        let refused = connect(address).await.unwrap_err();
        let ConnectionError::ConnectionClosed(refused) = refused else {
            panic!("{refused}");
        };
        assert_eq!(
            refused.error_code,
            quinn::TransportErrorCode::CONNECTION_REFUSED
        );
        let late = client.ask(&[]).await.end.await.unwrap();
        let Err(ReadError::Reset(code)) = late else {
            panic!("{late:?}");
        };
        assert_eq!(code, VarInt::from_u32(H3_REQUEST_REJECTED));

        assert!(!answer.end.is_finished(), "too short an answer");
        let received = answer.received.clone();
        answer.end.await.unwrap().unwrap();
        assert!(received.load(std::sync::atomic::Ordering::Relaxed) > LONG);
        assert!(server.process.0.wait().unwrap().success());
        let line = logged(&server);
        assert!(line.ends_with(&format!("200 {LONG} bytes")), "{line}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_leaves_at_once_and_the_log_says_what_was_cut() {
    in_time(async {
        let (mut server, _, _client, answer) = begin().await;
        server.tell(Signal::SIGTERM);
        server.wait_for("leaving");
        server.tell(Signal::SIGTERM);
        assert!(server.process.0.wait().unwrap().success());
        assert!(answer.received() < LONG, "it was not cut");
        let line = logged(&server);
        assert!(line.contains("bytes cut off: "), "{line}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_makes_no_more_requests_gets_its_answers() {
    in_time(async {
        let (server, _, mut client, answer) = begin().await;
        // GOAWAY: no push is taken (RFC 9114 §5.2).
        client.control.write_all(&[0x07, 0x01, 0x00]).await.unwrap();
        let received = answer.received.clone();
        answer.end.await.unwrap().unwrap();
        assert!(received.load(std::sync::atomic::Ordering::Relaxed) > LONG);
        let line = logged(&server);
        assert!(line.ends_with(&format!("200 {LONG} bytes")), "{line}");
    })
    .await;
}
