//! The server at each address that it listens on: one site, one certificate, and one set of limits.
//!
//! Each address has an endpoint of its own. A connection belongs to the address that it was made to, and answers leave from
//! there, also where two addresses differ in the port only. So a move would be one of several endpoints at once, which
//! the protocol of moves does not know: a server that is at several addresses [does not move](NO_MOVE).

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join_all, select_all};
use mpq_core::server::{BindError, Estate, HandOverError, Handshake, Server, ServerConfig};
use mpq_core::tls::{Identity, TlsError};

/// Why a server does not move that is at several addresses.
pub(crate) const NO_MOVE: &str =
    "it listens on several addresses; start it with one --listen to move it";

/// One server for each address.
#[derive(Debug)]
pub(crate) struct Listeners {
    servers: Vec<Server>,
    /// Who is asked first for a client, so that none keeps the others waiting.
    turn: AtomicUsize,
}

impl Listeners {
    /// Listens on these sockets, or if there are none at these addresses.
    ///
    /// # Errors
    /// One of them cannot be listened on.
    pub(crate) fn start(
        sockets: Vec<UdpSocket>,
        addresses: &[SocketAddr],
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        if sockets.is_empty() {
            let config = shared(config, addresses.len());
            let bind = |address: &SocketAddr| Server::bind(*address, identity, config.clone());
            Self::of(addresses.iter().map(bind))
        } else {
            let config = shared(config, sockets.len());
            let adopt = |socket| Server::from_socket(socket, identity, config.clone());
            Self::of(sockets.into_iter().map(adopt))
        }
    }

    /// Takes over from the servers of another process.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn succeed(
        estates: Vec<Estate>,
        identity: &Identity,
        config: ServerConfig,
    ) -> Result<Self, BindError> {
        let config = shared(config, estates.len());
        let succeed = |estate| Server::succeed(estate, identity, config.clone());
        Self::of(estates.into_iter().map(succeed))
    }

    fn of(servers: impl Iterator<Item = Result<Server, BindError>>) -> Result<Self, BindError> {
        Ok(Self {
            servers: servers.collect::<Result<_, _>>()?,
            turn: AtomicUsize::default(),
        })
    }

    /// The first one; if there are no others, the one that moves.
    pub(crate) fn first(&self) -> &Server {
        &self.servers[0]
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Server::local_addr).collect()
    }

    /// The next client that comes to any of them; none once they are closed.
    pub(crate) async fn accept(&self) -> Option<Handshake> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.servers.len();
        let (later, first) = self.servers.split_at(turn);
        let accepts = first.iter().chain(later).map(Server::accept);
        let (handshake, ..) = select_all(accepts.map(Box::pin)).await;
        handshake
    }

    /// As [`Server::set_identity`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn set_identity(&self, identity: &Identity) -> Result<(), TlsError> {
        self.servers
            .iter()
            .try_for_each(|server| server.set_identity(identity))
    }

    /// As [`Server::hand_over`], of all of them or none.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn hand_over(&self) -> Result<Vec<Estate>, HandOverError> {
        self.servers.iter().map(Server::hand_over).collect()
    }

    /// As [`Server::take_back`].
    pub(crate) fn take_back(&self) {
        self.servers.iter().for_each(Server::take_back);
    }

    /// As [`Server::has_handed_over`].
    pub(crate) fn have_handed_over(&self) -> bool {
        self.servers.iter().all(Server::has_handed_over)
    }

    /// As [`Server::has_elder`].
    pub(crate) fn have_elders(&self) -> bool {
        self.servers.iter().any(Server::has_elder)
    }

    /// As [`Server::dismiss`].
    pub(crate) fn dismiss(&self) {
        self.servers.iter().for_each(Server::dismiss);
    }

    /// As [`Server::go_away`].
    pub(crate) fn go_away(&self) {
        self.servers.iter().for_each(Server::go_away);
    }

    /// As [`Server::close`].
    pub(crate) async fn close(&self) {
        join_all(self.servers.iter().map(Server::close)).await;
    }
}

/// All servers together may have as many handshakes as one.
fn shared(config: ServerConfig, count: usize) -> ServerConfig {
    ServerConfig {
        unvalidated_handshakes: config.unvalidated_handshakes / count,
        handshakes: config.handshakes / count,
        ..config
    }
}
