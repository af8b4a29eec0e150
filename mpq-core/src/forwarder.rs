//! Make before break, for clients that know nothing of moves: whoever stays at a server's old address forwards what
//! they send, and what the server sends to them. They never learn that it is elsewhere.
//!
//! Each client has a socket of its own between forwarder and server, as behind a NAT. Those that were connected before
//! the move are [introduced](crate::proto::forward), so that the server can speak to them first. For those that come
//! later the server is at its old address, and they are at the forwarder's.
//!
//! Clients that follow are not forwarded. What they sent to the old address would come to the server as if they had
//! stayed there.
//!
//! What is forwarded is not looked at, and its packets keep their length. The bits of ECN are not forwarded.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use crate::net::address::{canonical, mapped};
use crate::proto::forward::{ForwardKey, MAX_CLIENTS};
use crate::proto::probe::Secret;
use crate::tls::random;

/// Datagrams of a client that wait to be sent on; more are dropped.
const WAITING: usize = 64;
/// The largest datagram, bytes.
const LARGEST: usize = 65_536;
/// For so long nothing is forwarded from the addresses of clients that follow. Later somebody else may have them.
const FOLLOWING_PERIOD: Duration = Duration::from_secs(60);
/// How long the server may take to be at its new address.
const LONGEST_MOVE: Duration = Duration::from_secs(600);
/// Between two introductions of a client to a server that has not spoken yet.
const INTRODUCTION_INTERVAL: Duration = Duration::from_millis(50);

/// What a forwarder has to know: see [`Server::forwarding`](crate::server::Server::forwarding).
#[derive(Clone)]
pub struct Forwarding {
    /// What the server knows its forwarder by. Who has it can take these clients away from the server.
    pub secret: Secret,
    /// The clients that are to be forwarded.
    pub clients: Vec<SocketAddr>,
    /// Those that are not, since they follow.
    pub followers: Vec<SocketAddr>,
}

/// Forwards between clients and a server that has moved.
#[derive(Debug)]
pub struct Forwarder {
    front: Arc<UdpSocket>,
    server: SocketAddr,
    idle: Duration,
    clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
    /// Who is not forwarded, and until when.
    followers: HashSet<SocketAddr>,
    followed: Instant,
    /// Each resolves when its client is gone.
    tasks: JoinSet<SocketAddr>,
}

impl Forwarder {
    /// At a socket with the server's old address, for a server that is going to be at `server`. Clients to whom that says
    /// nothing for `idle` are gone; it has ten minutes to be there. Runs in a runtime of tokio.
    ///
    /// # Errors
    /// Those of the system calls.
    pub async fn new(
        front: std::net::UdpSocket,
        server: SocketAddr,
        forwarding: &Forwarding,
        idle: Duration,
    ) -> io::Result<Self> {
        front.set_nonblocking(true)?;
        let mut forwarder = Self {
            front: Arc::new(UdpSocket::from_std(front)?),
            server,
            idle,
            clients: HashMap::new(),
            followers: forwarding
                .followers
                .iter()
                .copied()
                .map(canonical)
                .collect(),
            followed: Instant::now() + FOLLOWING_PERIOD,
            tasks: JoinSet::new(),
        };
        let key = ForwardKey::new(&forwarding.secret);
        for client in forwarding.clients.iter().take(MAX_CLIENTS) {
            let client = canonical(*client);
            let [first] = random();
            let introduction = key.introduction(client, first);
            forwarder.add(client, Some(introduction)).await?;
        }
        Ok(forwarder)
    }

    /// Forwards until there is no client any more.
    ///
    /// # Errors
    /// Those of the socket at the old address.
    pub async fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST];
        while !self.clients.is_empty() {
            tokio::select! {
                received = self.front.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.forward(canonical(from), &buffer[..length]).await,
                    // A client is gone, as the network says.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error),
                },
                Some(gone) = self.tasks.join_next() => {
                    self.clients.remove(&gone.expect("it does not panic"));
                }
            }
        }
        Ok(())
    }

    async fn forward(&mut self, client: SocketAddr, datagram: &[u8]) {
        if !self.clients.contains_key(&client) {
            if self.followers.contains(&client) && Instant::now() < self.followed {
                return;
            }
            // Each has a socket.
            if self.clients.len() >= MAX_CLIENTS {
                return;
            }
            if let Err(error) = self.add(client, None).await {
                tracing::warn!("cannot forward for {client}: {error}");
                return;
            }
        }
        // What there is no room for is lost, as in any queue of the network.
        let _ = self.clients[&client].try_send(datagram.to_vec());
    }

    async fn add(&mut self, client: SocketAddr, introduction: Option<Vec<u8>>) -> io::Result<()> {
        let local: SocketAddr = match self.server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let back = UdpSocket::bind(local).await?;
        back.connect(self.server).await?;
        let reached_at = match self.front.local_addr()? {
            SocketAddr::V4(_) => client,
            SocketAddr::V6(_) => mapped(client),
        };
        let (sender, datagrams) = mpsc::channel(WAITING);
        let way = Way {
            front: self.front.clone(),
            client: reached_at,
            back,
            introduction,
        };
        let idle = self.idle;
        self.tasks.spawn(async move {
            way.forward(datagrams, idle).await;
            client
        });
        self.clients.insert(client, sender);
        Ok(())
    }
}

