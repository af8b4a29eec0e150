//! Servers of an independent stack, quinn and h3-quinn, and what a finished mpq-get has left.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use h3::error::Code;
use h3::server::RequestStream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, RANGE};
use http::{Request, Response, StatusCode};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Not a multiple of anything that a packet or buffer could be.
pub(crate) const SIZE: usize = 3_000_017;

/// What a server sends without an acknowledgement: of what it has sent, all but this has arrived.
pub(crate) const UNDER_WAY: usize = 64 << 10;

type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// A certificate for localhost, and a folder that has it as `ca.pem` and its key as `key.pem`.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) folder: Arc<TempDir>,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn new() -> Identity {
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.path().join("ca.pem"), certified.cert.pem()).unwrap();
        let key = certified.signing_key.serialize_pem();
        fs::write(folder.path().join("key.pem"), key).unwrap();
        Identity {
            folder: Arc::new(folder),
            certificate: certified.cert.der().clone(),
            key: certified.signing_key.serialize_der(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs mpq-get in the folder, trusting the certificate.
    pub(crate) fn run(&self, line: &[&str]) -> Outcome {
        run(
            self.folder.path(),
            &[&["--cacert", "ca.pem"], line].concat(),
        )
    }
}

/// What a server is asked for, one answer a request.
pub(crate) enum Answer {
    /// A file, or the part of it that was asked for.
    File(File),
    /// The same, but the connection is closed after so many bytes of the body.
    Cut(File, usize),
    /// The same, but the stream is reset after so many bytes of the body.
    Reset(File, usize),
    /// The same, but after so many bytes of the body nothing comes any more.
    Stuck(File, usize),
    /// This, without a body.
    Head(StatusCode, Vec<(HeaderName, String)>),
}

/// A file and how it is told apart from others.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) content: Bytes,
    pub(crate) fields: Vec<(HeaderName, &'static str)>,
    /// Whether parts of it are sent.
    pub(crate) ranges: bool,
}

impl File {
    /// The usual body with a strong entity tag.
    pub(crate) fn new() -> File {
        File {
            content: body(),
            fields: vec![(ETAG, "\"v1\"")],
            ranges: true,
        }
    }

    /// The head of the response to `request`, and where the body begins.
    fn answer(&self, request: &Request<()>) -> (Response<()>, usize) {
        let field = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
        let first = field(RANGE)
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse::<usize>()
                    .ok()
            })
            .filter(|_| self.ranges)
            .filter(|_| {
                field(IF_RANGE).is_none_or(|tag| self.fields.iter().any(|(_, known)| *known == tag))
            });
        let length = self.content.len();
        let mut response = Response::builder();
        for (name, value) in &self.fields {
            response = response.header(name, *value);
        }
        let (status, range, offset) = match first {
            None => (StatusCode::OK, None, 0),
            Some(first) if first < length => {
                let range = format!("bytes {first}-{}/{length}", length - 1);
                (StatusCode::PARTIAL_CONTENT, Some(range), first)
            }
            Some(_) => {
                let range = format!("bytes */{length}");
                (StatusCode::RANGE_NOT_SATISFIABLE, Some(range), length)
            }
        };
        if let Some(range) = range {
            response = response.header(CONTENT_RANGE, range);
        }
        let response = response
            .status(status)
            .header(CONTENT_LENGTH, length - offset);
        (response.body(()).unwrap(), offset)
    }
}

/// A server that lives as long as this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) identity: Identity,
    requests: Arc<Mutex<Vec<Request<()>>>>,
    connections: Arc<AtomicUsize>,
    _runtime: Runtime,
}

