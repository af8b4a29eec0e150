//! The full stack in one process, over a network that fails: datagrams pass through a forwarder, which
//! knows the links of a client by the address that it has there.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures::future::join_all;
use http::Response;
use mpq_core::PathId;
use mpq_core::client::{Client, ClientConfig, ClientEvent, PathEvent, PathInfo, PathState};
use mpq_core::limits::{SEND_WINDOW, STREAM_WINDOW};
use mpq_core::net::Bind;
use mpq_core::proto::server::Announcement;
use mpq_core::server::{MoveError, Server, ServerConfig, Thaw};
use mpq_core::tls::{Identity, Trust};
use sha2::{Digest, Sha256};
use support::get;
use tokio::net::UdpSocket;
use tokio::sync::broadcast::Receiver;
use tokio::task::AbortHandle;

const SIZE: usize = 24 << 20;
const CHUNK: usize = 64 << 10;
/// Longer than a path may be silent while others are heard.
const OUTAGE: Duration = Duration::from_millis(2500);
const FIRST: &str = "127.0.0.1";
const SECOND: &str = "127.0.0.3";

/// What forwards between a client and a server.
struct Network {
    front: UdpSocket,
    server: SocketAddr,
    links: Mutex<BTreeMap<IpAddr, Link>>,
}

struct Link {
    client: SocketAddr,
    /// What the server takes for the client.
    outside: Arc<UdpSocket>,
    back: AbortHandle,
    dead: bool,
    /// What a dead link has swallowed that has a long header, as only probes have it once the
    /// connection is made.
    probes: usize,
}

fn socket(ip: &str) -> UdpSocket {
    let bind = Bind::from(SocketAddr::new(ip.parse().unwrap(), 0));
    UdpSocket::from_std(bind.open().unwrap()).unwrap()
}

impl Network {
    fn new(server: SocketAddr) -> Arc<Self> {
        let network = Arc::new(Self {
            front: socket("127.0.0.9"),
            server,
            links: Mutex::default(),
        });
        tokio::spawn(network.clone().forward());
        network
    }

    fn address(&self) -> SocketAddr {
        self.front.local_addr().unwrap()
    }

    async fn forward(self: Arc<Self>) {
        let mut buffer = vec![0; 65536];
        loop {
            let (length, client) = self.front.recv_from(&mut buffer).await.unwrap();
            let datagram = &buffer[..length];
            if let Some(outside) = self.outside(client, datagram) {
                let _ = outside.send_to(datagram, self.server).await;
            }
        }
    }

    /// Where a client's datagram leaves, unless it is swallowed.
    fn outside(self: &Arc<Self>, client: SocketAddr, datagram: &[u8]) -> Option<Arc<UdpSocket>> {
        let mut links = self.links.lock().unwrap();
        let link = links
            .entry(client.ip())
            .or_insert_with(|| self.link(client));
        link.client = client;
        if link.dead {
            link.probes += usize::from(datagram[0] & 0x80 != 0);
            return None;
        }
        Some(link.outside.clone())
    }

    fn link(self: &Arc<Self>, client: SocketAddr) -> Link {
        let (outside, back) = self.open(client.ip());
        Link {
            client,
            outside,
            back,
            dead: false,
            probes: 0,
        }
    }

    /// Links that are dead from the start.
    fn lay_dead(self: &Arc<Self>, clients: &[&str]) {
        for client in clients {
            let client = SocketAddr::new(client.parse().unwrap(), 0);
            let mut link = self.link(client);
            link.dead = true;
            self.links.lock().unwrap().insert(client.ip(), link);
        }
    }

    fn open(self: &Arc<Self>, client: IpAddr) -> (Arc<UdpSocket>, AbortHandle) {
        let outside = Arc::new(socket("127.0.0.8"));
        let back = tokio::spawn(self.clone().back(client, outside.clone()));
        (outside, back.abort_handle())
    }

    async fn back(self: Arc<Self>, client: IpAddr, outside: Arc<UdpSocket>) {
        let mut buffer = vec![0; 65536];
        loop {
            let (length, from) = outside.recv_from(&mut buffer).await.unwrap();
            let client = {
                let links = self.links.lock().unwrap();
                let link = links.get(&client).filter(|l| !l.dead);
                link.filter(|_| from == self.server).map(|l| l.client)
            };
            if let Some(client) = client {
                let _ = self.front.send_to(&buffer[..length], client).await;
            }
        }
    }

    /// From now on, links swallow what they are given; or do so no more.
    fn set_dead(&self, clients: &[&str], dead: bool) {
        let mut links = self.links.lock().unwrap();
        for client in clients {
            links.get_mut(&client.parse().unwrap()).unwrap().dead = dead;
        }
    }

