//! How a client connects.

use std::time::Duration;

use crate::congestion::Congestion;
use crate::proto::Strategy;
use crate::tls::Trust;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Which certificates are accepted.
    pub trust: Trust,
    /// Interface names or IP addresses to use; all usable ones if empty.
    pub interfaces: Vec<String>,
    /// How long the server may be silent in a move.
    pub migration_timeout: Duration,
    /// How long the server may be silent otherwise, while a read, a write or a request waits for it.
    pub idle_timeout: Duration,
    /// How long the handshake may take.
    pub connect_timeout: Duration,
    /// How fast the client may send.
    pub congestion: Congestion,
    /// How the client follows the server.
    pub strategy: Strategy,
    /// Has the strategies that redirect send to addresses that nobody has validated; for testbeds.
    pub allow_unvalidated: bool,
    /// Ignores PARKED and the server's knocks, which the literature's servers do not have; for comparison. See
    /// [`Strategy`].
    pub bare: bool,
    /// Up to how long, chosen at random, the client waits with going to a new address, so that many
    /// clients do not arrive at once.
    pub hold_back: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            trust: Trust::System,
            interfaces: Vec::new(),
            migration_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            congestion: Congestion::default(),
            strategy: Strategy::default(),
            allow_unvalidated: false,
            bare: false,
            hold_back: Duration::ZERO,
        }
    }
}