/// How requests are answered.
enum Site {
    /// By their path.
    Paths,
    /// One after the other.
    Script(Mutex<VecDeque<Answer>>),
    /// Each by these bytes, whatever they are in HTTP/3, and the end of the stream.
    Raw(Bytes),
    /// None comes: the client may open two unidirectional streams only.
    Narrow,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with_alpn(b"h3")
    }

    pub(crate) fn with_alpn(alpn: &[u8]) -> Server {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Server::bind(Identity::new(), anywhere, alpn, Site::Paths)
    }

    /// Gives these answers, one to each request, whatever its path.
    pub(crate) fn script(answers: impl IntoIterator<Item = Answer>) -> Server {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Server::script_at(&Identity::new(), anywhere, answers)
    }

    /// Answers each request with these bytes of HTTP/3.
    pub(crate) fn raw(answer: Bytes) -> Server {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Server::bind(Identity::new(), anywhere, b"h3", Site::Raw(answer))
    }

    /// Does not let a client begin HTTP/3.
    pub(crate) fn narrow() -> Server {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        Server::bind(Identity::new(), anywhere, b"h3", Site::Narrow)
    }

    pub(crate) fn script_at(
        identity: &Identity,
        address: SocketAddr,
        answers: impl IntoIterator<Item = Answer>,
    ) -> Server {
        let script = Site::Script(Mutex::new(answers.into_iter().collect()));
        Server::bind(identity.clone(), address, b"h3", script)
    }

    fn bind(identity: Identity, address: SocketAddr, alpn: &[u8], site: Site) -> Server {
        let key = PrivateKeyDer::try_from(identity.key.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).unwrap();
        let mut transport = quinn::TransportConfig::default();
        transport.send_window(UNDER_WAY as u64);
        if matches!(site, Site::Narrow) {
            transport.max_concurrent_uni_streams(2u32.into());
        }
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let runtime = Runtime::new().unwrap();
        let endpoint = {
            let _guard = runtime.enter();
            quinn::Endpoint::server(config, address).unwrap()
        };
        let address = endpoint.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, site) = (requests.clone(), Arc::new(site));
        let connections = Arc::<AtomicUsize>::default();
        let count = connections.clone();
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (log, site) = (log.clone(), site.clone());
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        match &*site {
                            Site::Raw(answer) => serve_raw(connection, answer).await,
                            Site::Narrow => drop(connection.closed().await),
                            _ => serve(connection, &log, &site).await,
                        }
                    }
                });
            }
        });
        Server {
            address,
            identity,
            requests,
            connections,
            _runtime: runtime,
        }
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.identity.path(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.identity.folder.path()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}", self.address.port())
    }

    /// Runs mpq-get in the server's folder, trusting its certificate.
    pub(crate) fn get(&self, options: &[&str], path: &str) -> Outcome {
        let url = self.url(path);
        self.identity.run(&[options, &[url.as_str()]].concat())
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request<()>> {
        self.requests.lock().unwrap().clone()
    }

    /// What was asked for of the body, one entry a request.
    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        let range = |request: &Request<()>| {
            let range = request.headers().get(RANGE)?.to_str().unwrap();
            Some(range.to_owned())
        };
        self.requests().iter().map(range).collect()
    }
}

/// Answers until the client has gone.
async fn serve(
    connection: quinn::Connection,
    log: &Arc<Mutex<Vec<Request<()>>>>,
    site: &Arc<Site>,
) {
    let mut server = h3::server::builder()
        .send_grease(false)
        .build::<_, Bytes>(h3_quinn::Connection::new(connection.clone()))
        .await
        .unwrap();
    while let Ok(Some(resolver)) = server.accept().await {
        let (connection, log, site) = (connection.clone(), log.clone(), site.clone());
        tokio::spawn(async move {
            let (request, stream) = resolver.resolve_request().await.unwrap();
            log.lock().unwrap().push(request.clone());
            // A client that goes away in the middle is part of some tests.
            let _ = match &*site {
                Site::Paths => by_path(request.uri().path(), stream).await,
                Site::Script(script) => {
                    let answer = script.lock().unwrap().pop_front();
                    by_script(answer.expect("an answer"), &request, stream, connection).await
                }
                Site::Raw(_) | Site::Narrow => unreachable!("it is served without h3"),
            };
        });
    }
}

/// Answers in turn, whatever is asked for.
async fn serve_raw(connection: quinn::Connection, answer: &Bytes) {
    // The control stream, with the settings: none.
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[0, 4, 0]).await.unwrap();
    while let Ok((mut stream, mut request)) = connection.accept_bi().await {
        // A client that goes away in the middle is part of some tests.
        if request.read_to_end(1 << 16).await.is_ok()
            && stream.write_chunk(answer.clone()).await.is_ok()
        {
            let _ = stream.finish();
        }
    }
}

/// `/file` is whole, `/short` promises more than it sends, `/stuck` stops half-way, `/moved` is
/// elsewhere, and all else is missing.
async fn by_path(path: &str, mut stream: Stream) -> Result<(), h3::error::StreamError> {
    let (status, length) = match path {
        "/file" | "/stuck" => (StatusCode::OK, SIZE),
        "/short" => (StatusCode::OK, SIZE + 1),
        "/moved" => (StatusCode::FOUND, 0),
        _ => (StatusCode::NOT_FOUND, 0),
    };
    let mut response = Response::builder()
        .status(status)
        .header("content-length", length);
    if status.is_redirection() {
        response = response.header("location", "https://localhost/file");
    }
    stream.send_response(response.body(()).unwrap()).await?;
    if path == "/stuck" {
        stream.send_data(body().slice(..SIZE / 2)).await?;
        std::future::pending::<()>().await;
    }
    if status == StatusCode::OK {
        stream.send_data(body()).await?;
    }
    stream.finish().await
}

