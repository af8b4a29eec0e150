//! noq's settings, the same at both ends.
//!
//! - Idle timeouts are ours, not QUIC's: a frozen server is silent for longer than any of them.
//! - A stream's window stays small, since noq ends a connection whose stream has too many gaps
//!   ("too many gaps in stream buffer", about a thousand packets): 2 MiB cannot reach that.
//! - So are those of single paths: what has died silently is found by comparison (`path::silence`).
//! - With the feature `qlog`, `QLOGDIR` names a folder for a trace of each connection.
//! - Path ids are never reused, so there is room for several moves of several interfaces; noq
//!   grants new ones as old paths are abandoned.

use std::sync::Arc;
use std::time::Duration;

use noq::{TransportConfig, VarInt};

use crate::congestion::Congestion;

/// Bytes a peer may send on one stream before they are read.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes a peer may send on all streams together before they are read.
pub const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes kept for retransmission; part of a frozen server's image.
pub const SEND_WINDOW: u64 = 16 << 20;
/// Paths at a time. A move needs two for each interface.
const PATHS: u32 = 16;
/// How often a client shows that it is there: NAT bindings last at least 30 s (RFC 4787 wants
/// 2 minutes, few give it).
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// For one connection.
pub(crate) fn client_transport(congestion: Congestion) -> Arc<TransportConfig> {
    let mut config = common(congestion);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// For one connection.
pub(crate) fn server_transport(congestion: Congestion) -> Arc<TransportConfig> {
    Arc::new(common(congestion))
}

fn common(congestion: Congestion) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_multipath_paths(PATHS)
        .congestion_controller_factory(congestion.factory());
    #[cfg(feature = "qlog")]
    if let Some(traces) = crate::qlog::from_env() {
        config.qlog_factory(traces);
    }
    config
}
