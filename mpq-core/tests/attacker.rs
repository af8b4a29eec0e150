//! Whoever is on the path, at an announced address, or anywhere else: he cannot end, redirect or
//! corrupt a download. One file, since it is one bench and one attacker throughout.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use mpq_core::client::{
    Client, ClientConfig, ClientError, ClientEvent, ConnectError, MigrationEvent, PathEvent,
    PathInfo, PathState,
};
use mpq_core::proto::probe::{KnockKey, ProbeKey};
use mpq_core::proto::{Frame, Strategy, frame};
use mpq_core::server::{MoveError, Thaw};
use mpq_core::tls::{self, Trust};
use quinn::crypto::rustls::QuicServerConfig;
use support::impostor::{Impostor, Sniffer, version_negotiation};
use support::relay::{Deed, Mischief, Relay, Way};
use support::{Bench, MILLISECOND, Network, announcement, both_paths, happened, in_use, until};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);
/// By which a download must grow to show that it goes on, bytes.
const PROOF: u64 = 256 << 10;

/// All at once, some per cent of each.
const EVERYTHING: Mischief = &[
    (Deed::Drop, 0.02),
    (Deed::Duplicate, 0.02),
    (Deed::Delay, 0.03),
    (Deed::Flip, 0.01),
    (Deed::Cut, 0.01),
    (Deed::Splice, 0.01),
    (Deed::Replay, 0.02),
    (Deed::Stray, 0.005),
];

