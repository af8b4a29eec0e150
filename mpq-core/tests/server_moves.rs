//! A server that moves, and clients that are not as it would like them: they cannot follow, do not answer, or
//! were stopped; and moves that end where they began.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::Request;
use mpq_core::client::{ClientConfig, ClientEvent, MigrationEvent};
use mpq_core::h3::{Connection, OpenStreams, open_migration_stream};
use mpq_core::proto::probe::Echo;
use mpq_core::proto::server::{Announcement, Input, Output, ServerMachine};
use mpq_core::proto::{Frame, Strategy, frame};
use mpq_core::server::Thaw;
use mpq_core::tls::{self, Trust};
use noq::{ConnectionError, FourTuple, PathStatus};
use support::tap::{Seen, Tap, mapped};
use support::{Bench, Events, MILLISECOND, announcement, both_paths, happened};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything here takes that is as it should be, and shorter than the server waits for clients.
const LIMIT: Duration = Duration::from_secs(10);

fn hello(capabilities: u64) -> Vec<u8> {
    let mut bytes = frame::preamble();
    Frame::Hello { capabilities }.encode(&mut bytes).unwrap();
    bytes
}

/// A client of noq's and h3's alone, with a download that goes on.
struct Plain {
    tap: Tap,
    connection: noq::Connection,
    local: IpAddr,
    _endpoint: noq::Endpoint,
    _requests: h3::client::SendRequest<OpenStreams, Bytes>,
}

impl Plain {
    async fn downloading(bench: &Bench, capabilities: u64) -> Self {
        let local = bench.network.ip(101);
        let (endpoint, tap) = Tap::client(local);
        let connecting = endpoint.connect(mapped(bench.server.local_addr()), "localhost");
        let connection = connecting.unwrap().await.unwrap();
        let (quic, _stream) = Connection::new(connection.clone());
        let mut stream = open_migration_stream(&connection).await.unwrap();
        stream.write_all(&hello(capabilities)).await.unwrap();
        let builder = &mut h3::client::builder();
        let (mut http, mut requests) = builder.send_grease(false).build(quic).await.unwrap();
        tokio::spawn(async move { http.wait_idle().await });
        let request = Request::get("https://localhost/").body(()).unwrap();
        let mut body = requests.send_request(request).await.unwrap();
        body.finish().await.unwrap();
        body.recv_response().await.unwrap();
        let mut received = 0;
        while received < 1 << 20 {
            received += body.recv_data().await.unwrap().unwrap().remaining();
        }
        tokio::spawn(async move {
            // Held for as long as the test.
            let _stream = stream;
            while let Ok(Some(_)) = body.recv_data().await {}
        });
        Self {
            tap,
            connection,
            local,
            _endpoint: endpoint,
            _requests: requests,
        }
    }
}

/// Starts a move; what resolves when the server is at its new address.
fn start_move(bench: &Bench, place: SocketAddr) -> oneshot::Receiver<SocketAddr> {
    let (reopened, is_reopened) = oneshot::channel();
    let server = bench.server.clone();
    tokio::spawn(async move {
        let freeze = async move { Thaw::At(place) };
        let announced = announcement(&[place], Duration::ZERO);
        let on_reopened = |at| reopened.send(at).unwrap();
        server.relocate(announced, freeze, on_reopened).await
    });
    is_reopened
}

/// What there is before long.
async fn soon<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match what() {
                Some(what) => break what,
                None => tokio::time::sleep(5 * MILLISECOND).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap()
}

/// What a server that has moved sends to a client that opens a path, does not answer, and may return a knock
/// before or after.
async fn sent_unanswered(echo: Option<Echoed>) -> Seen {
    let bench = Bench::new(1);
    let place = bench.network.at(2);
    let client = Plain::downloading(&bench, Frame::MULTIPATH).await;
    client.tap.watch(place, true);
    start_move(&bench, place).await.unwrap();
    let knock = soon(|| client.tap.knock()).await;
    let datagram = Echo::of(&knock).unwrap().datagram(0);
    match echo {
        Some(Echoed::Before) => client.tap.send(place, &datagram),
        Some(Echoed::Empty) => client.tap.send(place, &[]),
        Some(Echoed::After) | None => {}
    }
    let tuple = FourTuple::new(mapped(place), Some(client.local));
    let _opening = client.connection.open_path(tuple, PathStatus::Available);
    // Its challenges are repeated, and each is a reason to answer.
    let challenged = || {
        let seen = client.tap.seen();
        if echo == Some(Echoed::After) && seen.from > 0 {
            client.tap.send(place, &datagram);
        }
        (seen.to >= 3 * 1_200).then_some(seen)
    };
    soon(challenged).await
}

