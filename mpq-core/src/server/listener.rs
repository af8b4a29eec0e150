//! Where connections come in: an endpoint and its sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::BindError;
use crate::net::{Bind, Sockets};
use crate::runtime::EndpointThread;
use crate::transport;

/// An endpoint that accepts connections, with a thread of its own.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) endpoint: noq::Endpoint,
    pub(super) sockets: Sockets,
    address: Mutex<SocketAddr>,
    /// No new connection is wanted.
    refuses: AtomicBool,
}

impl Listener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// See [`BindError`].
    pub(super) fn bind(address: SocketAddr, crypto: noq::ServerConfig) -> Result<Self, BindError> {
        let (sockets, _) = Sockets::open(&[Bind::from(address)])
            .map_err(|error| BindError::Listen(address, error))?;
        let address = Mutex::new(sockets.locals()[0]);
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            transport::config(),
            Some(crypto),
            sockets.for_endpoint(),
            Arc::new(EndpointThread::default()),
        )
        .map_err(BindError::Endpoint)?;
        Ok(Self {
            endpoint,
            sockets,
            address,
            refuses: AtomicBool::new(false),
        })
    }

    /// Where it listens, or did last.
    pub(super) fn address(&self) -> SocketAddr {
        *self.address.lock().unwrap()
    }

    /// The next connection; none once the endpoint is closed. Refuses those that are not wanted any more.
    pub(super) async fn accept(&self) -> Option<noq::Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if !self.refuses() {
                return Some(incoming);
            }
            incoming.refuse();
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
        let open = || self.sockets.add(&[Bind::from(address)]);
        match is_new {
            true => self.sockets.showing_local(open)?,
            false => open()?,
        }
        *self.address.lock().unwrap() = self.sockets.locals()[0];
        Ok(())
    }
}
