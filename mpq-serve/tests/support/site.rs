//! A site, its server and one client, by quinn.

use std::fs::{self, File};
use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use h3::client::SendRequest;
use h3::error::{Code, StreamError};
use http::header::HeaderName;
use http::{HeaderMap, Method, Request, StatusCode};
use mpq_serve::site::files::{Root, RootOptions};
use mpq_serve::site::random::Random;
use mpq_serve::site::{Served, Site, respond};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

pub(crate) const SIZE: u64 = 3_000_001;

/// Flow-control window and send buffer of the tests' connections, in bytes: no more than these can
/// be under way at once, so a larger body is always caught in the middle.
const WINDOW: u32 = 128 << 10;

/// Only ends a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Stream = h3::client::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// A site, its server and one client.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) random: Random,
    /// Drops every response that is under way.
    pub(crate) cancel: Arc<Notify>,
    pub(crate) log: mpsc::UnboundedReceiver<Served>,
    pub(crate) client: SendRequest<h3_quinn::OpenStreams, Bytes>,
    _endpoints: [quinn::Endpoint; 2],
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) header: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn field(&self, name: HeaderName) -> &str {
        self.header.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with(RootOptions::default(), Site::default()).await
    }

    /// A site like that one, with its files and bytes.
    pub(crate) async fn with(options: RootOptions, site: Site) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let random = Random::new(SIZE, 42);
        let site = Site {
            random: Some(random),
            root: Some(Root::with(&dir.path().join("root"), options).unwrap()),
            ..site
        };
        let cancel = Arc::new(Notify::new());
        let (log_writer, log) = mpsc::unbounded_channel();
        let (server, client) = endpoints();
        let address = server.local_addr().unwrap();
        tokio::spawn(serve(
            server.clone(),
            Arc::new(site),
            cancel.clone(),
            log_writer,
        ));

        let connection = client.connect(address, "localhost").unwrap().await.unwrap();
        let (mut driver, requests) = h3::client::new(h3_quinn::Connection::new(connection))
            .await
            .unwrap();
        tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Self {
            dir,
            random,
            cancel,
            log,
            client: requests,
            _endpoints: [server, client],
        }
    }

    /// Path of a file in the root.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    pub(crate) async fn open(
        &mut self,
        method: Method,
        path: &str,
        fields: &[(HeaderName, &str)],
    ) -> Stream {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"));
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let request = request.body(()).unwrap();
        let mut stream = self.client.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        stream
    }

    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        fields: &[(HeaderName, &str)],
    ) -> Answer {
        let mut stream = self.open(method, path, fields).await;
        timeout(PATIENCE, async {
            let (head, ()) = stream.recv_response().await.unwrap().into_parts();
            let mut body = Vec::new();
            while let Some(data) = stream.recv_data().await.unwrap() {
                body.extend_from_slice(data.chunk());
            }
            Answer {
                status: head.status,
                header: head.headers,
                body,
            }
        })
        .await
        .expect("the answer does not end")
    }

    pub(crate) async fn get(&mut self, path: &str, fields: &[(HeaderName, &str)]) -> Answer {
        self.ask(Method::GET, path, fields).await
    }

    pub(crate) fn random_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        self.random.fill(offset, &mut buffer);
        buffer
    }
}

/// A server's and a client's endpoint on loopback.
fn endpoints() -> (quinn::Endpoint, quinn::Endpoint) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.alpn_protocols = vec![b"h3".to_vec()];
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h3".to_vec()];

    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(WINDOW.into())
        .send_window(WINDOW.into());
    let transport = Arc::new(transport);
    let mut server =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.transport_config(transport.clone());
    let mut client =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport);

    let local = (Ipv4Addr::LOCALHOST, 0).into();
    let server = quinn::Endpoint::server(server, local).unwrap();
    let mut endpoint = quinn::Endpoint::client(local).unwrap();
    endpoint.set_default_client_config(client);
    (server, endpoint)
}

async fn serve(
    endpoint: quinn::Endpoint,
    site: Arc<Site>,
    cancel: Arc<Notify>,
    log: mpsc::UnboundedSender<Served>,
) {
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let mut connection = h3::server::builder()
        .send_grease(false)
        .build(h3_quinn::Connection::new(connection))
        .await
        .unwrap();
    while let Ok(Some(resolver)) = connection.accept().await {
        let (site, log) = (site.clone(), log.clone());
        let cancel = cancel.clone();
        tokio::spawn(async move {
            let (request, mut stream) = resolver.resolve_request().await.unwrap();
            tokio::select! {
                served = respond(&site, &request, &mut stream) => {
                    let _ = log.send(served);
                }
                () = cancel.notified() => {}
            }
        });
    }
}

/// Writes `content` and dates it an hour back, so that a change cannot fall into the same second.
pub(crate) fn write_old(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
}

/// Reads on to the end of the body.
pub(crate) async fn read_on(stream: &mut Stream) -> Vec<u8> {
    let body = async {
        let mut body = Vec::new();
        while let Some(data) = stream.recv_data().await.unwrap() {
            body.extend_from_slice(data.chunk());
        }
        body
    };
    timeout(PATIENCE, body)
        .await
        .expect("the body does not end")
}

/// Reads on to the end of the body, which must be a reset.
pub(crate) async fn assert_reset(stream: &mut Stream) {
    let error = timeout(PATIENCE, async {
        loop {
            match stream.recv_data().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a truncated body was finished"),
                Err(error) => break error,
            }
        }
    })
    .await
    .expect("neither data nor a reset");
    assert!(
        matches!(
            error,
            StreamError::RemoteTerminate { code, .. } if code == Code::H3_INTERNAL_ERROR
        ),
        "{error:?}"
    );
}
