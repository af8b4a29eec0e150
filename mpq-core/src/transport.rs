//! noq's settings, the same at both ends.
//!
//! - Idle timeouts are ours, not QUIC's: a frozen server is silent for longer than any of them. So are
//!   those of single paths: what has died silently is found by comparison (`proto::liveness`).
//! - The windows and the number of paths are those of [`limits`](crate::limits).
//! - With the feature `qlog`, `QLOGDIR` names a folder for a trace of each connection.
//! - Nothing believes a stateless reset (RFC 9000 §10.3). noq checks the token of a connection id
//!   even after that was retired, and an endpoint hands the token out to whoever replays an old
//!   datagram of a closed path: with each move, anybody on the path could end the connection
//!   (§21.11). A peer that has truly forgotten a connection is found out by its silence.

use std::sync::Arc;
use std::time::Duration;

use noq::crypto::{CryptoError, HmacKey};
use noq::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig,
    TransportConfig, VarInt,
};
use noq_proto::InvalidCid;
use rustls::crypto::SecureRandom;

use crate::congestion::{Congestion, Factory};
use crate::h3::Order;
use crate::limits::{
    CONNECTION_WINDOW, INCOMING, INCOMING_BUFFER, INCOMING_BUFFERS, PATHS, REQUESTS_WINDOW,
    SEND_WINDOW, STREAM_WINDOW,
};
use crate::proto::ownership::{ID_LENGTH, IdKey};
use crate::tls::random;

/// What a round trip is taken for until one was measured: a path's first packets are sent again after three
/// of these. Chromium's and quic-go's; RFC 9002 §6.2.2 has 333 ms, with which a path whose validation is
/// lost waits for a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// The largest datagram to receive: what UDP can carry, bytes.
const MAX_PAYLOAD: u16 = 65527;
/// The largest datagram that every path carries, bytes (RFC 9000 §14).
const SMALLEST_MTU: u16 = 1200;
/// The largest that Ethernet does, bytes: 1,500 less the headers of IPv4 and UDP.
const ETHERNET: u16 = 1472;
/// How long a client may delay the acknowledgement of a single packet, where it would by default for
/// 25 ms (RFC 9000 §18.2): a server that is about to be frozen is silent until its last one is
/// acknowledged.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// How long a client may take to come back with the token of a Retry: longer than most moves, since a server that has
/// moved gets it at the new address, or at the same one later.
const RETRY_LIFETIME: Duration = Duration::from_secs(120);
/// How often a client shows that it is there: NAT bindings last at least 30 s (RFC 4787 wants
/// 2 minutes, few give it).
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// For one endpoint, of either end.
pub(crate) fn config() -> EndpointConfig {
    let random = rustls::crypto::ring::default_provider().secure_random;
    let mut config = EndpointConfig::new(Arc::new(OnceOnly(random)));
    config
        .max_udp_payload_size(MAX_PAYLOAD)
        .expect("it is within the bounds of RFC 9000 §18.2");
    config
}

/// For the endpoint of a server, whose connection IDs are made with this key.
pub(crate) fn server_config(ids: IdKey) -> EndpointConfig {
    let mut config = config();
    config.cid_generator(Arc::new(move || Box::new(Ids(ids.clone()))));
    config
}

