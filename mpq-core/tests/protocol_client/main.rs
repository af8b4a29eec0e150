//! `docs/protocol.md` suffices to write a client: one that has nothing of ours follows our server.

mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use mpq_core::proto::server::Announcement;
use mpq_core::server::{MoveError, Server, ServerConfig, Thaw};
use mpq_core::tls::Identity;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::{self, RootCertStore};
use quinn::{ClientConfig, Connection};
use tokio::sync::{mpsc, watch};

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
struct Fixture {
    server: Server,
    places: [SocketAddr; 2],
    /// How many chunks of the body have been sent.
    sent: watch::Receiver<usize>,
    client: Connection,
    /// What the client has seen.
    seen: mpsc::UnboundedReceiver<&'static str>,
}

impl Fixture {
    async fn connected() -> Self {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let (server, other) = loop {
            let any = "127.0.0.1:0".parse().unwrap();
            let server = Server::bind(any, &identity, ServerConfig::default()).unwrap();
            let other = SocketAddr::new("127.0.0.2".parse().unwrap(), server.local_addr().port());
            if std::net::UdpSocket::bind(other).is_ok() {
                break (server, other);
            }
        };
        let (progress, sent) = watch::channel(0);
        tokio::spawn(serve(server.clone(), progress));
        let places = [server.local_addr(), other];
        let (sender, seen) = mpsc::unbounded_channel();
        let client = client::connect(places[0], trusting(&identity), sender).await;
        Self {
            server,
            places,
            sent,
            client: client.unwrap(),
            seen,
        }
    }

    /// Waits until so much of the body is sent, then moves the server. Returns what the client has seen of it.
    async fn relocate(
        &mut self,
        chunks: usize,
        target: SocketAddr,
        thaw: Thaw,
    ) -> (Result<SocketAddr, MoveError>, Vec<&'static str>) {
        drop(self.sent.wait_for(|sent| *sent >= chunks).await.unwrap());
        let announcement = Announcement {
            targets: vec![target],
            lead: Duration::ZERO,
            outage: OUTAGE,
            forwarded: false,
        };
        let freeze = async {
            tokio::time::sleep(OUTAGE).await;
            thaw
        };
        let moved = self.server.relocate(announcement, freeze, |_| ()).await;
        let mut seen = Vec::new();
        while !matches!(seen.last(), Some(&("ARRIVED" | "CANCELLED"))) {
            seen.push(self.seen.recv().await.unwrap());
        }
        (moved, seen)
    }
}

fn trusting(identity: &Identity) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(identity.chain[0].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

async fn serve(server: Server, progress: watch::Sender<usize>) {
    while let Some(handshake) = server.accept().await {
        let progress = progress.clone();
        tokio::spawn(async move {
            let mut session = handshake.await.expect("a handshake");
            while let Ok(Some(request)) = session.h3.accept().await {
                let progress = progress.clone();
                tokio::spawn(async move {
                    let (_, mut stream) = request.resolve_request().await.unwrap();
                    stream.send_response(Response::new(())).await.unwrap();
                    for chunk in content().chunks(CHUNK) {
                        tokio::time::sleep(PACE).await;
                        let chunk = Bytes::copy_from_slice(chunk);
                        stream.send_data(chunk).await.unwrap();
                        progress.send_modify(|sent| *sent += 1);
                    }
                    stream.finish().await.unwrap();
                });
            }
        });
    }
}

/// Asks for `/` with as much HTTP/3 as that needs, and returns the body.
async fn get(connection: &Connection) -> Vec<u8> {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    // HEADERS: GET, https and / from QPACK's static table (RFC 9204 §A), and :authority by its name.
    let request = b"\x01\x10\x00\x00\xd1\xd7\xc1\x50\x09localhost";
    send.write_all(request).await.unwrap();
    send.finish().unwrap();
    let response: Vec<_> = client::frames(receive).collect().await;
    // HEADERS, and :status 200.
    assert_eq!((response[0].0, response[0].1[2]), (0x01, 0xd9));
    let data = response.into_iter().filter(|(kind, _)| *kind == 0x00);
    data.flat_map(|(_, part)| part).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_written_from_the_document_follows_there_and_back() {
    let work = async {
        let mut fixture = Fixture::connected().await;
        let client = fixture.client.clone();
        let body = tokio::spawn(async move { get(&client).await });
        let places = fixture.places;
        for (chunks, target) in [(CHUNKS / 4, places[1]), (CHUNKS / 2, places[0])] {
            let (moved, seen) = fixture.relocate(chunks, target, Thaw::At(target)).await;
            assert_eq!(moved.unwrap(), target);
            assert_eq!(seen[..2], ["MIGRATION", "PARKED"], "{seen:?}");
            assert_eq!(seen[seen.len() - 2..], ["answer", "ARRIVED"], "{seen:?}");
            assert!(seen.contains(&"knock"), "{seen:?}");
            let sent = *fixture.sent.borrow();
            assert!(sent < CHUNKS, "it was over before it could go on");
        }
        assert!(body.await.unwrap() == content());
        let server = fixture.server;
        assert_eq!((server.handshakes(), server.sequence()), (1, 2));
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_written_from_the_document_stays_with_a_server_that_stays() {
    let work = async {
        let mut fixture = Fixture::connected().await;
        let client = fixture.client.clone();
        let body = tokio::spawn(async move { get(&client).await });
        let target = fixture.places[1];
        let thaw = Thaw::Failed("no room".into());
        let (moved, seen) = fixture.relocate(CHUNKS / 4, target, thaw).await;
        assert!(matches!(moved, Err(MoveError::NotFrozen(_))));
        assert_eq!(seen, ["MIGRATION", "PARKED", "CANCELLED"]);
        assert!(body.await.unwrap() == content());
        assert_eq!(fixture.server.handshakes(), 1);
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
}
