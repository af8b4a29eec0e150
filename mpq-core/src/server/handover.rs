//! One process takes over from another: new clients are those of the new one, and the old one goes on with its
//! connections until they are over. No client notices.
//!
//! Both have the socket. The new one receives, and passes on what is for connections of the old one, by connection ID
//! (`proto/ownership`, `net/succession`).

use std::fmt;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;

use crate::proto::probe::Secret;

/// What a server gives to the one that takes over. Whoever has it can receive what is for the server, but read none of it.
pub struct Estate {
    /// Another descriptor of the server's socket.
    pub socket: UdpSocket,
    /// By this the server gets what is for it. When it is closed, the server receives by itself again.
    pub stream: UnixStream,
    /// By these the connection IDs of the server are known, and of those that it has taken over from itself.
    pub ids: Vec<Secret>,
}

impl fmt::Debug for Estate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Estate")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
