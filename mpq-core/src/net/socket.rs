//! One socket: what it is bound to, and what it can send.

use std::io;
use std::net::SocketAddr;

use noq::udp::{Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::address::{canonical, mapped};

/// Asked of the kernel for each socket, bytes; it grants what `net.core.*mem_max` allows. A burst
/// at 1 Gbit/s must fit in while the process waits for a core.
const BUFFER_SIZE: usize = 4 << 20;

/// What to bind one socket to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Local address; port 0 for any free one. An unspecified IPv6 address is dual-stack.
    pub address: SocketAddr,
    /// Interface that the datagrams must leave by (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// Whether somebody else may have a socket there, too, who allows it as well (`SO_REUSEADDR`). The newest one
    /// hears what comes.
    pub shared: bool,
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            device: None,
            shared: false,
        }
    }
}

impl Bind {
    /// A socket bound so, which does not block, with large buffers.
    ///
    /// # Errors
    /// Those of the system calls; `PermissionDenied` or `NoDevice` for a device.
    pub fn open(&self) -> io::Result<std::net::UdpSocket> {
        let address = canonical(self.address);
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if self.shared {
            socket.set_reuse_address(true)?;
        }
        prepare(SockRef::from(&socket))?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    }
}

fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Larger buffers are worth asking for, not worth failing for.
    let _ = socket.set_recv_buffer_size(BUFFER_SIZE);
    let _ = socket.set_send_buffer_size(BUFFER_SIZE);
    Ok(())
}

pub(super) struct Bound {
    pub(super) address: SocketAddr,
    pub(super) io: UdpSocket,
    pub(super) state: UdpSocketState,
    /// Whether noq is told to which address of ours a datagram came. It need not be if there is only
    /// one, as at a server that listens on a specific address and has not moved.
    pub(super) shows_local: bool,
    /// Tells senders that wait for this socket to let go of it.
    pub(super) closing: Notify,
}

impl Bound {
    pub(super) fn open(bind: &Bind) -> io::Result<Self> {
        let shows_local = bind.device.is_some() || bind.address.ip().is_unspecified();
        Self::new(bind.open()?, shows_local)
    }

    /// A socket that somebody else has bound.
    pub(super) fn adopt(socket: std::net::UdpSocket) -> io::Result<Self> {
        prepare(SockRef::from(&socket))?;
        let shows_local = socket.local_addr()?.ip().is_unspecified();
        Self::new(socket, shows_local)
    }

    fn new(socket: std::net::UdpSocket, shows_local: bool) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let io = UdpSocket::from_std(socket)?;
        Ok(Self {
            address: io.local_addr()?,
            io,
            state,
            shows_local,
            closing: Notify::new(),
        })
    }

    pub(super) fn reaches(&self, destination: SocketAddr) -> bool {
        let dual_stack = self.address.is_ipv6() && self.address.ip().is_unspecified();
        dual_stack || self.address.is_ipv4() == canonical(destination).is_ipv4()
    }

    /// As [`Bound::send`], and remembers a full socket for `writable` to wait for.
    pub(super) fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.send(transmit))
    }

    pub(super) fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A socket bound to one address needs no source; one that had another host's address
        // pinned (from before a move) must not use it.
        let own = self.address.ip();
        let src_ip = transmit
            .src_ip
            .map(|ip| ip.to_canonical())
            .filter(|_| own.is_unspecified());
        let destination = match self.address {
            SocketAddr::V4(_) => canonical(transmit.destination),
            SocketAddr::V6(_) => mapped(transmit.destination),
        };
        let transmit = Transmit {
            src_ip,
            destination,
            ..transmit.clone()
        };
        self.state.try_send((&self.io).into(), &transmit)
    }
}
