//! Whether a client may open paths yet, as the connection's counters tell it.
//!
//! - A client's handshake is confirmed by HANDSHAKE_DONE (RFC 9001 §4.1.2).
//! - Ours are issued when our PATH_NEW_CONNECTION_ID frames are sent. noq sends those of the smallest
//!   path id first, right behind the handshake. HANDSHAKE_DONE is the answer to the handshake: by then a
//!   round trip has passed.
//! - The server's are looked for by noq, which refuses to open a path for which there are none
//!   (`PathError::RemoteCidsExhausted`), and asks for them.
//!
//! noq has an event for none of these but the first, for which one would have to hold the connection, and so
//! keep it from being closed by whoever drops it. So the counters are looked at, when the machine wants it.

use crate::proto::client::Handshake;

/// What the counters tell now.
pub(super) fn handshake(connection: &noq::Connection) -> Handshake {
    let stats = connection.stats();
    Handshake {
        confirmed: stats.frame_rx.handshake_done > 0,
        issued: stats.frame_tx.path_new_connection_id > 0,
        granted: stats.frame_rx.path_new_connection_id > 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::net::UdpSocket;

    use crate::client::{Client, ClientConfig};
    use crate::limits::PATHS;
    use crate::tls::{self, Identity, Trust};

    /// In the order of what a server sends with a short header: its first packet has HANDSHAKE_DONE, the
    /// next ones have its connection ids.
    const WITH_IDS: std::ops::RangeInclusive<usize> = 1..=2;
    /// Looks at the client, a millisecond apart, in which it tries to open its path several times.
    const LOOKS: usize = 100;
    /// Of the same, after which the path is open, once it may be.
    const MOST_LATE: usize = 40;

    /// Stands between a client and a server, and loses HANDSHAKE_DONE.
    struct Relay {
        front: UdpSocket,
        server: SocketAddr,
        /// Datagrams that the server has sent since its handshake.
        counted: AtomicUsize,
        /// From now on everything passes.
        released: AtomicBool,
    }

    impl Relay {
        /// What a client is to connect to, and the relay.
        async fn start(server: SocketAddr) -> (SocketAddr, Arc<Self>) {
            let front = UdpSocket::bind("127.0.0.9:0").await.unwrap();
            let address = front.local_addr().unwrap();
            let relay = Arc::new(Self {
                front,
                server,
                counted: AtomicUsize::new(0),
                released: AtomicBool::new(false),
            });
            tokio::spawn(relay.clone().forward());
            (address, relay)
        }

        fn is_released(&self) -> bool {
            self.released.load(Ordering::Relaxed)
        }

        async fn forward(self: Arc<Self>) {
            let mut backs = BTreeMap::new();
            let mut buffer = vec![0; 65536];
            loop {
                let (length, client) = self.front.recv_from(&mut buffer).await.unwrap();
                if let Entry::Vacant(entry) = backs.entry(client) {
                    let back = Arc::new(UdpSocket::bind("127.0.0.8:0").await.unwrap());
                    tokio::spawn(self.clone().back(client, back.clone()));
                    entry.insert(back);
                }
                // What the server has no acknowledgement for, it repeats later only.
                if self.is_released() || self.counted.load(Ordering::Relaxed) == 0 {
                    let _ = backs[&client].send_to(&buffer[..length], self.server).await;
                }
            }
        }

        async fn back(self: Arc<Self>, client: SocketAddr, back: Arc<UdpSocket>) {
            let mut buffer = vec![0; 65536];
            loop {
                let (length, _) = back.recv_from(&mut buffer).await.unwrap();
                let passes = buffer[0] & 0x80 != 0
                    || WITH_IDS.contains(&self.counted.fetch_add(1, Ordering::Relaxed));
                if passes || self.is_released() {
                    let _ = self.front.send_to(&buffer[..length], client).await;
                }
            }
        }
    }

    fn server() -> noq::Endpoint {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let crypto = Arc::new(tls::server_config(&identity).unwrap());
        let mut config = noq::ServerConfig::with_crypto(crypto);
        let mut transport = noq::TransportConfig::default();
        transport.max_concurrent_multipath_paths(PATHS);
        config.transport_config(Arc::new(transport));
        noq::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_path_is_opened_as_soon_as_the_handshake_is_confirmed_and_not_before() {
        let server = server();
        let (address, relay) = Relay::start(server.local_addr().unwrap()).await;
        tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            connection.closed().await
        });
        let config = ClientConfig {
            trust: Trust::Insecure,
            interfaces: ["127.0.0.1", "127.0.0.3"].map(str::to_owned).to_vec(),
            ..ClientConfig::default()
        };
        let client = Client::connect(config, address, "localhost").await.unwrap();
        let (mut early_looks, mut late_looks) = (0, 0);
        loop {
            // In this order: what is confirmed now may not have been when the path was opened, but not
            // the other way round.
            let opened = client.paths().len() > 1;
            let stats = client.connection.stats();
            let confirmed = stats.frame_rx.handshake_done > 0;
            if opened {
                assert!(confirmed, "after {early_looks} looks");
                assert!(stats.frame_tx.path_new_connection_id > 0);
                break;
            }
            let granted = stats.frame_rx.path_new_connection_id > 0;
            early_looks += usize::from(granted && !confirmed);
            late_looks += usize::from(granted && confirmed);
            if early_looks == LOOKS {
                relay.released.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(early_looks >= LOOKS, "noq could have opened it meanwhile");
        assert!(late_looks <= MOST_LATE, "opened {late_looks} looks late");
    }
}
