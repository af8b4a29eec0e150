//! Whoever sits on the path: forwards datagrams between clients and a server, and does to them what
//! a bad network does, or somebody in it.
//!
//! Each client address has a socket of its own towards the server, as behind a NAT, which passes on
//! only what the server sends from where it is. What happens to the n-th datagram of one direction
//! is decided by the seed; which one that is, is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::MILLISECOND;

/// The largest datagram there is, bytes.
const LARGEST: usize = 65_535;
/// How many datagrams of each direction are kept to be sent again.
const MEMORY: usize = 1_000;
/// How long a datagram may be held back, milliseconds.
const HELD: u32 = 30;

/// What can be done to a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// It never arrives.
    Drop,
    /// It arrives twice.
    Duplicate,
    /// Those sent after it overtake it.
    Delay,
    /// Some bits are not what they were.
    Flip,
    /// Its end is missing.
    Cut,
    /// It ends as an older one does.
    Splice,
    /// An older one, from any time since the start, comes with it.
    Replay,
    /// A copy overtakes it and comes from an address that is not the client's.
    Stray,
}

/// How often each is done, from 0 to 1.
pub(crate) type Mischief = &'static [(Deed, f64)];

/// Of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// The datagrams of one client address in one direction.
#[derive(Debug)]
struct Lane {
    rng: fastrand::Rng,
    past: Vec<Vec<u8>>,
}

impl Lane {
    /// What becomes of a datagram: what is sent, how much later, and what was done to it.
    fn pass(
        &mut self,
        mischief: Mischief,
        datagram: &[u8],
    ) -> (Vec<(Duration, Vec<u8>)>, Vec<Deed>) {
        let rng = &mut self.rng;
        let done = mischief.iter().filter(|(_, chance)| rng.f64() < *chance);
        let done: Vec<_> = done.map(|(deed, _)| *deed).collect();
        let mut sent = vec![(Duration::ZERO, datagram.to_vec())];
        for deed in &done {
            match deed {
                Deed::Drop => sent.clear(),
                Deed::Duplicate => sent.extend(sent.first().cloned()),
                Deed::Replay => {
                    sent.extend(
                        rng.choice(&self.past)
                            .map(|old| (Duration::ZERO, old.clone())),
                    );
                }
                Deed::Delay | Deed::Flip | Deed::Cut | Deed::Splice => {
                    if let Some((delay, bytes)) = sent.first_mut() {
                        match deed {
                            Deed::Delay => *delay = MILLISECOND * rng.u32(1..=HELD),
                            Deed::Flip => flip(rng, bytes),
                            Deed::Cut => bytes.truncate(rng.usize(..bytes.len())),
                            _ => splice(rng, bytes, &self.past),
                        }
                    }
                }
                // It takes another socket.
                Deed::Stray => {}
            }
        }
        if self.past.len() < MEMORY {
            self.past.push(datagram.to_vec());
        } else {
            self.past[rng.usize(..MEMORY)] = datagram.to_vec();
        }
        (sent, done)
    }
}

fn flip(rng: &mut fastrand::Rng, bytes: &mut [u8]) {
    for _ in 0..rng.u32(1..=8) {
        if let Some(byte) = rng.choice(bytes.iter_mut()) {
            *byte ^= 1 << rng.u32(..8);
        }
    }
}

fn splice(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, past: &[Vec<u8>]) {
    if let Some(old) = rng.choice(past) {
        let at = rng.usize(..bytes.len().min(old.len()));
        bytes.truncate(at);
        bytes.extend_from_slice(&old[at..]);
    }
}

/// A forwarder between clients and one address of a server.
pub(crate) struct Relay(Arc<Shared>);

struct Shared {
    /// What the clients take for the server's.
    socket: UdpSocket,
    server: SocketAddr,
    /// Sends what is to come from elsewhere.
    stray: UdpSocket,
    seed: u64,
    mischief: Mutex<Mischief>,
    lanes: Mutex<BTreeMap<(SocketAddr, Way), Lane>>,
    done: Mutex<BTreeMap<Deed, u64>>,
}

