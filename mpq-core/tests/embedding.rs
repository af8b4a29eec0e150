//! What a program that embeds the crate may rely on: what it drops is undone, what it does not poll is
//! done all the same, what it does not know of is seen to, and nothing waits for a peer that is lost. One file, since it
//! is one list of promises, kept on one bench.

mod support;

use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
#[cfg(feature = "axum")]
use h3::error::Code;
use h3::error::{ConnectionError, StreamError};
use h3::quic::ConnectionErrorIncoming;
use http::{Request, Response};
use mpq_core::client::{
    Client, ClientConfig, ClientError, ClientEvent, MigrationEvent, RequestError,
};
use mpq_core::server::{AcceptError, MoveError, Server, ServerConfig, Session, Thaw};
use mpq_core::tls::{Identity, Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use socket2::{Domain, Socket, Type};
use support::relay::{Deed, Relay};
use support::{Bench, Events, Network, announcement, both_paths, get, until};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);
/// By which a download must grow to show that it goes on, bytes.
const PROOF: u64 = 256 << 10;
/// Requests at once, more than a server allows.
const MANY: usize = 150;

/// Turns a hang into a failure.
async fn in_time<T>(test: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, test)
        .await
        .expect("the test hangs")
}

/// Waits for the end of a move that its caller has dropped, sees that the download goes on, and moves.
async fn goes_on(bench: &Bench, client: &Client, events: &mut Events, cancelled: bool) {
    if cancelled {
        until(events, |event| {
            assert!(
                !matches!(event, ClientEvent::Migration(MigrationEvent::Moved { .. })),
                "{event:?}"
            );
            matches!(
                event,
                ClientEvent::Migration(MigrationEvent::Cancelled { sequence: 1 })
            )
        })
        .await;
        assert_eq!(bench.server.local_addr(), bench.network.at(1));
    }
    let download = bench.download(client).await;
    download.grows(PROOF).await;
    let third = bench.network.at(3);
    let freeze = async { Thaw::At(third) };
    let moving = bench
        .server
        .relocate(announcement(&[third], Duration::ZERO), freeze, |_| ());
    assert_eq!(moving.await.unwrap(), third);
    until(events, |event| {
        matches!(event, ClientEvent::Migration(MigrationEvent::Announced { sequence: 2, targets, .. }) if *targets == [third])
    })
    .await;
    until(
        events,
        |event| matches!(event, ClientEvent::Migration(MigrationEvent::Moved { sequence: 2, remote }) if *remote == third),
    )
    .await;
    download.grows(PROOF).await;
    download.whole().await;
    assert_eq!((client.handshakes(), bench.sessions()), (1, 1));
}

