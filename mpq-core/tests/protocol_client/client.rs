//! A client that follows by redirection, written from `docs/protocol.md`: quinn, as much HTTP/3 as one
//! request needs, and nothing of mpq. The sections are those of the document.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::pki_types::CertificateDer;
use quinn::rustls::{self, RootCertStore};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::wire::{Hint, Wire};

/// §9: between two probes, here always the same.
const PROBES: Duration = Duration::from_millis(50);

/// A type and a body: HTTP/3's frames (RFC 9114 §7.1) and those of the migration are alike (§4).
type Frame = (u64, Vec<u8>);

pub(crate) struct Client {
    connection: Connection,
    wire: Arc<Wire>,
    /// §3: our migration stream, and what comes on the server's.
    migration: SendStream,
    frames: mpsc::UnboundedReceiver<Frame>,
    /// §6.4: who answers or knocks.
    hints: mpsc::UnboundedReceiver<(SocketAddr, Hint)>,
    /// HTTP/3's control stream must stay open (RFC 9114 §6.2.1).
    _control: SendStream,
}

impl Client {
    pub(crate) async fn connect(remote: SocketAddr, root: CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider);
        let tls = tls.with_protocol_versions(&[&rustls::version::TLS13]);
        let mut tls = tls
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        // §2: the server may be silent for longer than any idle timeout.
        let mut transport = quinn::TransportConfig::default();
        transport.max_idle_timeout(None);
        config.transport_config(Arc::new(transport));

        let (wire, hints) = Wire::open("127.0.0.1:0".parse().unwrap(), remote);
        let runtime = Arc::new(quinn::TokioRuntime);
        let settings = EndpointConfig::default();
        let endpoint = Endpoint::new_with_abstract_socket(settings, None, wire.clone(), runtime);
        let connecting = endpoint.unwrap().connect_with(config, remote, "localhost");
        let connection = connecting.unwrap().await.unwrap();

        // §6.2.
        let mut secret = [0; 32];
        connection
            .export_keying_material(&mut secret, b"EXPORTER-mpq-knock", b"")
            .unwrap();
        wire.listen_for_knocks(&secret);

        // A control stream with empty SETTINGS (RFC 9114 §6.2.1, §7.2.4).
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[0x00, 0x04, 0x00]).await.unwrap();
        // Type of the stream, version, HELLO with REDIRECT (§3, §4.2).
        let mut migration = connection.open_uni().await.unwrap();
        let hello = [0x80, 0x4d, 0x49, 0x47, 0x01, 0x01, 0x01, 0x02];
        migration.write_all(&hello).await.unwrap();

        let (sender, frames) = mpsc::unbounded_channel();
        tokio::spawn(accept(connection.clone(), sender));
        Self {
            connection,
            wire,
            migration,
            frames,
            hints,
            _control: control,
        }
    }

    /// Asks for `/`. The body comes in the end, its length so far meanwhile.
    pub(crate) async fn get(&self) -> (JoinHandle<Vec<u8>>, watch::Receiver<usize>) {
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        // HEADERS: GET, https, / from QPACK's static table (RFC 9204 §A), and :authority by its name.
        let mut request = vec![0x01, 16, 0x00, 0x00, 0xd1, 0xd7, 0xc1, 0x50, 9];
        request.extend_from_slice(b"localhost");
        send.write_all(&request).await.unwrap();
        send.finish().unwrap();
        let (sender, progress) = watch::channel(0);
        let body = tokio::spawn(async move {
            let (kind, fields) = frame(&mut receive).await.unwrap();
            // HEADERS, and :status 200.
            assert_eq!((kind, fields[2]), (0x01, 0xd9));
            let mut body = Vec::new();
            while let Some((kind, payload)) = frame(&mut receive).await {
                if kind == 0x00 {
                    body.extend(payload);
                }
                sender.send_replace(body.len());
            }
            body
        });
        (body, progress)
    }

    /// Takes part in one move; returns what happened (§7).
    pub(crate) async fn follow(&mut self) -> Vec<&'static str> {
        let before = self.wire.server();
        let mut seen = Vec::new();
        let mut targets = Vec::new();
        let (mut number, mut parked, mut trying) = (0, false, false);
        let mut probing = tokio::time::interval(PROBES);
        loop {
            tokio::select! {
                Some((kind, body)) = self.frames.recv() => {
                    let mut rest = body.as_slice();
                    match kind {
                        2 => {
                            seen.push("MIGRATION");
                            number = varint_of(&mut rest);
                            targets = addresses(&mut rest);
                            let (_outage, _lead) = (varint_of(&mut rest), varint_of(&mut rest));
                            // §11.3: a server on loopback may send us to loopback only.
                            targets.retain(|to| to.ip().is_loopback() && *to != before);
                            let mut ready = vec![0x03, 0x08];
                            ready.extend((number | 0xc0 << 56).to_be_bytes());
                            self.migration.write_all(&ready).await.unwrap();
                        }
                        4 if varint_of(&mut rest) == number => {
                            seen.push("PARKED");
                            parked = true;
                        }
                        5 if varint_of(&mut rest) == number => {
                            self.wire.redirect(before);
                            seen.push("CANCELLED");
                            return seen;
                        }
                        6 if varint_of(&mut rest) == number => {
                            seen.push("ARRIVED");
                            return seen;
                        }
                        _ => {}
                    }
                }
                Some((from, hint)) = self.hints.recv(), if parked && !trying => {
                    if !targets.contains(&from) {
                        continue;
                    }
                    if hint == Hint::Knock {
                        seen.push("knock");
                        self.wire.probe(from);
                        continue;
                    }
                    seen.push("answer");
                    trying = true;
                    self.wire.redirect(from);
                    // What asks for an acknowledgement: a frame of a reserved type (§7.3, §12).
                    self.migration.write_all(&[0x21, 0x00]).await.unwrap();
                }
                _ = probing.tick(), if parked && !trying => {
                    for target in &targets {
                        self.wire.probe(*target);
                    }
                }
            }
        }
    }
}

