//! `docs/protocol.md` suffices to write a client: one that has nothing of ours follows our server.

mod client;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use client::Client;
use http::Response;
use mpq_core::proto::server::Announcement;
use mpq_core::server::{MoveError, Server, ServerConfig, Thaw};
use mpq_core::tls::Identity;
use tokio::sync::watch;

const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 256;
/// Before each chunk, so that a download lasts for longer than its moves.
const PACE: Duration = Duration::from_millis(4);
/// The server is away for so long.
const OUTAGE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(60);

fn content() -> Vec<u8> {
    let mut content = vec![0; CHUNKS * CHUNK];
    fastrand::Rng::with_seed(1).fill(&mut content);
    content
}

/// A server of the content, a client of it, and a port that is free at the other place too.
async fn connected() -> (Server, Client, [SocketAddr; 2]) {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let root = identity.chain[0].clone();
    let (server, other) = loop {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(any, &identity, ServerConfig::default()).unwrap();
        let other = SocketAddr::new("127.0.0.2".parse().unwrap(), server.local_addr().port());
        if std::net::UdpSocket::bind(other).is_ok() {
            break (server, other);
        }
    };
    tokio::spawn(serve(server.clone()));
    let places = [server.local_addr(), other];
    let client = Client::connect(places[0], root).await;
    (server, client, places)
}

async fn serve(server: Server) {
    while let Some(handshake) = server.accept().await {
        tokio::spawn(async move {
            let mut session = handshake.await.expect("a handshake");
            while let Ok(Some(request)) = session.h3.accept().await {
                tokio::spawn(async move {
                    let (_, mut stream) = request.resolve_request().await.unwrap();
                    stream.send_response(Response::new(())).await.unwrap();
                    for chunk in content().chunks(CHUNK) {
                        tokio::time::sleep(PACE).await;
                        let chunk = Bytes::copy_from_slice(chunk);
                        stream.send_data(chunk).await.unwrap();
                    }
                    stream.finish().await.unwrap();
                });
            }
        });
    }
}

/// Waits until so much of the body is there, then moves the server.
async fn relocate(
    server: &Server,
    mut progress: watch::Receiver<usize>,
    chunks: usize,
    target: SocketAddr,
    thaw: Thaw,
) -> Result<SocketAddr, MoveError> {
    let there = progress.wait_for(|received| *received >= chunks * CHUNK);
    drop(there.await.unwrap());
    let announcement = Announcement {
        targets: vec![target],
        lead: Duration::ZERO,
        outage: OUTAGE,
    };
    let freeze = async {
        tokio::time::sleep(OUTAGE).await;
        thaw
    };
    server.relocate(announcement, freeze, |_| ()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_written_from_the_document_follows_there_and_back() {
    let work = async {
        let (server, mut client, places) = connected().await;
        let (body, progress) = client.get().await;
        for (chunks, target) in [(CHUNKS / 4, places[1]), (CHUNKS / 2, places[0])] {
            let thaw = Thaw::At(target);
            let moving = relocate(&server, progress.clone(), chunks, target, thaw);
            let (moved, seen) = tokio::join!(moving, client.follow());
            assert_eq!(moved.unwrap(), target);
            assert_eq!(seen[..2], ["MIGRATION", "PARKED"], "{seen:?}");
            assert_eq!(seen[seen.len() - 2..], ["answer", "ARRIVED"], "{seen:?}");
            assert!(seen.contains(&"knock"), "{seen:?}");
            let received = *progress.borrow();
            assert!(
                received < CHUNKS * CHUNK,
                "it was over before it could go on"
            );
        }
        assert!(body.await.unwrap() == content());
        assert_eq!((server.handshakes(), server.sequence()), (1, 2));
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_written_from_the_document_stays_with_a_server_that_stays() {
    let work = async {
        let (server, mut client, places) = connected().await;
        let (body, progress) = client.get().await;
        let thaw = Thaw::Failed("no room".into());
        let moving = relocate(&server, progress, CHUNKS / 4, places[1], thaw);
        let (moved, seen) = tokio::join!(moving, client.follow());
        assert!(matches!(moved, Err(MoveError::NotFrozen(_))));
        assert_eq!(seen, ["MIGRATION", "PARKED", "CANCELLED"]);
        assert!(body.await.unwrap() == content());
        assert_eq!(server.handshakes(), 1);
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}
