//! Sockets that a supervisor has opened.

mod support;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::Request;
use support::web::{Protocol, ask};
use support::{Client, Running};

/// The program with these sockets, as systemd passes them on: from the third descriptor on.
fn activated(udp: impl Into<OwnedFd>, tcp: impl Into<OwnedFd>, options: &[&str]) -> Running {
    let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; \
                  export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
    let process = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_mpq-serve")])
        .args(["--random", "1k"])
        .args(options)
        .stdin(Stdio::from(udp.into()))
        .stdout(Stdio::from(tcp.into()))
        .stderr(Stdio::piped())
        .spawn();
    Running(process.unwrap())
}

/// What it says, up to the line with this text.
fn said(server: &mut Running, text: &str) -> String {
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains(text));
    // Whoever reads on keeps the pipe open.
    std::thread::spawn(move || lines.for_each(drop));
    line.unwrap_or_else(|| panic!("it does not say {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sockets_of_a_supervisor_are_served_on() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let [quic, web]: [SocketAddr; 2] = [udp.local_addr().unwrap(), tcp.local_addr().unwrap()];
    // The supervisor keeps both, as systemd does.
    let passed_on = (udp.try_clone().unwrap(), tcp.try_clone().unwrap());
    // Another address than they have.
    let options = ["--tcp", "--listen", "127.0.0.1:1"];
    let mut server = activated(passed_on.0, passed_on.1, &options);
    let test = async {
        let line = said(&mut server, "listening on ");
        assert!(line.ends_with(&format!("listening on {quic}")), "{line}");
        let mut client = Client::connect(quic).await;
        client.ask(&[]).await.end.await.unwrap().unwrap();
        let random = Request::get("https://localhost/random").header("host", "localhost");
        let answer = ask(web, Protocol::Http1, random).await.unwrap();
        assert_eq!(answer.headers()["content-length"], "1000");
        let expected = format!("h3=\":{}\"; ma=3600", quic.port());
        assert_eq!(answer.headers()["alt-svc"], expected);
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, test).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_sockets_of_a_supervisor_are_served_on() {
    let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| UdpSocket::bind(address).unwrap());
    let addresses = [0, 1].map(|which| sockets[which].local_addr().unwrap());
    let [v4, v6] = sockets;
    let mut server = activated(v4, v6, &[]);
    let test = async {
        said(&mut server, &format!("listening on {}", addresses[1]));
        for address in addresses {
            let mut client = Client::connect(address).await;
            client.ask(&[]).await.end.await.unwrap().unwrap();
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, test).await.unwrap();
}

#[test]
fn sockets_that_are_of_no_use_are_refused() {
    let udp = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = |mut server: Running, why: &str| {
        said(&mut server, why);
        assert_eq!(server.0.wait().unwrap().code(), Some(1));
    };
    refused(activated(udp(), tcp(), &[]), "needs --tcp");
    refused(activated(tcp(), tcp(), &["--tcp"]), "more for TCP");
    let pair = std::os::unix::net::UnixDatagram::unbound().unwrap();
    refused(activated(udp(), pair, &[]), "neither UDP nor TCP");
}
