//! Clients that have to prove their address before their handshake begins (Retry, RFC 9000 §8.1.2).

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use mpq_core::client::{Client, ClientConfig};
use mpq_core::server::{Server, ServerConfig, Session};
use mpq_core::tls::{Identity, Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use support::initial::{Initials, LENGTH, retry};
use support::{Network, both_paths};
use tokio::net::UdpSocket;

const SECOND: Duration = Duration::from_secs(1);

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(10 * SECOND, test)
        .await
        .expect("it takes too long")
}

/// A server on host 1, for so many clients at a time whose address is not validated.
fn serve(network: Network, unvalidated_handshakes: usize) -> Server {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let config = ServerConfig {
        unvalidated_handshakes,
        handshake_timeout: SECOND / 2,
        ..ServerConfig::default()
    };
    let server = Server::bind(network.at(1), &identity, config).unwrap();
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(handshake) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(session) = handshake.await {
                    answer(session).await;
                }
            });
        }
    });
    server
}

async fn answer(mut session: Session) {
    while let Ok(Some(request)) = session.h3.accept().await {
        let (_, mut stream) = request.resolve_request().await.unwrap();
        stream.send_response(Response::new(())).await.unwrap();
        stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
        stream.finish().await.unwrap();
    }
}

/// The answer to a datagram.
async fn ask(socket: &UdpSocket, server: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    socket.send_to(datagram, server).await.unwrap();
    let mut answer = vec![0; 2048];
    let (length, from) = in_time(socket.recv_from(&mut answer)).await.unwrap();
    assert_eq!(from, server);
    answer.truncate(length);
    answer
}

/// Whether a server goes on with a handshake by this answer: what it has to say then fills a datagram.
fn goes_on(answer: &[u8]) -> bool {
    retry(answer).is_none() && answer.len() >= LENGTH
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_prove_their_address_are_served() {
    let network = Network::new();
    let server = serve(network, 0);
    let socket = UdpSocket::bind((network.ip(103), 0)).await.unwrap();
    let answer = ask(&socket, network.at(1), &Initials::new().datagram(0)).await;
    assert!(retry(&answer).is_some(), "all have to");

    // Ours, over the first interface that does, and then over both.
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: [101, 102].map(|host| network.ip(host).to_string()).into(),
        ..ClientConfig::default()
    };
    let client = in_time(Client::connect(config, network.at(1), "localhost")).await;
    let client = client.unwrap();
    let mut events = client.events();
    in_time(both_paths(&mut events)).await;
    let mut body = in_time(client.get("/")).await.unwrap().into_body();
    assert_eq!(in_time(body.chunk()).await.unwrap().unwrap(), "abc");
    in_time(server.move_to(network.at(2))).await.unwrap();
    let mut body = in_time(client.get("/")).await.unwrap().into_body();
    assert_eq!(in_time(body.chunk()).await.unwrap().unwrap(), "abc");

    // And another one.
    let crypto = QuicClientConfig::try_from(rustls_client(&Trust::Insecure).unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client((network.ip(104), 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, network.at(2), "localhost");
    in_time(connecting.unwrap()).await.unwrap();
    assert_eq!(server.handshakes(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_beyond_some_have_to_and_those_no_more_once_others_are_given_up() {
    let network = Network::new();
    let _server = serve(network, 2);
    let initials = Initials::new();
    let socket = UdpSocket::bind((network.ip(101), 0)).await.unwrap();
    for number in 0..2 {
        let answer = ask(&socket, network.at(1), &initials.datagram(number)).await;
        assert!(goes_on(&answer), "{number}");
    }
    // What the two repeat does not come here.
    let socket = UdpSocket::bind((network.ip(102), 0)).await.unwrap();
    for number in 2.. {
        let answer = ask(&socket, network.at(1), &initials.datagram(number)).await;
        if goes_on(&answer) {
            assert!(number > 2, "there are two already");
            break;
        }
        assert!(retry(&answer).is_some());
        tokio::time::sleep(SECOND / 50).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_for_its_client_alone_and_after_a_move_as_well() {
    let network = Network::new();
    let server = serve(network, 0);
    let initials = Initials::new();
    let client = UdpSocket::bind((network.ip(101), 0)).await.unwrap();
    let answer = ask(&client, network.at(1), &initials.datagram(0)).await;
    let (destination, token) = retry(&answer).unwrap();
    in_time(server.move_to(network.at(2))).await.unwrap();

    let proof = initials.with_token(&destination, &token);
    let other = UdpSocket::bind((network.ip(102), 0)).await.unwrap();
    let answer = ask(&other, network.at(2), &proof).await;
    assert!(retry(&answer).is_none() && !goes_on(&answer), "an error");
    let answer = ask(&client, network.at(2), &proof).await;
    assert!(goes_on(&answer));
}
