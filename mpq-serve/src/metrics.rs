//! What the server counts, for Prometheus and the like.

use std::sync::atomic::AtomicU64;

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

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
        let mut metrics = Self {
            registry: Registry::with_prefix("mpq_serve"),
            connections: Count::default(),
            open_connections: Gauge::default(),
            failed_handshakes: Count::default(),
            running: Gauge::default(),
            responses: Family::default(),
            cut: Count::default(),
            sent: Count::default(),
            moves: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "connections",
            "QUIC connections that were made",
            metrics.connections.clone(),
        );
        registry.register(
            "open_connections",
            "QUIC connections that are there",
            metrics.open_connections.clone(),
        );
        registry.register(
            "failed_handshakes",
            "QUIC handshakes that came to nothing",
            metrics.failed_handshakes.clone(),
        );
        registry.register(
            "running_responses",
            "Responses under way",
            metrics.running.clone(),
        );
        registry.register(
            "responses",
            "Responses that are over, by status",
            metrics.responses.clone(),
        );
        registry.register(
            "cut_responses",
            "Responses that were cut off",
            metrics.cut.clone(),
        );
        registry.register_with_unit("sent", "Bytes of bodies", Unit::Bytes, metrics.sent.clone());
        registry.register("moves", "Moves, by how they ended", metrics.moves.clone());
        metrics
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
