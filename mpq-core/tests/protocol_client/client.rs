//! A client that follows by redirection, written from `docs/protocol.md` with quinn and nothing of mpq. The
//! sections are those of the document. It knows announced moves, and no deadline: what else there is of §7 is left
//! out.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream};
use ring::hmac;
use ring::rand::{SystemRandom, generate};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// A port of its own.
const ANY: &str = "127.0.0.1:0";
/// §9: between two probes, here always the same.
const PROBES: Duration = Duration::from_millis(50);

/// Connects, and follows from then on. What happens is told to `seen`, in the document's words.
pub(crate) async fn connect(
    server: SocketAddr,
    config: ClientConfig,
    seen: mpsc::UnboundedSender<&'static str>,
) -> Result<Connection, Box<dyn Error>> {
    let endpoint = Endpoint::client(ANY.parse()?)?;
    let inside = UdpSocket::bind(ANY).await?;
    inside.connect(endpoint.local_addr()?).await?;
    let connecting = endpoint.connect_with(config, inside.local_addr()?, "localhost")?;

    // Between quinn and the network: all datagrams go to where the server is, and quinn sees those that come
    // from there (§7.3). It ignores late answers and knocks.
    let socket = Arc::new(UdpSocket::bind(ANY).await?);
    let outside = socket.clone();
    let (redirect, server) = watch::channel(server);
    let (other, others) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut out, mut back) = ([0; 65536], [0; 65536]);
        loop {
            tokio::select! {
                Ok(length) = inside.recv(&mut out) => {
                    let to = *server.borrow();
                    drop(outside.send_to(&out[..length], to).await);
                }
                Ok((length, from)) = outside.recv_from(&mut back) => {
                    let (server, datagram) = (*server.borrow(), &back[..length]);
                    match from == server {
                        true => drop(inside.send(datagram).await),
                        false => drop(other.send((from, datagram.to_vec()))),
                    }
                }
            }
        }
    });
    let connection = connecting.await?;
    tokio::spawn(follow(connection.clone(), socket, redirect, others, seen));
    Ok(connection)
}

/// The client of §7.
async fn follow(
    connection: Connection,
    socket: Arc<UdpSocket>,
    server: watch::Sender<SocketAddr>,
    mut others: mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>,
    seen: mpsc::UnboundedSender<&'static str>,
) -> io::Result<()> {
    // §6.2.
    let mut secret = [0; 32];
    let exported = connection.export_keying_material(&mut secret, b"EXPORTER-mpq-knock", b"");
    exported.unwrap();
    let knocks = hmac::Key::new(hmac::HMAC_SHA256, &secret);

    // A control stream with empty SETTINGS, which must stay open (RFC 9114 §6.2.1, §7.2.4).
    let mut control = connection.open_uni().await?;
    control.write_all(&[0x00, 0x04, 0x00]).await?;
    // Type of the stream, version, HELLO with REDIRECT (§3, §4.2).
    let mut ours = connection.open_uni().await?;
    let hello = [0x80, 0x4d, 0x49, 0x47, 0x01, 0x01, 0x01, 0x02];
    ours.write_all(&hello).await?;
    // The server's. HTTP/3's must not be stopped, and need not be read.
    let (mut http3, mut theirs) = (Vec::new(), connection.accept_uni().await?);
    while integer(&mut theirs).await? != 0x4d4947 {
        http3.push(theirs);
        theirs = connection.accept_uni().await?;
    }
    assert_eq!(integer(&mut theirs).await?, 1, "the version");

    let see = |what| seen.send(what).unwrap();
    let (mut number, mut before, mut targets) = (0, *server.borrow(), Vec::new());
    let (mut searching, mut probes) = (false, Vec::new());
    let mut probing = tokio::time::interval(PROBES);
    let mut frames = pin!(frames(theirs));
    loop {
        tokio::select! {
            Some((kind, body)) = frames.next() => {
                let mut body = body.as_slice();
                let sequence = integer(&mut body).await.unwrap_or(0);
                // §5: which of them count.
                match kind {
                    2 if sequence > number => {
                        see("MIGRATION");
                        (number, before, searching) = (sequence, *server.borrow(), false);
                        (targets, probes) = (addresses(&mut body).await?, Vec::new());
                        // §11.3: a server on loopback may send us to loopback only.
                        targets.retain(|to| to.ip().is_loopback() && *to != before);
                        let ready = (3 << 62 | number).to_be_bytes();
                        ours.write_all(&[&[0x03, 0x08], &ready[..]].concat()).await?;
                    }
                    4..=6 if sequence != number => {}
                    4 => {
                        see("PARKED");
                        searching = true;
                    }
                    5 => {
                        see("CANCELLED");
                        searching = false;
                        server.send_replace(before);
                    }
                    6 => see("ARRIVED"),
                    _ => {}
                }
            }
            Some((from, datagram)) = others.recv(), if searching => {
                let Some((tag, nonce)) = ids(&datagram) else {
                    continue;
                };
                let knock = hmac::sign(&knocks, nonce).as_ref().starts_with(tag);
                if probes.contains(&(from, *tag)) {
                    see("answer");
                    searching = false;
                    server.send_replace(from);
                    // What asks for an acknowledgement: a frame of a reserved type (§7.3, §12).
                    ours.write_all(&[0x21, 0x00]).await?;
                } else if knock && targets.contains(&from) {
                    see("knock");
                    probes.push((from, probe(&socket, from).await));
                }
            }
            _ = probing.tick(), if searching => for to in &targets {
                probes.push((*to, probe(&socket, *to).await));
            }
        }
    }
}

