//! Handshakes, and beginnings of HTTP/3, with peers of another make that do not do as they should: whoever is
//! at the other end learns of it at once, and both sides say what was wrong.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::{Code, ConnectionError};
use h3::quic::ConnectionErrorIncoming;
use http::{Request, Response};
use mpq_core::client::{
    Client, ClientConfig, ClientError, ClientEvent, ConnectError, MigrationEvent, TooFewStreams,
};
use mpq_core::h3::open_migration_stream;
use mpq_core::limits::UNVALIDATED_HANDSHAKES;
use mpq_core::proto::frame::Decoder;
use mpq_core::proto::{Frame, frame};
use mpq_core::server::{AcceptError, Server, ServerConfig, Session};
use mpq_core::tls::{Identity, Trust, rustls_client, rustls_server, server_config};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use support::Network;
use tokio::net::UdpSocket;

const SECOND: Duration = Duration::from_secs(1);
/// In which a peer is told; a lost packet would take longer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Of an ALPN list that does not fit into one datagram together with the rest of a ClientHello.
const MANY_PROTOCOLS: usize = 100;

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_ONCE, test)
        .await
        .expect("the peer is not told")
}

/// Our server on host 1.
fn serve(network: Network) -> Server {
    serve_with(network, ServerConfig::default())
}

fn serve_with(network: Network, config: ServerConfig) -> Server {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    Server::bind(network.at(1), &identity, config).unwrap()
}

async fn accept(server: &Server) -> Result<Session, AcceptError> {
    server.accept().await.unwrap().await
}

/// A client of another make on host 101.
struct Other {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    remote: SocketAddr,
}

impl Other {
    fn new(network: Network, protocols: &[&[u8]], transport: quinn::TransportConfig) -> Self {
        let mut tls = rustls_client(&Trust::Insecure).unwrap();
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Self {
            endpoint: quinn::Endpoint::client((network.ip(101), 0).into()).unwrap(),
            config,
            remote: network.at(1),
        }
    }

    async fn connect(&self) -> Result<quinn::Connection, quinn::ConnectionError> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), self.remote, "localhost");
        connecting.unwrap().await
    }
}

/// As far as a peer may open them.
fn unidirectional_streams(allowed: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(allowed.into());
    transport
}

/// What was said with HTTP/3's code when a connection was closed.
fn closed(error: quinn::ConnectionError) -> (Code, String) {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner().into(),
            String::from_utf8(close.reason.to_vec()).unwrap(),
        ),
        error => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_at_once_why_its_handshake_fails() {
    // Also if it had to prove its address.
    for unvalidated_handshakes in [UNVALIDATED_HANDSHAKES, 0] {
        is_told_why(ServerConfig {
            unvalidated_handshakes,
            ..ServerConfig::default()
        })
        .await;
    }
}

async fn is_told_why(config: ServerConfig) {
    let network = Network::new();
    let server = serve_with(network, config);
    let names: Vec<String> = (0..MANY_PROTOCOLS)
        .map(|number| format!("a protocol that nobody has, {number}"))
        .collect();
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    // In one datagram, and in several.
    for protocols in [&names[..1], &names] {
        let other = Other::new(network, protocols, quinn::TransportConfig::default());
        let (accepted, connected) =
            in_time(async { tokio::join!(accept(&server), other.connect()) }).await;
        let error = accepted.err().expect("it does not speak HTTP/3");
        assert!(matches!(error, AcceptError::NotHttp3(_)), "{error}");
        match connected.expect_err("it is refused") {
            quinn::ConnectionError::ConnectionClosed(close) => {
                assert_eq!(u64::from(close.error_code), 0x178, "{close}");
            }
            error => panic!("{error:?}"),
        }
    }
}

