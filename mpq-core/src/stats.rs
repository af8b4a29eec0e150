//! What noq counts: of a path at one look, and what a connection has carried, as its sender saw it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::{PathFigures, PathId};

/// A connection that is over, in figures.
///
/// What is sent and lost are QUIC packets that the peer acknowledges, without UDP's headers. Those
/// still on their way at the end are in neither `lost` nor known to have arrived; those of a path
/// that was given up are all counted as lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Since the handshake, by the server's own clock, which stands still while it is frozen.
    pub duration: Duration,
    /// Over all paths, those that were never validated among them.
    pub total: PathStats,
    /// Every path that was in use.
    pub paths: Vec<PathTraffic>,
}

/// One path's part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTraffic {
    /// QUIC's path id.
    pub id: PathId,
    /// The client's address.
    pub remote: SocketAddr,
    /// What it carried.
    pub carried: PathStats,
    /// Round-trip time at its end, smoothed.
    pub rtt: Duration,
    /// Congestion window at its end, bytes.
    pub window: u64,
    /// How often the congestion control was told of losses, or of marks (ECN).
    pub congestion_events: u64,
}

/// Bytes and packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Bytes sent.
    pub sent: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes that were lost, or thought to be.
    pub lost: u64,
    /// Packets that were lost, or thought to be.
    pub lost_packets: u64,
    /// UDP payload received, bytes.
    pub received: u64,
}

impl Traffic {
    /// `remotes` are the client's addresses on its paths.
    pub(crate) fn new(
        duration: Duration,
        closed: &noq::Closed,
        remotes: &BTreeMap<noq::PathId, SocketAddr>,
    ) -> Self {
        let path = |(id, stats): &(noq::PathId, noq::PathStats)| {
            Some(PathTraffic {
                id: path_number(*id).into(),
                remote: *remotes.get(id)?,
                carried: PathStats {
                    sent: stats.sent_bytes,
                    sent_packets: stats.sent_packets,
                    lost: stats.lost_bytes,
                    lost_packets: stats.lost_packets,
                    received: stats.udp_rx.bytes,
                },
                rtt: stats.rtt,
                window: stats.cwnd,
                congestion_events: stats.congestion_events,
            })
        };
        let mut paths: Vec<_> = closed.path_stats.iter().filter_map(path).collect();
        paths.sort_by_key(|path| path.id);
        Self {
            duration,
            total: PathStats {
                sent: closed.stats.sent_bytes,
                sent_packets: closed.stats.sent_packets,
                lost: closed.stats.lost_bytes,
                lost_packets: closed.stats.lost_packets,
                received: closed.stats.udp_rx.bytes,
            },
            paths,
        }
    }
}

/// A path at one look.
pub(crate) fn figures(path: &noq::Path) -> PathFigures {
    let stats = path.stats();
    PathFigures {
        id: path_number(path.id()),
        rtt: stats.rtt,
        // noq leaves packets out that only acknowledge.
        sent: stats.sent_bytes,
        received: heard(&stats.frame_rx),
    }
}

/// Frames that only a living peer sends. noq counts datagrams before it knows whose they are: anybody on the
/// way can send those, or repeat them.
pub(crate) fn heard(frames: &noq::FrameStats) -> u64 {
    [
        frames.acks,
        frames.path_acks,
        frames.ping,
        frames.stream,
        frames.crypto,
        frames.max_data,
        frames.max_stream_data,
        frames.path_challenge,
        frames.path_response,
        frames.path_new_connection_id,
    ]
    .iter()
    .sum()
}

/// noq shows the number of a path, but does not give it.
pub(crate) fn path_number(id: noq::PathId) -> u32 {
    id.to_string().parse().unwrap_or(u32::MAX)
}
