//! What the server says over TCP: the site, to those who do not speak HTTP/3, and how it is, to operators.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use support::web::{Protocol, ask, get_plainly};
use support::{Client, Server, link, start};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(LIMIT, test).await.expect("the test hangs")
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("https://localhost{path}")).header("host", "localhost")
}

/// Where operators are answered.
fn operator(server: &Server) -> SocketAddr {
    let mut lines = server.log.iter();
    let line = lines.find(|line| line.contains("metrics at")).unwrap();
    let (_, rest) = line.split_once("http://").unwrap();
    rest.trim_end_matches("/metrics").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_site_is_served_by_http_1_and_2_and_says_where_http_3_is() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..1_000_000).map(|n: u32| (n >> 3) as u8).collect();
        fs::write(folder.path().join("file"), &content).unwrap();
        let log = folder.path().join("access");
        let [root, access] = [folder.path(), &log].map(|path| path.to_str().unwrap());
        let (mut server, address) = start(&["--tcp", "--root", root, "--access-log", access]);
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let answer = ask(address, protocol, get("/file")).await.unwrap();
            assert_eq!(answer.status(), 200);
            let expected = format!("h3=\":{}\"; ma=3600", address.port());
            assert_eq!(answer.headers()["alt-svc"], expected);
            assert_eq!(answer.headers()["content-length"], "1000000");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(Sha256::digest(&body), Sha256::digest(&content));

            let part = get("/file").header("range", "bytes=8-15");
            let answer = ask(address, protocol, part).await.unwrap();
            assert_eq!(answer.status(), 206);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body[..], content[8..16]);
            let missing = ask(address, protocol, get("/missing")).await.unwrap();
            assert_eq!(missing.status(), 404);
        }
        server.tell(Signal::SIGTERM);
        assert!(server.process.0.wait().unwrap().success());
        let log = fs::read_to_string(log).unwrap();
        for (expected, count) in [
            ("\"GET /file HTTP/1.1\" 200 1000000 \"-\" \"-\"", 1),
            ("\"GET /file HTTP/2.0\" 206 8 \"-\" \"-\"", 1),
            ("\"GET /missing HTTP/", 2),
        ] {
            assert_eq!(log.matches(expected).count(), count, "{expected}: {log}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_figures_and_that_the_server_leaves() {
    in_time(async {
        let options = [
            "--random",
            "10M",
            "--metrics",
            "127.0.0.1:0",
            "--grace",
            "20s",
        ];
        let (mut server, address) = start(&options);
        let operator = operator(&server);
        assert_eq!(
            get_plainly(operator, "/health").await.unwrap(),
            (200, "serving\n".to_owned())
        );
        let mut client = Client::connect(link(address).await).await;
        let answer = client.ask(&[]).await;
        while answer.received() < 1_000_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (status, figures) = get_plainly(operator, "/metrics").await.unwrap();
        assert_eq!(status, 200);
        for line in [
            "mpq_serve_connections_total 1",
            "mpq_serve_open_connections 1",
            "mpq_serve_running_responses 1",
            "mpq_serve_sent_bytes_total 0",
        ] {
            assert!(figures.lines().any(|l| l == line), "{line}: {figures}");
        }
        server.tell(Signal::SIGTERM);
        server.wait_for("leaving");
        let health = get_plainly(operator, "/health").await.unwrap();
        assert_eq!(health, (503, "leaving\n".to_owned()));
        answer.end.await.unwrap().unwrap();
        assert!(server.process.0.wait().unwrap().success());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_is_closed_for_a_move_and_open_at_the_new_address() {
    in_time(async {
        // Nobody else has it: it was free just now, at all addresses.
        let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let target: SocketAddr = ([127, 0, 0, 2], port.local_addr().unwrap().port()).into();
        drop(port);
        let options = ["--random", "1G", "--tcp", "--metrics", "127.0.0.1:0"];
        let moving = [
            "--migrate-to",
            &target.to_string(),
            "--move-in-process",
            "1s",
        ];
        let (server, address) = start(&[&options[..], &moving[..]].concat());
        let operator = operator(&server);
        let answer = ask(address, Protocol::Http1, get("/random")).await.unwrap();
        server.tell(Signal::SIGUSR1);
        let cut = answer.into_body().collect().await;
        assert!(cut.is_err(), "it was not cut");
        assert!(TcpStream::connect(address).await.is_err());
        assert!(TcpStream::connect(operator).await.is_err());
        server.wait_for(&format!("listening on {target}"));
        while TcpStream::connect(operator).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let part = get("/random").header("range", "bytes=0-9");
        let answer = ask(target, Protocol::Http2, part).await.unwrap();
        assert_eq!(answer.status(), 206);
        let expected = format!("h3=\":{}\"; ma=3600", target.port());
        assert_eq!(answer.headers()["alt-svc"], expected);
        let (_, figures) = get_plainly(operator, "/metrics").await.unwrap();
        let line = "mpq_serve_moves_total{result=\"moved\"} 1";
        assert!(figures.lines().any(|l| l == line), "{figures}");
    })
    .await;
}