/// When a knock is returned: before the first packet on the path, or after it was answered. Or a datagram without any
/// packet is sent before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Echoed {
    Before,
    After,
    Empty,
}

/// RFC 9000 §8.1, draft-ietf-quic-multipath-21 §3.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_gets_no_more_than_three_times_what_came_from_it() {
    for echo in [None, Some(Echoed::After), Some(Echoed::Empty)] {
        let seen = sent_unanswered(echo).await;
        assert!(seen.from > 0, "{seen:?}");
        // With something left, a whole datagram may go.
        assert!(seen.from <= 3 * seen.to + 1_500, "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_returns_a_knock_before_it_opens_a_path_is_sent_data_at_once() {
    let seen = sent_unanswered(Some(Echoed::Before)).await;
    assert!(seen.from > 3 * seen.to + 1_500, "{seen:?}");
}

/// Without a limit of its own, it would be waited for as long as for all together: 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_no_room_for_an_announcement_does_not_hold_up_the_others() {
    let bench = Bench::new(1);
    let endpoint = noq::Endpoint::client((bench.network.ip(101), 0).into()).unwrap();
    let crypto = tls::client_config(&Trust::Insecure).unwrap();
    let mut config = noq::ClientConfig::new(Arc::new(crypto));
    let mut transport = noq::TransportConfig::default();
    transport.stream_receive_window(20_u32.into());
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(bench.server.local_addr(), "localhost");
    let connection = connecting.unwrap().await.unwrap();
    let mut stream = open_migration_stream(&connection).await.unwrap();
    stream.write_all(&hello(Frame::MULTIPATH)).await.unwrap();
    // Once its control stream is there, the server is done with it.
    connection.accept_uni().await.unwrap();
    let other = bench.connect(bench.server.local_addr()).await;
    both_paths(&mut other.events()).await;

    let announced = announcement(&[bench.network.at(2)], Duration::ZERO);
    let began = Instant::now();
    let frozen = async { Thaw::Failed(format!("{:?}", began.elapsed()).into()) };
    let moved = bench.server.relocate(announced, frozen, |_| ()).await;
    assert!(began.elapsed() < 2 * SECOND, "{moved:?}");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_that_nobody_can_decrypt_is_no_arrival() {
    let bench = Bench::new(1);
    let place = bench.network.at(2);
    let client = Plain::downloading(&bench, Frame::REDIRECT).await;
    client.tap.watch(place, false);
    start_move(&bench, place).await.unwrap();
    // Who has arrived is not knocked at any more.
    let knocked = async {
        while client.tap.seen().knocks < 4 {
            client.tap.send(place, &client.tap.forged());
            tokio::time::sleep(5 * MILLISECOND).await;
        }
    };
    let knocked = tokio::time::timeout(LIMIT, knocked).await;
    let seen = client.tap.seen();
    assert!(knocked.is_ok(), "it counts as arrived: {seen:?}");
    assert_eq!(seen.from, 0);
}

/// Reads the server's control stream; the type of each frame, and its body.
async fn control_frames(connection: &noq::Connection) -> Vec<(u64, Vec<u8>)> {
    loop {
        let mut stream = connection.accept_uni().await.unwrap();
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX).await {
            bytes.extend_from_slice(&chunk);
        }
        if bytes.first() != Some(&0) {
            continue;
        }
        let mut rest = &bytes[1..];
        let mut frames = Vec::new();
        while let [kind, length, after @ ..] = rest {
            // All are short here.
            assert!(*kind < 0x40 && *length < 0x40, "{rest:?}");
            let (body, after) = after.split_at(usize::from(*length));
            frames.push((u64::from(*kind), body.to_vec()));
            rest = after;
        }
        return frames;
    }
}

/// RFC 9114 §5.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_cannot_follow_is_told_to_go_before_the_freeze() {
    let bench = Bench::new(1);
    let (endpoint, _tap) = Tap::client(bench.network.ip(101));
    let connecting = endpoint.connect(mapped(bench.server.local_addr()), "localhost");
    let connection = connecting.unwrap().await.unwrap();
    // A request, of which the server knows by then; it is never complete.
    let (mut request, _answer) = connection.open_bi().await.unwrap();
    request.write_all(&[1, 40]).await.unwrap();
    let reader = tokio::spawn({
        let connection = connection.clone();
        async move { control_frames(&connection).await }
    });
    let (thaw, frozen) = oneshot::channel();
    let server = bench.server.clone();
    let place = bench.network.at(2);
    let moving = tokio::spawn(async move {
        let freeze = async { Thaw::At(frozen.await.unwrap()) };
        // Long enough for the request to arrive, and for HELLO to be missing.
        let announced = announcement(&[place], 300 * MILLISECOND);
        server.relocate(announced, freeze, |_| ()).await
    });
    let closed = tokio::time::timeout(LIMIT, connection.closed()).await;
    let ConnectionError::ApplicationClosed(close) = closed.expect("it is told") else {
        panic!("{:?}", connection.close_reason());
    };
    assert_eq!(close.error_code.into_inner(), 0x100, "H3_NO_ERROR");
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    assert!(reason.contains("connect again"), "{reason}");
    let frames = reader.await.unwrap();
    let kinds: Vec<_> = frames.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [4, 7], "SETTINGS and GOAWAY");
    assert_eq!(
        frames[1].1,
        [4],
        "the request that was accepted is not named"
    );
    // It had not been frozen yet: it still is.
    assert!(!moving.is_finished());
    thaw.send(place).unwrap();
    assert_eq!(moving.await.unwrap().unwrap(), place);
}

