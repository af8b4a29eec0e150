//! A bench for the whole stack: a real server and a real client on loopback, and between them a body
//! of pseudo-random bytes that ends when the test says so.
//!
//! Every bench has a network of its own, some /24 of 127.0.0.0/8, so that no two tests meet.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod impostor;
pub(crate) mod initial;
pub(crate) mod mutate;
pub(crate) mod relay;
pub(crate) mod tap;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h3::client::RequestStream;
use http::{Request, Response};
use mpq_core::client::{Client, ClientConfig, ClientEvent, PathEvent, PathInfo, PathState};
use mpq_core::h3::OpenStreams;
use mpq_core::proto::server::Announcement;
use mpq_core::server::{Server, ServerConfig, Session};
use mpq_core::tls::{Identity, Trust};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
/// Of every server, and of whoever stands in for one.
const PORT: u16 = 4433;
/// The body is made and sent in pieces of this size, bytes.
const CHUNK: usize = 16 << 10;
/// Before each piece, so that a body lasts: about 6 MB/s.
const PACE: Duration = Duration::from_millis(2);
/// The hosts of a client's two addresses.
const CLIENT: [u8; 2] = [101, 102];

/// A /24 that no other bench has, in this process or in one that runs at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network([u8; 2]);

impl Network {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = (std::process::id().wrapping_mul(32) + next) % (254 << 8);
        let [_, _, high, low] = number.to_be_bytes();
        // The first ones are left to everybody else.
        Self([high + 1, low])
    }

    pub(crate) fn ip(self, host: u8) -> IpAddr {
        [127, self.0[0], self.0[1], host].into()
    }

    /// A server's address on a host.
    pub(crate) fn at(self, host: u8) -> SocketAddr {
        (self.ip(host), PORT).into()
    }
}

/// What is downloaded: as many bytes as are asked for, of which no two stretches are alike.
#[derive(Debug, Clone, Copy)]
struct Body {
    seed: u64,
}

impl Body {
    fn chunk(self, index: u64) -> Bytes {
        let mut chunk = vec![0; CHUNK];
        fastrand::Rng::with_seed(self.seed ^ index.rotate_left(32)).fill(&mut chunk);
        chunk.into()
    }

    /// SHA-256 of as many of its first bytes.
    fn digest(self, length: u64) -> Vec<u8> {
        let mut digest = Sha256::new();
        let mut left = length;
        for index in 0.. {
            let chunk = self.chunk(index);
            if left < chunk.len() as u64 {
                digest.update(&chunk[..left as usize]);
                break;
            }
            digest.update(&chunk);
            left -= chunk.len() as u64;
        }
        digest.finalize().to_vec()
    }
}

/// A server on host 1 of its network.
pub(crate) struct Bench {
    pub(crate) network: Network,
    pub(crate) server: Server,
    pub(crate) identity: Identity,
    body: Body,
    served: Arc<Served>,
}

/// What the server has done and is to do.
#[derive(Debug)]
struct Served {
    /// Handshakes that were completed.
    sessions: AtomicU64,
    /// Bodies end once they are as long.
    length: AtomicU64,
}

impl Bench {
    /// The body is the seed's.
    pub(crate) fn new(seed: u64) -> Self {
        let network = Network::new();
        Self::listen(seed, network, network.at(1))
    }

    /// As [`Bench::new`], but the server listens there.
    pub(crate) fn listening(seed: u64, listen: SocketAddr) -> Self {
        Self::listen(seed, Network::new(), listen)
    }

    fn listen(seed: u64, network: Network, listen: SocketAddr) -> Self {
        // Seen if the test fails.
        println!("seed {seed}");
        Self::with(seed, network, |identity, config| {
            Server::bind(listen, identity, config).unwrap()
        })
    }

    /// A server that takes over from this one, with the same body.
    pub(crate) fn succeed(&self) -> Self {
        let estate = self.server.hand_over().unwrap();
        Self::with(self.body.seed, self.network, |identity, config| {
            Server::succeed(estate, identity, config).unwrap()
        })
    }

    /// With the server that is started so.
    pub(crate) fn with(
        seed: u64,
        network: Network,
        start: impl FnOnce(&Identity, ServerConfig) -> Server,
    ) -> Self {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let server = start(&identity, ServerConfig::default());
        let served = Arc::new(Served {
            sessions: AtomicU64::new(0),
            length: AtomicU64::new(u64::MAX),
        });
        let body = Body { seed };
        tokio::spawn(accept(server.clone(), body, served.clone()));
        Self {
            network,
            server,
            identity,
            body,
            served,
        }
    }

    /// A client on two addresses, connected by way of `remote`.
    pub(crate) async fn connect(&self, remote: SocketAddr) -> Client {
        self.connect_with(remote, ClientConfig::default()).await
    }

    /// As [`Bench::connect`], but with these limits.
    pub(crate) async fn connect_with(&self, remote: SocketAddr, config: ClientConfig) -> Client {
        let config = ClientConfig {
            trust: Trust::Insecure,
            interfaces: CLIENT.map(|host| self.network.ip(host).to_string()).into(),
            ..config
        };
        Client::connect(config, remote, "localhost").await.unwrap()
    }