/// Three moves, with him on every path there is.
async fn in_the_middle(seed: u64) {
    let bench = Bench::new(seed);
    let places = [1, 2].map(|host| bench.network.at(host));
    let middle = |host, server| Relay::open(bench.network.at(host), server, EVERYTHING, seed);
    let men = [middle(11, places[0]).await, middle(12, places[1]).await];
    let client = bench.connect(men[0].address()).await;
    let mut events = client.events();
    let download = bench.download(&client).await;
    let moves = [
        (men[1].address(), places[1]),
        (men[0].address(), places[0]),
        (men[1].address(), places[1]),
    ];
    for (target, place) in moves {
        download.grows(PROOF).await;
        // Time for the announcement to be sent again, as often as it takes.
        let freeze = async { Thaw::At(place) };
        let moving = bench
            .server
            .relocate(announcement(&[target], SECOND / 2), freeze, |_| ());
        assert_eq!(moving.await.unwrap(), place);
        until(
            &mut events,
            |event| matches!(event, ClientEvent::Migration(MigrationEvent::Moved { remote, .. }) if *remote == target),
        )
        .await;
    }
    download.grows(PROOF).await;
    download.whole().await;
    assert_eq!((client.handshakes(), bench.sessions()), (1, 1));
    for (deed, _) in EVERYTHING {
        let done = men
            .iter()
            .map(|man| man.done().get(deed).copied().unwrap_or(0));
        assert!(done.sum::<u64>() > 0, "he never did {deed:?}");
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_man_in_the_middle_1() {
    in_the_middle(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_man_in_the_middle_2() {
    in_the_middle(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_man_in_the_middle_3() {
    in_the_middle(3).await;
}

/// The first bytes of a packet with a short header are its type and the connection id.
fn connection_id(packet: &[u8]) -> Option<[u8; 8]> {
    let short = packet.first()? & 0x80 == 0;
    packet.get(1..)?.first_chunk().copied().filter(|_| short)
}

/// Who has seen a path that is closed asks the server for the reset token of its connection id,
/// by sending an old datagram again, and puts that at the end of something that the client takes
/// (RFC 9000 §21.11).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_datagrams_fetch_no_token_that_ends_the_connection() {
    let bench = Bench::new(1);
    let places = [1, 2].map(|host| bench.network.at(host));
    let old = Relay::open(bench.network.at(11), places[0], &[], 1).await;
    let new = Relay::open(bench.network.at(12), places[1], &[], 2).await;
    let client = bench.connect(old.address()).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    let download = bench.download(&client).await;
    download.grows(PROOF).await;
    let freeze = async { Thaw::At(places[1]) };
    let announced = announcement(&[new.address()], Duration::ZERO);
    bench
        .server
        .relocate(announced, freeze, |_| ())
        .await
        .unwrap();
    until(&mut events, |event| {
        matches!(
            event,
            ClientEvent::Migration(MigrationEvent::Settled { .. })
        )
    })
    .await;
    download.grows(PROOF).await;

    let packets = old.past(Way::ToServer).into_iter();
    // Long enough to be answered by a reset, which is always shorter.
    let packets = packets.filter(|packet| packet.len() > 30);
    let one_of_each: BTreeMap<_, _> = packets
        .filter_map(|packet| Some((connection_id(&packet)?, packet)))
        .collect();
    assert!(one_of_each.len() >= 2, "from two paths");
    let attacker = UdpSocket::bind((bench.network.ip(200), 0)).await.unwrap();
    let mut tokens = Vec::new();
    for packet in one_of_each.values() {
        let mut answer = [0; 1_500];
        // Not before the server has forgotten the path, and not always then.
        for _ in 0..50 {
            attacker.send_to(packet, places[1]).await.unwrap();
            let received = timeout(20 * MILLISECOND, attacker.recv(&mut answer)).await;
            if let Ok(Ok(length)) = received {
                tokens.push(answer[length - 16..length].to_vec());
                break;
            }
        }
    }
    assert!(
        !tokens.is_empty(),
        "the server resets what it does not know"
    );
    for client in new.clients() {
        for mut packet in new.past(Way::ToClient).into_iter().rev().take(50) {
            for token in &tokens {
                let at = packet.len().saturating_sub(token.len());
                packet.truncate(at);
                packet.extend_from_slice(token);
                new.forge(client, &packet).await;
            }
        }
    }
    download.grows(PROOF).await;
    download.whole().await;
    client.close().await;
}

/// Waits until the client has found somebody at `address`.
async fn found(events: &mut support::Events, address: SocketAddr) {
    let there = |event: &ClientEvent| match event {
        ClientEvent::Migration(MigrationEvent::Detected { remote, .. }) => *remote == address,
        _ => false,
    };
    until(events, there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_is_passed_over_for_the_server_at_another_address() {
    let cases = Impostor::ALL.map(async |impostor| {
        let bench = Bench::new(1);
        let [false_one, true_one] = [2, 3].map(|host| bench.network.at(host));
        impostor.stand(&bench, false_one).await;
        let client = bench.connect(bench.network.at(1)).await;
        let mut events = client.events();
        let download = bench.download(&client).await;
        download.grows(PROOF).await;
        let freeze = async {
            found(&mut events, false_one).await;
            Thaw::At(true_one)
        };
        let announced = announcement(&[false_one, true_one], Duration::ZERO);
        let moved = bench.server.relocate(announced, freeze, |_| ()).await;
        assert_eq!(moved.unwrap(), true_one, "{impostor:?}");
        download.grows(PROOF).await;
        download.whole().await;
        for event in happened(&mut events) {
            match event {
                ClientEvent::Migration(MigrationEvent::Moved { remote, .. }) => {
                    assert_eq!(remote, true_one, "{impostor:?}")
                }
                ClientEvent::Path(PathEvent::Validated(path)) => assert_ne!(path.remote, false_one),
                _ => {}
            }
        }
        assert!(in_use(&client).iter().all(|path| path.remote == true_one));
        assert_eq!((client.handshakes(), bench.sessions()), (1, 1));
        client.close().await;
    });
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_is_left_for_the_server_that_stays_where_it_was() {
    let cases = Impostor::ALL.map(async |impostor| {
        let bench = Bench::new(1);
        let [home, false_one] = [1, 2].map(|host| bench.network.at(host));
        impostor.stand(&bench, false_one).await;
        let client = bench.connect(home).await;
        let mut events = client.events();
        let download = bench.download(&client).await;
        download.grows(PROOF).await;
        let freeze = async {
            found(&mut events, false_one).await;
            Thaw::Failed("it stays".into())
        };
        let announced = announcement(&[false_one], Duration::ZERO);
        let moved = bench.server.relocate(announced, freeze, |_| ()).await;
        assert!(
            matches!(moved, Err(MoveError::NotFrozen(_))),
            "{impostor:?}"
        );
        until(&mut events, |event| {
            matches!(
                event,
                ClientEvent::Migration(MigrationEvent::Cancelled { .. })
            )
        })
        .await;
        download.grows(PROOF).await;
        download.whole().await;
        let paths = client.paths();
        let left = |p: &&PathInfo| matches!(p.state, PathState::Opening | PathState::Validated);
        assert!(
            paths.iter().filter(left).all(|path| path.remote == home),
            "{impostor:?}: {paths:?}"
        );
        client.close().await;
    });
    join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_only_an_impostor_is_the_client_gives_up_at_the_deadline() {
    // Longer than an impostor is followed up.
    let deadline = 8 * SECOND;
    let cases = Impostor::ALL.map(async |impostor| {
        let bench = Bench::new(1);
        let false_one = bench.network.at(2);
        impostor.stand(&bench, false_one).await;
        let config = ClientConfig {
            migration_timeout: deadline,
            ..ClientConfig::default()
        };
        let client = bench.connect_with(bench.network.at(1), config).await;
        let mut events = client.events();
        both_paths(&mut events).await;
        let download = bench.download(&client).await;
        download.grows(PROOF).await;
        let announced = announcement(&[false_one], Duration::ZERO);
        let moving = bench
            .server
            .relocate(announced, std::future::pending(), |_| ());
        let error = tokio::select! {
            moved = moving => panic!("it thawed: {moved:?}"),
            error = client.closed() => error,
        };
        assert!(
            matches!(error, ClientError::Migration { .. }),
            "{impostor:?}: {error}"
        );
        let (mut parked, mut failed, mut opened) = (None, None, 0);
        while let Ok((time, event)) = events.try_recv() {
            match event {
                ClientEvent::Migration(MigrationEvent::Parked { .. }) => parked = Some(time),
                ClientEvent::Migration(MigrationEvent::Failed) => failed = Some(time),
                ClientEvent::Path(PathEvent::Opened(path)) if path.remote == false_one => {
                    opened += 1
                }
                ClientEvent::Path(PathEvent::Validated(path)) => assert_ne!(path.remote, false_one),
                _ => {}
            }
        }
        let silence = failed.unwrap() - parked.unwrap();
        assert!(silence >= deadline, "{impostor:?}: {silence:?}");
        // Three attempts, from both addresses: ids of paths are dear.
        assert!((2..=6).contains(&opened), "{impostor:?}: {opened}");
        drop(download);
    });
    join_all(cases).await;
}

/// Whoever names an address cannot vouch for it: a malicious server, which knows all secrets of the
/// connection, sends what looks like answers from a victim's address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_cannot_answer_in_a_victims_name() {
    let bench = Bench::new(1);
    let [home, place] = [2, 3].map(|host| bench.network.at(host));
    let victim = UdpSocket::bind(place).await.unwrap();
    let crypto = tls::rustls_server(&bench.identity).unwrap();
    let crypto = QuicServerConfig::try_from(crypto).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, home).unwrap();
    // As much HTTP/3 as it takes, and that it is parked and will be where the victim is.
    let lying = async {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let control = say(&connection, &[0x00, 0x04, 0x00]).await;
        let stream_type = 0xc0 << 56 | frame::MIGRATION_STREAM_TYPE;
        let mut said = [&stream_type.to_be_bytes()[..], &frame::preamble()].concat();
        let migration = Frame::Migration {
            sequence: 1,
            targets: vec![place],
            outage: Duration::ZERO,
            lead: Duration::ZERO,
        };
        for frame in [migration, Frame::Parked { sequence: 1 }] {
            frame.encode(&mut said).unwrap();
        }
        let migration = say(&connection, &said).await;
        (connection, control, migration)
    };
    let config = ClientConfig {
        strategy: Strategy::Proactive,
        ..ClientConfig::default()
    };
    let connecting = bench.connect_with(home, config);
    let (client, (server, _control, _migration)) = tokio::join!(connecting, lying);
    let mut events = client.events();

    let mut buffer = [0; 1_500];
    let mut receive = async || {
        let (length, from) = victim.recv_from(&mut buffer).await.unwrap();
        (buffer[..length].to_vec(), from)
    };
    for _ in 0..10 {
        let (probe, from) = receive().await;
        assert!(probe[0] & 0x80 != 0, "what is no probe has come");
        for label in ["EXPORTER-mpq-probe", "EXPORTER-mpq-knock"] {
            let (mut token, mut secret) = ([0; 8], [0; 32]);
            for out in [&mut token[..], &mut secret] {
                server
                    .export_keying_material(out, label.as_bytes(), b"")
                    .unwrap();
            }
            let token = [&[0xc0, 0, 0, 0, 0, 8][..], &token, &[8], &token].concat();
            let probe = ProbeKey::new(&secret).probe(from.ip(), place, &[7; 1_200]);
            for forged in [token, version_negotiation(&probe).unwrap()] {
                victim.send_to(&forged, from).await.unwrap();
            }
        }
    }
    let detected = |event: &ClientEvent| {
        matches!(
            event,
            ClientEvent::Migration(MigrationEvent::Detected { .. })
        )
    };
    assert!(!happened(&mut events).iter().any(detected));
    // Had the victim answered by itself, the client would have come.
    loop {
        let (packet, from) = receive().await;
        if packet[0] & 0x80 == 0 {
            break;
        }
        let answer = version_negotiation(&packet).unwrap();
        victim.send_to(&answer, from).await.unwrap();
    }
    assert!(happened(&mut events).iter().any(detected));
    client.close().await;
}

/// Opens a stream and leaves it open.
async fn say(connection: &quinn::Connection, bytes: &[u8]) -> quinn::SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Whoever looks at what a client sends to several places cannot tell that it is of one client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_probes_have_an_id_in_common() {
    const PROBES: usize = 20;
    let bench = Bench::new(1);
    let places = [2, 3].map(|host| bench.network.at(host));
    let mut sniffers = Vec::new();
    for place in places {
        sniffers.push(Sniffer::open(place, false).await);
    }
    let client = bench.connect(bench.network.at(1)).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    let freeze = async {
        while sniffers.iter().any(|s| s.received().len() < PROBES) {
            tokio::time::sleep(20 * MILLISECOND).await;
        }
        Thaw::Failed("it stays".into())
    };
    let announced = announcement(&places, Duration::ZERO);
    let moved = bench.server.relocate(announced, freeze, |_| ()).await;
    assert!(matches!(moved, Err(MoveError::NotFrozen(_))));
    let probes: Vec<_> = sniffers.iter().flat_map(Sniffer::received).collect();
    let ids = probes.iter().flat_map(|p| [&p[6..14], &p[15..23]]);
    let ids: BTreeSet<_> = ids.collect();
    assert_eq!(ids.len(), 2 * probes.len());
    client.close().await;
}

/// A client of one address, which tries for so long.
fn brief(network: Network, connect_timeout: Duration) -> ClientConfig {
    ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![network.ip(101).to_string()],
        connect_timeout,
        ..ClientConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_connects_sends_nothing_but_the_handshake() {
    let network = Bench::new(1).network;
    let nobody = Sniffer::open(network.at(2), false).await;
    let connected = Client::connect(brief(network, SECOND), network.at(2), "localhost").await;
    assert!(matches!(connected, Err(ConnectError::Timeout)));
    let sent = nobody.received();
    assert!(!sent.is_empty());
    for datagram in sent {
        assert_eq!(datagram[0] & 0x80, 0x80);
        assert_eq!(datagram[1..5], [0, 0, 0, 1], "another version than QUIC's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_is_told_at_once() {
    let network = Bench::new(1).network;
    let connecting = Client::connect(brief(network, 60 * SECOND), network.at(2), "localhost");
    let connected = timeout(10 * SECOND, connecting).await;
    let connected = connected.expect("it does not wait for an answer");
    assert!(matches!(connected, Err(ConnectError::Refused)));
}

/// What he can make up, and what he may have seen.
fn forged(rng: &mut fastrand::Rng, seen: &[Vec<u8>]) -> Vec<u8> {
    let mut noise = vec![0; rng.usize(..1_300)];
    rng.fill(&mut noise);
    match rng.u32(..6) {
        // A knock of another connection.
        0 => KnockKey::new(&[1; 32]).knock(&std::array::from_fn(|_| rng.u8(..))),
        // A server's refusal of every version.
        1 => [&[0xc0, 0, 0, 0, 0, 8][..], &noise].concat(),
        // A stateless reset.
        2 => [&[0x40 | rng.u8(..0x40)][..], &noise, &[0; 16]].concat(),
        // Long headers of version 1: Initial, 0-RTT, Handshake, Retry.
        3 => {
            noise.resize(1_200, 0);
            [&[0xc0 | rng.u8(..4) << 4, 0, 0, 0, 1, 8][..], &noise].concat()
        }
        // Somebody else's, or an older one.
        4 => rng.choice(seen).cloned().unwrap_or_default(),
        _ => noise,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_everywhere_changes_nothing() {
    const ENOUGH: u64 = 20_000;
    let bench = Bench::new(1);
    let [home, next] = [1, 2].map(|host| bench.network.at(host));
    // He is here to learn the client's ports, and to send in the server's name.
    let middle = Relay::open(bench.network.at(11), home, &[], 1).await;
    let client = bench.connect(middle.address()).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    let download = bench.download(&client).await;
    download.grows(PROOF).await;

    let seen = [Way::ToClient, Way::ToServer]
        .map(|way| middle.past(way))
        .concat();
    let clients = middle.clients();
    let (sent, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let flood = async {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut attackers = Vec::new();
        for host in 201..205 {
            attackers.push(UdpSocket::bind((bench.network.ip(host), 0)).await.unwrap());
        }
        while !enough.load(Ordering::Relaxed) || sent.load(Ordering::Relaxed) < ENOUGH {
            for _ in 0..20 {
                let attacker = rng.choice(&attackers).unwrap();
                for server in [home, next] {
                    // Refused while nobody is there.
                    let _ = attacker.send_to(&forged(&mut rng, &seen), server).await;
                }
                for client in &clients {
                    let _ = attacker.send_to(&forged(&mut rng, &seen), client).await;
                    middle.forge(*client, &forged(&mut rng, &seen)).await;
                }
                sent.fetch_add(2 + 2 * clients.len() as u64, Ordering::Relaxed);
            }
            tokio::time::sleep(MILLISECOND).await;
        }
    };
    let moving = async {
        download.grows(PROOF).await;
        let freeze = async { Thaw::At(next) };
        // The flood fills the sockets' buffers: what is announced may have to be sent several times.
        let announced = announcement(&[next], 500 * MILLISECOND);
        let moved = bench.server.relocate(announced, freeze, |_| ()).await;
        assert_eq!(moved.unwrap(), next);
        download.grows(PROOF).await;
        enough.store(true, Ordering::Relaxed);
    };
    tokio::join!(flood, moving);
    download.whole().await;
    for event in happened(&mut events) {
        match event {
            ClientEvent::Migration(MigrationEvent::Detected { remote, .. })
            | ClientEvent::Migration(MigrationEvent::Moved { remote, .. }) => {
                assert_eq!(remote, next);
            }
            ClientEvent::Migration(MigrationEvent::Failed)
            | ClientEvent::Migration(MigrationEvent::Cancelled { .. }) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert_eq!((client.handshakes(), bench.sessions()), (1, 1));
    client.close().await;
}

/// Handshakes that are begun and left are forgotten; noq alone would remember them for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_nobody_ends_are_forgotten() {
    const BEGUN: usize = 20;
    let bench = Bench::new(1);
    let client = bench.connect(bench.network.at(1)).await;
    let first_flights = first_flights(bench.network, BEGUN).await;
    let attacker = UdpSocket::bind((bench.network.ip(200), 0)).await.unwrap();
    for packet in &first_flights {
        attacker
            .send_to(packet, bench.server.local_addr())
            .await
            .unwrap();
    }
    let connections = async |wanted: fn(usize) -> bool| {
        while !wanted(bench.server.connections()) {
            tokio::time::sleep(20 * MILLISECOND).await;
        }
    };
    connections(|open| open > BEGUN).await;
    let forgotten = timeout(120 * SECOND, connections(|open| open == 1)).await;
    forgotten.expect("those connections are still there");
    let download = bench.download(&client).await;
    download.grows(PROOF).await;
    download.whole().await;
    client.close().await;
}

/// The first datagrams of so many connections.
async fn first_flights(network: Network, count: usize) -> Vec<Vec<u8>> {
    let nobody = UdpSocket::bind((network.ip(199), 0)).await.unwrap();
    let endpoint = noq::Endpoint::client((network.ip(198), 0).into()).unwrap();
    let crypto = tls::client_config(&Trust::Insecure).unwrap();
    let mut config = noq::ClientConfig::new(Arc::new(crypto));
    // They do not ask to be forgotten when they are idle.
    let mut transport = noq::TransportConfig::default();
    transport.max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    let begin = || {
        endpoint
            .connect(nobody.local_addr().unwrap(), "localhost")
            .unwrap()
    };
    let begun: Vec<_> = (0..count).map(|_| begin()).collect();
    let mut flights = BTreeMap::new();
    let mut buffer = [0; 1_500];
    while flights.len() < count {
        let length = nobody.recv(&mut buffer).await.unwrap();
        // After the type, the version and its length comes the connection id.
        let id = buffer[6..14].to_vec();
        flights
            .entry(id)
            .or_insert_with(|| buffer[..length].to_vec());
    }
    drop(begun);
    flights.into_values().collect()
}