    /// Gives a client another port at the outside, as a NAT that has forgotten it.
    fn rebind(self: &Arc<Self>, client: &str) {
        let client = client.parse().unwrap();
        let (outside, back) = self.open(client);
        let mut links = self.links.lock().unwrap();
        let link = links.get_mut(&client).unwrap();
        link.back.abort();
        (link.outside, link.back) = (outside, back);
    }

    /// Waits until a dead link has swallowed so many probes.
    async fn probed(&self, client: &str, enough: usize) {
        let client = client.parse().unwrap();
        while self.links.lock().unwrap()[&client].probes < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn content() -> Bytes {
    (0..SIZE as u32 / 4)
        .flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes())
        .collect()
}

fn serve() -> Server {
    serve_counting(Arc::default())
}

/// Counts the bytes of the content that the server was let write.
fn serve_counting(written: Arc<AtomicUsize>) -> Server {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let listen = SocketAddr::new(FIRST.parse().unwrap(), 0);
    let server = Server::bind(listen, &identity, ServerConfig::default()).unwrap();
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(handshake) = accepting.accept().await {
            let Ok(mut session) = handshake.await else {
                continue;
            };
            let written = written.clone();
            tokio::spawn(async move {
                while let Ok(Some(request)) = session.h3.accept().await {
                    let (_, mut stream) = request.resolve_request().await.unwrap();
                    stream.send_response(Response::new(())).await.unwrap();
                    let written = written.clone();
                    tokio::spawn(async move {
                        let mut content = content();
                        while !content.is_empty() {
                            let chunk = content.split_to(CHUNK.min(content.len()));
                            stream.send_data(chunk).await.unwrap();
                            written.fetch_add(CHUNK, Ordering::Relaxed);
                        }
                        stream.finish().await.unwrap();
                    });
                }
            });
        }
    });
    server
}

async fn connect(remote: SocketAddr, interfaces: &[&str]) -> Client {
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: interfaces.iter().map(|ip| (*ip).to_owned()).collect(),
        ..ClientConfig::default()
    };
    Client::connect(config, remote, "localhost").await.unwrap()
}

/// Downloads the content, and does something once a quarter of it is there.
async fn download(client: &Client, at_a_quarter: impl AsyncFnOnce()) {
    let mut stream = get(client).await;
    let mut at_a_quarter = Some(at_a_quarter);
    let mut received = 0;
    let mut digest = Sha256::new();
    while let Some(mut chunk) = stream.recv_data().await.unwrap() {
        received += chunk.remaining();
        digest.update(chunk.copy_to_bytes(chunk.remaining()));
        if received > SIZE / 4
            && let Some(act) = at_a_quarter.take()
        {
            act().await;
        }
    }
    assert_eq!(received, SIZE);
    assert_eq!(digest.finalize(), Sha256::digest(content()));
}

