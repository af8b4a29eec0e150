//! One server takes over from another at the same socket, and no client notices.

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mpq_core::client::{Client, ClientEvent, PathEvent};
use mpq_core::proto::ownership::IdKey;
use mpq_core::server::{HandOverError, MoveError, Server, ServerConfig};
use mpq_core::tls::{Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use support::{Bench, Network, both_paths, until};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// Enough that no datagram of before is left.
const MUCH: u64 = 1_000_000;

async fn in_time(test: impl Future<Output = ()>) {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, test).await.expect("it hangs");
}

async fn connect(bench: &Bench) -> Client {
    let client = bench.connect(bench.network.at(1)).await;
    both_paths(&mut client.events()).await;
    client
}

/// Two links to a server, by way of one address, which carry nothing while they are down.
struct Links {
    front: Arc<UdpSocket>,
    down: Arc<Mutex<Option<IpAddr>>>,
}

impl Links {
    async fn to(server: SocketAddr, front: IpAddr, clients: [IpAddr; 2]) -> Self {
        let links = Self {
            front: Arc::new(UdpSocket::bind((front, 0)).await.unwrap()),
            down: Arc::default(),
        };
        let mut backs = BTreeMap::new();
        for client in clients {
            let back = Arc::new(UdpSocket::bind((front, 0)).await.unwrap());
            back.connect(server).await.unwrap();
            let (sender, mut from) = tokio::sync::watch::channel(None);
            backs.insert(client, (back.clone(), sender));
            let (front, down) = (links.front.clone(), links.down.clone());
            tokio::spawn(async move {
                let mut buffer = [0; 65_536];
                from.changed().await.unwrap();
                while let Ok(length) = back.recv(&mut buffer).await {
                    let to: SocketAddr = from.borrow().unwrap();
                    if *down.lock().unwrap() != Some(client) {
                        let _ = front.send_to(&buffer[..length], to).await;
                    }
                }
            });
        }
        let (front, down) = (links.front.clone(), links.down.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 65_536];
            while let Ok((length, from)) = front.recv_from(&mut buffer).await {
                let (back, client) = &backs[&from.ip()];
                client.send_replace(Some(from));
                if *down.lock().unwrap() != Some(from.ip()) {
                    let _ = back.send(&buffer[..length]).await;
                }
            }
        });
        links
    }

    fn address(&self) -> SocketAddr {
        self.front.local_addr().unwrap()
    }

    /// This one goes down, and the other one is up again.
    fn down(&self, client: IpAddr) {
        *self.down.lock().unwrap() = Some(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_download_goes_on_over_both_paths_and_who_comes_is_the_successors() {
    in_time(async {
        let old = Bench::new(1);
        let [one, other] = [101, 102].map(|host| old.network.ip(host));
        let links = Links::to(old.network.at(1), old.network.ip(9), [one, other]).await;
        let client = old.connect(links.address()).await;
        let mut events = client.events();
        both_paths(&mut events).await;
        let download = old.download(&client).await;
        download.grows(MUCH).await;
        let new = old.succeed();
        // First over the path that there was, and then over one that comes to be only now.
        links.down(one);
        download.grows(MUCH).await;
        links.down(IpAddr::from([0; 4]));
        let is_open = |event: &ClientEvent| {
            matches!(event, ClientEvent::Path(PathEvent::Validated(path)) if path.local == one)
        };
        until(&mut events, is_open).await;
        links.down(other);
        download.grows(MUCH).await;

        let second = connect(&new).await;
        let another = new.download(&second).await;
        another.grows(MUCH).await;
        assert_eq!([old.sessions(), new.sessions()], [1, 1]);
        download.whole().await;
        another.whole().await;
        assert_eq!([&old, &new].map(|bench| bench.server.handshakes()), [1, 1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_third_server_takes_over_while_the_first_has_connections_yet() {
    in_time(async {
        let first = Bench::new(2);
        let clients = [connect(&first).await];
        let one = first.download(&clients[0]).await;
        let second = first.succeed();
        let client = connect(&second).await;
        let two = second.download(&client).await;
        let third = second.succeed();
        let client = connect(&third).await;
        let three = third.download(&client).await;
        for download in [&one, &two, &three] {
            download.grows(MUCH).await;
        }
        assert_eq!([&first, &second, &third].map(Bench::sessions), [1, 1, 1]);
        for download in [one, two, three] {
            download.whole().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_with_an_elder_or_an_heir_does_not_move() {
    in_time(async {
        let old = Bench::new(3);
        let new = old.succeed();
        let elsewhere = old.network.at(2);
        let refused = old.server.hand_over().unwrap_err();
        assert!(matches!(refused, HandOverError::HandedOver), "{refused}");
        let refused = old.server.move_to(elsewhere).await.unwrap_err();
        assert!(matches!(refused, MoveError::HandedOver), "{refused}");
        assert!(new.server.has_elder());
        let refused = new.server.move_to(elsewhere).await.unwrap_err();
        assert!(matches!(refused, MoveError::Elder), "{refused}");

        old.server.close().await;
        drop(old);
        while new.server.has_elder() {
            tokio::task::yield_now().await;
        }
        let client = connect(&new).await;
        let download = new.download(&client).await;
        assert_eq!(new.server.move_to(elsewhere).await.unwrap(), elsewhere);
        download.grows(MUCH).await;
        download.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_its_successor_a_server_is_as_it_was() {
    in_time(async {
        let old = Bench::new(4);
        let client = connect(&old).await;
        let download = old.download(&client).await;
        drop(old.server.hand_over().unwrap());
        download.grows(MUCH).await;
        drop(connect(&old).await);

        let new = old.succeed();
        assert!(old.server.has_handed_over());
        download.grows(MUCH).await;
        let stranded = connect(&new).await;
        new.server.close().await;
        stranded.closed().await;
        drop(new);
        while old.server.has_handed_over() {
            download.grows(1).await;
        }
        download.grows(MUCH).await;
        drop(connect(&old).await);
        assert_eq!(old.sessions(), 3);
        let last = old.succeed();
        download.grows(MUCH).await;
        assert_eq!(last.sessions(), 0);
        download.whole().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_move_that_is_under_way_is_not_cut_off() {
    in_time(async {
        let bench = Bench::new(5);
        let elsewhere = bench.network.at(2);
        let (parked, goes_on) = (Notify::new(), Notify::new());
        let announcement = support::announcement(&[elsewhere], Duration::ZERO);
        let freeze = async {
            parked.notify_one();
            goes_on.notified().await;
            mpq_core::server::Thaw::At(elsewhere)
        };
        let meanwhile = async {
            parked.notified().await;
            let refused = bench.server.hand_over().unwrap_err();
            assert!(matches!(refused, HandOverError::Moving), "{refused}");
            goes_on.notify_one();
        };
        let moved = bench.server.relocate(announcement, freeze, |_| ());
        let (moved, ()) = tokio::join!(moved, meanwhile);
        assert_eq!(moved.unwrap(), elsewhere);
        let client = bench.connect(elsewhere).await;
        let download = bench.download(&client).await;
        let new = bench.succeed();
        download.grows(MUCH).await;
        assert_eq!(new.sessions(), 0);
        download.whole().await;
    })
    .await;
}

/// A way to the server on which the client's second datagram waits until it is let go.
async fn held(server: SocketAddr, comes: Arc<Notify>, let_go: Arc<Notify>) -> SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let begin = front.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
        let (mut client, mut count) = (begin, 0);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut up) => {
                    (client, count) = (from, count + 1);
                    if count == 2 {
                        comes.notify_one();
                        let_go.notified().await;
                    }
                    back.send_to(&up[..length], server).await.unwrap();
                }
                Ok(length) = back.recv(&mut down) => {
                    front.send_to(&down[..length], client).await.unwrap();
                }
            }
        }
    });
    begin
}

/// The client has the server's first answer: a Retry, if none may come without, or else a handshake half done.
async fn meanwhile(unvalidated_handshakes: usize) {
    let network = Network::new();
    let old = Bench::with(6, network, |identity, config| {
        let config = ServerConfig {
            unvalidated_handshakes,
            ..config
        };
        Server::bind(network.at(1), identity, config).unwrap()
    });
    let (comes, let_go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let way = held(network.at(1), comes.clone(), let_go.clone()).await;
    let tls = rustls_client(&Trust::Insecure).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint.connect_with(config, way, "localhost").unwrap();
    let hand_over = async {
        comes.notified().await;
        let new = old.succeed();
        let_go.notify_one();
        new
    };
    let (connected, new) = tokio::join!(connecting, hand_over);
    let connected = connected.unwrap();
    while old.sessions() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(new.sessions(), 0);
    assert_eq!(connected.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handshake_ends_where_it_began() {
    in_time(meanwhile(usize::MAX)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_was_asked_for_its_address_is_taken_by_who_asked() {
    in_time(meanwhile(0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_elder_that_hears_nothing_holds_nobody_up() {
    in_time(async {
        let old = Bench::new(7);
        let client = connect(&old).await;
        let download = old.download(&client).await;
        download.grows(MUCH).await;
        let mut estate = old.server.hand_over().unwrap();
        let (stream, unread) = std::os::unix::net::UnixStream::pair().unwrap();
        let real = std::mem::replace(&mut estate.stream, stream);
        let id = IdKey::new(estate.ids[0]).id([0; 3]);
        let new = Bench::with(8, old.network, |identity, config| {
            Server::succeed(estate, identity, config).unwrap()
        });
        let second = connect(&new).await;
        let another = new.download(&second).await;
        let flood = UdpSocket::bind((old.network.ip(9), 0)).await.unwrap();
        let datagram = [&[0x40][..], &id, &[0; 40_000]].concat();
        while new.server.counters().unsent == 0 {
            flood.send_to(&datagram, old.network.at(1)).await.unwrap();
        }
        another.grows(MUCH).await;
        assert!(new.server.has_elder());
        drop(unread);
        another.grows(MUCH).await;
        assert!(!new.server.has_elder());
        another.whole().await;
        drop((download, real));
    })
    .await;
}