/// Reads the server's unidirectional streams: the migration stream, and HTTP/3's to their end.
async fn accept(connection: Connection, frames: mpsc::UnboundedSender<Frame>) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let frames = frames.clone();
        tokio::spawn(async move {
            if varint(&mut stream).await != Some(0x4d4947) {
                let mut rest = [0; 1024];
                while let Ok(Some(_)) = stream.read(&mut rest).await {}
                return;
            }
            assert_eq!(varint(&mut stream).await, Some(1), "the version");
            while let Some(frame) = frame(&mut stream).await {
                let _ = frames.send(frame);
            }
        });
    }
}

/// The next frame; `None` at the end of the stream.
async fn frame(stream: &mut RecvStream) -> Option<Frame> {
    let kind = varint(stream).await?;
    let mut body = vec![0; varint(stream).await?.try_into().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}

async fn varint(stream: &mut RecvStream) -> Option<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes[..1]).await.ok()?;
    let length = 1 << (bytes[0] >> 6);
    stream.read_exact(&mut bytes[1..length]).await.ok()?;
    Some(varint_of(&mut &bytes[..]))
}

/// A variable-length integer (RFC 9000 §16).
fn varint_of(bytes: &mut &[u8]) -> u64 {
    let (encoded, rest) = bytes.split_at(1 << (bytes[0] >> 6));
    *bytes = rest;
    let value = encoded
        .iter()
        .fold(0, |value, b| value << 8 | u64::from(*b));
    value & (u64::MAX >> (66 - 8 * encoded.len()))
}

/// A count, and so many addresses (§4.1).
fn addresses(bytes: &mut &[u8]) -> Vec<SocketAddr> {
    let count = varint_of(bytes);
    let mut take = |length| {
        let (taken, rest) = bytes.split_at(length);
        *bytes = rest;
        taken
    };
    let address = |_| {
        let ip = match take(1) {
            [4] => <[u8; 4]>::try_from(take(4)).unwrap().into(),
            [6] => <[u8; 16]>::try_from(take(16)).unwrap().into(),
            family => panic!("{family:?}"),
        };
        let port = take(2);
        SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))
    };
    (0..count).map(address).collect()
}