    /// Starts the download, which goes on until it is [whole](Download::whole).
    pub(crate) async fn download<'a>(&'a self, client: &'a Client) -> Download<'a> {
        let mut stream = get(client).await;
        let (sender, progress) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut digest = Sha256::new();
            while let Some(mut chunk) = stream.recv_data().await.unwrap() {
                let length = chunk.remaining();
                digest.update(chunk.copy_to_bytes(length));
                sender.send_modify(|received| *received += length as u64);
            }
            digest.finalize().to_vec()
        });
        Download {
            bench: self,
            client,
            progress,
            task,
        }
    }

    /// Ends all bodies.
    pub(crate) fn end(&self) {
        self.served.length.store(0, Ordering::Relaxed);
    }

    /// Whether these are the first bytes of the body, up to the end of a piece.
    pub(crate) fn is_body(&self, bytes: &[u8]) -> bool {
        let digest = Sha256::digest(bytes).to_vec();
        bytes.len().is_multiple_of(CHUNK) && digest == self.body.digest(bytes.len() as u64)
    }

    /// Handshakes that were completed.
    pub(crate) fn sessions(&self) -> u64 {
        self.served.sessions.load(Ordering::Relaxed)
    }
}

async fn accept(server: Server, body: Body, served: Arc<Served>) {
    while let Some(handshake) = server.accept().await {
        let served = served.clone();
        tokio::spawn(async move {
            if let Ok(session) = handshake.await {
                served.sessions.fetch_add(1, Ordering::Relaxed);
                answer(session, body, served).await;
            }
        });
    }
}

async fn answer(mut session: Session, body: Body, served: Arc<Served>) {
    while let Ok(Some(request)) = session.h3.accept().await {
        let served = served.clone();
        tokio::spawn(async move {
            let Ok((_, mut stream)) = request.resolve_request().await else {
                return;
            };
            if stream.send_response(Response::new(())).await.is_err() {
                return;
            }
            for index in 0.. {
                if index * CHUNK as u64 >= served.length.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep(PACE).await;
                if stream.send_data(body.chunk(index)).await.is_err() {
                    return;
                }
            }
            let _ = stream.finish().await;
        });
    }
}

/// Asks for the body and returns what it comes in.
pub(crate) async fn get(client: &Client) -> Stream {
    let mut requests = client.requests();
    let request = Request::get("https://localhost/").body(()).unwrap();
    let mut stream = requests.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    stream.recv_response().await.unwrap();
    stream
}

type Stream = RequestStream<<OpenStreams as h3::quic::OpenStreams<Bytes>>::BidiStream, Bytes>;

/// A download under way; whoever waits for it panics if the connection is lost.
pub(crate) struct Download<'a> {
    bench: &'a Bench,
    client: &'a Client,
    progress: watch::Receiver<u64>,
    /// Its SHA-256, in the end.
    task: JoinHandle<Vec<u8>>,
}

impl Download<'_> {
    /// Waits until another `bytes` are there.
    pub(crate) async fn grows(&self, bytes: u64) {
        let mut progress = self.progress.clone();
        let goal = *progress.borrow() + bytes;
        tokio::select! {
            grown = progress.wait_for(|received| *received >= goal) => {
                grown.expect("the download goes on");
            }
            error = self.client.closed() => panic!("{error}"),
        }
    }

    /// Ends the body, and checks that every byte of it is there and is what it should be.
    pub(crate) async fn whole(self) {
        self.bench.end();
        let digest = tokio::select! {
            digest = self.task => digest.unwrap(),
            error = self.client.closed() => panic!("{error}"),
        };
        let received = *self.progress.borrow();
        assert!(received > 0);
        assert_eq!(received % CHUNK as u64, 0, "the last piece is whole");
        assert_eq!(digest, self.bench.body.digest(received));
    }
}

/// What a client reports.
pub(crate) type Events = broadcast::Receiver<(Instant, ClientEvent)>;

/// Reads events until the wanted one.
pub(crate) async fn until(
    events: &mut Events,
    wanted: impl Fn(&ClientEvent) -> bool,
) -> (Instant, ClientEvent) {
    loop {
        let event = events.recv().await.expect("the client goes on");
        if wanted(&event.1) {
            return event;
        }
    }
}

/// Waits until the client has both of its first paths.
pub(crate) async fn both_paths(events: &mut Events) {
    for _ in 0..2 {
        until(events, |event| {
            matches!(event, ClientEvent::Path(PathEvent::Validated(_)))
        })
        .await;
    }
}

/// The events that have happened.
pub(crate) fn happened(events: &mut Events) -> Vec<ClientEvent> {
    std::iter::from_fn(|| events.try_recv().ok())
        .map(|(_, event)| event)
        .collect()
}

/// The client's paths that are in use.
pub(crate) fn in_use(client: &Client) -> Vec<PathInfo> {
    let paths = client.paths().into_iter();
    paths
        .filter(|path| path.state == PathState::Validated)
        .collect()
}

/// A move to one of these addresses.
pub(crate) fn announcement(targets: &[SocketAddr], lead: Duration) -> Announcement {
    Announcement {
        targets: targets.to_vec(),
        lead,
        outage: Duration::ZERO,
        forwarded: false,
    }
}
