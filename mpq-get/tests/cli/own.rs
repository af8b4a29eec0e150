//! Against our own server, which dies and is replaced on another host by one with a copy of its files.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use mpq_core::proto::server::{AlternativeAddresses, Announcement};
use mpq_core::server::{Server, ServerConfig};
use mpq_serve::site::files::Root;
use mpq_serve::site::{Served, Site, respond};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::server::{Identity, SIZE, body, finish, spawn};

struct Own {
    server: Server,
    served: mpsc::Receiver<Served>,
    runtime: Runtime,
}

impl Own {
    /// Serves the files in `root` at this rate in bit/s, or as fast as it goes; may be found
    /// elsewhere.
    fn start(
        identity: &Identity,
        listen: SocketAddr,
        root: &Path,
        rate: Option<u64>,
        elsewhere: AlternativeAddresses,
    ) -> Own {
        let (certificate, key) = (identity.path("ca.pem"), identity.path("key.pem"));
        let identity = mpq_core::tls::Identity::from_pem(&certificate, &key).unwrap();
        let site = Arc::new(Site {
            root: Some(Root::new(root).unwrap()),
            limit_rate: rate.and_then(NonZeroU64::new),
            ..Site::default()
        });
        let runtime = Runtime::new().unwrap();
        let server = {
            let _guard = runtime.enter();
            let config = ServerConfig {
                elsewhere,
                ..ServerConfig::default()
            };
            Server::bind(listen, &identity, config).unwrap()
        };
        let (log, served) = mpsc::channel();
        let accepting = server.clone();
        runtime.spawn(async move {
            while let Some(handshake) = accepting.accept().await {
                let (site, log) = (site.clone(), log.clone());
                tokio::spawn(async move {
                    let Ok(mut session) = handshake.await else {
                        return;
                    };
                    while let Ok(Some(request)) = session.h3.accept().await {
                        let (site, log) = (site.clone(), log.clone());
                        tokio::spawn(async move {
                            let (request, mut stream) = request.resolve_request().await.unwrap();
                            let served = respond(&site, &request, &mut stream).await;
                            // Nobody listens to one that was killed.
                            let _ = log.send(served);
                        });
                    }
                });
            }
        });
        Own {
            server,
            served,
            runtime,
        }
    }

    /// Has it announce that it moves there, and be frozen for good.
    fn freeze(&self, target: SocketAddr) {
        let announcement = Announcement {
            targets: vec![target],
            lead: Duration::ZERO,
            outage: Duration::ZERO,
            forwarded: false,
        };
        let (frozen, is_frozen) = mpsc::channel();
        let freeze = async move {
            frozen.send(()).unwrap();
            std::future::pending().await
        };
        let server = self.server.clone();
        self.runtime.spawn(async move {
            let moved = server.relocate(announcement, freeze, |_| ()).await;
            panic!("it cannot come back: {moved:?}");
        });
        is_frozen.recv().unwrap();
    }

    /// Ends it without a word to anybody.
    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// A port that is free on the first two hosts of loopback, and their addresses.
fn places() -> [SocketAddr; 2] {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port))
}

#[test]
fn a_copy_of_the_file_on_another_host_is_gone_on_with() {
    let [first, second] = places();
    let port = first.port();
    let resolve = format!("localhost:{port}:127.0.0.2,127.0.0.1");
    replaced(first, second, &resolve, AlternativeAddresses::default());
}

#[test]
fn a_server_that_is_lost_is_looked_for_at_its_pool() {
    let [first, second] = places();
    let resolve = format!("localhost:{}:127.0.0.1", first.port());
    let elsewhere = AlternativeAddresses {
        pool: vec![second],
        name: None,
    };
    replaced(first, second, &resolve, elsewhere);
}

#[test]
fn a_server_that_is_lost_is_looked_for_by_the_other_name_that_it_gave() {
    let [first, second] = places();
    let resolve = format!("localhost:{}:127.0.0.1", first.port());
    // It is an address, which needs no DNS to be found.
    let elsewhere = AlternativeAddresses {
        pool: Vec::new(),
        name: Some("127.0.0.2".to_owned()),
    };
    replaced(first, second, &resolve, elsewhere);
}

#[test]
fn who_answers_where_the_server_wanted_to_be_is_asked_for_the_rest() {
    let [first, second] = places();
    let resolve = format!("localhost:{}:127.0.0.1", first.port());
    let elsewhere = AlternativeAddresses::default();
    let start = Instant::now();
    lost(first, second, &resolve, elsewhere, |server| {
        server.freeze(second);
        // It never ends, and is never heard of again.
        std::mem::forget(server);
    });
    // The migration timeout is five minutes.
    assert!(start.elapsed() < Duration::from_secs(30), "{start:?}");
}

/// A server dies in the midst of a download, and another takes its place.
fn replaced(first: SocketAddr, second: SocketAddr, resolve: &str, elsewhere: AlternativeAddresses) {
    lost(first, second, resolve, elsewhere, Own::kill);
}

/// Something happens to a server in the midst of a download, and another takes its place.
fn lost(
    first: SocketAddr,
    second: SocketAddr,
    resolve: &str,
    elsewhere: AlternativeAddresses,
    happens: impl FnOnce(Own),
) {
    let identity = Identity::new();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let host = |name: &str| {
        let root = identity.path(name);
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), body()).unwrap();
        let file = fs::File::options().write(true).open(root.join("file"));
        file.unwrap().set_modified(long_ago).unwrap();
        root
    };
    let (a, b) = (host("a"), host("b"));
    // Too slow to come to an end.
    let url = format!("https://localhost:{}/file", first.port());
    let first = Own::start(&identity, first, &a, Some(4_000_000), elsewhere);
    let line = [
        "--resolve",
        resolve,
        "--idle-timeout",
        "0.5",
        "--retry",
        "10",
        "-O",
        &url,
    ];
    let running = |event: &Value| event["event"] == "progress" && event["bytes"] != 0;
    let child = spawn(&identity, &line, running);
    happens(first);
    let second = Own::start(&identity, second, &b, None, AlternativeAddresses::default());
    finish(child).succeeds();
    assert!(fs::read(identity.path("file")).unwrap() == body());
    let served = second.served.recv().unwrap();
    assert_eq!(served.status, StatusCode::PARTIAL_CONTENT);
    assert!(
        served.cut.is_none() && served.bytes < SIZE as u64,
        "{served:?}"
    );
}
