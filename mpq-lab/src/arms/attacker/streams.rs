//! Clients of plain quinn whose streams are meant to do harm. They write their own bytes, as no HTTP/3 library would.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mpq_core::tls::{Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, SendStream, TransportConfig, VarInt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Attack, Deeds, PACE};

/// Readers that stop, each with so many responses.
const READERS: u64 = 100;
const RESPONSES: u64 = 50;
/// Bytes that a reader takes of each.
const WINDOW: u32 = 64 << 10;

/// Clients with bombs.
const BOMBERS: u64 = 8;
/// Fields of one.
const FIELDS: usize = 25_000;
/// Headers of every other client that never end. They use up what it may send, so that bombs are what others have.
const UNFINISHED: u64 = 90;
/// What a frame is said to have, and what is sent of it in one turn; bytes.
const ENDLESS: u64 = 200 << 20;
const PART: usize = 64 << 10;
/// Between two bombs of a client.
const REST: Duration = Duration::from_millis(50);
/// For an answer, where one may not come.
const PATIENCE: Duration = Duration::from_secs(1);

/// Frames, each on a request of its own: data and settings where a header must be, a header without fields, blocks that
/// refer to nothing, frames of HTTP/2, those that only a server may send, a length beyond the end, and no frame at all.
const ON_REQUESTS: [&[u8]; 12] = [
    &[0x00, 0x03, 1, 2, 3],
    &[0x04, 0x00],
    &[0x01, 0x00],
    &[0x01, 0x02, 0x00, 0x00],
    &[0x01, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x01, 0x05, 0x00, 0x00, 0xff, 0xff, 0xff],
    &[0x01, 0x08, 0x00, 0x00, 0x5f, 0x50, 0xff, 0x7f, 0xff, 0xff],
    &[0x02, 0x01, 0x00],
    &[0x05, 0x01, 0x00],
    &[0x07, 0x01, 0x00],
    &[0x01, 0x40, 0xff, 0x00],
    &[0xff],
];
/// What a client begins streams of its own with: settings twice and with what is reserved, a control stream that
/// begins with another frame, twice each stream of which there is one, a push, a migration of another version and one of
/// nonsense, and part of a type.
const ON_STREAMS: [&[u8]; 9] = [
    &[0x00, 0x04, 0x00, 0x04, 0x00],
    &[0x00, 0x04, 0x02, 0x02, 0x00],
    &[0x00, 0x07, 0x01, 0x00],
    &[0x00, 0x0d, 0x01, 0xff],
    &[0x02, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x03, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x01, 0x00],
    &[0x21, 0x00, 0xff, 0xff],
    &[0xc0],
];

/// After so many deeds it has begun.
pub(super) fn begun(attack: Attack) -> u64 {
    match attack {
        Attack::SlowReaders => READERS * RESPONSES,
        Attack::HeaderBombs => BOMBERS / 2 * UNFINISHED,
        Attack::Flood | Attack::Datagrams | Attack::Frames => 1,
    }
}

/// Asks for what there is, and reads the first bytes of each response.
pub(super) async fn read_slowly(client: Arc<Client>, deeds: &Deeds) -> Result<()> {
    let mut reading = JoinSet::new();
    for _ in 0..READERS {
        let connection = client.connect().await?;
        let deeds = deeds.clone();
        reading.spawn(async move {
            let mut unread = Vec::new();
            for _ in 0..RESPONSES {
                let (mut send, mut receive) = connection.open_bi().await?;
                send.write_all(&request(0)).await?;
                send.finish()?;
                receive.read(&mut [0; 1]).await?.context("no response")?;
                unread.push(receive);
                deeds.add(1);
            }
            Err::<(), _>(connection.closed().await.into())
        });
    }
    all(reading).await
}

