//! What the server counts, for Prometheus and the like.

use std::sync::atomic::AtomicU64;

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

type Count = Counter<u64, AtomicU64>;
type Label = [(&'static str, String); 1];

/// All figures of a process. They go along when it moves.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Connections over QUIC that were made.
    pub(crate) connections: Count,
    /// Those that are there now.
    pub(crate) open_connections: Gauge,
    /// Handshakes over QUIC that came to nothing.
    pub(crate) failed_handshakes: Count,
    /// Connections for which there was no room.
    pub(crate) refused_connections: Count,
    /// Responses under way.
    pub(crate) running: Gauge,
    /// Those that are over.
    responses: Family<Label, Count>,
    /// Those that were cut.
    cut: Count,
    /// Bytes of their bodies.
    sent: Count,
    /// Moves that were begun, by how they ended.
    moves: Family<Label, Count>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("mpq_serve");
        let sent = Count::default();
        registry.register_with_unit("sent", "Bytes of bodies", Unit::Bytes, sent.clone());
        let all = &mut registry;
        Self {
            connections: registered(all, "connections", "QUIC connections that were made"),
            open_connections: registered(
                all,
                "open_connections",
                "QUIC connections that are there",
            ),
            failed_handshakes: registered(
                all,
                "failed_handshakes",
                "QUIC handshakes that came to nothing",
            ),
            refused_connections: registered(
                all,
                "refused_connections",
                "Connections for which there was no room",
            ),
            running: registered(all, "running_responses", "Responses under way"),
            responses: registered(all, "responses", "Responses that are over, by status"),
            cut: registered(all, "cut_responses", "Responses that were cut off"),
            sent,
            moves: registered(all, "moves", "Moves, by how they ended"),
            registry,
        }
    }

    /// A response with a body of so many bytes is over.
    pub(crate) fn responded(&self, status: StatusCode, bytes: u64, cut: bool) {
        let label = [("status", status.as_u16().to_string())];
        self.responses.get_or_create(&label).inc();
        self.sent.inc_by(bytes);
        self.cut.inc_by(cut.into());
    }

    /// A move is over: the server is elsewhere, or stays.
    pub(crate) fn moved(&self, elsewhere: bool) {
        let result = if elsewhere { "moved" } else { "stayed" };
        let label = [("result", result.to_owned())];
        self.moves.get_or_create(&label).inc();
    }

    /// In the text format of OpenMetrics, which Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes it all");
        text
    }
}

/// A figure that begins at nothing.
fn registered<M: Metric + Clone + Default>(all: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    all.register(name, help, metric.clone());
    metric
}