/// Makes connection IDs by which another process knows whose they are.
struct Ids(IdKey);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.id(random()))
    }

    fn validate(&self, id: ConnectionId) -> Result<(), InvalidCid> {
        let id = (*id).try_into().map_err(|_| InvalidCid)?;
        match self.0.has_made(id) {
            true => Ok(()),
            false => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Signs everything anew, so that no reset token is ever the one that the peer was told.
#[derive(Debug)]
struct OnceOnly(&'static dyn SecureRandom);

impl HmacKey for OnceOnly {
    fn sign(&self, _: &[u8], signature: &mut [u8]) {
        // A token that can be guessed would be worse than none.
        self.0
            .fill(signature)
            .expect("the system has random numbers");
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, _: &[u8], _: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError)
    }
}

/// For one connection, whose datagrams may have so many bytes at most.
pub(crate) fn client_transport(congestion: Congestion, largest: u16) -> Arc<TransportConfig> {
    let mut config = common(congestion.factory(), largest);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// How a client reads bodies, whose datagrams may have so many bytes at most when it connects.
///
/// Our own order keeps every path going while a gap is waited for. But noq loses what fills the gap if that
/// comes in three or more pieces to a packet (see `h3::reassembly`). Packets for Ethernet hardly hold as many:
/// a piece was most of an earlier packet, of 1,200 bytes or more. Larger ones do, if they repeat a path's first
/// packets, which are small. Where there are such, round trips are short, and so is what a gap costs.
pub(crate) fn order(largest: u16) -> Order {
    if largest <= ETHERNET {
        Order::Ours
    } else {
        Order::Noq
    }
}

/// For a server, with nothing yet of its connections.
///
/// noq sends up to a datagram more than three times what it has received from an address that is not validated
/// (RFC 9000 §8.1): it sends a whole one wherever a single byte may be sent (`path_congestion_check` of noq-proto's
/// `connection/mod.rs`, as quinn does since <https://github.com/quinn-rs/quinn/issues/1082>). Three times a first
/// datagram are three whole ones; only where the server's messages do not fill theirs, there may be a fourth one, when
/// they are repeated. To keep to the limit, noq would have to make that one smaller, or to wait. `tests/noq.rs` tells
/// when it does.
pub(crate) fn server(crypto: Arc<dyn noq::crypto::ServerConfig>) -> noq::ServerConfig {
    let mut config = noq::ServerConfig::with_crypto(crypto);
    config
        .max_incoming(INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS)
        .retry_token_lifetime(RETRY_LIFETIME);
    config
}

/// For one connection, whose datagrams may have so many bytes at most.
pub(crate) fn server_transport(congestion: Arc<Factory>, largest: u16) -> Arc<TransportConfig> {
    let mut acks = AckFrequencyConfig::default();
    // As without the extension: a packet that is missing is told of at once.
    acks.max_ack_delay(Some(ACK_DELAY))
        .reordering_threshold(VarInt::from_u32(1));
    let mut config = common(congestion, largest);
    config
        .receive_window(VarInt::from_u32(REQUESTS_WINDOW))
        .ack_frequency_config(Some(acks));
    Arc::new(config)
}

fn common(congestion: Arc<Factory>, largest: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(None)
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_multipath_paths(PATHS)
        .mtu_discovery_config(Some(mtu_discovery(largest)))
        .congestion_controller_factory(congestion);
    #[cfg(feature = "qlog")]
    if let Some(traces) = crate::qlog::from_env() {
        config.qlog_factory(traces);
    }
    config
}

/// Has a server's connection update its keys (RFC 9001 §6) while it has one path only.
///
/// noq tells a packet with the old keys from one with the next by its number: it compares that with the
/// first one after the update, though on another path they are numbered anew (draft-ietf-quic-multipath-21
/// §2.4). What is in flight on a path that is further on is dropped then, which the sender takes for
/// congestion: a path that has just begun stays slow for seconds. noq updates once after 10 to 1,000
/// packets, at random, and from then on every 8 million.
///
/// Not known upstream; the nearest is <https://github.com/n0-computer/noq/pull/165>. `tests/noq.rs` tells
/// when this can go.
pub(crate) fn update_keys(connection: &noq::Connection) {
    if connection.is_multipath_enabled() {
        connection.force_key_update();
    }
}

/// A path most often carries what its interface does: that is tried first, where noq would approach it
/// in halves, a round trip each. It then tries the middle, and leaves it at that. Where interfaces
/// carry more than Ethernet does, their paths often do not, and it has to search.
fn mtu_discovery(largest: u16) -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest);
    if largest <= ETHERNET {
        let range = largest.saturating_sub(SMALLEST_MTU);
        discovery.minimum_change(range / 2 + 1);
    }
    discovery
}
