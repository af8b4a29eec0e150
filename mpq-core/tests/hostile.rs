//! Whatever clients send on whichever stream, nothing panics, and others are served.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Response;
use mpq_core::client::{Client, ClientConfig};
use mpq_core::proto::{Frame, frame};
use mpq_core::server::{Server, ServerConfig, Session};
use mpq_core::tls::{Identity, Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use support::Network;
use support::mutate::mutated;

/// Those who do harm, one after the other.
const CONNECTIONS: u64 = 200;
const MOST_REQUESTS: usize = 12;
/// In which all requests of one are over.
const LIMIT: Duration = Duration::from_secs(20);
/// Of whatever is read of an answer.
const LARGEST: usize = 1 << 20;

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has all panics be noted, those in tasks as well.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.lock().unwrap().push(panic.to_string());
            before(panic);
        }));
    });
}

fn bind(network: Network) -> Server {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    Server::bind(network.at(1), &identity, ServerConfig::default()).unwrap()
}

async fn accept(server: Server) {
    while let Some(handshake) = server.accept().await {
        tokio::spawn(async move {
            if let Ok(session) = handshake.await {
                answer(session).await;
            }
        });
    }
}

async fn answer(mut session: Session) {
    while let Ok(Some(request)) = session.h3.accept().await {
        tokio::spawn(async move {
            let (_, mut stream) = request.resolve_request().await?;
            while let Some(mut data) = stream.recv_data().await? {
                data.advance(data.remaining());
            }
            stream.recv_trailers().await?;
            stream.send_response(Response::new(())).await?;
            stream.send_data(Bytes::from_static(b"abc")).await?;
            stream.finish().await
        });
    }
}

/// A frame.
fn http(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = 0x8000_0000 | payload.len() as u32;
    [&[kind][..], &length.to_be_bytes(), payload].concat()
}

/// HEADERS with this method from QPACK's static table, and more.
fn head(method: u8, more: &[u8]) -> Vec<u8> {
    let line = [
        &[0, 0, method, 0xd7, 0xc1, 0x50, 9],
        &b"localhost"[..],
        more,
    ];
    http(0x01, &line.concat())
}

const GET: u8 = 0xd1;
const POST: u8 = 0xd4;

fn requests() -> Vec<Vec<u8>> {
    vec![
        head(GET, b""),
        // Names and values as they are, and in Huffman's code.
        head(
            GET,
            b"\x27\x02abcdefghi\x03def\x23x-y\x82\x60\xff\x5f\x1d\x84\x9d\x29\xae\xe3",
        ),
        [
            head(POST, b""),
            http(0, b"abc"),
            http(0, b""),
            http(0, &[7; 5000]),
        ]
        .concat(),
        [
            head(POST, b""),
            http(0, b"abc"),
            http(1, b"\0\0\x23abc\x01d"),
        ]
        .concat(),
        [http(0x21, b"abc"), head(GET, b""), http(0x21, &[7; 5000])].concat(),
        // As many fields as fit into the bytes.
        head(GET, &[0xdd; 65_000]),
        head(POST, &b"\x21a\x01b".repeat(1_900)),
        [
            head(POST, b""),
            http(1, &[&[0, 0][..], &[0xdd; 65_000]].concat()),
        ]
        .concat(),
        // In the dynamic table, which there is not.
        http(1, b"\x02\x00\x80\xc1\x10\x00\x01a"),
        [http(0, b"abc"), head(GET, b"")].concat(),
        [http(5, b"\0\0\0\xd1"), head(GET, b"")].concat(),
        [
            http(4, b"\x06\x40\x40"),
            http(7, b"\0"),
            http(0x0d, b"\x05"),
        ]
        .concat(),
        // WebTransport, and no frame at all.
        b"\x40\x41\x00abc".to_vec(),
        vec![0xff; 40],
    ]
}

/// So many of the following are control streams.
const CONTROLS: usize = 3;