/// The code and the words of a peer that had to be left.
const TOO_FEW: (Code, &str) = (
    Code::H3_GENERAL_PROTOCOL_ERROR,
    "it allows 2 unidirectional streams, and HTTP/3 needs 3",
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_allows_two_streams_is_left() {
    let network = Network::new();
    let server = serve(network);
    let other = Other::new(network, &[b"h3"], unidirectional_streams(2));
    let (accepted, connected) =
        in_time(async { tokio::join!(accept(&server), other.connect()) }).await;
    let error = accepted.err().expect("HTTP/3 cannot begin");
    let few = TooFewStreams { allowed: 2 };
    assert!(
        matches!(error, AcceptError::Streams(error) if error == few),
        "{error}"
    );
    let told = closed(in_time(connected.unwrap().closed()).await);
    assert_eq!((told.0, told.1.as_str()), TOO_FEW);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_allows_three_streams_is_served_and_cannot_follow() {
    let network = Network::new();
    let server = serve(network);
    let other = Other::new(network, &[b"h3"], unidirectional_streams(3));
    let (accepted, connected) =
        in_time(async { tokio::join!(accept(&server), other.connect()) }).await;
    let (mut session, connected) = (accepted.unwrap(), connected.unwrap());
    tokio::spawn(async move {
        while let Ok(Some(request)) = session.h3.accept().await {
            let (_, mut stream) = request.resolve_request().await.unwrap();
            stream.send_response(Response::new(())).await.unwrap();
            stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
            stream.finish().await.unwrap();
        }
    });
    let quic = h3_quinn::Connection::new(connected.clone());
    let (_http, mut requests) = h3::client::new(quic).await.unwrap();
    let request = Request::get("https://localhost/").body(()).unwrap();
    let mut stream = requests.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    stream.recv_response().await.unwrap();
    let mut body = in_time(stream.recv_data()).await.unwrap().unwrap();
    assert_eq!(body.copy_to_bytes(body.remaining()), "abc");

    // It says that it can follow, and gives no stream to tell it where.
    let mut hello = connected.open_uni().await.unwrap();
    let mut bytes = 0x804d_4947_u32.to_be_bytes().to_vec();
    bytes.extend(frame::preamble());
    let capabilities = Frame::MULTIPATH;
    Frame::Hello { capabilities }.encode(&mut bytes).unwrap();
    hello.write_all(&bytes).await.unwrap();
    // Until the server knows.
    let ping = Request::get("https://localhost/").body(()).unwrap();
    let mut ping = requests.send_request(ping).await.unwrap();
    ping.finish().await.unwrap();
    ping.recv_response().await.unwrap();
    let second = network.at(2);
    assert_eq!(in_time(server.move_to(second)).await.unwrap(), second);
    let (code, words) = closed(in_time(connected.closed()).await);
    assert_eq!(code, Code::H3_NO_ERROR);
    assert!(words.contains("connect again"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_ends_its_handshake_is_given_up() {
    let network = Network::new();
    let config = ServerConfig {
        handshake_timeout: SECOND / 4,
        ..ServerConfig::default()
    };
    let limit = config.handshake_timeout;
    let server = serve_with(network, config);
    // The first datagram of one comes by way of somebody who loses all others.
    let middle = UdpSocket::bind(network.at(11)).await.unwrap();
    let mut other = Other::new(network, &[b"h3"], quinn::TransportConfig::default());
    other.remote = network.at(11);
    let _connecting = tokio::spawn(async move { other.connect().await });
    let mut first = [0; 1500];
    let (length, _) = middle.recv_from(&mut first).await.unwrap();
    middle
        .send_to(&first[..length], network.at(1))
        .await
        .unwrap();
    let error = in_time(accept(&server)).await.err().expect("it never ends");
    assert!(
        matches!(error, AcceptError::Timeout(after) if after == limit),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_which_http3_does_not_begin_is_told_to_go() {
    let network = Network::new();
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let config = ServerConfig {
        handshake_timeout: SECOND / 4,
        ..ServerConfig::default()
    };
    let server = Server::bind(network.at(1), &identity, config).unwrap();
    let mut transport = quinn::TransportConfig::default();
    // SETTINGS cannot be written.
    transport.receive_window(0u32.into());
    let other = Other::new(network, &[b"h3"], transport);
    let (accepted, connected) =
        in_time(async { tokio::join!(accept(&server), other.connect()) }).await;
    let error = accepted.err().expect("HTTP/3 cannot begin");
    assert!(matches!(error, AcceptError::Timeout(_)), "{error}");
    let (code, _) = closed(in_time(connected.unwrap().closed()).await);
    assert_eq!(code, Code::H3_NO_ERROR);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_before_http3_has_begun_is_told_of() {
    let network = Network::new();
    let server = serve(network);
    let mut transport = quinn::TransportConfig::default();
    // SETTINGS cannot be written.
    transport.receive_window(0u32.into());
    let other = Other::new(network, &[b"h3"], transport);
    let connected = async {
        let connected = other.connect().await.unwrap();
        connected.close(0x107u32.into(), b"");
    };
    let (accepted, ()) = in_time(async { tokio::join!(accept(&server), connected) }).await;
    let error = accepted.err().expect("it is gone");
    let AcceptError::Http3(ConnectionError::Remote {
        0: ConnectionErrorIncoming::ApplicationClose { error_code },
        ..
    }) = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(error_code, Code::H3_EXCESSIVE_LOAD.value());
}

/// Our client, and its connection at a server of another make that does nothing by itself.
async fn at_other(
    network: Network,
    transport: quinn::TransportConfig,
) -> (Result<Client, ConnectError>, quinn::Connection) {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let crypto = QuicServerConfig::try_from(rustls_server(&identity).unwrap()).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let server = quinn::Endpoint::server(config, network.at(1)).unwrap();
    let accepted = async { server.accept().await.unwrap().await.unwrap() };
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![network.ip(101).to_string()],
        ..ClientConfig::default()
    };
    let connected = Client::connect(config, network.at(1), "localhost");
    in_time(async { tokio::join!(connected, accepted) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_allows_two_streams_is_left() {
    let (client, server) = at_other(Network::new(), unidirectional_streams(2)).await;
    let error = client.err().expect("HTTP/3 cannot begin");
    let few = TooFewStreams { allowed: 2 };
    assert!(
        matches!(error, ConnectError::Streams(error) if error == few),
        "{error}"
    );
    let told = closed(in_time(server.closed()).await);
    assert_eq!((told.0, told.1.as_str()), TOO_FEW);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_allows_three_streams_is_asked() {
    let (client, server) = at_other(Network::new(), unidirectional_streams(3)).await;
    let client = client.unwrap();
    tokio::spawn(async move {
        let quic = h3_quinn::Connection::new(server);
        let mut http = h3::server::Connection::<_, Bytes>::new(quic).await.unwrap();
        while let Ok(Some(request)) = http.accept().await {
            let (_, mut stream) = request.resolve_request().await.unwrap();
            stream.send_response(Response::new(())).await.unwrap();
            stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
            stream.finish().await.unwrap();
        }
    });
    let mut body = in_time(client.get("/")).await.unwrap().into_body();
    assert_eq!(in_time(body.chunk()).await.unwrap().unwrap(), "abc");
    in_time(client.close()).await;
}

/// Why our client loses a server that opens its control stream like this.
async fn lost_by(control: &[u8]) -> ClientError {
    let transport = quinn::TransportConfig::default();
    let (client, server) = at_other(Network::new(), transport).await;
    let client = client.unwrap();
    let mut stream = server.open_uni().await.unwrap();
    stream.write_all(control).await.unwrap();
    let (error, told) = in_time(async { tokio::join!(client.closed(), server.closed()) }).await;
    if let ClientError::Http3 { code, reason } = &error {
        assert_eq!(closed(told), (*code, reason.clone()), "both know the same");
    }
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_breaks_the_rules_of_http3_is_told_and_told_of() {
    let is = |error: &ClientError, wanted| matches!(error, ClientError::Http3 { code, .. } if *code == wanted);
    // GOAWAY where SETTINGS come first.
    let error = lost_by(&[0, 7, 1, 0]).await;
    assert!(is(&error, Code::H3_MISSING_SETTINGS), "{error}");
    // SETTINGS, and DATA, which has no business there.
    let error = lost_by(&[0, 4, 0, 0, 1, 0]).await;
    assert!(is(&error, Code::H3_FRAME_UNEXPECTED), "{error}");
    // SETTINGS, and GOAWAY that would have to be held until all of it is there.
    let error = lost_by(&[0, 4, 0, 7, 0x80, 0x01, 0, 0x01]).await;
    assert!(is(&error, Code::H3_EXCESSIVE_LOAD), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_too_large_a_header_is_not_waited_for() {
    let transport = quinn::TransportConfig::default();
    let (client, server) = at_other(Network::new(), transport).await;
    let client = client.unwrap();
    let answered = async {
        let (mut send, _receive) = server.accept_bi().await.unwrap();
        send.write_all(&[1, 0x80, 0x01, 0, 0x01]).await.unwrap();
        send.stopped().await.unwrap()
    };
    let (asked, stopped) = in_time(async { tokio::join!(client.get("/"), answered) }).await;
    let error = asked.err().expect("there is no answer").to_string();
    assert!(error.contains("of type 0x1 has 65537 bytes"), "{error}");
    assert_eq!(stopped, Some(0x107_u32.into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_the_connection_says_why() {
    let transport = quinn::TransportConfig::default();
    let (client, server) = at_other(Network::new(), transport).await;
    let client = client.unwrap();
    server.close(0x107u32.into(), b"come back tomorrow");
    let error = in_time(client.closed()).await;
    let ClientError::ClosedByServer { code, reason } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        (*code, reason.as_str()),
        (Code::H3_EXCESSIVE_LOAD, "come back tomorrow")
    );
}

/// Announcements of a server that never stops.
const MANY: u64 = 2_000;
/// What a client may have to say to them at once.
const FEW: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_reads_nothing_is_kept_no_answers_but_the_newest() {
    let network = Network::new();
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let crypto = Arc::new(server_config(&identity).unwrap());
    let mut config = noq::ServerConfig::with_crypto(crypto);
    let mut transport = noq::TransportConfig::default();
    transport
        // For the first few.
        .stream_receive_window(64u32.into())
        .max_concurrent_multipath_paths(8);
    config.transport_config(Arc::new(transport));
    let endpoint = noq::Endpoint::server(config, network.at(1)).unwrap();
    let accepted = async { endpoint.accept().await.unwrap().await.unwrap() };
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![network.ip(101).to_string()],
        ..ClientConfig::default()
    };
    let connected = Client::connect(config, network.at(1), "localhost");
    let (client, server) = in_time(async { tokio::join!(connected, accepted) }).await;
    let client = client.unwrap();
    let mut events = client.events();

    let mut stream = open_migration_stream(&server).await.unwrap();
    let mut bytes = frame::preamble();
    for sequence in 1..=MANY {
        let frame = Frame::Migration {
            sequence,
            targets: vec![network.at(2)],
            outage: Duration::ZERO,
            lead: Duration::ZERO,
        };
        frame.encode(&mut bytes).unwrap();
    }
    let patience = 15 * AT_ONCE;
    tokio::time::timeout(patience, async {
        stream.write_all(&bytes).await.unwrap();
        loop {
            // Events may be missed, but not the last ones.
            if let Ok((
                _,
                ClientEvent::Migration(MigrationEvent::Announced { sequence: MANY, .. }),
            )) = events.recv().await
            {
                break;
            }
        }
        // It reads at last.
        let (_h3, stream) = mpq_core::h3::Connection::new(server);
        let mut stream = stream.await.unwrap();
        let mut decoder = Decoder::default();
        let mut answers = Vec::new();
        while answers.last() != Some(&MANY) {
            decoder.push(&stream.read_chunk().await.unwrap().expect("it goes on"));
            while let Some(frame) = decoder.frame().unwrap() {
                if let Frame::Ready { sequence } = frame {
                    answers.push(sequence);
                }
            }
        }
        assert!(answers.is_sorted(), "{answers:?}");
        assert!(answers.len() < FEW, "{} answers", answers.len());
    })
    .await
    .expect("the newest comes");
}
