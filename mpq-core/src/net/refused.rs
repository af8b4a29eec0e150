//! Whether nobody listens at an address, as ICMP has it.
//!
//! A socket that is not connected hears of ICMP errors only if it asks (`IP_RECVERR`, ip(7)). Here the one
//! by which a handshake goes does, for as long as that takes. Nothing is sent for it.
//!
//! If another error than a refusal comes, and the handshake succeeds all the same, tokio takes the socket
//! for one that can always be written to, since it cannot tell such an error from the end of a pipe. Whoever
//! waits for room in its buffer then asks for it again and again, which a client that downloads never has to.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc::ECONNREFUSED;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use tokio::io::Interest;

use super::address::canonical;

/// Room for all that the kernel says of an error, bytes.
const ABOUT: usize = 512;

/// Resolves once ICMP says that nobody listens at `remote`, where this socket has sent something to.
pub async fn refused(socket: UdpSocket, remote: SocketAddr) {
    let listening = Listening::new(socket);
    let refused = async |listening: &Listening| loop {
        let socket = &listening.0;
        let error = socket.async_io(Interest::ERROR, || next_error(socket));
        let (errno, to) = error.await?;
        if errno == ECONNREFUSED && to.is_none_or(|to| canonical(to) == canonical(remote)) {
            return io::Result::Ok(());
        }
    };
    if let Ok(listening) = &listening
        && refused(listening).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A socket that hears of ICMP errors until this is dropped.
struct Listening(tokio::net::UdpSocket);

impl Listening {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let listening = Self(tokio::net::UdpSocket::from_std(socket)?);
        listening.set(true)?;
        Ok(listening)
    }

    /// What has not been read is thrown away in the end.
    fn set(&self, listens: bool) -> io::Result<()> {
        match self.0.local_addr()? {
            SocketAddr::V4(_) => setsockopt(&self.0, Ipv4RecvErr, &listens)?,
            SocketAddr::V6(_) => setsockopt(&self.0, Ipv6RecvErr, &listens)?,
        }
        Ok(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.set(false);
    }
}

/// The next error, and where the datagram went that it is about.
fn next_error(socket: &tokio::net::UdpSocket) -> io::Result<(i32, Option<SocketAddr>)> {
    let mut datagram = [0; 64];
    let mut parts = [IoSliceMut::new(&mut datagram)];
    let mut about = vec![0; ABOUT];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut about), flags)?;
    let errno = message.cmsgs()?.find_map(|about| match about {
        ControlMessageOwned::Ipv4RecvErr(error, _) => Some(error.ee_errno as i32),
        ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error.ee_errno as i32),
        _ => None,
    });
    let to = message.address.and_then(|to| {
        let v4 = to.as_sockaddr_in().map(|to| SocketAddr::V4((*to).into()));
        v4.or_else(|| to.as_sockaddr_in6().map(|to| SocketAddr::V6((*to).into())))
    });
    Ok((errno.unwrap_or_default(), to))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    /// A socket at this address, and one that is closed and had that port.
    fn places(ip: &str) -> (UdpSocket, SocketAddr) {
        let bind = || {
            let socket = UdpSocket::bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        (bind(), bind().local_addr().unwrap())
    }

    #[tokio::test]
    async fn a_closed_port_refuses_what_the_socket_sends_by_itself() {
        for ip in ["127.0.0.1", "::1"] {
            let (socket, closed) = places(ip);
            let (_, elsewhere) = places(ip);
            let other = socket.try_clone().unwrap();
            let mut refused = std::pin::pin!(refused(other, closed));
            assert!(
                timeout(SHORT, &mut refused).await.is_err(),
                "nothing is sent"
            );
            socket.send_to(b"x", elsewhere).unwrap();
            assert!(
                timeout(SHORT, &mut refused).await.is_err(),
                "it is of another"
            );
            // The kernel says here what came of the last one.
            while socket.send_to(b"x", closed).is_err() {}
            timeout(Duration::from_secs(5), refused).await.unwrap();
        }
    }

    #[tokio::test]
    async fn in_the_end_the_socket_hears_of_no_error_any_more() {
        let (socket, closed) = places("127.0.0.1");
        let refused = refused(socket.try_clone().unwrap(), closed);
        assert!(timeout(SHORT, refused).await.is_err());
        for _ in 0..3 {
            socket.send_to(b"x", closed).unwrap();
            tokio::time::sleep(SHORT / 4).await;
        }
    }
}
