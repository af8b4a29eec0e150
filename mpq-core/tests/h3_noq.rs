//! The HTTP/3 adapter over real noq connections on loopback, alone and against quinn + h3-quinn.
//! One file, since h3's traits are one contract.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use h3::client::SendRequest;
use h3::error::{Code, StreamError};
use h3::quic::{self, OpenStreams, RecvStream as _, StreamErrorIncoming};
use http::{Method, Request, Response};
use mpq_core::h3::{
    BidiStream, Connection, MigrationStream, RecvStream, WholeBodies, WholeBody,
    open_migration_stream,
};
use mpq_core::limits::FIELD_SECTION;
use mpq_core::tls::{self, Identity, Trust};
use noq::VarInt;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// The answer to `/cut` breaks off after this many bytes.
const CUT: usize = 100_000;

fn identity() -> Identity {
    Identity::self_signed(&["localhost".to_owned()]).unwrap()
}

fn noq_server(identity: &Identity) -> noq::Endpoint {
    let crypto = tls::server_config(identity).unwrap();
    noq::Endpoint::server(noq::ServerConfig::with_crypto(Arc::new(crypto)), LOOPBACK).unwrap()
}

fn noq_client() -> noq::Endpoint {
    let crypto = tls::client_config(&Trust::Insecure).unwrap();
    let endpoint = noq::Endpoint::client(LOOPBACK).unwrap();
    endpoint.set_default_client_config(noq::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// Both ends of a noq connection, with the endpoints that keep it alive.
struct Pair {
    client: noq::Connection,
    server: noq::Connection,
    _endpoints: [noq::Endpoint; 2],
}

async fn pair() -> Pair {
    let (server, client) = (noq_server(&identity()), noq_client());
    let connecting = client
        .connect(server.local_addr().unwrap(), "localhost")
        .unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) = tokio::join!(connecting, accepting);
    Pair {
        client: connected.unwrap(),
        server: accepted,
        _endpoints: [server, client],
    }
}

/// Bytes of which no two stretches are alike.
fn body(len: usize) -> Bytes {
    let words = (0..len.div_ceil(8) as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes.into()
}

/// Answers `GET /N` with N bytes and a POST with its own body. `GET /cut` drops the stream after a
/// whole frame, `GET /interrupted` in the middle of one.
async fn serve<C: quic::Connection<Bytes>>(conn: C) {
    // None that HTTP/3 could express.
    serve_within(conn, VarInt::MAX.into()).await;
}

/// As [`serve`], where h3 takes headers of so many bytes at the most.
async fn serve_within<C: quic::Connection<Bytes>>(conn: C, limit: u64) {
    let mut conn = h3::server::builder()
        .max_field_section_size(limit)
        .send_grease(false)
        .build(conn)
        .await
        .unwrap();
    while let Ok(Some(request)) = conn.accept().await {
        // A client that gives up must not end the server.
        let _ = answer(request).await;
    }
}

async fn answer<C: quic::Connection<Bytes>>(
    request: h3::server::RequestResolver<C, Bytes>,
) -> Result<(), StreamError> {
    let (request, mut stream) = request.resolve_request().await?;
    stream.send_response(Response::new(())).await?;
    if request.method() == Method::POST {
        while let Some(mut data) = stream.recv_data().await? {
            let data = data.copy_to_bytes(data.remaining());
            stream.send_data(data).await?;
        }
        return stream.finish().await;
    }
    match request.uri().path() {
        "/cut" => stream.send_data(body(CUT)).await,
        "/interrupted" => {
            let sent = stream.send_data(body(50_000_000)).now_or_never();
            assert!(sent.is_none(), "too small a body to be interrupted");
            Ok(())
        }
        len => {
            let mut rest = body(len[1..].parse().unwrap());
            while !rest.is_empty() {
                stream
                    .send_data(rest.split_to(rest.len().min(256 * 1024)))
                    .await?;
            }
            stream.finish().await
        }
    }
}

/// Sends a request and reads the whole answer.
async fn fetch<T: quic::OpenStreams<Bytes>>(
    requests: &mut SendRequest<T, Bytes>,
    request: Request<()>,
    upload: Bytes,
) -> Result<Bytes, StreamError> {
    let mut stream = requests.send_request(request).await?;
    if !upload.is_empty() {
        stream.send_data(upload).await?;
    }
    stream.finish().await?;
    stream.recv_response().await?;
    let mut whole = BytesMut::new();
    while let Some(data) = stream.recv_data().await? {
        whole.extend_from_slice(data.chunk());
    }
    Ok(whole.freeze())
}

async fn get<T: quic::OpenStreams<Bytes>>(
    requests: &mut SendRequest<T, Bytes>,
    path: &str,
) -> Result<Bytes, StreamError> {
    let request = Request::get(format!("https://localhost/{path}"))
        .body(())
        .unwrap();
    fetch(requests, request, Bytes::new()).await
}

/// Runs `test` with a client on `client`, beside `server`.
async fn with_client<C, T>(
    client: C,
    server: impl Future<Output = ()>,
    test: impl AsyncFnOnce(SendRequest<C::OpenStreams, Bytes>) -> T,
) -> T
where
    C: quic::Connection<Bytes>,
{
    let run = async {
        let mut builder = h3::client::builder();
        let (mut driver, requests) = builder.send_grease(false).build(client).await.unwrap();
        tokio::select! {
            result = test(requests) => result,
            error = driver.wait_idle() => panic!("the client's connection ended: {error}"),
        }
    };
    let both = async {
        tokio::select! {
            result = run => result,
            () = server => panic!("the server ended"),
        }
    };
    in_time(both).await
}

/// Turns a hang into a failure.
async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("the test hangs")
}

/// All of a migration stream.
async fn read_all(mut stream: MigrationStream) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(chunk) = stream.read_chunk().await.unwrap() {
        whole.extend_from_slice(&chunk);
    }
    whole
}