fn unidirectional() -> Vec<Vec<u8>> {
    let control = |frames: &[Vec<u8>]| [vec![0x00], frames.concat()].concat();
    let settings = http(
        4,
        b"\x01\x00\x06\x40\x40\x07\x00\x08\x01\x33\x01\x40\x41\x05",
    );
    let capabilities = Frame::MULTIPATH;
    let mut migration = 0x804d_4947_u32.to_be_bytes().to_vec();
    migration.extend(frame::preamble());
    Frame::Hello { capabilities }
        .encode(&mut migration)
        .unwrap();
    migration.extend([0x40, 0x99, 0x03, 1, 2, 3]);
    vec![
        control(&[settings.clone(), http(0x21, &[7; 3000]), http(7, b"\x04")]),
        control(&[
            settings.clone(),
            http(0x0d, b"\x05"),
            http(3, b"\x01"),
            http(0x0d, b"\x01"),
        ]),
        control(&[
            settings,
            b"\x80\x0f\x07\x00\x05\x04u=1,i\x80\x0f\x07\x01\x02\x00i".to_vec(),
        ]),
        // QPACK's.
        b"\x02\x3f\xe1\x1f\xc1\x03abc\x43abc\x82\x60\xff\x00\x10".to_vec(),
        b"\x03\x84\x44\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec(),
        // A push, a WebTransport stream, one that nobody knows, and what has no type yet.
        b"\x01\x05\x01\x03\x00\x00\xd9".to_vec(),
        b"\x40\x54\x00abc".to_vec(),
        b"\x21abcdefgh".to_vec(),
        vec![0x80],
        migration,
    ]
}

/// Sends bytes in pieces, and ends the stream or not. Whether the other end knows that there is nothing more.
async fn send(rng: &mut fastrand::Rng, stream: &mut quinn::SendStream, bytes: &[u8]) -> bool {
    for piece in bytes.chunks(rng.usize(1..=bytes.len() + 1)) {
        if stream.write_all(piece).await.is_err() {
            return true;
        }
        if rng.bool() {
            tokio::task::yield_now().await;
        }
    }
    match rng.u32(..8) {
        0 => false,
        1 => stream.reset(0x10c_u32.into()).is_ok(),
        _ => stream.finish().is_ok(),
    }
}

/// Does harm on one connection, and waits until the server is done with it.
async fn harm(connection: quinn::Connection, seed: u64) {
    let rng = &mut fastrand::Rng::with_seed(seed);
    let (requests, unidirectional) = (requests(), unidirectional());
    let mut open = Vec::new();
    // More than one control stream would be too many.
    let control = rng.choice(&unidirectional[..CONTROLS]).expect("some");
    for right in std::iter::once(control).chain(&unidirectional[CONTROLS..]) {
        // Most are right, or no connection would get far.
        let bytes = match rng.u32(..10) {
            0 => mutated(rng, &unidirectional),
            _ => right.clone(),
        };
        let Ok(mut stream) = connection.open_uni().await else {
            return;
        };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        open.push(stream);
    }
    for _ in 0..rng.usize(1..=MOST_REQUESTS) {
        let bytes = match rng.u32(..4) {
            0 => rng.choice(&requests).expect("there are some").clone(),
            _ => mutated(rng, &requests),
        };
        let Ok((mut stream, mut answer)) = connection.open_bi().await else {
            return;
        };
        if send(rng, &mut stream, &bytes).await {
            // It is answered, or refused, or the connection ends.
            let _ = answer.read_to_end(LARGEST).await;
        }
    }
    connection.close(0x100_u32.into(), b"");
}

/// Clients that do harm, and then one that does not.
async fn nothing_panics(server: SocketAddr, network: Network) {
    let crypto = QuicClientConfig::try_from(rustls_client(&Trust::Insecure).unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client((network.ip(101), 0).into()).unwrap();
    let mut ended = 0;
    for seed in 0..CONNECTIONS {
        let connecting = endpoint.connect_with(config.clone(), server, "localhost");
        let connection = connecting.unwrap().await.unwrap();
        let harm = harm(connection.clone(), seed);
        let harm = tokio::time::timeout(LIMIT, harm).await;
        harm.unwrap_or_else(|_| panic!("seed {seed}: a request is never over"));
        let reason = connection.close_reason();
        ended += u64::from(!matches!(
            reason,
            Some(quinn::ConnectionError::LocallyClosed)
        ));
    }
    // Both kinds: all the way to the end, and such as the server ends.
    assert!(ended > CONNECTIONS / 10 && ended < CONNECTIONS, "{ended}");
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec![network.ip(102).to_string()],
        ..ClientConfig::default()
    };
    let good = Client::connect(config, server, "localhost").await.unwrap();
    let mut body = good.get("/").await.unwrap().into_body();
    assert_eq!(body.chunk().await.unwrap().unwrap(), "abc");
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{panics:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_make_a_server_panic() {
    note_panics();
    let network = Network::new();
    let server = bind(network);
    tokio::spawn(accept(server.clone()));
    nothing_panics(server.local_addr(), network).await;
}

#[cfg(feature = "axum")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_make_an_axum_application_panic() {
    use axum::routing::get;
    note_panics();
    let network = Network::new();
    let server = bind(network);
    let router = axum::Router::new().route("/", get("abc").post(|body: Bytes| async { body }));
    tokio::spawn(axum_h3::H3Router::from(router).serve(server.acceptor()));
    nothing_panics(server.local_addr(), network).await;
}
