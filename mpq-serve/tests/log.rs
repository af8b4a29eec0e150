//! A log that cannot be written stops nothing.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use mpq_core::client::{Client, ClientConfig};
use mpq_core::tls::Trust;
use support::Running;

const SIZE: usize = 300_000;
const LIMIT: Duration = Duration::from_secs(30);

fn command(address: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    command
        .args(["--listen", &address.to_string()])
        .args(["--random", &SIZE.to_string()]);
    command
}

/// Where nobody listens.
fn free_address() -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

/// Downloads once, over a connection of its own.
async fn download(server: SocketAddr) {
    let config = ClientConfig {
        trust: Trust::Insecure,
        ..ClientConfig::default()
    };
    let work = async {
        let client = loop {
            // The server may not listen yet.
            match Client::connect(config.clone(), server, "localhost").await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let mut body = client.get("/random").await.unwrap().into_body();
        let mut length = 0;
        while let Some(chunk) = body.chunk().await.unwrap() {
            length += chunk.len();
        }
        assert_eq!(length, SIZE);
        client.close().await;
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

#[tokio::test]
async fn a_log_whose_reader_is_gone() {
    let address = free_address();
    let mut server = Running(command(address).stderr(Stdio::piped()).spawn().unwrap());
    let mut first = String::new();
    let mut log = BufReader::new(server.0.stderr.take().unwrap());
    log.read_line(&mut first).unwrap();
    assert!(first.contains("listening on"), "{first}");
    drop(log);
    for _ in 0..3 {
        download(address).await;
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads() {
    let address = free_address();
    let mut command = command(address);
    // More than a pipe holds.
    command.env("RUST_LOG", "trace").stderr(Stdio::piped());
    let mut server = Running(command.spawn().unwrap());
    for _ in 0..3 {
        download(address).await;
    }
    let mut log = [0; 1024];
    let pipe = server.0.stderr.as_mut().unwrap();
    pipe.read_exact(&mut log).unwrap();
}

#[tokio::test]
async fn a_log_on_a_full_disk() {
    let address = free_address();
    let mut command = command(address);
    command.args(["--log-file", "/dev/full"]);
    let mut server = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    drop(server.0.stderr.take());
    for _ in 0..3 {
        download(address).await;
    }
}