async fn by_script(
    answer: Answer,
    request: &Request<()>,
    mut stream: Stream,
    connection: quinn::Connection,
) -> Result<(), h3::error::StreamError> {
    let (file, limit) = match &answer {
        Answer::Head(status, fields) => {
            let mut response = Response::builder().status(*status);
            for (name, value) in fields {
                response = response.header(name, value);
            }
            stream.send_response(response.body(()).unwrap()).await?;
            return stream.finish().await;
        }
        Answer::File(file) => (file, usize::MAX),
        Answer::Cut(file, limit) | Answer::Reset(file, limit) | Answer::Stuck(file, limit) => {
            (file, *limit)
        }
    };
    let (head, offset) = file.answer(request);
    stream.send_response(head).await?;
    let rest = file.content.slice(offset..);
    stream
        .send_data(rest.slice(..limit.min(rest.len())))
        .await?;
    match answer {
        Answer::Cut(..) => connection.close(0x100u32.into(), b""),
        Answer::Reset(..) => stream.stop_stream(Code::H3_INTERNAL_ERROR),
        Answer::Stuck(..) => std::future::pending().await,
        _ => stream.finish().await?,
    }
    Ok(())
}

/// Forwards datagrams between one client and `server`, and after so many of the server's nothing
/// any more: as a server that has gone without a word.
pub(crate) fn forwarder(server: SocketAddr, datagrams: usize) -> SocketAddr {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    back.connect(server).unwrap();
    let address = front.local_addr().unwrap();
    let (client, known) = std::sync::mpsc::channel();
    let (from_client, to_server) = (front.clone(), back.clone());
    std::thread::spawn(move || {
        let mut datagram = [0; 2048];
        loop {
            let (length, from) = from_client.recv_from(&mut datagram).unwrap();
            // The one that asks from another port whether the server refuses needs no answer.
            if !datagram[..length]
                .windows(8)
                .any(|text| text == b"refused?")
            {
                // Told once too often when the server has gone.
                let _ = client.send(from);
                to_server.send(&datagram[..length]).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        let client = known.recv().unwrap();
        let mut datagram = [0; 2048];
        for _ in 0..datagrams {
            let length = back.recv(&mut datagram).unwrap();
            front.send_to(&datagram[..length], client).unwrap();
        }
    });
    address
}

/// The same bytes each time, with zeros among them and no short period.
pub(crate) fn body() -> Bytes {
    let mut state = 1u64;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..SIZE).map(next).collect()
}

pub(crate) fn digest() -> String {
    HEXLOWER.encode(&Sha256::digest(body()))
}

pub(crate) fn command(folder: &Path, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-get"));
    command.current_dir(folder).args(line).stdin(Stdio::null());
    command
}

pub(crate) fn run(folder: &Path, line: &[&str]) -> Outcome {
    let output = command(folder, line).output().unwrap();
    Outcome {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Starts mpq-get in the folder and waits until it has told an event for which `wanted` is true.
pub(crate) fn spawn(
    identity: &Identity,
    line: &[&str],
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> Child {
    let line = [&["--cacert", "ca.pem", "--json"], line].concat();
    let mut child = command(identity.folder.path(), &line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines.any(|line| wanted(&serde_json::from_str(&line.unwrap()).unwrap()));
    assert!(told, "it ended without");
    // Whoever writes on needs a reader.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

pub(crate) fn interrupt(child: &Child) {
    let id = child.id().to_string();
    let kill = Command::new("kill").args(["-s", "INT", &id]).status();
    assert!(kill.unwrap().success());
}

pub(crate) fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What a finished mpq-get has left.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The JSON lines.
    pub(crate) fn events(&self) -> Vec<serde_json::Value> {
        self.stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// The JSON lines of one event.
    pub(crate) fn named(&self, name: &str) -> Vec<serde_json::Value> {
        let mut events = self.events();
        events.retain(|event| event["event"] == name);
        events
    }

    #[track_caller]
    pub(crate) fn succeeds(&self) {
        assert!(self.status.success(), "{}", self.stderr);
    }

    /// Failed with this code and exactly one line that contains `text`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.status.code(), Some(code), "{}", self.stderr);
        let mut lines = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("mpq-get: "));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no error line: {}", self.stderr));
        assert!(line.contains(text), "{line}");
        assert_eq!(lines.next(), None);
    }
}