async fn bench(seed: u64) -> (Bench, Client, Events) {
    let bench = Bench::new(seed);
    let client = bench.connect(bench.network.at(1)).await;
    let mut events = client.events();
    both_paths(&mut events).await;
    (bench, client, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_dropped_while_it_is_announced_is_cancelled() {
    in_time(async {
        let (bench, client, mut events) = bench(1).await;
        let announcement = announcement(&[bench.network.at(2)], 3_600 * SECOND);
        tokio::select! {
            moved = bench.server.relocate(announcement, pending(), |_| ()) => panic!("{moved:?}"),
            _ = until(&mut events, |event| matches!(event, ClientEvent::Migration(MigrationEvent::Announced { .. }))) => {}
        }
        goes_on(&bench, &client, &mut events, true).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_dropped_while_the_server_is_frozen_is_cancelled() {
    in_time(async {
        let (bench, client, mut events) = bench(2).await;
        let (parked, is_parked) = oneshot::channel();
        let freeze = async {
            parked.send(()).unwrap();
            pending().await
        };
        let announcement = announcement(&[bench.network.at(2)], Duration::ZERO);
        tokio::select! {
            moved = bench.server.relocate(announcement, freeze, |_| ()) => panic!("{moved:?}"),
            parked = is_parked => parked.unwrap(),
        }
        goes_on(&bench, &client, &mut events, true).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_while_it_is_frozen_tells_its_clients() {
    in_time(async {
        let (bench, client, _) = bench(12).await;
        let (parked, is_parked) = oneshot::channel();
        let freeze = async {
            parked.send(()).unwrap();
            pending().await
        };
        let announcement = announcement(&[bench.network.at(2)], Duration::ZERO);
        let moving = bench.server.relocate(announcement, freeze, |_| ());
        let closing = async {
            is_parked.await.unwrap();
            bench.server.close().await;
        };
        let (moved, ()) = tokio::join!(moving, closing);
        assert!(matches!(moved, Err(MoveError::Interrupted)), "{moved:?}");
        let lost = client.closed().await;
        assert!(matches!(lost, ClientError::ClosedByServer { .. }), "{lost}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_dropped_while_its_new_address_is_missing_is_cancelled() {
    in_time(async {
        let (bench, client, mut events) = bench(3).await;
        let (woken, is_woken) = oneshot::channel();
        let freeze = async {
            woken.send(()).unwrap();
            // No host has this one (RFC 5737).
            Thaw::At("192.0.2.1:4433".parse().unwrap())
        };
        let announcement = announcement(&[bench.network.at(2)], Duration::ZERO);
        tokio::select! {
            moved = bench.server.relocate(announcement, freeze, |_| ()) => panic!("{moved:?}"),
            woken = is_woken => woken.unwrap(),
        }
        goes_on(&bench, &client, &mut events, true).await;
    })
    .await;
}

/// It is seen to be dropped as soon as it fails, or right after: both have happened in ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_dropped_as_soon_as_it_has_failed_is_cancelled() {
    for seed in 0..10 {
        let (bench, client, mut events) = bench(seed).await;
        let (failed, has_failed) = oneshot::channel();
        let freeze = async {
            failed.send(()).unwrap();
            Thaw::Failed("no room".into())
        };
        let announcement = announcement(&[bench.network.at(2)], Duration::ZERO);
        tokio::select! {
            biased;
            moved = bench.server.relocate(announcement, freeze, |_| ()) => drop(moved.unwrap_err()),
            failed = has_failed => failed.unwrap(),
        }
        in_time(goes_on(&bench, &client, &mut events, true)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_an_address_that_is_taken_comes_to_nothing() {
    let (bench, client, mut events) = bench(1).await;
    let taken = std::net::UdpSocket::bind(bench.network.at(2)).unwrap();
    let moved = in_time(bench.server.move_to(bench.network.at(2))).await;
    let Err(MoveError::Listen(address, error)) = moved else {
        panic!("{moved:?}");
    };
    assert_eq!(address, bench.network.at(2));
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    in_time(goes_on(&bench, &client, &mut events, true)).await;
    drop(taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_dropped_once_the_server_is_there_is_made() {
    in_time(async {
        let (bench, client, mut events) = bench(4).await;
        let second = bench.network.at(2);
        let (reopened, is_reopened) = oneshot::channel();
        let on_reopened = |listen| reopened.send(listen).unwrap();
        let freeze = async { Thaw::At(second) };
        let announcement = announcement(&[second], Duration::ZERO);
        {
            let mut moving = pin!(bench.server.relocate(announcement, freeze, on_reopened));
            let mut is_reopened = pin!(is_reopened);
            // The move may be over with the first poll that tells where the server is.
            let at = tokio::select! {
                biased;
                at = &mut is_reopened => at,
                _ = &mut moving => is_reopened.await,
            };
            assert_eq!(at, Ok(second));
        }
        assert_eq!(bench.server.local_addr(), second);
        until(&mut events, |event| {
            matches!(event, ClientEvent::Migration(MigrationEvent::Moved { sequence: 1, remote }) if *remote == second)
        })
        .await;
        goes_on(&bench, &client, &mut events, false).await;
    })
    .await;
}

/// That of the connection.
fn lost(error: &StreamError) -> &ConnectionError {
    match error {
        StreamError::ConnectionError { 0: error, .. } => error,
        error => panic!("{error:?}"),
    }
}

/// Requests a body and reads until that fails.
async fn read_to_the_failure(client: &Client) -> StreamError {
    let mut requests = client.requests();
    let request = Request::get("https://localhost/").body(()).unwrap();
    let mut stream = match requests.send_request(request).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let asked = async {
        stream.finish().await?;
        stream.recv_response().await?;
        while stream.recv_data().await?.is_some() {}
        Ok(())
    };
    asked.await.expect_err("the body has no end")
}

/// Sends a body that is never read, until that fails.
async fn write_to_the_failure(client: &Client) -> StreamError {
    let mut requests = client.requests();
    let request = Request::post("https://localhost/").body(()).unwrap();
    let mut stream = match requests.send_request(request).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    loop {
        if let Err(error) = stream.send_data(Bytes::from_static(&[0; 65_536])).await {
            return error;
        }
    }
}

/// Reads, writes and openings wait while the client loses its server: all of them end.
async fn all_end(
    config: ClientConfig,
    lose: impl AsyncFnOnce(&Bench, &Relay, &mut Events),
) -> (ClientError, Vec<StreamError>) {
    let bench = Bench::new(5);
    let middle = Relay::open(bench.network.at(11), bench.network.at(1), &[], 5).await;
    let client = bench.connect_with(middle.address(), config).await;
    let mut events = client.events();
    let download = async {
        let mut stream = get(&client).await;
        stream.recv_data().await.unwrap().expect("it has no end");
        lose(&bench, &middle, &mut events).await;
        loop {
            match stream.recv_data().await {
                Ok(chunk) => drop(chunk.expect("it has no end")),
                Err(error) => break error,
            }
        }
    };
    let writing = write_to_the_failure(&client);
    // Some of these wait to be opened.
    let reading = join_all((0..MANY).map(|_| read_to_the_failure(&client)));
    let (failure, download, written, mut errors) =
        tokio::join!(client.closed(), download, writing, reading);
    errors.extend([download, written]);
    // Whoever comes later is told as well.
    errors.push(read_to_the_failure(&client).await);
    (failure, errors)
}

const EVERYTHING_IS_LOST: support::relay::Mischief = &[(Deed::Drop, 1.0)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_server_that_fell_silent() {
    let config = ClientConfig {
        idle_timeout: 2 * SECOND,
        ..ClientConfig::default()
    };
    let lose = async |_: &Bench, middle: &Relay, _: &mut Events| middle.set(EVERYTHING_IS_LOST);
    let (failure, errors) = in_time(all_end(config, lose)).await;
    assert!(matches!(failure, ClientError::Idle), "{failure}");
    for error in errors {
        let error = lost(&error);
        assert!(
            matches!(error, ConnectionError::Timeout { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_a_server_that_did_not_come_back() {
    let config = ClientConfig {
        migration_timeout: 2 * SECOND,
        ..ClientConfig::default()
    };
    let lose = async |bench: &Bench, middle: &Relay, events: &mut Events| {
        let announcement = announcement(&[bench.network.at(2)], 3_600 * SECOND);
        // Before the move is dropped: the client must not hear that it is cancelled.
        let lost = async {
            until(events, |event| {
                matches!(
                    event,
                    ClientEvent::Migration(MigrationEvent::Announced { .. })
                )
            })
            .await;
            middle.set(EVERYTHING_IS_LOST);
        };
        tokio::select! {
            moved = bench.server.relocate(announcement, pending(), |_| ()) => panic!("{moved:?}"),
            () = lost => {}
        }
    };
    let (failure, errors) = in_time(all_end(config, lose)).await;
    assert!(
        matches!(failure, ClientError::Migration { .. }),
        "{failure}"
    );
    for error in errors {
        let ConnectionError::Remote {
            0: ConnectionErrorIncoming::Undefined(cause),
            ..
        } = lost(&error)
        else {
            panic!("{error:?}");
        };
        let cause = cause.downcast_ref::<ClientError>();
        assert!(
            matches!(cause, Some(ClientError::Migration { .. })),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_nothing_does_not_mind_silence() {
    in_time(async {
        let bench = Bench::new(6);
        let middle = Relay::open(bench.network.at(11), bench.network.at(1), &[], 6).await;
        let with = |idle_timeout| ClientConfig {
            idle_timeout,
            ..ClientConfig::default()
        };
        let patient = bench.connect_with(middle.address(), with(SECOND / 2)).await;
        let waiting = bench.connect_with(middle.address(), with(3 * SECOND)).await;
        // Its body comes, and nobody reads it.
        let mut unread = get(&patient).await;
        let mut read = get(&waiting).await;
        read.recv_data().await.unwrap();
        middle.set(EVERYTHING_IS_LOST);
        while read.recv_data().await.is_ok() {}
        assert!(matches!(waiting.closed().await, ClientError::Idle));
        assert!(patient.closed().now_or_never().is_none());
        // As soon as somebody reads it, there is.
        while unread.recv_data().await.is_ok() {}
        assert!(matches!(patient.closed().await, ClientError::Idle));
    })
    .await;
}

/// A server on host 1 of a network, and what it is proved by.
fn serve(network: Network) -> (Server, Identity) {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let server = Server::bind(network.at(1), &identity, ServerConfig::default()).unwrap();
    (server, identity)
}

/// Both ends of a connection.
async fn connected(server: &Server, network: Network) -> (Session, Client) {
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![network.ip(101).to_string()],
        ..ClientConfig::default()
    };
    let accepted = async { server.accept().await.unwrap().await.unwrap() };
    let connected = Client::connect(config, network.at(1), "localhost");
    let (session, client) = tokio::join!(accepted, connected);
    (session, client.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_moves_whose_requests_nobody_accepts() {
    in_time(async {
        let network = Network::new();
        let (server, _) = serve(network);
        let (_session, client) = connected(&server, network).await;
        let mut events = client.events();
        let second = network.at(2);
        let freeze = async { Thaw::At(second) };
        let announced = announcement(&[second], SECOND);
        let moved = server.relocate(announced, freeze, |_| ()).await;
        assert_eq!(moved.unwrap(), second);
        until(&mut events, |event| {
            matches!(
                event,
                ClientEvent::Migration(MigrationEvent::Announced { sequence: 1, .. })
            )
        })
        .await;
        until(&mut events, |event| {
            matches!(
                event,
                ClientEvent::Migration(MigrationEvent::Moved { sequence: 1, .. })
            )
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stays_where_a_supervisor_has_its_socket_too() {
    in_time(async {
        let network = Network::new();
        let supervisors = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        supervisors.set_reuse_address(true).unwrap();
        supervisors.bind(&network.at(1).into()).unwrap();
        let passed_on = supervisors.try_clone().unwrap().into();
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let server = Server::from_socket(passed_on, &identity, ServerConfig::default()).unwrap();
        assert_eq!(server.local_addr(), network.at(1));
        let (_session, client) = connected(&server, network).await;
        let freeze = async { Thaw::Failed("no reason".into()) };
        let announced = announcement(&[network.at(2)], SECOND);
        let moved = server.relocate(announced, freeze, |_| ()).await;
        assert!(matches!(moved, Err(MoveError::NotFrozen(_))), "{moved:?}");
        let (_session, _other) = connected(&server, network).await;
        assert!(client.closed().now_or_never().is_none());
    })
    .await;
}

/// The server's stream of a request, answered with a head.
async fn answered(
    session: &mut Session,
    client: &Client,
) -> (
    h3::server::RequestStream<mpq_core::h3::BidiStream<Bytes>, Bytes>,
    impl Sized,
) {
    let accepted = async {
        let request = session.h3.accept().await.unwrap().unwrap();
        let (_, mut stream) = request.resolve_request().await.unwrap();
        stream.send_response(Response::new(())).await.unwrap();
        stream
    };
    tokio::join!(accepted, get(client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_to_a_parked_server_waits_for_its_thaw() {
    in_time(async {
        let network = Network::new();
        let (server, _) = serve(network);
        let (mut session, client) = connected(&server, network).await;
        let (mut stream, _asked) = answered(&mut session, &client).await;
        stream
            .send_data(Bytes::from_static(b"before"))
            .await
            .unwrap();
        let second = network.at(2);
        let (thaw, thawed) = oneshot::channel::<SocketAddr>();
        let (parked, is_parked) = oneshot::channel();
        let freeze = async {
            parked.send(()).unwrap();
            Thaw::At(thawed.await.unwrap())
        };
        let moving = server.relocate(announcement(&[second], Duration::ZERO), freeze, |_| ());
        let writing = async {
            is_parked.await.unwrap();
            let mut writing = pin!(stream.send_data(Bytes::from_static(b"meanwhile")));
            assert!(
                (&mut writing).now_or_never().is_none(),
                "it is written at once"
            );
            thaw.send(second).unwrap();
            writing.await.unwrap();
        };
        let (moved, ()) = tokio::join!(moving, writing);
        assert_eq!(moved.unwrap(), second);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_waits_for_a_thaw_ends_with_its_connection() {
    in_time(async {
        let network = Network::new();
        let (server, _) = serve(network);
        let (mut session, client) = connected(&server, network).await;
        let (mut stream, _asked) = answered(&mut session, &client).await;
        let (parked, is_parked) = oneshot::channel();
        let freeze = async {
            parked.send(()).unwrap();
            pending().await
        };
        let moving = server.relocate(
            announcement(&[network.at(2)], Duration::ZERO),
            freeze,
            |_| (),
        );
        let writing = async {
            is_parked.await.unwrap();
            let mut writing = pin!(stream.send_data(Bytes::from_static(b"meanwhile")));
            assert!(
                (&mut writing).now_or_never().is_none(),
                "it is written at once"
            );
            server.close().await;
            writing.await.unwrap_err()
        };
        let (moved, error) = tokio::join!(moving, writing);
        assert!(matches!(moved, Err(MoveError::Interrupted)), "{moved:?}");
        lost(&error);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_as_long_as_announced_is_an_error() {
    in_time(async {
        let network = Network::new();
        let (server, _) = serve(network);
        let (mut session, client) = connected(&server, network).await;
        for (announced, comes) in [("3", true), ("4", false), ("2", false)] {
            let answered = async {
                let request = session.h3.accept().await.unwrap().unwrap();
                let (_, mut stream) = request.resolve_request().await.unwrap();
                let head = Response::builder().header("content-length", announced);
                let head = head.body(()).unwrap();
                stream.send_response(head).await.unwrap();
                stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
                stream.finish().await.unwrap();
            };
            let asked = async {
                let mut body = client.get("/").await.unwrap().into_body();
                loop {
                    match body.chunk().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
            };
            let ((), came) = tokio::join!(answered, asked);
            let is_wrong = matches!(came, Err(RequestError::Length { received: 3, .. }));
            assert!(came.is_ok() == comes && is_wrong != comes, "{came:?}");
        }
    })
    .await;
}

/// What the server says of a client of another make with this protocol (ALPN) and trust.
async fn refusal(protocol: &str, trust: &Trust) -> AcceptError {
    let network = Network::new();
    let (server, _) = serve(network);
    let mut tls = rustls_client(trust).unwrap();
    tls.alpn_protocols = vec![protocol.into()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let client = quinn::Endpoint::client((network.ip(101), 0).into()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = client
        .connect_with(config, network.at(1), "localhost")
        .unwrap();
    let accepted = async { server.accept().await.unwrap().await };
    let (accepted, _connected) = in_time(async { tokio::join!(accepted, connecting) }).await;
    accepted
        .err()
        .expect("it is no client of HTTP/3 that trusts us")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_why_a_client_is_not_served() {
    let error = refusal("hq-interop", &Trust::Insecure).await;
    assert!(matches!(error, AcceptError::NotHttp3(_)), "{error}");
    let error = refusal("h3", &Trust::System).await;
    assert!(matches!(error, AcceptError::Handshake(_)), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[cfg(feature = "axum")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_dropped_before_http3_has_it_is_closed() {
    use mpq_core::crates::h3_util::server::H3Acceptor;

    in_time(async {
        let network = Network::new();
        let (server, _) = serve(network);
        let mut acceptor = server.acceptor();
        let config = ClientConfig {
            trust: Trust::Insecure,
            interfaces: vec![network.ip(101).to_string()],
            ..ClientConfig::default()
        };
        let connected = Client::connect(config, network.at(1), "localhost");
        let (accepted, client) = tokio::join!(acceptor.accept(), connected);
        let client = client.unwrap();
        drop(accepted);
        let error = client.closed().await;
        assert!(
            matches!(
                error,
                ClientError::ClosedByServer {
                    code: Code::H3_NO_ERROR,
                    ..
                }
            ),
            "{error}"
        );
    })
    .await;
}
