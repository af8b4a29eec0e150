//! The full stack in one process: a client follows a server that parks and goes on elsewhere.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Response;
use mpq_core::client::{Client, ClientConfig, ClientEvent, MigrationEvent, PathEvent, PathState};
use mpq_core::proto::Strategy;
use mpq_core::proto::server::{AlternativeAddresses, Announcement};
use mpq_core::server::{MoveError, Server, ServerConfig, Thaw};
use mpq_core::tls::{Identity, Trust};
use mpq_core::{Congestion, PathStats, Traffic};
use sha2::{Digest, Sha256};
use support::{get, until};
use tokio::sync::{mpsc, oneshot};

const SIZE: usize = 24 << 20;
const CHUNK: usize = 64 << 10;

fn content() -> Bytes {
    (0..SIZE as u32 / 4)
        .flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes())
        .collect()
}

/// A server of the content, on a port that is free on 127.0.0.2 and 127.0.0.4 too.
fn serve() -> (Server, [SocketAddr; 3]) {
    serve_with(ServerConfig::default(), mpsc::unbounded_channel().0)
}

/// As [`serve`]; what each connection carried goes to `over`, in the order of their beginning.
fn serve_with(
    mut config: ServerConfig,
    over: mpsc::UnboundedSender<oneshot::Receiver<Traffic>>,
) -> (Server, [SocketAddr; 3]) {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let places = loop {
        let first = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let places = ["127.0.0.1", "127.0.0.2", "127.0.0.4"]
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        if places[1..]
            .iter()
            .all(|place| std::net::UdpSocket::bind(place).is_ok())
        {
            break places;
        }
    };
    config.elsewhere = AlternativeAddresses {
        pool: places[..2].to_vec(),
        name: None,
    };
    let server = Server::bind(places[0], &identity, config).unwrap();
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(handshake) = accepting.accept().await {
            let over = over.clone();
            tokio::spawn(async move {
                let Ok(mut session) = handshake.await else {
                    return;
                };
                let _ = over.send(session.traffic);
                while let Ok(Some(request)) = session.h3.accept().await {
                    tokio::spawn(async move {
                        let (_, mut stream) = request.resolve_request().await.unwrap();
                        stream.send_response(Response::new(())).await.unwrap();
                        let mut content = content();
                        while !content.is_empty() {
                            let chunk = content.split_to(CHUNK.min(content.len()));
                            if stream.send_data(chunk).await.is_err() {
                                return;
                            }
                        }
                        let _ = stream.finish().await;
                    });
                }
            });
        }
    });
    (server, places)
}

async fn connect(remote: SocketAddr) -> Client {
    connect_by(Strategy::default(), &["127.0.0.1", "127.0.0.3"], remote).await
}

async fn connect_by(strategy: Strategy, interfaces: &[&str], remote: SocketAddr) -> Client {
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
        strategy,
        ..ClientConfig::default()
    };
    Client::connect(config, remote, "localhost").await.unwrap()
}

fn announcement(target: SocketAddr) -> Announcement {
    Announcement {
        targets: vec![target],
        lead: Duration::ZERO,
        outage: Duration::ZERO,
        forwarded: false,
    }
}