/// A machine with one client of each kind, which parks at this moment.
struct Parking {
    now: Instant,
    server: ServerMachine,
}

const FOLLOWER: u64 = 1;
const STRANGER: u64 = 2;
const YOUNG: u64 = 3;

impl Parking {
    fn new() -> Self {
        let mut parking = Self::announced(false);
        assert_eq!(parking.dismissed(), [STRANGER]);
        parking
    }

    fn announced(forwarded: bool) -> Self {
        let mut now = Instant::now() + 10 * SECOND;
        let mut server = ServerMachine::default();
        server.handle(now, Input::Connected(FOLLOWER));
        server.handle(now, Input::Hello(FOLLOWER));
        server.handle(now, Input::Connected(STRANGER));
        server.handle(
            now,
            Input::Announce(Announcement {
                targets: vec!["10.0.0.2:443".parse().unwrap()],
                lead: SECOND,
                outage: SECOND,
                forwarded,
            }),
        );
        now += SECOND;
        server.handle(now, Input::Connected(YOUNG));
        let mut parking = Self { now, server };
        let outputs = parking.outputs();
        assert!(!outputs.contains(&Output::Dismiss(STRANGER)), "{outputs:?}");
        parking.server.handle_timeout(now);
        parking
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.server.poll()).collect()
    }

    fn dismissed(&mut self) -> Vec<u64> {
        let outputs = self.outputs();
        let dismissed = outputs.iter().filter_map(|output| match output {
            Output::Dismiss(client) => Some(*client),
            _ => None,
        });
        dismissed.collect()
    }

    fn handle(&mut self, input: Input) {
        self.server.handle(self.now, input);
    }
}

#[test]
fn whoever_has_just_connected_may_still_say_hello_while_the_server_parks() {
    let mut parking = Parking::new();
    parking.handle(Input::Quiet);
    assert_eq!(
        (parking.outputs(), parking.server.state()),
        (vec![Output::Hold], "Parking")
    );
    parking.handle(Input::Hello(YOUNG));
    let outputs = parking.outputs();
    let [
        Output::Send(YOUNG, Frame::Migration { .. }),
        Output::Send(YOUNG, Frame::Parked { .. }),
        Output::Drain,
    ] = outputs[..]
    else {
        panic!("{outputs:?}");
    };
    parking.handle(Input::Quiet);
    assert_eq!(parking.outputs(), [Output::Hold, Output::CloseSockets]);
}

#[test]
fn whoever_cannot_follow_is_kept_if_it_is_forwarded() {
    let mut parking = Parking::announced(true);
    assert_eq!(parking.dismissed(), [0; 0]);
    parking.handle(Input::Quiet);
    // They may still say that they can.
    assert_eq!(parking.outputs(), [Output::Hold]);
    parking.now = parking.server.next_timeout().expect("it waits");
    parking.server.handle_timeout(parking.now);
    let kept = [STRANGER, YOUNG].map(Output::Keep);
    assert_eq!(
        parking.outputs(),
        [&kept[..], &[Output::CloseSockets]].concat()
    );
    parking.handle(Input::Closed);
    let listen = "10.0.0.2:443".parse().unwrap();
    let before = "10.0.0.1:443".parse().unwrap();
    parking.handle(Input::Thawed { listen, before });
    parking.outputs();
    parking.handle(Input::Reopened);
    assert_eq!(parking.outputs(), [Output::Knock(vec![FOLLOWER])]);
    parking.handle(Input::Stayed(STRANGER));
    assert_eq!(parking.outputs(), [Output::OpenGate(STRANGER)]);
    parking.handle(Input::Established(FOLLOWER));
    parking.outputs();
    assert_eq!(parking.server.state(), "Arriving", "one is missing");
    parking.handle(Input::Stayed(YOUNG));
    assert_eq!(
        parking.outputs(),
        [Output::OpenGate(YOUNG), Output::Done { moved: true }]
    );
    // Without a forwarder, the next move is made without them.
    parking.handle(Input::Announce(Announcement::default()));
    parking.server.handle_timeout(parking.now);
    assert_eq!(parking.dismissed(), [STRANGER, YOUNG]);
}