/// Opens a migration stream that carries `text` and ends.
async fn send_migration(conn: &noq::Connection, text: &str) -> noq::SendStream {
    let mut stream = open_migration_stream(conn).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.finish().unwrap();
    stream
}

#[tokio::test]
async fn bodies_are_byte_exact() {
    let pair = pair().await;
    let (server, _migration) = Connection::new(pair.server.clone());
    let (client, _migration) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        assert_eq!(get(&mut requests, "0").await.unwrap(), Bytes::new());
        assert!(get(&mut requests, "20000000").await.unwrap() == body(20_000_000));
        // Within a stream's window: the answer is read only when all was sent.
        let upload = body(500_000);
        let request = Request::post("https://localhost/").body(()).unwrap();
        assert!(fetch(&mut requests, request, upload.clone()).await.unwrap() == upload);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_body_is_reset() {
    let pair = pair().await;
    let (server, _migration) = Connection::new(pair.server.clone());
    let (client, _migration) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        for path in ["cut", "interrupted"] {
            match get(&mut requests, path).await.unwrap_err() {
                StreamError::RemoteTerminate { code, .. } => {
                    assert_eq!(code, Code::H3_INTERNAL_ERROR);
                }
                error => panic!("{path}: {error:?}"),
            }
        }
        // The streams failed, not the connection.
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
    })
    .await;
}

/// A connection below h3, the receiving half of a stream of it, and the server's sending half.
async fn raw_stream(pair: &Pair) -> (Connection, WholeBody<RecvStream>, noq::SendStream) {
    let (mut client, _migration) = Connection::new(pair.client.clone());
    let stream: BidiStream<Bytes> = poll_fn(|cx| client.poll_open_bidi(cx)).await.unwrap();
    // Dropping the sending half resets it, and that tells the server of the stream.
    let (_, recv) = quic::BidiStream::split(stream);
    let (server, _) = pair.server.accept_bi().await.unwrap();
    (client, recv, server)
}

async fn next(stream: &mut WholeBody<RecvStream>) -> Result<Option<Bytes>, StreamErrorIncoming> {
    poll_fn(|cx| stream.poll_data(cx)).await
}

