//! Which answer of a connection goes first (RFC 9218): the program, and a client made of quinn and bytes.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, SendStream, VarInt};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What a long answer has, bytes.
const LONG: u64 = 10_000_000;
/// What the link carries in a millisecond, and what waits for it at the most, bytes.
const RATE: usize = 10_000;
const QUEUE: usize = 100_000;
const LIMIT: Duration = Duration::from_secs(60);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start() -> (Server, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(["--listen", "127.0.0.1:0", "--random", &LONG.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let listen = log.find_map(|line| {
        let line = line.unwrap();
        let (_, address) = line.split_once("listening on ")?;
        Some(address.parse().unwrap())
    });
    (Server(child), listen.unwrap())
}

/// A client, and what its answers have brought.
struct Client {
    connection: Connection,
    control: SendStream,
    asked: u64,
}

/// How many bytes of an answer have come, and the task that ends with it.
struct Answer {
    received: Arc<AtomicU64>,
    end: JoinHandle<()>,
}

impl Answer {
    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Client {
    async fn connect(server: SocketAddr) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        // The link is the bottleneck, so that the server decides what is sent over it.
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(VarInt::MAX);
        transport.receive_window(VarInt::MAX);
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(config, server, "localhost");
        let connection = connecting.unwrap().await.unwrap();
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
    async fn ask(&mut self, fields: &[(&str, &str)]) -> Answer {
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        self.asked += 1;
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
        let mut request = vec![0x01, 0x40, block.len() as u8];
        request.extend(block);
        send.write_all(&request).await.unwrap();
        send.finish().unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let counted = received.clone();
        let end = tokio::spawn(async move {
            while let Some(chunk) = receive.read_chunk(usize::MAX, true).await.unwrap() {
                counted.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
        });
        Answer { received, end }
    }

    /// A PRIORITY_UPDATE for the request of this number.
    async fn update(&mut self, request: u8, priority: &str) {
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

/// A link to the server that is slower than both ends. Returns where it begins.
async fn link(server: SocketAddr) -> SocketAddr {
    let [front, back] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let begin = front.local_addr().unwrap();
    let [front, back] = [front, back].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    });
    tokio::spawn(async move {
        let (mut client, mut queue, mut queued) = (begin, VecDeque::new(), 0);
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let (mut up, mut down) = ([0; 65536], [0; 65536]);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut up) => {
                    client = from;
                    let _ = back.send_to(&up[..length], server).await;
                }
                Ok(length) = back.recv(&mut down), if queued < QUEUE => {
                    queue.push_back(down[..length].to_vec());
                    queued += length;
                }
                _ = tick.tick() => {
                    let mut credit = RATE;
                    while let Some(first) = queue.pop_front_if(|first: &mut Vec<u8>| first.len() <= credit) {
                        credit -= first.len();
                        queued -= first.len();
                        let _ = front.send_to(&first, client).await;
                    }
                }
            }
        }
    });
    begin
}

/// Two answers, of which the first has begun before the second is asked for. Returns what has come of the other
/// one when one is over, and whether that was the first.
async fn race(
    first: &[(&str, &str)],
    second: &[(&str, &str)],
    update: Option<&str>,
) -> (bool, u64) {
    let work = async {
        let (_server, address) = start();
        let mut client = Client::connect(link(address).await).await;
        let mut first = client.ask(first).await;
        while first.received() < LONG / 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut second = client.ask(second).await;
        if let Some(priority) = update {
            client.update(1, priority).await;
        }
        tokio::select! {
            end = &mut first.end => {
                end.unwrap();
                (true, second.received())
            }
            end = &mut second.end => {
                end.unwrap();
                (false, first.received())
            }
        }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap()
}

#[tokio::test]
async fn a_small_answer_does_not_wait_for_a_large_one() {
    let (is_first, received) = race(&[], &[("range", "bytes=0-25")], None).await;
    assert!(!is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn who_asks_for_an_order_gets_one_after_the_other() {
    let in_order = [("priority", "u=3")];
    let (is_first, received) = race(&in_order, &in_order, None).await;
    assert!(is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn answers_of_which_a_part_is_of_use_share() {
    let part = [("priority", "i")];
    let (is_first, received) = race(&part, &part, None).await;
    assert!(is_first && received > LONG / 2, "{received}");
}

#[tokio::test]
async fn the_more_urgent_goes_first() {
    let (is_first, received) = race(&[("priority", "u=3, i")], &[("priority", "u=1")], None).await;
    assert!(!is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn a_client_may_change_its_mind() {
    let in_order = [("priority", "u=3")];
    let (is_first, received) = race(&in_order, &in_order, Some("u=1")).await;
    assert!(!is_first && received < LONG / 2, "{received}");
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