/// Sends large headers one after the other, with others that never end beside them.
pub(super) async fn bomb(client: Arc<Client>, deeds: &Deeds) -> Result<()> {
    let large = Arc::new(request(FIELDS));
    let mut bombing = JoinSet::new();
    for number in 0..BOMBERS {
        let unending = [0, UNFINISHED][number as usize % 2];
        let connection = client.connect().await?;
        let (deeds, large) = (deeds.clone(), large.clone());
        bombing.spawn(async move {
            let mut unfinished = Vec::new();
            for _ in 0..unending {
                let (mut send, receive) = connection.open_bi().await?;
                send.write_all(&[0x01, 0x80, 0, 0xff, 0xff]).await?;
                // More than all of them may send may be on its way already.
                let _ = timeout(PATIENCE, send.write_all(&[0; 0xfffe])).await;
                unfinished.push((send, receive));
                deeds.add(1);
            }
            // Both on a request, and where nobody expects it.
            let mut beside = connection.open_uni().await?;
            endless(&mut beside, 0x00).await;
            loop {
                let (mut send, mut receive) = connection.open_bi().await?;
                // It may be refused before its end.
                let _ = timeout(PATIENCE, send.write_all(&large)).await;
                let _ = send.finish();
                let _ = timeout(PATIENCE, receive.read_to_end(1 << 20)).await;
                deeds.add(1);
                for kind in [0x01, 0x04, 0x21] {
                    let (mut send, _receive) = connection.open_bi().await?;
                    endless(&mut send, kind).await;
                    let _ = timeout(PATIENCE, send.write_all(&[0; PART])).await;
                    let _ = send.reset(VarInt::from_u32(0x10c));
                    deeds.add(1);
                }
                sleep(REST).await;
            }
        });
    }
    all(bombing).await
}

/// Sends what may not be sent, over new connections when others end.
pub(super) async fn confuse(client: Arc<Client>, deeds: &Deeds) -> Result<()> {
    let mut confusing = JoinSet::new();
    for number in 0..BOMBERS {
        let (client, deeds) = (client.clone(), deeds.clone());
        confusing.spawn(async move {
            let mut random = fastrand::Rng::with_seed(number);
            loop {
                let connection = client.connect().await?;
                let _ = wrong(&connection, &mut random).await;
                // A server may know more than one thing that is wrong, and need not have found any.
                let _ = timeout(10 * PACE, connection.closed()).await;
                connection.close(VarInt::from_u32(0x100), b"");
                deeds.add(1);
                sleep(REST).await;
            }
        });
    }
    all(confusing).await
}

/// All that is wrong on requests, then one thing that is wrong with the connection, or nonsense.
async fn wrong(connection: &Connection, random: &mut fastrand::Rng) -> Result<()> {
    for bytes in ON_REQUESTS {
        let (mut send, _receive) = connection.open_bi().await?;
        send.write_all(bytes).await?;
        send.finish()?;
    }
    let mut nonsense = vec![0; random.usize(1..4096)];
    random.fill(&mut nonsense);
    let (mut send, _receive) = connection.open_bi().await?;
    send.write_all(&nonsense).await?;
    let mut stream = connection.open_uni().await?;
    let bytes = random.choice(ON_STREAMS).unwrap_or(&nonsense);
    stream.write_all(bytes).await?;
    connection.send_datagram(nonsense.into())?;
    Ok(())
}

/// Begins a frame of this type, which is large.
async fn endless(stream: &mut SendStream, kind: u8) {
    let mut begin = vec![kind];
    begin.extend((0b11 << 62 | ENDLESS).to_be_bytes());
    let _ = timeout(PATIENCE, stream.write_all(&begin)).await;
}

/// The first of them to fail.
async fn all(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Connects again and again.
pub(super) struct Client {
    endpoint: Endpoint,
    server: SocketAddr,
}

impl Client {
    pub(super) fn new(server: SocketAddr) -> Result<Self> {
        let crypto = QuicClientConfig::try_from(rustls_client(&Trust::Insecure)?)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(WINDOW.into())
            .receive_window(VarInt::MAX)
            .keep_alive_interval(Some(Duration::from_secs(5)));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, server })
    }

    /// Leaves.
    pub(super) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0x100), b"");
        let _ = timeout(PATIENCE, self.endpoint.wait_idle()).await;
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(self.endpoint.connect(self.server, "localhost")?.await?)
    }
}

/// HEADERS that ask for `/random`, with so many fields besides.
fn request(fields: usize) -> Vec<u8> {
    // GET and https from QPACK's static table (RFC 9204 §A); :authority and :path by their names there.
    let mut block = vec![0x00, 0x00, 0xd1, 0xd7];
    for (name, value) in [(0x50, "localhost"), (0x51, "/random")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.bytes());
    }
    for _ in 0..fields {
        block.extend(*b"\x21a\x01b");
    }
    let mut frame = vec![0x01];
    frame.extend((block.len() as u32 | 0x80 << 24).to_be_bytes());
    frame.extend(block);
    frame
}
