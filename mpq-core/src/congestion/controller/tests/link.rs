//! Starts after a move over a link, in virtual time: two connections of noq's with its own recovery and
//! pacing, whose server sends what it can. The link has a rate, a delay and a queue of some bytes; what does
//! not fit in is dropped. The server's path goes on for an old one of which it is told before it begins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use bytes::BytesMut;
use noq_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    FourTuple, ServerConfig, StreamId,
};

use super::*;
use crate::congestion::Resume;
use crate::tls::{self, Identity, Trust};
use crate::transport;

const CLIENT: usize = 0;
const SERVER: usize = 1;
/// Of the old place, bytes a second, and what it had in flight: a bandwidth-delay product.
const OLD_RATE: u64 = 12_500_000;
const OLD_WINDOW: u64 = 625_000;
/// At least, of a packet on the wire.
const SMALLEST: u64 = 1200;

#[derive(Debug, Clone, Copy)]
struct Link {
    /// Bytes a second.
    rate: u64,
    /// Bytes.
    queue: u64,
}

const EQUAL: Link = Link {
    rate: OLD_RATE,
    queue: OLD_WINDOW,
};
const TEN_TIMES_SLOWER: Link = Link {
    rate: OLD_RATE / 10,
    queue: OLD_WINDOW / 10,
};

struct Host {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

struct World {
    now: Instant,
    hosts: [Host; 2],
    /// By arrival, and in the order of sending: to whom.
    under_way: BTreeMap<(Instant, u64), (usize, BytesMut)>,
    sent: u64,
    link: Link,
    /// When the link has sent what is in its queue.
    free: Instant,
    dropped: u64,
    stream: Option<StreamId>,
}

fn address(host: usize) -> SocketAddr {
    SocketAddr::new([10, 0, 0, host as u8 + 1].into(), 443)
}

impl World {
    /// Connected, and the server is about to send.
    fn new(congestion: Congestion, resume: Resume, link: Link) -> Self {
        let now = Instant::now();
        let old = old(RTT, OLD_WINDOW);
        let send_control = Arc::new(SendControl::new(Algorithm::new(congestion)));
        if resume != Resume::Off {
            let least = (resume == Resume::Aggressive).then_some(old);
            // The client's first packet takes half a round trip from here, and answers a knock.
            send_control.resume(now - RTT / 2, least);
        }
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let mut server =
            ServerConfig::with_crypto(Arc::new(tls::server_config(&identity).unwrap()));
        server.transport_config(transport::server_transport(send_control.clone(), MTU));
        let mut client = ClientConfig::new(Arc::new(tls::client_config(&Trust::Insecure).unwrap()));
        client.transport_config(transport::client_transport(congestion, MTU));
        let configs = [None, Some(Arc::new(server))];
        let hosts = configs.map(|config| Host {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), config, false),
            connection: None,
        });
        let mut world = Self {
            now,
            hosts,
            under_way: BTreeMap::new(),
            sent: 0,
            link,
            free: now,
            dropped: 0,
            stream: None,
        };
        let endpoint = &mut world.hosts[CLIENT].endpoint;
        let connection = endpoint.connect(now, client, address(SERVER), "localhost");
        world.hosts[CLIENT].connection = Some(connection.unwrap());
        world.run_until(RTT, |world| world.hosts[SERVER].connection.is_some());
        if resume != Resume::Off {
            let tracks = send_control.tracks.lock().unwrap();
            let track = tracks[0].upgrade().expect("the path is made");
            track.lock().unwrap().told = Some(old);
        }
        world.run(4 * RTT);
        let stream = world.connection(SERVER).streams().open(Dir::Uni);
        world.stream = Some(stream.expect("it is connected"));
        world
    }

    fn connection(&mut self, host: usize) -> &mut Connection {
        &mut self.hosts[host].connection.as_mut().unwrap().1
    }

    fn window(&mut self) -> u64 {
        let path = self.connection(SERVER).congestion_state(PathId::ZERO);
        path.expect("it is open").window()
    }

    /// Until then, or until `done` says so after an event.
    fn run_until(&mut self, time: Duration, done: impl Fn(&mut Self) -> bool) {
        let end = self.now + time;
        loop {
            self.write();
            self.send();
            if done(self) {
                return;
            }
            let timeouts = self.hosts.iter().filter_map(|host| {
                let (_, connection) = host.connection.as_ref()?;
                connection.poll_timeout()
            });
            let arrival = self.under_way.keys().next().map(|(at, _)| *at);
            let next = timeouts.chain(arrival).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            self.receive();
            for host in &mut self.hosts {
                if let Some((_, connection)) = &mut host.connection {
                    connection.handle_timeout(self.now);
                }
            }
            self.read();
        }
    }

    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn write(&mut self) {
        if let Some(id) = self.stream {
            let mut stream = self.connection(SERVER).send_stream(id);
            while stream.write(&[0; 65536]).is_ok() {}
        }
    }

    fn read(&mut self) {
        if let Some(id) = self.stream {
            let mut stream = self.connection(CLIENT).recv_stream(id);
            if let Ok(mut chunks) = stream.read(false) {
                while let Ok(Some(_)) = chunks.next(usize::MAX) {}
                let _ = chunks.finalize();
            }
        }
    }

    fn send(&mut self) {
        for from in [CLIENT, SERVER] {
            let Host {
                endpoint,
                connection,
            } = &mut self.hosts[from];
            let Some((handle, connection)) = connection else {
                continue;
            };
            while connection.poll().is_some() {}
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = endpoint.handle_event(*handle, event) {
                    connection.handle_event(event);
                }
            }
            let mut contents = Vec::new();
            while connection
                .poll_transmit(self.now, NonZeroUsize::MIN, &mut contents)
                .is_some()
            {
                let arrival = match from {
                    CLIENT => Some(self.now + RTT / 2),
                    _ => self
                        .link
                        .carry(self.now, &mut self.free, contents.len() as u64),
                };
                if let Some(arrival) = arrival {
                    let datagram = (1 - from, contents.as_slice().into());
                    self.under_way.insert((arrival, self.sent), datagram);
                } else {
                    self.dropped += 1;
                }
                self.sent += 1;
                contents.clear();
            }
        }
    }

    fn receive(&mut self) {
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= self.now
        {
            let (to, contents) = first.remove();
            let tuple = FourTuple::new(address(1 - to), Some(address(to).ip()));
            let host = &mut self.hosts[to];
            let mut answer = Vec::new();
            let endpoint = &mut host.endpoint;
            match endpoint.handle(self.now, tuple, None, contents, &mut answer) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = endpoint.accept(incoming, self.now, &mut answer, None);
                    host.connection = accepted.ok();
                }
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    host.connection.as_mut().unwrap().1.handle_event(event);
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
    }
}

