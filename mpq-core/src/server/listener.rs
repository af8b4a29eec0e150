//! Where connections come in: an endpoint and its sockets.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::coop::consume_budget;

use super::handover::Estate;
use crate::error::BindError;
use crate::net::{Bind, Sockets};
use crate::proto::ownership::{Elders, IdKey};
use crate::proto::server::admission::{Admission, Limits, Verdict};
use crate::runtime::EndpointThread;
use crate::{tls, transport};

/// An endpoint that accepts connections, with a thread of its own.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) endpoint: noq::Endpoint,
    pub(super) sockets: Sockets,
    address: Mutex<SocketAddr>,
    /// Where somebody else may have a socket, too: who has opened the first one.
    shared: Option<SocketAddr>,
    /// What its connection IDs are made with.
    pub(super) ids: IdKey,
    /// No new connection is wanted.
    refuses: AtomicBool,
    admission: Arc<Mutex<Admission>>,
}

/// A client whose handshake may begin. It counts as one of those under way until the ticket is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Mutex<Admission>>,
    is_validated: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.lock().unwrap().over(self.is_validated);
    }
}

impl Listener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(super) fn bind(
        address: SocketAddr,
        crypto: noq::ServerConfig,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let (sockets, _) = Sockets::open(&[Bind::from(address)])
            .map_err(|error| BindError::Listen(address, error))?;
        Self::on(sockets, None, crypto, limits)
    }

    /// Listens on this socket, which is bound.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(super) fn adopt(
        socket: UdpSocket,
        crypto: noq::ServerConfig,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let sockets = Sockets::adopt(socket).map_err(BindError::Endpoint)?;
        let shared = Some(sockets.locals()[0]);
        Self::on(sockets, shared, crypto, limits)
    }

    /// Listens on the socket that another process has given, and passes on what is for that one.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(super) fn succeed(
        estate: Estate,
        crypto: noq::ServerConfig,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let sockets = Sockets::adopt(estate.socket).map_err(BindError::Endpoint)?;
        let elders = estate.ids.into_iter().map(IdKey::new).collect();
        let succeeded = sockets.succeed(estate.stream, Elders::new(elders));
        succeeded.map_err(BindError::Endpoint)?;
        Self::on(sockets, None, crypto, limits)
    }

    fn on(
        sockets: Sockets,
        shared: Option<SocketAddr>,
        crypto: noq::ServerConfig,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let address = Mutex::new(sockets.locals()[0]);
        let ids = IdKey::new(tls::random());
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            transport::server_config(ids.clone()),
            Some(crypto),
            sockets.for_endpoint(),
            Arc::new(EndpointThread::default()),
        )
        .map_err(BindError::Endpoint)?;
        Ok(Self {
            endpoint,
            sockets,
            address,
            shared,
            ids,
            refuses: AtomicBool::new(false),
            admission: Arc::new(Mutex::new(Admission::new(limits))),
        })
    }

    /// Where it listens, or did last.
    pub(super) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap()
    }

    /// The next connection whose handshake may begin; none once the endpoint is closed. Refuses those that are not
    /// wanted any more, and asks those beyond some to prove their addresses.
    pub(super) async fn accept(&self) -> Option<(noq::Incoming, Ticket)> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let is_validated = incoming.remote_address_validated();
            if self.refuses() {
                incoming.refuse();
            } else {
                let verdict = self.admission.lock().unwrap().ask(is_validated);
                match verdict {
                    Verdict::Begin => {
                        let ticket = Ticket {
                            admission: self.admission.clone(),
                            is_validated,
                        };
                        return Some((incoming, ticket));
                    }
                    // Whose address is not validated, may be asked to.
                    Verdict::Retry => drop(incoming.retry()),
                    Verdict::Ignore => incoming.ignore(),
                }
            }
            // There may be no end of them, and whoever accepts has other things to do.
            consume_budget().await;
        }
    }

    /// Whether new connections are to be refused.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// New connections are to be refused from now on.
    pub(super) fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    /// Closes the sockets, once what was handed to them is sent.
    pub(super) async fn close(&self) {
        self.sockets.close().await;
    }

    /// Looks out for who comes along.
    pub(super) fn begin_arrival(&self) {
        self.sockets.begin_arrival();
    }

    /// Does so no more.
    pub(super) fn end_arrival(&self) {
        self.sockets.end_arrival();
    }

    /// noq is to forget the addresses that the sockets had: paths that are redirected go on at others.
    pub(super) fn forget_addresses(&self) {
        self.endpoint.handle_network_change(None);
    }

    /// Opens the sockets at `address`. At another one than before, noq has to validate the clients' addresses anew.
    ///
    /// # Errors
    /// The address is taken, or not one of this host.
    pub(super) fn reopen(&self, address: SocketAddr) -> io::Result<()> {
        let is_new = address != self.address();
        let bind = Bind {
            shared: self.shared == Some(address),
            ..address.into()
        };
        let open = || self.sockets.add(&[bind]);
        match is_new {
            true => self.sockets.showing_local(open)?,
            false => open()?,
        }
        *self.address.lock().unwrap() = self.sockets.locals()[0];
        Ok(())
    }
}
