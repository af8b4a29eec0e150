//! Who may be found at an announced address instead of the server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mpq_core::server::{Server, ServerConfig};
use mpq_core::tls::{self, Identity};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::net::UdpSocket;

use super::Bench;

/// Those that answer probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Impostor {
    /// Answers every long-header packet with Version Negotiation, and nothing else.
    Parrot,
    /// A QUIC server of another make and with another certificate.
    Stranger,
    /// A server of ours with the same certificate, which knows none of the connections.
    Twin,
}

impl Impostor {
    pub(crate) const ALL: [Self; 3] = [Self::Parrot, Self::Stranger, Self::Twin];

    /// Lets it stand at an address until the test ends.
    pub(crate) async fn stand(self, bench: &Bench, address: SocketAddr) {
        match self {
            Self::Parrot => drop(Sniffer::open(address, true).await),
            Self::Stranger => {
                let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
                let crypto = tls::rustls_server(&identity).unwrap();
                let crypto = QuicServerConfig::try_from(crypto).unwrap();
                let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
                let endpoint = quinn::Endpoint::server(config, address).unwrap();
                tokio::spawn(async move {
                    while let Some(incoming) = endpoint.accept().await {
                        tokio::spawn(async move { incoming.await.map(drop) });
                    }
                });
            }
            Self::Twin => {
                let twin = Server::bind(address, &bench.identity, ServerConfig::default()).unwrap();
                tokio::spawn(async move {
                    while let Some(handshake) = twin.accept().await {
                        tokio::spawn(async move { handshake.await.map(drop) });
                    }
                });
            }
        }
    }
}

/// Keeps all that is sent to an address.
pub(crate) struct Sniffer(Arc<Mutex<Vec<Vec<u8>>>>);

impl Sniffer {
    /// Listens until the test ends; may answer long-header packets with Version Negotiation.
    pub(crate) async fn open(address: SocketAddr, answers: bool) -> Self {
        let socket = UdpSocket::bind(address).await.unwrap();
        let sniffed = Arc::new(Mutex::new(Vec::new()));
        let received = sniffed.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let packet = &buffer[..length];
                received.lock().unwrap().push(packet.to_vec());
                if let Some(answer) = version_negotiation(packet).filter(|_| answers) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self(sniffed)
    }

    /// What has come so far.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

/// The answer to a long-header packet: its connection ids, the other way round (RFC 8999 §6).
pub(crate) fn version_negotiation(packet: &[u8]) -> Option<Vec<u8>> {
    let (first, rest) = packet.split_first()?;
    let (_, rest) = rest.split_at_checked(4)?;
    let (destination, rest) = connection_id(rest)?;
    let (source, _) = connection_id(rest)?;
    let answer = [&[0xc0, 0, 0, 0, 0][..], source, destination, &[0, 0, 0, 1]].concat();
    (first & 0x80 != 0).then_some(answer)
}

/// A connection id, with its length before it, and what follows.
fn connection_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(*bytes.first()?);
    bytes.split_at_checked(1 + length)
}