#[tokio::test]
async fn a_reset_stream_never_looks_complete() {
    let pair = pair().await;
    in_time(async {
        let (_connection, mut recv, mut send) = raw_stream(&pair).await;
        send.write_all(b"\x00\x08half").await.unwrap();
        assert_eq!(next(&mut recv).await.unwrap().unwrap(), "\x00\x08");
        assert_eq!(next(&mut recv).await.unwrap().unwrap(), "half");
        send.reset(7_u32.into()).unwrap();
        for _ in 0..3 {
            let error = next(&mut recv).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    StreamErrorIncoming::StreamTerminated { error_code: 7 }
                ),
                "{error}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_can_be_stopped_while_it_is_read() {
    let pair = pair().await;
    in_time(async {
        let (_connection, mut recv, send) = raw_stream(&pair).await;
        let id = recv.recv_id();
        assert!(next(&mut recv).now_or_never().is_none(), "nothing was sent");
        recv.stop_sending(Code::H3_REQUEST_CANCELLED.value());
        assert_eq!(recv.recv_id(), id);
        assert_eq!(
            send.stopped().await.unwrap(),
            Some(code(Code::H3_REQUEST_CANCELLED))
        );
        assert!(
            next(&mut recv).await.is_err(),
            "what was stopped looks complete"
        );
    })
    .await;
}

fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap()
}

#[tokio::test]
async fn migration_streams_go_past_h3_both_ways() {
    let pair = pair().await;
    let (server, at_server) = Connection::new(pair.server.clone());
    let (client, at_client) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        send_migration(&pair.client, "from the client").await;
        assert_eq!(read_all(at_server.await.unwrap()).await, b"from the client");
        assert_eq!(get(&mut requests, "100000").await.unwrap(), body(100_000));
        send_migration(&pair.server, "from the server").await;
        assert_eq!(read_all(at_client.await.unwrap()).await, b"from the server");
        assert_eq!(get(&mut requests, "200000").await.unwrap(), body(200_000));
    })
    .await;
}

#[tokio::test]
async fn a_type_may_come_a_byte_at_a_time() {
    let pair = pair().await;
    let (server, mut at_server) = Connection::new(pair.server.clone());
    let (client, _migration) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        let mut slow = pair.client.open_uni().await.unwrap();
        for byte in [0x80, 0x4d, 0x49, 0x47] {
            assert!(at_server.try_recv().is_err(), "its type is not complete");
            slow.write_all(&[byte]).await.unwrap();
            assert_eq!(get(&mut requests, "5000").await.unwrap(), body(5000));
        }
        slow.write_all(b"late").await.unwrap();
        slow.finish().unwrap();
        assert_eq!(read_all(at_server.await.unwrap()).await, b"late");
    })
    .await;
}

#[tokio::test]
async fn a_slow_type_holds_up_no_other_stream() {
    let pair = pair().await;
    // These come first: one never tells its type, one ends before.
    let mut slow = pair.client.open_uni().await.unwrap();
    slow.write_all(&[0x80]).await.unwrap();
    let mut none = pair.client.open_uni().await.unwrap();
    none.write_all(&[0x80]).await.unwrap();
    none.reset(0_u32.into()).unwrap();

    let (server, at_server) = Connection::new(pair.server.clone());
    let (client, _migration) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        send_migration(&pair.client, "quick").await;
        assert_eq!(read_all(at_server.await.unwrap()).await, b"quick");
        assert_eq!(get(&mut requests, "5000").await.unwrap(), body(5000));
    })
    .await;
    drop(slow);
}

#[tokio::test]
async fn one_migration_stream_is_enough() {
    let pair = pair().await;
    let (server, at_server) = Connection::new(pair.server.clone());
    let (client, _) = Connection::new(pair.client.clone());
    with_client(client, serve(server), async |mut requests| {
        send_migration(&pair.client, "first").await;
        let first = at_server.await.unwrap();
        let second = open_migration_stream(&pair.client).await.unwrap();
        assert_eq!(
            second.stopped().await.unwrap(),
            Some(code(Code::H3_STREAM_CREATION_ERROR))
        );
        assert_eq!(read_all(first).await, b"first");
        // The client's receiver was dropped: it wants none at all.
        let unwanted = open_migration_stream(&pair.server).await.unwrap();
        assert_eq!(
            unwanted.stopped().await.unwrap(),
            Some(code(Code::H3_STREAM_CREATION_ERROR))
        );
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
    })
    .await;
}

/// rustls' own configurations for quinn, with the ring provider as everywhere.
mod plain {
    use super::*;

    pub(super) fn server(identity: &Identity) -> quinn::Endpoint {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        quinn::Endpoint::server(config, LOOPBACK).unwrap()
    }

    pub(super) fn client(identity: &Identity) -> quinn::Endpoint {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(identity.chain[0].clone()).unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client(LOOPBACK).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        endpoint
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }
}

