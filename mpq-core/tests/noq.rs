//! What mpq works around in noq. A test here fails once noq is mended; the work-around can go then.
//!
//! Two connections of noq's in virtual time, over links that delay, and lose nothing until they are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mpq_core::tls::{self, Identity, Trust};
use noq_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    FourTuple, PathError, PathId, PathStatus, ServerConfig, StreamId, TransportConfig, VarInt,
};

const CLIENT: usize = 0;
const SERVER: usize = 1;
/// One way.
const DELAYS: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(1)];
const MILLISECOND: Duration = Duration::from_millis(1);
/// More than noq keeps keys for that it needs no more.
const LONG: Duration = Duration::from_secs(1);

fn server_address() -> SocketAddr {
    "10.1.0.1:443".parse().unwrap()
}

/// Of the client, on a link.
fn address(link: usize) -> SocketAddr {
    SocketAddr::new([10, 0, link as u8, 1].into(), 4000)
}

fn identity() -> Identity {
    Identity::self_signed(&["localhost".to_owned()]).unwrap()
}

struct Host {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

struct Datagram {
    to: usize,
    tuple: FourTuple,
    contents: BytesMut,
}

struct World {
    now: Instant,
    hosts: [Host; 2],
    /// By arrival, and in the order of sending.
    under_way: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    /// The server sends on it whatever it can.
    stream: Option<StreamId>,
    /// The link that carries nothing.
    cut: Option<usize>,
    /// The server does not get the connection ids yet that it is to issue.
    ids_withheld: bool,
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_multipath_paths(2)
        .stream_receive_window(VarInt::from_u32(1 << 20));
    Arc::new(config)
}

impl World {
    /// Connected over the first link, and sending.
    fn new() -> Self {
        let mut world = Self::connecting();
        world.run(LONG);
        world.stream = world.connection(SERVER).streams().open(Dir::Uni);
        assert!(world.stream.is_some());
        world
    }

    /// Before the first packet.
    fn connecting() -> Self {
        Self::connecting_to(&identity())
    }