/// Downloads the content; each time another part of it is there, takes the next step.
async fn download(client: &Client, mut steps: Vec<tokio::sync::oneshot::Sender<()>>) {
    let mut stream = get(client).await;
    let part = SIZE / (steps.len() + 1);
    steps.reverse();
    let (mut received, mut taken) = (0, 1);
    let mut digest = Sha256::new();
    while let Some(mut chunk) = stream.recv_data().await.unwrap() {
        received += chunk.remaining();
        digest.update(chunk.copy_to_bytes(chunk.remaining()));
        if received > part * taken
            && let Some(step) = steps.pop()
        {
            let _ = step.send(());
            taken += 1;
        }
    }
    assert_eq!(received, SIZE);
    assert_eq!(digest.finalize(), Sha256::digest(content()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_through_three_moves() {
    let (server, places) = serve();
    let client = connect(places[0]).await;
    let mut events = client.events();
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..3).map(|_| tokio::sync::oneshot::channel()).unzip();
    let moving = server.clone();
    let moves = tokio::spawn(async move {
        for (step, target) in receivers.into_iter().zip([places[1], places[0], places[2]]) {
            step.await.unwrap();
            let freeze = async move { Thaw::At(target) };
            let moved = moving.relocate(announcement(target), freeze, |_| ()).await;
            assert_eq!(moved.unwrap(), target);
        }
    });
    download(&client, senders).await;
    moves.await.unwrap();
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    assert_eq!(server.sequence(), 3);
    let mut moved = Vec::new();
    while let Ok((_, event)) = events.try_recv() {
        if let ClientEvent::Migration(MigrationEvent::Moved { sequence, remote }) = event {
            moved.push((sequence, remote));
        }
    }
    assert_eq!(moved, [(1, places[1]), (2, places[0]), (3, places[2])]);
    let open: Vec<_> = client
        .paths()
        .into_iter()
        .filter(|p| p.state == PathState::Validated)
        .collect();
    assert!(open.iter().all(|p| p.remote == places[2]), "{open:?}");
    client.close().await;
}

/// Downloads while the server moves there and back again; returns where the client saw it go, how
/// often it fell silent for it, and how many paths it used.
async fn there_and_back(
    server: Server,
    client: Client,
    places: [SocketAddr; 2],
    announced: bool,
) -> (Vec<SocketAddr>, usize, usize) {
    let mut events = client.events();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
    let moving = server.clone();
    let moves = tokio::spawn(async move {
        for (step, target) in receivers.into_iter().zip([places[1], places[0]]) {
            step.await.unwrap();
            let announcement = Announcement {
                targets: if announced { vec![target] } else { vec![] },
                ..announcement(target)
            };
            let freeze = async move { Thaw::At(target) };
            let moved = moving.relocate(announcement, freeze, |_| ()).await;
            assert_eq!(moved.unwrap(), target);
        }
    });
    download(&client, senders).await;
    moves.await.unwrap();
    assert_eq!((client.handshakes(), server.handshakes()), (1, 1));
    let (mut moved, mut silent) = (Vec::new(), 0);
    while let Ok((_, event)) = events.try_recv() {
        match event {
            ClientEvent::Migration(MigrationEvent::Moved { remote, .. }) => moved.push(remote),
            ClientEvent::Migration(MigrationEvent::Silent) => silent += 1,
            _ => {}
        }
    }
    let paths = client.paths().len();
    client.close().await;
    (moved, silent, paths)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_strategy_follows_over_two_interfaces_and_over_one() {
    for strategy in Strategy::ALL {
        for interfaces in [&["127.0.0.1", "127.0.0.3"][..], &["127.0.0.1"]] {
            if strategy == Strategy::Restart {
                continue;
            }
            let (server, places) = serve();
            let client = connect_by(strategy, interfaces, places[0]).await;
            // A fast machine would be at the first move sooner, and a path that a move interrupts is opened
            // again.
            let mut events = client.events();
            for _ in interfaces {
                until(&mut events, |event| {
                    matches!(event, ClientEvent::Path(PathEvent::Validated(_)))
                })
                .await;
            }
            let known = [places[0], places[1]];
            let (moved, _, paths) = there_and_back(server, client, known, true).await;
            assert_eq!(moved, [places[1], places[0]], "{strategy}, {interfaces:?}");
            if strategy.redirects() {
                assert_eq!(paths, interfaces.len(), "{strategy}: its paths stay");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_without_a_word_is_found_by_its_knock() {
    let (server, places) = serve();
    let client = connect(places[0]).await;
    let (moved, ..) = there_and_back(server, client, [places[0], places[1]], false).await;
    assert_eq!(moved, [places[1], places[0]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_moves_to_the_other_address_family_and_back() {
    let (server, places) = serve();
    let six = SocketAddr::new("::1".parse().unwrap(), places[0].port());
    let interfaces = ["127.0.0.1", "::1", "127.0.0.3"];
    let client = connect_by(Strategy::Multipath, &interfaces, places[0]).await;
    let (moved, _, paths) = there_and_back(server, client, [places[0], six], true).await;
    assert_eq!(moved, [six, places[0]]);
    // Two at first, one to the only address there, and two again.
    assert_eq!(paths, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_moves_to_another_port_and_back() {
    for strategy in [Strategy::Multipath, Strategy::Reactive] {
        let (server, places) = serve();
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = free.local_addr().unwrap();
        drop(free);
        let client = connect_by(strategy, &["127.0.0.1", "127.0.0.3"], places[0]).await;
        let (moved, ..) = there_and_back(server, client, [places[0], other], true).await;
        assert_eq!(moved, [other, places[0]], "{strategy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_fails_is_cancelled_and_nothing_is_lost() {
    stays(|_| Thaw::Failed("no room".into()), "no room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wakes_where_it_was_goes_on_there() {
    stays(Thaw::At, "it woke at its old address").await;
}

async fn stays(thaw: fn(SocketAddr) -> Thaw, why: &str) {
    let (server, places) = serve();
    let client = connect(places[0]).await;
    let mut events = client.events();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let moving = server.clone();
    let moves = tokio::spawn(async move {
        receiver.await.unwrap();
        let freeze = async { thaw(places[0]) };
        moving
            .relocate(announcement(places[1]), freeze, |_| ())
            .await
    });
    download(&client, vec![sender]).await;
    let error = moves.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with(why), "{error}");
    assert_eq!(server.local_addr(), places[0]);
    let mut cancelled = 0;
    while let Ok((_, event)) = events.try_recv() {
        match event {
            ClientEvent::Migration(MigrationEvent::Cancelled { sequence: 1 }) => cancelled += 1,
            ClientEvent::Migration(MigrationEvent::Moved { .. })
            | ClientEvent::Migration(MigrationEvent::Failed) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert_eq!(cancelled, 1);
    assert!(
        client
            .paths()
            .iter()
            .all(|p| p.state == PathState::Validated && p.remote == places[0])
    );
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_clients_moves_too_and_only_one_move_runs_at_a_time() {
    let (server, places) = serve();
    let (thaw, frozen) = tokio::sync::oneshot::channel();
    let moving = server.clone();
    let (parked, is_parked) = tokio::sync::oneshot::channel();
    let first = tokio::spawn(async move {
        let freeze = async {
            parked.send(()).unwrap();
            Thaw::At(frozen.await.unwrap())
        };
        moving
            .relocate(announcement(places[1]), freeze, |_| ())
            .await
    });
    is_parked.await.unwrap();
    // Parked means that the address is free.
    drop(std::net::UdpSocket::bind(places[0]).unwrap());
    let second = server.relocate(
        announcement(places[2]),
        async { Thaw::At(places[2]) },
        |_| (),
    );
    assert!(matches!(second.await, Err(MoveError::Busy)));
    thaw.send(places[1]).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), places[1]);
    let client = connect(places[1]).await;
    download(&client, vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_congestion_control_delivers_over_two_paths() {
    for congestion in Congestion::ALL {
        let (_server, places) = serve_with(
            ServerConfig {
                congestion,
                ..ServerConfig::default()
            },
            mpsc::unbounded_channel().0,
        );
        let client = connect(places[0]).await;
        both_paths(&client).await;
        download(&client, vec![]).await;
        let received: Vec<_> = client.paths().iter().map(|path| path.received).collect();
        let total: u64 = received.iter().sum();
        assert!(total > SIZE as u64, "{congestion}: {received:?}");
        assert_eq!(received.len(), 2, "{congestion}");
        assert_eq!(client.handshakes(), 1, "{congestion}");
        client.close().await;
    }
}

async fn both_paths(client: &Client) {
    let mut events = client.events();
    let mut validated = 0;
    while validated < 2 {
        let (_, event) = events.recv().await.unwrap();
        validated += u32::from(matches!(event, ClientEvent::Path(PathEvent::Validated(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_leaves_its_figures_with_the_paths_of_before_a_move() {
    let (over, mut connections) = mpsc::unbounded_channel();
    let (server, places) = serve_with(ServerConfig::default(), over);
    let client = connect(places[0]).await;
    both_paths(&client).await;
    let traffic = connections.recv().await.unwrap();
    let (sender, step) = oneshot::channel();
    let moves = tokio::spawn(async move {
        step.await.unwrap();
        let freeze = async move { Thaw::At(places[1]) };
        server
            .relocate(announcement(places[1]), freeze, |_| ())
            .await
    });
    download(&client, vec![sender]).await;
    moves.await.unwrap().unwrap();
    // All that happened since `both_paths` took the events from before.
    let mut events = client.events();
    while !matches!(
        events.recv().await.unwrap().1,
        ClientEvent::Migration(MigrationEvent::Settled { .. })
    ) {}
    client.close().await;

    let Traffic { total, paths, .. } = traffic.await.unwrap();
    // Two before the move and two after it, from two addresses of the client.
    assert!(paths.len() >= 4, "{paths:?}");
    let clients: BTreeSet<_> = paths.iter().map(|path| path.remote.ip()).collect();
    assert_eq!(
        clients,
        ["127.0.0.1", "127.0.0.3"]
            .map(|ip| ip.parse().unwrap())
            .into()
    );
    let sum = |of: fn(&PathStats) -> u64| paths.iter().map(|path| of(&path.carried)).sum::<u64>();
    // The total also has what paths carried that never came into use.
    assert!(total.sent - total.lost > SIZE as u64, "{total:?}");
    assert!(
        (SIZE as u64..=total.sent).contains(&sum(|c| c.sent)),
        "{total:?} {paths:?}"
    );
    assert!(
        (1..=total.received).contains(&sum(|c| c.received)),
        "{total:?} {paths:?}"
    );
    assert!(
        sum(|c| c.sent_packets) <= total.sent_packets,
        "{total:?} {paths:?}"
    );
    assert!(
        sum(|c| c.lost_packets) <= total.lost_packets,
        "{total:?} {paths:?}"
    );
    assert!(paths.iter().all(|path| path.window > 0), "{paths:?}");
}
