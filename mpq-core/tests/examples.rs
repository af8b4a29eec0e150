//! The examples do what they say, also while the server moves.

mod support;

#[cfg(feature = "axum")]
#[path = "../examples/axum.rs"]
mod axum_example;
#[path = "../examples/download.rs"]
mod download;
#[path = "../examples/serve.rs"]
mod serve;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mpq_core::client::ClientConfig;
use mpq_core::server::{Server, ServerConfig, Thaw};
use mpq_core::tls::{Identity, Trust};
use support::{Network, announcement};
use tokio::sync::watch;

/// A server at the system's name for this host, and another address of it.
fn server() -> (Server, SocketAddr) {
    let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let server = Server::bind(listen, &identity, ServerConfig::default()).unwrap();
    let other = (Network::new().ip(2), server.local_addr().port()).into();
    (server, other)
}

fn config() -> ClientConfig {
    ClientConfig {
        trust: Trust::Insecure,
        ..ClientConfig::default()
    }
}

/// Keeps what is written, and tells how much it is.
struct Progress(Vec<u8>, watch::Sender<usize>);

impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        self.1.send_replace(self.0.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Downloads, and moves the server when a part of the body is there. Returns the body.
async fn download_through_a_move(server: &Server, other: SocketAddr) -> Vec<u8> {
    let (sender, progress) = watch::channel(0);
    let mut output = Progress(Vec::new(), sender);
    let name = format!("localhost:{}", server.local_addr().port());
    let downloaded = download::download(config(), &name, "/", &mut output);
    let freeze = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Thaw::At(other)
    };
    let (mut begun, whole) = (progress.clone(), progress);
    let moved = async {
        begun.wait_for(|bytes| *bytes > 0).await.unwrap();
        let announcement = announcement(&[other], Duration::ZERO);
        let mut there = 0;
        let moved = server.relocate(announcement, freeze, |_| there = *begun.borrow());
        assert_eq!(moved.await.unwrap(), other);
        there
    };
    let both = async { tokio::join!(downloaded, moved) };
    let (downloaded, there) = in_time(both).await;
    downloaded.unwrap();
    assert!(
        there < *whole.borrow(),
        "the download was over before the move"
    );
    assert_eq!(
        server.handshakes(),
        1,
        "it goes on over the same connection"
    );
    assert_eq!(server.local_addr(), other);
    output.0
}

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, test)
        .await
        .expect("the test hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_ones_own_is_downloaded_from_while_it_moves() {
    let (server, other) = server();
    tokio::spawn(serve::serve(server.clone(), Duration::from_millis(1)));
    let first = server.local_addr();
    let body = download_through_a_move(&server, other).await;
    let expected: String = (0..600).map(|count| format!("hello {count}\n")).collect();
    assert!(body == expected.as_bytes(), "{} bytes came", body.len());

    assert_eq!(server.move_to(first).await.unwrap(), first);
    let mut again = Vec::new();
    let name = format!("localhost:{}", first.port());
    in_time(download::download(config(), &name, "/", &mut again))
        .await
        .unwrap();
    assert!(again == body);
}

#[cfg(feature = "axum")]
mod over_axum {
    use axum::Router;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use http::{Request, StatusCode};
    use mpq_core::client::{Client, RequestError};

    use super::*;

    /// Bytes of no pattern, so that any that is missing or there twice is noticed.
    fn body() -> Bytes {
        let mut bytes = vec![0; 24 << 20];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        bytes.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_axum_router_is_downloaded_from_while_it_moves() {
        let (server, other) = server();
        let router = Router::new().route("/", get(|| async { body() }));
        tokio::spawn(axum_example::serve(server.clone(), router));
        let downloaded = download_through_a_move(&server, other).await;
        assert!(downloaded == body(), "{} bytes came", downloaded.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_axum_router_hears_what_is_sent_to_it() {
        let (server, _) = server();
        let echo = Router::new().route("/", post(|body: Bytes| async { body }));
        tokio::spawn(axum_example::serve(server.clone(), echo));
        let client = Client::connect(config(), server.local_addr(), "localhost")
            .await
            .unwrap();
        let request = Request::post("https://localhost/").body(()).unwrap();
        let mut stream = client.requests().send_request(request).await.unwrap();
        stream
            .send_data(Bytes::from_static(b"hello"))
            .await
            .unwrap();
        stream.finish().await.unwrap();
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        let mut echoed = stream.recv_data().await.unwrap().unwrap();
        assert_eq!(bytes::Buf::copy_to_bytes(&mut echoed, 5), "hello");

        let missing = client.get("/missing").await.unwrap();
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        let unspeakable = client.get("/a b").await;
        assert!(matches!(unspeakable, Err(RequestError::Url(_))));
        client.close().await;
    }
}
