//! Clients that come while a server parks: they come along, or are told at once that it goes.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use mpq_core::client::{Client, ClientConfig, ClientEvent, ConnectError, MigrationEvent};
use mpq_core::server::Thaw;
use mpq_core::tls::Trust;
use support::{Bench, Events, announcement, both_paths, until};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);

/// Turns a hang into a failure; nobody waits so long who is told.
async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(10 * SECOND, test)
        .await
        .expect("the client is not told")
}

/// Passes on what a client and a server say, but keeps back what the client answers until it is told.
struct Middle {
    address: SocketAddr,
    /// The server has answered.
    answered: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Middle {
    async fn open(address: SocketAddr, server: SocketAddr) -> Self {
        let front = UdpSocket::bind(address).await.unwrap();
        let back = UdpSocket::bind((address.ip(), 0)).await.unwrap();
        let (has_answered, answered) = oneshot::channel();
        let (go, mut going) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let (mut there, mut here) = ([0; 1 << 16], [0; 1 << 16]);
            let (mut client, mut has_answered) = (None, Some(has_answered));
            let (mut kept, mut goes) = (Vec::new(), false);
            loop {
                tokio::select! {
                    received = front.recv_from(&mut there) => {
                        let (length, from) = received.unwrap();
                        client = Some(from);
                        match has_answered.is_none() && !goes {
                            true => kept.push(there[..length].to_vec()),
                            false => drop(back.send_to(&there[..length], server).await),
                        }
                    }
                    received = back.recv(&mut here) => {
                        // The server may have closed its socket.
                        let Ok(length) = received else { continue };
                        if let Some(has_answered) = has_answered.take() {
                            let _ = has_answered.send(());
                        }
                        let client = client.expect("it has asked");
                        front.send_to(&here[..length], client).await.unwrap();
                    }
                    told = &mut going, if !goes => {
                        if told.is_err() {
                            return;
                        }
                        goes = true;
                        for datagram in kept.drain(..) {
                            let _ = back.send_to(&datagram, server).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            answered,
            go,
        }
    }
}

fn config(bench: &Bench, host: u8) -> ClientConfig {
    ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![bench.network.ip(host).to_string()],
        ..ClientConfig::default()
    }
}

async fn parked(events: &mut Events) {
    until(events, |event| {
        matches!(event, ClientEvent::Migration(MigrationEvent::Parked { .. }))
    })
    .await;
}

/// A bench with a client, and another one that the server has answered, which has not heard of that.
async fn half_connected(seed: u64) -> (Bench, Client, Events, Middle) {
    let bench = Bench::new(seed);
    let client = bench.connect(bench.network.at(1)).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    let middle = Middle::open(bench.network.at(11), bench.network.at(1)).await;
    (bench, client, events, middle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_handshake_is_under_way_when_the_server_parks_comes_along() {
    let (bench, _follower, mut events, middle) = half_connected(1).await;
    let place = bench.network.at(2);
    let connecting = Client::connect(config(&bench, 103), middle.address, "localhost");
    let moving = async {
        middle.answered.await.unwrap();
        let announced = announcement(&[place], Duration::ZERO);
        let freeze = async { Thaw::At(place) };
        bench.server.relocate(announced, freeze, |_| ()).await
    };
    let letting_go = async {
        parked(&mut events).await;
        middle.go.send(()).unwrap();
        // The middle goes with it.
        std::future::pending::<()>().await;
    };
    let asking = async {
        let (client, moved) = tokio::join!(connecting, moving);
        assert_eq!(moved.unwrap(), place);
        let client = client.unwrap();
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        body.chunk().await.unwrap().expect("it has no end");
    };
    in_time(async {
        tokio::select! {
            () = asking => {}
            () = letting_go => {}
        }
    })
    .await;
    assert_eq!(bench.sessions(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_while_the_server_parks_is_refused_at_once() {
    let (bench, _follower, mut events, middle) = half_connected(2).await;
    let awaited = Client::connect(config(&bench, 103), middle.address, "localhost");
    let awaited = tokio::spawn(awaited);
    middle.answered.await.unwrap();
    let announced = announcement(&[bench.network.at(2)], Duration::ZERO);
    let freeze = async {
        // Longer than a client waits for its answer.
        tokio::time::sleep(5 * SECOND).await;
        Thaw::Failed("it was no good".into())
    };
    let moving = bench.server.relocate(announced, freeze, |_| ());
    let late = async {
        parked(&mut events).await;
        let config = ClientConfig {
            connect_timeout: 3 * SECOND,
            ..config(&bench, 104)
        };
        Client::connect(config, bench.network.at(1), "localhost").await
    };
    tokio::select! {
        moved = moving => panic!("{moved:?}"),
        late = in_time(late) => {
            let error = late.err().expect("the server goes");
            assert!(matches!(error, ConnectError::Quic(_)), "{error:?}");
        }
    }
    awaited.abort();
}
