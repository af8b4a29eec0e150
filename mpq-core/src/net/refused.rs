//! Whether nobody listens at an address, as ICMP has it.

use std::io;
use std::net::SocketAddr;

use super::socket::Bind;
use crate::proto::probe;

/// Resolves if ICMP says that nobody listens at `remote`: an unconnected socket never hears of it.
pub async fn refused(bind: &Bind, remote: SocketAddr) {
    let refused = async {
        let socket = tokio::net::UdpSocket::bind(SocketAddr::new(bind.address.ip(), 0)).await?;
        socket.bind_device(bind.device.as_ref().map(String::as_bytes))?;
        socket.connect(remote).await?;
        socket.send(&probe::probe(*b"refused?")).await?;
        socket.recv(&mut [0; 64]).await
    };
    match refused.await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}