#[test]
fn whoever_does_not_say_hello_while_the_server_parks_is_dismissed_too() {
    let mut parking = Parking::new();
    parking.handle(Input::Quiet);
    parking.now = parking.server.next_timeout().expect("it waits");
    parking.server.handle_timeout(parking.now);
    assert_eq!(
        parking.outputs(),
        [Output::Hold, Output::Dismiss(YOUNG), Output::Drain],
        "and its end is waited for"
    );
    // From now on nobody is waited for.
    parking.now += MILLISECOND;
    parking.handle(Input::Connected(4));
    parking.handle(Input::Quiet);
    let expected = [
        Output::CloseGate(4),
        Output::Hold,
        Output::Dismiss(4),
        Output::CloseSockets,
    ];
    assert_eq!(parking.outputs(), expected);
}

#[test]
fn a_repeated_hello_is_no_arrival_and_does_not_bring_back_who_was_dismissed() {
    let mut parking = Parking::new();
    parking.outputs();
    parking.handle(Input::Hello(STRANGER));
    assert_eq!(parking.outputs(), [], "it was told to go");
    parking.handle(Input::Hello(YOUNG));
    parking.handle(Input::Quiet);
    parking.handle(Input::Gone(STRANGER));
    parking.handle(Input::Gone(YOUNG));
    parking.handle(Input::Closed);
    parking.handle(Input::Thawed {
        listen: "10.0.0.2:443".parse().unwrap(),
        before: "10.0.0.1:443".parse().unwrap(),
    });
    parking.handle(Input::Reopened);
    parking.outputs();
    parking.handle(Input::Hello(FOLLOWER));
    assert_eq!(
        (parking.outputs(), parking.server.state()),
        (vec![], "Arriving")
    );
}

/// Downloads while the server is away for `outage`, and comes back where it was.
async fn comes_back(bench: &Bench, config: ClientConfig, outage: Duration) -> (Events, u64) {
    let home = bench.server.local_addr();
    let client_at = SocketAddr::new(bench.network.ip(1), home.port());
    let client = bench.connect_with(client_at, config).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    let download = bench.download(&client).await;
    download.grows(1 << 20).await;
    let announced = announcement(
        &[match home.ip().is_unspecified() {
            true => bench.network.at(2),
            false => home,
        }],
        Duration::ZERO,
    );
    let freeze = async {
        tokio::time::sleep(outage).await;
        Thaw::At(home)
    };
    let moved = bench.server.relocate(announced, freeze, |_| ());
    let moved = tokio::time::timeout(LIMIT, moved).await;
    assert_eq!(moved.expect("nobody is waited for").unwrap(), home);
    download.grows(1 << 20).await;
    download.whole().await;
    let handshakes = client.handshakes();
    client.close().await;
    (events, handshakes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_announces_its_present_address_is_waited_for() {
    for strategy in Strategy::ALL {
        if !strategy.heeds_announcements() {
            continue;
        }
        let bench = Bench::new(1);
        let config = ClientConfig {
            strategy,
            idle_timeout: SECOND,
            ..ClientConfig::default()
        };
        let (mut events, handshakes) = comes_back(&bench, config, 2 * SECOND).await;
        assert_eq!((handshakes, bench.sessions()), (1, 1), "{strategy}");
        let events = happened(&mut events);
        let over = |event: &&ClientEvent| {
            matches!(
                event,
                ClientEvent::Migration(MigrationEvent::Parked { .. })
                    | ClientEvent::Migration(MigrationEvent::Cancelled { .. })
            )
        };
        let seen: Vec<_> = events.iter().filter(over).collect();
        let [
            ClientEvent::Migration(MigrationEvent::Parked { .. }),
            ClientEvent::Migration(MigrationEvent::Cancelled { .. }),
        ] = seen[..]
        else {
            panic!("{strategy}: {events:?}");
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_listens_everywhere_says_at_once_that_it_woke_where_it_was() {
    let bench = Bench::listening(1, "0.0.0.0:0".parse().unwrap());
    let (mut events, handshakes) = comes_back(&bench, ClientConfig::default(), SECOND / 2).await;
    assert_eq!((handshakes, bench.sessions()), (1, 1));
    let events = happened(&mut events);
    let cancelled = |event: &ClientEvent| {
        matches!(
            event,
            ClientEvent::Migration(MigrationEvent::Cancelled { .. })
        )
    };
    assert!(events.iter().any(cancelled), "{events:?}");
}
