//! What the server says over TCP, beside QUIC.
//!
//! A connection over TCP cannot move. So a [`door`] is open only while the server is not about to be frozen: it is
//! closed, with all connections that came through it, and opened anew after the move. [`site`] serves the site to
//! those who do not know yet that it speaks HTTP/3. [`operator`] tells operators how the server is.

pub(crate) mod door;
pub(crate) mod operator;
pub(crate) mod site;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use self::door::Door;
use self::operator::Operator;
use self::site::Tls;

/// All that listens over TCP.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    /// To the site, at each address of the server.
    pub(crate) site: Vec<(Door, Arc<Tls>)>,
    /// For operators, at an address of its own.
    pub(crate) operator: Option<(Door, Arc<Operator>)>,
}

/// What cannot be listened on, and why.
pub(crate) type Refused = (SocketAddr, io::Error);

impl Doors {
    /// Opens those that are closed; the server listens there.
    ///
    /// # Errors
    /// One of them cannot be opened. The others are.
    pub(crate) fn open(&mut self, listens: &[SocketAddr]) -> Result<(), Refused> {
        let mut refused = Ok(());
        for ((door, tls), listen) in self.site.iter_mut().zip(listens) {
            tls.set_port(listen.port());
            if let Err(error) = door.open(*listen) {
                refused = Err((*listen, error));
            }
        }
        if let Some((door, operator)) = &mut self.operator {
            let address = operator.address();
            match door.open(address) {
                Ok(address) => operator.set_address(address),
                Err(error) => refused = Err((address, error)),
            }
        }
        refused
    }

    /// As [`open`](Self::open), after a move. What cannot be opened is logged: QUIC works.
    pub(crate) fn reopen(&mut self, listen: SocketAddr) {
        if let Err((address, error)) = self.open(&[listen]) {
            tracing::error!("nothing listens on {address} over TCP any more: {error}");
        }
    }

    /// What listens for the site, and what for operators, for another process as well.
    ///
    /// # Errors
    /// Too many files are open.
    pub(crate) fn share(&self) -> io::Result<(Vec<TcpListener>, Option<TcpListener>)> {
        let site = self
            .site
            .iter()
            .filter_map(|(door, _)| door.share().transpose());
        let operator = self.operator.as_ref();
        let operator = operator.and_then(|(door, _)| door.share().transpose());
        Ok((site.collect::<io::Result<_>>()?, operator.transpose()?))
    }

    /// Another process listens from now on. Who is there may finish.
    pub(crate) fn hand_over(&mut self) {
        self.leave();
        if let Some((door, _)) = &mut self.operator {
            door.leave();
        }
    }

    /// Whoever comes to the site from now on is refused, and who is there may finish. Operators are told.
    pub(crate) fn leave(&mut self) {
        for (door, _) in &mut self.site {
            door.leave();
        }
        if let Some((_, operator)) = &self.operator {
            operator.leave();
        }
    }

    /// Closes them all, with their connections.
    pub(crate) async fn close(&mut self) {
        for (door, _) in &mut self.site {
            door.close().await;
        }
        if let Some((door, _)) = &mut self.operator {
            door.close().await;
        }
    }
}