/// Between one client and the server.
struct Way {
    front: Arc<UdpSocket>,
    client: SocketAddr,
    back: UdpSocket,
    /// Until the server has spoken.
    introduction: Option<Vec<u8>>,
}

impl Way {
    async fn forward(mut self, mut datagrams: mpsc::Receiver<Vec<u8>>, idle: Duration) {
        let mut introductions = interval(INTRODUCTION_INTERVAL);
        // The server's silence counts: it answers clients, and has left if it does not.
        let patience = match self.introduction {
            Some(_) => idle.max(LONGEST_MOVE),
            None => idle,
        };
        let mut silent = Instant::now() + patience;
        loop {
            // A server that is not there yet refuses what it is sent. That is as good as lost.
            tokio::select! {
                Some(datagram) = datagrams.recv() => {
                    let _ = self.back.send(&datagram).await;
                }
                Ok(()) = self.back.readable() => if self.send_back() {
                    self.introduction = None;
                    silent = Instant::now() + idle;
                },
                _ = introductions.tick(), if self.introduction.is_some() => {
                    let introduction = self.introduction.as_deref().unwrap_or_default();
                    let _ = self.back.send(introduction).await;
                }
                () = sleep_until(silent) => return,
            }
        }
    }

    /// Sends all that has come from the server; whether there was something.
    fn send_back(&self) -> bool {
        let mut buffer = [0; LARGEST];
        let mut any = false;
        loop {
            match self.back.try_recv(&mut buffer) {
                Ok(length) => {
                    any = true;
                    let _ = self.front.try_send_to(&buffer[..length], self.client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                // It was refused, or the like, which is told once.
                Err(_) => {}
            }
        }
    }
}

impl std::fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarding")
            .field("clients", &self.clients)
            .field("followers", &self.followers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    async fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2_000];
        let receive = socket.recv_from(&mut buffer);
        let (length, from) = tokio::time::timeout(Duration::from_secs(10), receive)
            .await
            .expect("it comes")
            .unwrap();
        (buffer[..length].to_vec(), from)
    }

    #[tokio::test]
    async fn each_client_has_a_way_of_its_own_and_who_follows_has_none() {
        let [server, known, follower, new] = [
            socket().await,
            socket().await,
            socket().await,
            socket().await,
        ];
        let secret = [1; 32];
        let forwarding = Forwarding {
            secret,
            clients: vec![known.local_addr().unwrap()],
            followers: vec![follower.local_addr().unwrap()],
        };
        let front = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let old_address = front.local_addr().unwrap();
        let idle = Duration::from_millis(300);
        let server_at = server.local_addr().unwrap();
        let forwarder = Forwarder::new(front, server_at, &forwarding, idle)
            .await
            .unwrap();
        let running = tokio::spawn(forwarder.run());
        // Until the server speaks.
        let key = ForwardKey::new(&secret);
        let (introduction, way) = received(&server).await;
        assert_eq!(key.introduced(&introduction), known.local_addr().ok());
        assert_eq!(received(&server).await, (introduction, way));
        server.send_to(b"hello", way).await.unwrap();
        assert_eq!(received(&known).await, (b"hello".to_vec(), old_address));

        follower.send_to(b"no", old_address).await.unwrap();
        new.send_to(b"new", old_address).await.unwrap();
        let (datagram, other_way) = loop {
            let (datagram, from) = received(&server).await;
            if from != way {
                break (datagram, from);
            }
        };
        assert_eq!(datagram, b"new", "and nothing else");
        server.send_to(b"welcome", other_way).await.unwrap();
        assert_eq!(received(&new).await, (b"welcome".to_vec(), old_address));
        // Whoever is not answered any more keeps nobody here.
        let asks = async {
            loop {
                new.send_to(b"anybody?", old_address).await.unwrap();
                tokio::time::sleep(idle / 10).await;
            }
        };
        let patience = Duration::from_secs(10);
        tokio::select! {
            ended = running => ended.unwrap().unwrap(),
            never = asks => never,
            () = tokio::time::sleep(patience) => panic!("it stays"),
        }
    }
}