#[tokio::test]
async fn a_quinn_client_is_served_and_ignores_migration_streams() {
    let identity = identity();
    let (server, client) = (noq_server(&identity), plain::client(&identity));
    let connecting = client
        .connect(server.local_addr().unwrap(), "localhost")
        .unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) = tokio::join!(connecting, accepting);

    let (server, _migration) = Connection::new(accepted.clone());
    let client = h3_quinn::Connection::new(connected.unwrap());
    with_client(client, serve(server), async |mut requests| {
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
        let ignored = open_migration_stream(&accepted).await.unwrap();
        assert!(get(&mut requests, "5000000").await.unwrap() == body(5_000_000));
        assert_eq!(
            ignored.stopped().await.unwrap(),
            Some(code(Code::H3_STREAM_CREATION_ERROR))
        );
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
    })
    .await;
}

#[tokio::test]
async fn a_quinn_server_serves_and_ignores_migration_streams() {
    let identity = identity();
    let (server, client) = (plain::server(&identity), noq_client());
    let connecting = client
        .connect(server.local_addr().unwrap(), "localhost")
        .unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) = tokio::join!(connecting, accepting);
    let connected = connected.unwrap();

    let (client, _migration) = Connection::new(connected.clone());
    let server = serve(h3_quinn::Connection::new(accepted));
    with_client(client, server, async |mut requests| {
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
        let ignored = open_migration_stream(&connected).await.unwrap();
        assert!(get(&mut requests, "5000000").await.unwrap() == body(5_000_000));
        assert_eq!(
            ignored.stopped().await.unwrap(),
            Some(code(Code::H3_STREAM_CREATION_ERROR))
        );
        assert_eq!(get(&mut requests, "1000").await.unwrap(), body(1000));
    })
    .await;
}

/// Of a body.
const HALF: &[u8] = b"half";
/// A frame with it, and one that is empty.
const WHOLE_FRAME: &[u8] = b"\x00\x04half";
const EMPTY_AND_ANOTHER: &[u8] = b"\x00\x00\x00\x04rest";
/// Less than the frame has.
const CUT_FRAME: &[u8] = b"\x00\x08half";

/// What h3 makes of a body of which `second` comes once it has read all of `first`, and then the end of the
/// stream.
async fn answered<C: quic::Connection<Bytes>>(
    wrap: impl FnOnce(h3_quinn::Connection) -> C,
    first: &[u8],
    second: &[u8],
) -> Result<Bytes, StreamError> {
    let identity = identity();
    let (server, client) = (plain::server(&identity), plain::client(&identity));
    let connecting = client
        .connect(server.local_addr().unwrap(), "localhost")
        .unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (connected, accepted) = tokio::join!(connecting, accepting);

    let client = wrap(h3_quinn::Connection::new(connected.unwrap()));
    let (mut driver, mut requests) = h3::client::builder()
        .send_grease(false)
        .build(client)
        .await
        .unwrap();
    let read = async {
        let request = Request::get("https://localhost/").body(()).unwrap();
        let mut stream = requests.send_request(request).await?;
        stream.finish().await?;
        let (mut answer, _) = accepted.accept_bi().await.unwrap();
        // HEADERS: status 200, from QPACK's static table.
        answer.write_all(&[1, 3, 0, 0, 0xd9]).await.unwrap();
        answer.write_all(first).await.unwrap();
        stream.recv_response().await?;
        let mut whole = BytesMut::new();
        while whole.len() < HALF.len() {
            let data = stream.recv_data().await?.unwrap();
            whole.extend_from_slice(data.chunk());
        }
        answer.write_all(second).await.unwrap();
        answer.finish().unwrap();
        while let Some(data) = stream.recv_data().await? {
            whole.extend_from_slice(data.chunk());
        }
        Ok(whole.freeze())
    };
    let driven = async {
        driver.wait_idle().await;
        // The reader is told, too.
        std::future::pending().await
    };
    in_time(async {
        tokio::select! {
            read = read => read,
            () = driven => unreachable!(),
        }
    })
    .await
}

/// Once this fails, h3 is mended, and [`WholeBodies`] can go with all that it is made of.
#[tokio::test]
async fn h3_still_ends_bodies_too_early() {
    let body = answered(|conn| conn, WHOLE_FRAME, EMPTY_AND_ANOTHER).await;
    assert_eq!(body.unwrap(), HALF, "all that is before an empty frame");
    let body = answered(|conn| conn, CUT_FRAME, b"").await;
    assert_eq!(body.unwrap(), HALF, "as if that were all of the frame");
}