/// Waits for what happens to a path from an address, and returns the path's number.
async fn path_is(
    events: &mut Receiver<(Instant, ClientEvent)>,
    local: &str,
    state: PathState,
) -> PathId {
    loop {
        let (_, event) = events.recv().await.unwrap();
        if let ClientEvent::Path(PathEvent::Opened(path))
        | ClientEvent::Path(PathEvent::Validated(path))
        | ClientEvent::Path(PathEvent::Closed(path)) = event
            && path.state == state
            && path.local.to_string() == local
        {
            return path.id;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_dies_silently_is_given_up_and_comes_back() {
    dies_and_comes_back(SECOND).await;
}

/// All acknowledgements go over the first path, also those of what came over others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_is_the_first_path() {
    dies_and_comes_back(FIRST).await;
}

async fn dies_and_comes_back(local: &str) {
    let server = serve();
    let network = Network::new(server.local_addr());
    let client = connect(network.address(), &[FIRST, SECOND]).await;
    let mut events = client.events();
    path_is(&mut events, SECOND, PathState::Validated).await;

    download(&client, async || network.set_dead(&[local], true)).await;
    path_is(&mut events, local, PathState::Closed).await;
    // However often the link is tried, it costs no path.
    network.probed(local, 3).await;
    assert_eq!(client.paths().len(), 2, "{:?}", client.paths());

    network.set_dead(&[local], false);
    let back = path_is(&mut events, local, PathState::Validated).await;
    assert_eq!(back, 2.into(), "the next id that there is");
    download(&client, async || {}).await;
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interface_that_leads_nowhere_costs_a_moment_and_not_the_connection() {
    let server = serve();
    let network = Network::new(server.local_addr());
    network.lay_dead(&[FIRST]);
    let start = Instant::now();
    let client = connect(network.address(), &[FIRST, SECOND]).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{start:?}");
    download(&client, async || {}).await;
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    let paths = client.paths();
    assert_eq!(paths.len(), 1, "{paths:?}");
    assert_eq!(paths[0].local.to_string(), SECOND);

    let mut events = client.events();
    network.set_dead(&[FIRST], false);
    let back = path_is(&mut events, FIRST, PathState::Validated).await;
    assert_eq!(back, 1.into(), "the next id that there is");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_that_lead_nowhere_leave_a_move_its_path_ids() {
    let server = serve();
    let network = Network::new(server.local_addr());
    // More of them than there are ids.
    let dead: Vec<_> = (20..38).map(|host| format!("127.0.0.{host}")).collect();
    let dead: Vec<_> = dead.iter().map(String::as_str).collect();
    network.lay_dead(&dead);
    let client = connect(network.address(), &[&[FIRST], &dead[..]].concat()).await;
    for interface in &dead {
        network.probed(interface, 3).await;
    }
    assert_eq!(client.paths().len(), 1, "{:?}", client.paths());

    let target = socket("127.0.0.2").local_addr().unwrap();
    download(&client, async || {
        server.move_to(target).await.unwrap();
    })
    .await;
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    let there = client.paths().into_iter().filter(|p| p.remote == target);
    assert!(there.count() > 1, "the interfaces are not dead there");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_outlive_a_move_that_is_not_made() {
    let server = serve();
    let network = Network::new(server.local_addr());
    let client = connect(network.address(), &[FIRST, SECOND]).await;
    let mut events = client.events();
    path_is(&mut events, SECOND, PathState::Validated).await;
    let freeze = async { Thaw::Failed("no room".into()) };
    let announcement = Announcement {
        targets: Vec::new(),
        lead: Duration::ZERO,
        outage: Duration::ZERO,
        forwarded: false,
    };
    let moved = server.relocate(announcement, freeze, |_| ()).await;
    assert!(matches!(moved, Err(MoveError::NotFrozen(_))), "{moved:?}");

    // After a move, the first path that is new closes the old ones.
    download(&client, async || network.set_dead(&[SECOND], true)).await;
    path_is(&mut events, SECOND, PathState::Closed).await;
    network.set_dead(&[SECOND], false);
    path_is(&mut events, SECOND, PathState::Validated).await;
    download(&client, async || {}).await;
    let of_first = |path: &PathInfo| (path.local.to_string() == FIRST).then_some(path.state);
    let first: Vec<_> = client.paths().iter().filter_map(of_first).collect();
    assert_eq!(first, [PathState::Validated]);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_writes_no_further_ahead_than_its_paths_can_use() {
    let written = Arc::new(AtomicUsize::new(0));
    let server = serve_counting(written.clone());
    let network = Network::new(server.local_addr());
    let client = connect(network.address(), &[FIRST]).await;
    // Flow control would let it write all of the send window.
    let most = SEND_WINDOW / u64::from(STREAM_WINDOW);
    let requests: Vec<_> = join_all((0..2 * most).map(|_| get(&client))).await;
    network.set_dead(&[FIRST], true);
    let received = client.paths()[0].received as usize;
    let mut before = 0;
    while before < written.load(Ordering::Relaxed) {
        before = written.load(Ordering::Relaxed);
        tokio::time::sleep(OUTAGE / 4).await;
    }
    assert!(
        before < received + SEND_WINDOW as usize / 4 * 3,
        "{before}, {received}"
    );
    drop(requests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_is_given_up_when_all_are_silent() {
    let server = serve();
    let network = Network::new(server.local_addr());
    let client = connect(network.address(), &[FIRST, SECOND]).await;
    let mut events = client.events();
    path_is(&mut events, SECOND, PathState::Validated).await;

    download(&client, async || {
        network.set_dead(&[FIRST, SECOND], true);
        tokio::time::sleep(OUTAGE).await;
        network.set_dead(&[FIRST, SECOND], false);
    })
    .await;
    while let Ok((_, event)) = events.try_recv() {
        assert!(
            !matches!(event, ClientEvent::Path(PathEvent::Closed(_))),
            "{event:?}"
        );
    }
    assert_eq!(client.paths().len(), 2);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_over_the_only_path_when_a_nat_gives_it_another_port() {
    let server = serve();
    let network = Network::new(server.local_addr());
    let client = connect(network.address(), &[FIRST]).await;
    download(&client, async || network.rebind(FIRST)).await;
    let paths = client.paths();
    assert_eq!(paths.len(), 1, "{paths:?}");
    assert_eq!(paths[0].state, PathState::Validated);
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    client.close().await;
}
