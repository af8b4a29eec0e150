//! A client made of quinn and bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, VarInt};
use tokio::task::JoinHandle;

/// A client, and what its answers have brought.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
    asked: u64,
}

/// How many bytes of an answer have come, and the task that ends with it.
pub(crate) struct Answer {
    pub(crate) received: Arc<AtomicU64>,
    /// The first bytes.
    pub(crate) head: Arc<Mutex<Vec<u8>>>,
    /// Ends as the answer does.
    pub(crate) end: JoinHandle<Result<(), ReadError>>,
}

impl Answer {
    /// Reads what comes.
    pub(crate) fn read(mut stream: RecvStream) -> Self {
        let (received, head) = (
            Arc::new(AtomicU64::new(0)),
            Arc::<Mutex<Vec<u8>>>::default(),
        );
        let (counted, first) = (received.clone(), head.clone());
        let end = tokio::spawn(async move {
            while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
                if counted.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed) == 0 {
                    *first.lock().unwrap() = chunk.bytes.to_vec();
                }
            }
            Ok(())
        });
        Self {
            received,
            head,
            end,
        }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether the answer is that the header of the request is too large (431), and nothing else.
    pub(crate) fn refuses(&self) -> bool {
        // A status that is not in QPACK's static table, in Huffman's code.
        const REFUSAL: [u8; 10] = [0x01, 0x08, 0, 0, 0x5f, 0x09, 0x83, 0x69, 0x90, 0xff];
        self.received() == REFUSAL.len() as u64 && *self.head.lock().unwrap() == REFUSAL
    }
}

impl Client {
    pub(crate) async fn connect(server: SocketAddr) -> Self {
        let connection = connect(server).await.unwrap();
        // A control stream with empty SETTINGS (RFC 9114 §6.2.1).
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[0x00, 0x04, 0x00]).await.unwrap();
        Self {
            connection,
            control,
            asked: 0,
        }
    }

    /// Asks for `/random` with these fields.
    pub(crate) async fn ask(&mut self, fields: &[(&str, &str)]) -> Answer {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        self.asked += 1;
        send.write_all(&request(fields)).await.unwrap();
        send.finish().unwrap();
        Answer::read(receive)
    }

    /// A PRIORITY_UPDATE for the request of this number.
    pub(crate) async fn update(&mut self, request: u8, priority: &str) {
        let mut frame = vec![
            0x80,
            0x0f,
            0x07,
            0x00,
            1 + priority.len() as u8,
            4 * request,
        ];
        frame.extend(priority.bytes());
        self.control.write_all(&frame).await.unwrap();
    }
}

/// HEADERS that ask for `/random` with these fields.
pub(crate) fn request(fields: &[(&str, &str)]) -> Vec<u8> {
    // GET and https from QPACK's static table (RFC 9204 §A); :authority and :path by their names there.
    let mut block = vec![0x00, 0x00, 0xd1, 0xd7];
    for (name, value) in [(0x50, "localhost"), (0x51, "/random")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.bytes());
    }
    for (name, value) in fields {
        // A literal name, whose length has three bits (RFC 9204 §4.5.6).
        match name.len() {
            length @ ..7 => block.push(0x20 | length as u8),
            length => block.extend([0x27, length as u8 - 7]),
        }
        block.extend(name.bytes());
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    let mut frame = vec![0x01];
    frame.extend((block.len() as u32 | 0x80 << 24).to_be_bytes());
    frame.extend(block);
    frame
}

/// A connection, whoever the server is.
pub(crate) async fn connect(server: SocketAddr) -> Result<Connection, ConnectionError> {
    // The link is the bottleneck, so that the server decides what is sent over it.
    connect_for(server, "h3", VarInt::MAX).await
}

/// As [`connect`], for this protocol over it, and with such a window for each stream.
pub(crate) async fn connect_for(
    server: SocketAddr,
    protocol: &str,
    window: VarInt,
) -> Result<Connection, ConnectionError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(window);
    transport.receive_window(VarInt::MAX);
    config.transport_config(Arc::new(transport));
    let own: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let endpoint = Endpoint::client((own, 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, server, "localhost");
    connecting.unwrap().await
}

/// Trusts whoever is on loopback.
#[derive(Debug)]
struct AnyCertificate;

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("only TLS 1.3 is offered")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
