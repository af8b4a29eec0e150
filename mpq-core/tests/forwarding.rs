//! A client that knows nothing of moves, neither quinn's nor its HTTP/3, downloads from a server that moves twice: a
//! forwarder stays at each address that the server has left.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Request;
use mpq_core::forwarder::Forwarder;
use mpq_core::proto::server::Announcement;
use mpq_core::server::Thaw;
use mpq_core::tls::{Trust, rustls_client};
use quinn::crypto::rustls::QuicClientConfig;
use support::{Bench, both_paths};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// For all that is waited for.
const LIMIT: Duration = Duration::from_secs(20);
/// By which a download must grow to show that it goes on, bytes.
const PROOF: usize = 256 << 10;

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    let in_time = tokio::time::timeout(LIMIT, what);
    in_time.await.expect("it hangs")
}

/// quinn's client, with a download under way.
struct Plain {
    connection: quinn::Connection,
    /// What came of the body so far, bytes; and all of it in the end.
    progress: watch::Receiver<usize>,
    body: JoinHandle<Vec<u8>>,
}

impl Plain {
    async fn downloading(bench: &Bench, server: SocketAddr) -> Self {
        let local = SocketAddr::new(bench.network.ip(101), 0);
        let endpoint = quinn::Endpoint::client(local).unwrap();
        let crypto = rustls_client(&Trust::Insecure).unwrap();
        let crypto = Arc::new(QuicClientConfig::try_from(crypto).unwrap());
        let config = quinn::ClientConfig::new(crypto);
        let connecting = endpoint.connect_with(config, server, "localhost");
        let connection = in_time(connecting.unwrap()).await.unwrap();
        let quic = h3_quinn::Connection::new(connection.clone());
        let (_http, mut requests) = h3::client::new(quic).await.unwrap();
        let request = Request::get("https://localhost/").body(()).unwrap();
        let mut stream = requests.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        in_time(stream.recv_response()).await.unwrap();
        let (sender, progress) = watch::channel(0);
        let body = tokio::spawn(async move {
            // They end the connection with them.
            let _held = (_http, requests, endpoint);
            let mut body = Vec::new();
            while let Some(mut chunk) = stream.recv_data().await.unwrap() {
                body.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
                sender.send_replace(body.len());
            }
            body
        });
        Self {
            connection,
            progress,
            body,
        }
    }

    async fn grows(&mut self) {
        let goal = *self.progress.borrow() + PROOF;
        in_time(self.progress.wait_for(|bytes| *bytes >= goal))
            .await
            .unwrap();
    }
}

/// Moves, and leaves a forwarder where the server was.
async fn move_to(bench: &Bench, place: SocketAddr) -> JoinHandle<std::io::Result<()>> {
    let before = bench.server.local_addr();
    let announcement = Announcement {
        targets: vec![place],
        lead: Duration::ZERO,
        outage: Duration::ZERO,
        forwarded: true,
    };
    let (sender, mut forwarder) = watch::channel(None);
    let freeze = async {
        let forwarding = bench.server.forwarding().expect("it is announced");
        let socket = UdpSocket::bind(before).unwrap();
        let idle = Duration::from_secs(1);
        let forwarder = Forwarder::new(socket, place, &forwarding, idle).await;
        sender.send_replace(Some(tokio::spawn(forwarder.unwrap().run())));
        Thaw::At(place)
    };
    let moved = bench.server.relocate(announcement, freeze, |_| ());
    assert_eq!(in_time(moved).await.unwrap(), place);
    forwarder.borrow_and_update();
    sender.send_replace(None).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_knows_nothing_of_moves_keeps_its_download() {
    let bench = Bench::new(1);
    let [first, second, third] = [1, 2, 3].map(|host| bench.network.at(host));
    let mut plain = Plain::downloading(&bench, first).await;
    // Beside it, one that follows.
    let client = bench.connect(first).await;
    both_paths(&mut client.events()).await;
    let download = bench.download(&client).await;
    plain.grows().await;
    let at_first = move_to(&bench, second).await;
    plain.grows().await;
    download.grows(PROOF as u64).await;
    assert_eq!(plain.connection.remote_address(), first);

    // Who comes now by the old address is served as well.
    let mut late = Plain::downloading(&bench, first).await;
    late.grows().await;
    let at_second = move_to(&bench, third).await;
    for plain in [&mut plain, &mut late] {
        plain.grows().await;
    }
    assert_eq!(bench.server.local_addr(), third);
    assert_eq!(bench.sessions(), 3, "on the connections that there were");
    bench.end();
    in_time(download.whole()).await;
    for plain in [plain, late] {
        let body = in_time(plain.body).await.unwrap();
        assert!(!body.is_empty() && bench.is_body(&body));
        plain.connection.close(0u32.into(), b"");
    }
    client.close().await;
    // They end once nobody needs them.
    for forwarder in [at_first, at_second] {
        in_time(forwarder).await.unwrap().unwrap();
    }
}

/// Without a forwarder, they are kept for nothing, and the server goes on with those that follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_comes_to_nothing_leaves_such_a_client_where_it_was() {
    let bench = Bench::new(2);
    let mut plain = Plain::downloading(&bench, bench.network.at(1)).await;
    plain.grows().await;
    let announcement = Announcement {
        targets: vec![bench.network.at(2)],
        lead: Duration::ZERO,
        outage: Duration::ZERO,
        forwarded: true,
    };
    let freeze = async { Thaw::Failed("no room".into()) };
    let moved = bench.server.relocate(announcement, freeze, |_| ());
    in_time(moved).await.unwrap_err();
    assert!(
        bench.server.forwarding().is_none(),
        "there is nothing to forward"
    );
    plain.grows().await;
    bench.end();
    let body: Bytes = in_time(plain.body).await.unwrap().into();
    assert!(bench.is_body(&body));
}
