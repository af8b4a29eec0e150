//! A server at several addresses.

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use http::Request;
use nix::sys::signal::Signal;
use support::web::{Protocol, ask};
use support::{Client, Server, connect, start};

const LIMIT: Duration = Duration::from_secs(60);
/// Beside the one that [`start`] gives.
const OTHERS: [&str; 4] = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0"];

/// One that listens on three, two of which differ in the port only; and where it does.
fn start_at_three(options: &[&str]) -> (Server, [SocketAddr; 3]) {
    let (server, first) = start(&[&OTHERS, options].concat());
    let mut others = server.log.iter();
    let mut next = || {
        let found = others.find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        found.unwrap().parse().unwrap()
    };
    let addresses = [first, next(), next()];
    (server, addresses)
}

async fn is_served_at(address: SocketAddr) {
    let mut client = Client::connect(address).await;
    let answer = client.ask(&[]).await;
    let received = answer.received.clone();
    answer.end.await.unwrap().unwrap();
    assert!(received.load(std::sync::atomic::Ordering::Relaxed) > 1000);
    client.connection.close(0x100_u32.into(), b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_site_is_served_at_each() {
    let work = async {
        let (mut server, addresses) = start_at_three(&["--random", "10k", "--tcp"]);
        assert!(addresses[2].is_ipv6() && addresses[0].port() != addresses[1].port());
        for address in addresses {
            server.wait_for(&format!("serving https://{address}/"));
        }
        server.wait_for("download with: mpq-get");
        let mut shown = Vec::new();
        for address in addresses {
            is_served_at(address).await;
            shown.push(connect(address).await.unwrap().peer_identity().unwrap());
            let random = Request::get("https://localhost/random").header("host", "localhost");
            let answer = ask(address, Protocol::Http1, random).await.unwrap();
            let expected = format!("h3=\":{}\"; ma=3600", address.port());
            assert_eq!(answer.headers()["alt-svc"], expected);
        }
        type Chain = Vec<quinn::rustls::pki_types::CertificateDer<'static>>;
        let mut shown = shown
            .into_iter()
            .map(|shown| *shown.downcast::<Chain>().unwrap());
        let first = shown.next().unwrap();
        assert!(shown.all(|other| other == first));

        server.tell(Signal::SIGTERM);
        assert!(server.process.0.wait().unwrap().success());
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_count_all_of_them_together() {
    let work = async {
        let (_server, addresses) = start_at_three(&["--max-connections", "1"]);
        let mut stays = Client::connect(addresses[0]).await;
        stays.ask(&[]).await.end.await.unwrap().unwrap();
        for other in &addresses[1..] {
            assert!(connect(*other).await.is_err(), "there is one");
        }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_move_and_says_so() {
    let work = async {
        let (server, addresses) = start_at_three(&[]);
        server.tell(Signal::SIGUSR1);
        server.wait_for("the server does not move: it listens on several addresses");
        for address in addresses {
            is_served_at(address).await;
        }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    command.args([
        "--random",
        "--listen",
        "127.0.0.1:0",
        "--migrate-to",
        "127.0.0.2:4433",
    ]);
    let output = command.args(OTHERS).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("several --listen cannot move"), "{said}");
}