    /// To a server that is this one.
    fn connecting_to(identity: &Identity) -> Self {
        let mut server = ServerConfig::with_crypto(Arc::new(tls::server_config(identity).unwrap()));
        server.transport_config(transport());
        let mut client = ClientConfig::new(Arc::new(tls::client_config(&Trust::Insecure).unwrap()));
        client.transport_config(transport());
        let configs = [None, Some(Arc::new(server))];
        let hosts = configs.map(|config| Host {
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), config, false),
            connection: None,
        });
        let mut world = Self {
            now: Instant::now(),
            hosts,
            under_way: BTreeMap::new(),
            sent: 0,
            stream: None,
            cut: None,
            ids_withheld: false,
        };
        let endpoint = &mut world.hosts[CLIENT].endpoint;
        let connection = endpoint.connect(world.now, client, server_address(), "localhost");
        world.hosts[CLIENT].connection = Some(connection.unwrap());
        world
    }

    fn connection(&mut self, host: usize) -> &mut Connection {
        &mut self.hosts[host].connection.as_mut().unwrap().1
    }

    /// Asks for a second path, over the second link.
    fn ask_for_second(&mut self) -> Result<PathId, PathError> {
        let second = FourTuple::new(server_address(), Some(address(1).ip()));
        let now = self.now;
        let client = self.connection(CLIENT);
        client.open_path(second, PathStatus::Available, now)
    }

    /// A second path, at the moment at which the server begins to use it.
    fn open_second(&mut self) -> PathId {
        let second = self.ask_for_second().unwrap();
        while self.packets(second).0 == 0 {
            self.run(MILLISECOND);
        }
        second
    }

    /// Packets that the server has sent on a path, and of these the lost ones.
    fn packets(&mut self, path: PathId) -> (u64, u64) {
        let stats = self.connection(SERVER).path_stats(path);
        stats.map_or((0, 0), |stats| (stats.udp_tx.datagrams, stats.lost_packets))
    }

    /// Datagrams from the server that have the longer part of the first link before them.
    fn on_first_link(&self) -> usize {
        let late = (self.now + DELAYS[0] / 2, 0);
        let datagrams = self.under_way.range(late..);
        datagrams
            .filter(|(_, datagram)| datagram.to == CLIENT)
            .count()
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.write();
            self.send();
            self.now += MILLISECOND;
            self.receive();
            for host in [CLIENT, SERVER] {
                let now = self.now;
                if let Some((_, connection)) = &mut self.hosts[host].connection
                    && connection.poll_timeout().is_some_and(|due| due <= now)
                {
                    connection.handle_timeout(now);
                }
            }
            self.read();
        }
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
            if let Ok(mut chunks) = stream.read(true) {
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
            while !(self.ids_withheld && from == SERVER)
                && let Some(event) = connection.poll_endpoint_events()
            {
                if let Some(event) = endpoint.handle_event(*handle, event) {
                    connection.handle_event(event);
                }
            }
            let mut contents = Vec::new();
            while let Some(transmit) =
                connection.poll_transmit(self.now, NonZeroUsize::MIN, &mut contents)
            {
                let goes_by = |link: &usize| match from {
                    CLIENT => transmit.src_ip == Some(address(*link).ip()),
                    _ => transmit.destination == address(*link),
                };
                let link = (0..DELAYS.len()).find(goes_by).unwrap_or(0);
                let (remote, local) = match from {
                    CLIENT => (address(link), server_address()),
                    _ => (server_address(), address(link)),
                };
                let datagram = Datagram {
                    to: 1 - from,
                    tuple: FourTuple::new(remote, Some(local.ip())),
                    contents: contents.as_slice().into(),
                };
                if self.cut != Some(link) {
                    self.under_way
                        .insert((self.now + DELAYS[link], self.sent), datagram);
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
            let datagram = first.remove();
            let host = &mut self.hosts[datagram.to];
            let mut answer = Vec::new();
            let event = host.endpoint.handle(
                self.now,
                datagram.tuple,
                None,
                datagram.contents,
                &mut answer,
            );
            match event {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = host.endpoint.accept(incoming, self.now, &mut answer, None);
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

/// `transport::server`.
#[test]
fn more_than_three_times_what_has_come_is_sent_to_an_address_that_is_not_validated() {
    let mut identity = identity();
    // What the server has to say fills a datagram, and another one in part.
    let certificate = identity.chain[0].clone();
    identity.chain.extend([certificate.clone(), certificate]);
    let mut world = World::connecting_to(&identity);
    while world.hosts[SERVER].connection.is_none() {
        world.run(MILLISECOND);
    }
    let received = world.connection(CLIENT).stats().udp_tx.bytes;
    world.cut = Some(0);
    world.run(20 * LONG);
    let sent = world.connection(SERVER).stats().udp_tx.bytes;
    println!("{sent} bytes for {received}");
    assert!(sent < 4 * received, "{sent}, {received}");
    assert!(
        sent > 3 * received,
        "noq keeps to three times: the comment can go"
    );
}

/// `transport::update_keys`.
#[test]
fn a_key_update_costs_what_is_in_flight_on_a_path_that_is_further_on() {
    let mut world = World::new();
    world.connection(SERVER).force_key_update();
    world.run(2 * LONG);
    let second = world.open_second();
    let ((first, none), (few, _)) = (world.packets(PathId::ZERO), world.packets(second));
    assert!(first > 1000 + few && none == 0, "{first}, {few}, {none}");

    // The window is sent in bursts: between these, nothing is under way that could be lost, and after them
    // nothing is sent that would overtake it.
    let in_a_burst = (0..LONG.as_millis()).any(|_| {
        world.run(MILLISECOND);
        world.on_first_link() >= 100
    });
    assert!(in_a_burst);
    world.connection(SERVER).force_key_update();
    world.connection(SERVER).ping_path(second).unwrap();
    world.run(LONG);
    let (_, lost) = world.packets(PathId::ZERO);
    assert!(
        lost > 0,
        "noq keeps the paths apart: the work-around can go"
    );
}

/// `h3::send_window::MAX_IN_FLIGHT_OF_ONE_BODY`.
#[test]
fn what_is_in_flight_on_a_path_that_dies_stays_there() {
    let mut world = World::new();
    let second = world.open_second();
    world.run(LONG);
    world.cut = Some(1);
    let (before, _) = world.packets(second);
    world.run(2 * LONG);
    let (after, lost) = world.packets(second);
    assert!(after > before, "it is still tried");
    assert_eq!(
        lost, 0,
        "noq sends it again elsewhere: the work-around can go"
    );
}

/// `h3::reassembly::Watch`.
#[test]
fn what_fills_a_gap_is_lost_where_noq_makes_order_before_it_is_read() {
    const PIECE: usize = 10;
    let mut world = World::new();
    world.run(LONG);
    // Small pieces in packets that the other stream fills: they hold so much memory that noq makes order.
    let id = world.connection(SERVER).streams().open(Dir::Uni).unwrap();
    let mut stream = world.connection(SERVER).send_stream(id);
    stream.set_priority(1).unwrap();
    let mut read = BTreeSet::new();
    for tick in 0..1000 {
        let mut stream = world.connection(SERVER).send_stream(id);
        assert_eq!(stream.write(&[0; PIECE]), Ok(PIECE));
        // Long enough that some piece is under way.
        world.cut = (100..110).contains(&tick).then_some(0);
        world.run(MILLISECOND);
        // What was lost comes again meanwhile, after some that was sent later was read.
        if (160..260).contains(&tick) {
            continue;
        }
        let mut stream = world.connection(CLIENT).recv_stream(id);
        if let Ok(mut chunks) = stream.read(false) {
            while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                read.extend(chunk.offset..chunk.offset + chunk.bytes.len() as u64);
            }
            let _ = chunks.finalize();
        }
    }
    let last = *read.last().unwrap();
    assert!(last > 900 * PIECE as u64, "{last}");
    assert!(
        (0..last).any(|offset| !read.contains(&offset)),
        "noq keeps it: the work-around can go"
    );
}

/// `client::opening`.
#[test]
fn a_path_is_opened_before_the_handshake_is_confirmed() {
    let mut world = World::connecting();
    world.ids_withheld = true;
    let is_done = |(_, server): &(_, Connection)| !server.is_handshaking();
    while !world.hosts[SERVER].connection.as_ref().is_some_and(is_done) {
        world.run(MILLISECOND);
    }
    // HANDSHAKE_DONE is lost, and the server's ids come after it.
    world.cut = Some(0);
    world.run(MILLISECOND);
    (world.cut, world.ids_withheld) = (None, false);
    world.run(DELAYS[0] + 2 * MILLISECOND);
    let received = world.connection(CLIENT).stats().frame_rx;
    assert_eq!(received.handshake_done, 0);
    assert!(received.path_new_connection_id > 0);
    assert!(
        world.ask_for_second().is_ok(),
        "noq refuses it: the work-around can go"
    );
}

/// `limits::PATHS`, which has room for paths that come to nothing.
#[test]
fn the_id_of_a_path_that_the_server_has_not_seen_is_lost() {
    let mut world = World::new();
    world.cut = Some(1);
    let second = world.ask_for_second().unwrap();
    world.run(LONG);
    let now = world.now;
    let closed = world
        .connection(CLIENT)
        .close_path(now, second, VarInt::from_u32(0));
    assert!(closed.is_ok());
    world.run(LONG);
    let server = world.connection(SERVER).stats();
    assert_eq!(server.frame_rx.path_abandon, 1);
    assert_eq!(
        (server.frame_tx.path_abandon, server.frame_tx.max_path_id),
        (0, 0),
        "noq answers, and grants another id: there is room for more"
    );
}

/// `proto::client::baselines::Detection`.
#[test]
fn a_path_that_nobody_answers_is_opened_over_and_over_on_one_id() {
    let mut world = World::new();
    // The other path has nothing to carry.
    let stream = world.stream.take();
    world.cut = Some(1);
    let tuple = FourTuple::new(server_address(), Some(address(1).ip()));
    let now = world.now;
    let client = world.connection(CLIENT);
    let second = client.open_path(tuple, PathStatus::Available, now).unwrap();
    // A peer grants another id only for one that it knows to be abandoned.
    let third = client.open_path(tuple, PathStatus::Available, now);
    assert_eq!(third, Err(PathError::MaxPathIdReached));
    let challenges = |world: &mut World| {
        let stats = world.connection(CLIENT).path_stats(second).unwrap();
        (stats.frame_tx.path_challenge, stats.udp_tx.bytes)
    };
    world.run(MILLISECOND);
    assert_eq!(challenges(&mut world), (1, 1200));
    // For half a minute. Then what is in flight fills the window, and noq says no more there.
    for _ in 0..12 {
        let before = challenges(&mut world);
        world.run(5 * LONG / 2);
        let after = challenges(&mut world);
        assert!(after.0 > before.0, "nothing goes there");
        assert!(after.1 - before.1 <= 4 * 1200, "{after:?}");
    }
    (world.cut, world.stream) = (None, stream);
    world.run(3 * LONG);
    assert!(world.packets(second).0 > 0, "the server uses it");
}

/// `proto::client::baselines::Detection`.
#[test]
fn a_path_that_is_closed_while_no_other_is_validated_is_never_told_of() {
    let mut world = World::new();
    let second = world.open_second();
    world.run(LONG);
    let now = world.now;
    let closed = world
        .connection(CLIENT)
        .close_path(now, second, VarInt::from_u32(0));
    closed.unwrap();
    world.run(LONG);
    // There is one id more now. A path is opened with it, and nothing gets there yet.
    world.cut = Some(1);
    let tuple = FourTuple::new(server_address(), Some(address(1).ip()));
    let now = world.now;
    let client = world.connection(CLIENT);
    let third = client.open_path(tuple, PathStatus::Available, now).unwrap();
    world.run(MILLISECOND);
    // The first one is closed while its link carries nothing, as that of a frozen server.
    world.cut = Some(0);
    let now = world.now;
    let closed = world
        .connection(CLIENT)
        .close_path(now, PathId::ZERO, VarInt::from_u32(0));
    closed.unwrap();
    world.run(LONG);
    world.cut = None;
    world.run(5 * LONG);
    let sent = world.packets(third).0;
    assert!(sent > 0, "the server uses the third");
    let client = world.connection(CLIENT);
    let told = client.stats().frame_tx.path_abandon;
    let server = world.connection(SERVER);
    let heard = server.stats().frame_rx.path_abandon;
    assert_eq!(
        (told, heard),
        (2, 1),
        "noq tells it again: the work-around can go"
    );
}