impl Relay {
    /// Listens at `address`, and forwards to `server` and back.
    pub(crate) async fn open(
        address: SocketAddr,
        server: SocketAddr,
        mischief: Mischief,
        seed: u64,
    ) -> Self {
        let relay = Self(Arc::new(Shared {
            socket: UdpSocket::bind(address).await.unwrap(),
            server,
            stray: UdpSocket::bind((address.ip(), 0)).await.unwrap(),
            seed,
            mischief: Mutex::new(mischief),
            lanes: Mutex::default(),
            done: Mutex::default(),
        }));
        tokio::spawn(relay.0.clone().forward());
        relay
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.socket.local_addr().unwrap()
    }

    /// From now on.
    pub(crate) fn set(&self, mischief: Mischief) {
        *self.0.mischief.lock().unwrap() = mischief;
    }

    /// How often each thing was done.
    pub(crate) fn done(&self) -> BTreeMap<Deed, u64> {
        self.0.done.lock().unwrap().clone()
    }

    /// The addresses from which clients send.
    pub(crate) fn clients(&self) -> BTreeSet<SocketAddr> {
        let lanes = self.0.lanes.lock().unwrap();
        lanes.keys().map(|(client, _)| *client).collect()
    }

    /// Datagrams that went this way, as they were sent.
    pub(crate) fn past(&self, way: Way) -> Vec<Vec<u8>> {
        let lanes = self.0.lanes.lock().unwrap();
        let lanes = lanes.iter().filter(|((_, of), _)| *of == way);
        lanes.flat_map(|(_, lane)| lane.past.clone()).collect()
    }

    /// Sends this to a client, which takes it for the server's.
    pub(crate) async fn forge(&self, client: SocketAddr, datagram: &[u8]) {
        self.0.socket.send_to(datagram, client).await.unwrap();
    }
}

impl Shared {
    /// From clients to the server.
    async fn forward(self: Arc<Self>) {
        let mut upstream = BTreeMap::new();
        let mut buffer = vec![0; LARGEST];
        while let Ok((length, client)) = self.socket.recv_from(&mut buffer).await {
            let socket = match upstream.get(&client) {
                Some(socket) => Arc::clone(socket),
                None => {
                    let local = (self.socket.local_addr().unwrap().ip(), 0);
                    let socket = Arc::new(UdpSocket::bind(local).await.unwrap());
                    socket.connect(self.server).await.unwrap();
                    tokio::spawn(self.clone().back(client, socket.clone()));
                    upstream.insert(client, socket.clone());
                    socket
                }
            };
            let datagram = &buffer[..length];
            let (sent, done) = self.pass(client, Way::ToServer, datagram);
            if done.contains(&Deed::Stray) {
                let _ = self.stray.send_to(datagram, self.server).await;
            }
            for (delay, bytes) in sent {
                // Errors tell that nobody is there just now, which is for the ends to find out.
                if delay.is_zero() {
                    let _ = socket.send(&bytes).await;
                } else {
                    let socket = socket.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = socket.send(&bytes).await;
                    });
                }
            }
        }
    }

    /// From the server to one client.
    async fn back(self: Arc<Self>, client: SocketAddr, upstream: Arc<UdpSocket>) {
        let mut buffer = vec![0; LARGEST];
        loop {
            let Ok(length) = upstream.recv(&mut buffer).await else {
                continue;
            };
            let (sent, _) = self.pass(client, Way::ToClient, &buffer[..length]);
            for (delay, bytes) in sent {
                if delay.is_zero() {
                    let _ = self.socket.send_to(&bytes, client).await;
                } else {
                    let shared = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = shared.socket.send_to(&bytes, client).await;
                    });
                }
            }
        }
    }

    fn pass(
        &self,
        client: SocketAddr,
        way: Way,
        datagram: &[u8],
    ) -> (Vec<(Duration, Vec<u8>)>, Vec<Deed>) {
        let mischief = *self.mischief.lock().unwrap();
        let mut lanes = self.lanes.lock().unwrap();
        let ordinal = lanes.len() as u64;
        let lane = lanes.entry((client, way)).or_insert_with(|| Lane {
            rng: fastrand::Rng::with_seed(self.seed ^ ordinal.rotate_left(32)),
            past: Vec::new(),
        });
        let (sent, done) = lane.pass(mischief, datagram);
        let mut counts = self.done.lock().unwrap();
        for deed in &done {
            *counts.entry(*deed).or_default() += 1;
        }
        (sent, done)
    }
}