/// The tag and the nonce of what may be an answer or a knock (§6.4).
fn ids(datagram: &[u8]) -> Option<(&[u8; 8], &[u8; 8])> {
    let (header, ids) = datagram.split_at_checked(6)?;
    let (tag, ids) = ids.split_first_chunk()?;
    let nonce = ids.strip_prefix(&[8])?.first_chunk()?;
    (header[0] >= 0x80 && header[1..] == [0, 0, 0, 0, 8]).then_some((tag, nonce))
}

/// Sends a probe (§6.1). Returns its Source Connection ID, by which its answer is known.
async fn probe(socket: &UdpSocket, to: SocketAddr) -> [u8; 8] {
    let random = generate(&SystemRandom::new()).unwrap();
    let mut probe: [u8; 1200] = random.expose();
    probe[0] |= 0xc0;
    for byte in &mut probe[1..5] {
        *byte = *byte & 0xf0 | 0x0a;
    }
    (probe[5], probe[14]) = (8, 8);
    // What is lost is sent again in a while.
    let _ = socket.send_to(&probe, to).await;
    probe[15..23].try_into().unwrap()
}

/// Types and bodies. HTTP/3's frames (RFC 9114 §7.1) and those of the migration are alike (§4).
pub(crate) fn frames(stream: RecvStream) -> impl Stream<Item = (u64, Vec<u8>)> {
    stream::unfold(stream, |mut stream| async {
        let kind = integer(&mut stream).await.ok()?;
        let mut body = vec![0; integer(&mut stream).await.ok()?.try_into().ok()?];
        stream.read_exact(&mut body).await.ok()?;
        Some(((kind, body), stream))
    })
}

/// A variable-length integer (RFC 9000 §16).
async fn integer(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    let first = from.read_u8().await?;
    let mut bytes = vec![first & 0x3f];
    bytes.resize(1 << (first >> 6), 0);
    from.read_exact(&mut bytes[1..]).await?;
    Ok(bytes.iter().fold(0, |value, b| value << 8 | u64::from(*b)))
}

/// A count, and so many addresses (§4.1).
async fn addresses(body: &mut &[u8]) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for _ in 0..integer(body).await? {
        let ip: IpAddr = match body.read_u8().await? {
            4 => body.read_u32().await?.to_be_bytes().into(),
            6 => body.read_u128().await?.to_be_bytes().into(),
            family => panic!("{family}"),
        };
        addresses.push(SocketAddr::new(ip, body.read_u16().await?));
    }
    Ok(addresses)
}