#[tokio::test]
async fn a_body_is_over_when_its_stream_is_over() {
    let body = answered(WholeBodies::new, WHOLE_FRAME, EMPTY_AND_ANOTHER).await;
    assert_eq!(body.unwrap(), "halfrest".as_bytes());
    let error = answered(WholeBodies::new, CUT_FRAME, b"")
        .await
        .unwrap_err();
    assert!(
        matches!(error, StreamError::ConnectionError { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("within a DATA frame"), "{error}");
}

#[tokio::test]
async fn who_sends_too_large_a_header_is_told_so() {
    // 431, a status that is not in QPACK's static table, in Huffman's code.
    const REFUSAL: [u8; 10] = [0x01, 0x08, 0, 0, 0x5f, 0x09, 0x83, 0x69, 0x90, 0xff];
    /// Of the letter a, eight times, in Huffman's code.
    const LETTERS: [u8; 5] = [0x18, 0xc6, 0x31, 0x8c, 0x63];
    let none = VarInt::MAX.into();
    let bytes = vec![b'b'; 70_000];
    let letters = LETTERS.repeat(8_250);
    for (limit, more) in [
        // Before all of it is there.
        (none, [&b"\x21a\x7f\xf1\xa1\x04"[..], &bytes].concat()),
        // Fields that take a byte each.
        (none, vec![0xdd; 2_100]),
        // What only h3 knows, which has decoded it.
        (
            FIELD_SECTION,
            [&b"\x21a\xff\xa3\xc1\x02"[..], &letters].concat(),
        ),
    ] {
        let pair = pair().await;
        let (server, _migration) = Connection::new(pair.server.clone());
        let client = async {
            let (mut send, mut recv) = pair.client.open_bi().await.unwrap();
            let line = [b"\0\0\xd1\xd7\xc1\x50\x09localhost", &more[..]].concat();
            let length = 0x8000_0000 | line.len() as u32;
            let head = [&[1][..], &length.to_be_bytes(), &line].concat();
            // It may be told before it has sent all.
            let _ = send.write_all(&head).await;
            recv.read_to_end(1000).await.unwrap()
        };
        let answer = in_time(async {
            tokio::select! {
                answer = client => answer,
                () = serve_within(server, limit) => panic!("the server ended"),
            }
        })
        .await;
        assert_eq!(answer, REFUSAL, "{:x?}", &more[..10]);
    }
}

#[tokio::test]
async fn no_more_is_held_of_an_answer_than_may_be_whoever_carries_it() {
    // Frames that nobody knows, and trailers that are too large.
    let unknown = [&b"\x21\x80\x01\0\0"[..], &[7; 0x1_0000], WHOLE_FRAME].concat();
    let body = answered(WholeBodies::new, &unknown, b"").await;
    assert_eq!(body.unwrap(), HALF);
    let error = answered(WholeBodies::new, WHOLE_FRAME, b"\x01\x80\x01\0\x01").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("of type 0x1 has 65537 bytes"), "{error}");
}

#[tokio::test]
async fn a_server_reads_a_body_to_its_end() {
    let pair = pair().await;
    let (server, _migration) = Connection::new(pair.server.clone());
    let client = async {
        let (mut send, mut recv) = pair.client.open_bi().await.unwrap();
        // HEADERS: POST https://localhost/, from QPACK's static table but for the host.
        let head = [&[1, 16, 0, 0, 0xd4, 0xd7, 0xc1, 0x50, 9], &b"localhost"[..]].concat();
        let empty = &[0, 0][..];
        let request = [
            &head[..],
            empty,
            WHOLE_FRAME,
            empty,
            EMPTY_AND_ANOTHER,
            empty,
        ]
        .concat();
        send.write_all(&request).await.unwrap();
        send.finish().unwrap();
        recv.read_to_end(1000).await.unwrap()
    };
    let answer = in_time(async {
        tokio::select! {
            answer = client => answer,
            () = serve(server) => panic!("the server ended"),
        }
    })
    .await;
    assert!(answer.ends_with(b"\x00\x04half\x00\x04rest"), "{answer:?}");
}