impl Link {
    /// When so many bytes arrive, if the queue has room for them.
    fn carry(self, now: Instant, free: &mut Instant, bytes: u64) -> Option<Instant> {
        let time = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let begin = now.max(*free);
        if begin - now + time(bytes) > time(self.queue) {
            return None;
        }
        *free = begin + time(bytes);
        Some(*free + RTT / 2)
    }
}

/// Round trips until the window is as large as the old one, and what was dropped until then.
fn round_trips(congestion: Congestion, resume: Resume) -> (f64, u64) {
    let mut world = World::new(congestion, resume, EQUAL);
    let begin = world.now;
    // Less what a fresh BBR does not see of the jump.
    world.run_until(40 * RTT, |world| world.window() >= OLD_WINDOW * 95 / 100);
    let time = world.now - begin;
    (time.as_secs_f64() / RTT.as_secs_f64(), world.dropped)
}

/// What is dropped in the first seconds at a place that is ten times slower, packets.
fn dropped(congestion: Congestion, resume: Resume) -> u64 {
    let mut world = World::new(congestion, resume, TEN_TIMES_SLOWER);
    world.run(60 * RTT);
    world.dropped
}

/// One round trip each for the initial window (§3.2), for the jump (§3.3), and until that is acknowledged
/// (§3.4).
#[test]
fn at_an_equal_place_the_old_window_is_back_after_three_round_trips() {
    for congestion in Congestion::ALL {
        let (careful, dropped) = round_trips(congestion, Resume::Careful);
        let (aggressive, _) = round_trips(congestion, Resume::Aggressive);
        let (slow_start, _) = round_trips(congestion, Resume::Off);
        println!("{congestion}: {careful:.2} {aggressive:.2} {slow_start:.2} round trips");
        assert!(careful <= 3.5, "{congestion}: {careful}");
        assert!(aggressive < careful - 0.5, "{congestion}: {aggressive}");
        assert!(slow_start > careful + 1.5, "{congestion}: {slow_start}");
        assert_eq!(dropped, 0, "{congestion}");
    }
}

#[test]
fn at_a_slower_place_no_more_is_dropped_than_by_slow_start_and_one_jump() {
    for congestion in Congestion::ALL {
        let careful = dropped(congestion, Resume::Careful);
        let aggressive = dropped(congestion, Resume::Aggressive);
        let slow_start = dropped(congestion, Resume::Off);
        println!("{congestion}: {careful} {aggressive} {slow_start} packets dropped");
        let jump = OLD_WINDOW / 2 / SMALLEST;
        assert!(careful <= slow_start + jump, "{congestion}: {careful}");
        assert!(slow_start > 0 && careful > 0, "the link is slow indeed");
    }
}
