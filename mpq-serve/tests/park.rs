//! A server that stands still for others who dump it: until it is told to go on, forgotten, or told to leave.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use mpq_core::client::{Client, ClientConfig, ClientEvent, MigrationEvent};
use mpq_core::tls::Trust;
use nix::sys::signal::Signal;
use support::{Server, start};
use tokio::time::timeout;

mod support;

/// For whatever is waited for.
const LIMIT: Duration = Duration::from_secs(30);
/// Exit codes.
const NOT_DUMPED: i32 = 8;
const BUSY: i32 = 10;

/// What a command says that is given to this server.
fn tell(server: &Server, command: &[&str]) -> Output {
    let pid = server.process.0.id().to_string();
    Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(command)
        .args(["--pid", &pid])
        .output()
        .unwrap()
}

fn assert_says(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{said}");
    assert!(output.stdout.is_empty());
}

async fn connected(address: SocketAddr) -> Client {
    let config = ClientConfig {
        trust: Trust::Insecure,
        ..ClientConfig::default()
    };
    Client::connect(config, address, "localhost").await.unwrap()
}

async fn get(client: &Client) {
    let request = http::Request::get("https://localhost/random").body(());
    let mut requests = client.requests();
    let mut stream = requests.send_request(request.unwrap()).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(stream.recv_response().await.unwrap().status(), 200);
    while stream.recv_data().await.unwrap().is_some() {}
}

const PARK: [&str; 3] = ["park", "--migrate-to", "127.0.0.2:4433"];

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_server_goes_on_when_it_is_told_to_or_after_its_time() {
    let (server, address) = start(&["--random", "100k"]);
    let client = connected(address).await;
    let mut events = client.events();
    get(&client).await;
    let mut is_cancelled = async || {
        timeout(LIMIT, async {
            while let Ok((_, event)) = events.recv().await {
                if let ClientEvent::Migration(MigrationEvent::Cancelled { .. }) = event {
                    return;
                }
            }
            panic!("the connection is over");
        })
        .await
        .expect("it is told")
    };
    assert_says(&tell(&server, &PARK), 0, "");
    // It stands still, and its clients know.
    for second in [&PARK[..], &["checkpoint", "--migrate-to", "127.0.0.2:4433"]] {
        assert_says(&tell(&server, second), BUSY, "moving already");
    }
    assert_says(&tell(&server, &["unpark"]), 0, "");
    server.wait_for("told to go on");
    is_cancelled().await;
    get(&client).await;
    assert_says(&tell(&server, &["unpark"]), NOT_DUMPED, "not parked");

    let briefly = [&PARK[..], &["--limit", "100ms"]].concat();
    assert_says(&tell(&server, &briefly), 0, "");
    server.wait_for("nobody dumped it");
    is_cancelled().await;
    get(&client).await;
    assert_eq!(client.handshakes(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_server_that_is_told_to_leave_says_nothing_to_its_clients() {
    let (mut server, address) = start(&["--random", "100k"]);
    let client = connected(address).await;
    get(&client).await;
    assert_says(&tell(&server, &PARK), 0, "");
    server.tell(Signal::SIGTERM);
    server.wait_for("leaving without a word");
    assert!(server.process.0.wait().unwrap().success());
    // What it sends would be here by now.
    tokio::task::yield_now().await;
    let closed = timeout(Duration::ZERO, client.closed()).await;
    assert!(closed.is_err(), "{closed:?}");
}
