//! Rings when the network interfaces of this host change.
//!
//! The kernel tells of links and addresses that come, go or change (rtnetlink(7)); everybody may
//! listen, in the network namespace of the process. What it says is not even read: it is the bell
//! at which the [`interfaces`](super::interfaces) are listed anew, so that a message that is lost,
//! or forged by another program, does no harm.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// Changes come in groups, such as an address and its removal, or a link and its addresses.
const SETTLED: Duration = Duration::from_millis(100);

/// Yields once after each group of changes, until the receiver is dropped. Must be called within a
/// tokio runtime.
///
/// # Errors
/// Those of the system calls.
pub(crate) fn changes() -> io::Result<mpsc::Receiver<()>> {
    let socket = open()?;
    let (bell, changes) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            Err(error) = ring(&socket, &bell) => {
                tracing::warn!("changes of the network interfaces go unnoticed: {error}");
            }
            () = bell.closed() => {}
        }
    });
    Ok(changes)
}

async fn ring(socket: &UdpSocket, bell: &mpsc::Sender<()>) -> io::Result<Infallible> {
    loop {
        rung(socket).await?;
        tokio::time::sleep(SETTLED).await;
        // If the last ring has not been heard yet, it stands for this one too.
        let _ = bell.try_send(());
    }
}

/// The socket, as one of UDP: tokio's safe type for what can only be received from, by recv(2).
fn open() -> io::Result<UdpSocket> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
    // The port number is for the kernel to choose.
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
    UdpSocket::from_std(socket.into())
}

/// Waits for messages, and empties the socket.
async fn rung(socket: &UdpSocket) -> io::Result<()> {
    let mut message = [0; 4096];
    socket.readable().await?;
    loop {
        match socket.try_recv(&mut message) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // More came than the socket holds.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) => return Err(error),
        }
    }
}
