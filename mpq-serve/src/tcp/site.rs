//! The site by HTTP/1.1 and HTTP/2 over TLS, for those who do not know yet that the server speaks HTTP/3, or
//! cannot. Each answer tells them where it does (`Alt-Svc`, RFC 7838).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use http::header::ALT_SVC;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mpq_core::tls::{self, Identity, TlsError};
use socket2::SockRef;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::door::{Guest, Stage};
use crate::access::{Entry, Handshake, Secured};
use crate::service::{Running, Service};
use crate::site::{Chunks, Paces};

/// How long a TLS handshake may take, and the head of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// What a connection by HTTP/2 may have of requests at once, as over QUIC.
const MAX_STREAMS: u32 = 100;
/// How long clients may remember that there is HTTP/3, seconds. The server may move away.
const REMEMBERED: u32 = 3600;

/// What all connections have in common.
#[derive(Debug)]
pub(crate) struct Tls {
    service: Arc<Service>,
    acceptor: RwLock<Acceptor>,
    /// Where HTTP/3 is spoken.
    port: AtomicU16,
}

impl Tls {
    /// # Errors
    /// The identity cannot be used.
    pub(crate) fn new(service: Arc<Service>, identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self {
            service,
            acceptor: RwLock::new(acceptor(identity)?),
            port: AtomicU16::default(),
        })
    }

    /// The server is another one for connections that are made from now on.
    ///
    /// # Errors
    /// The identity cannot be used, and the old one goes on.
    pub(crate) fn set_identity(&self, identity: &Identity) -> Result<(), TlsError> {
        *self.acceptor.write().expect("nobody panics") = acceptor(identity)?;
        Ok(())
    }

    /// HTTP/3 is spoken there from now on.
    pub(crate) fn set_port(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// Answers the requests of one connection.
    pub(crate) async fn serve(self: Arc<Self>, guest: Guest) {
        let Guest {
            stream,
            remote,
            mut stage,
        } = guest;
        let acceptor = self.acceptor.read().expect("nobody panics").0.clone();
        let begun = Handshake::new(remote, Secured::Tls);
        let guest = match self.service.guests.enter(remote.ip()) {
            Ok(guest) => guest,
            Err(full) => return self.service.refused(&begun, full),
        };
        // The system knows best what the client takes.
        let limit = SockRef::from(&stream).set_tcp_user_timeout(self.service.send_timeout);
        if let Err(error) = limit {
            tracing::debug!("{remote}: no limit of time: {error}");
        }
        let accepted = timeout(LIMIT, acceptor.accept(stream)).await;
        let stream = match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => stream,
            Err(error) => {
                self.service.access.failed(&begun, &error.to_string());
                return tracing::debug!("{remote}: TLS over TCP: {error}");
            }
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(LIMIT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(LIMIT);
        let service = self.service.clone();
        let paces = guest.paces.clone();
        let answer = service_fn(move |request| self.clone().answer(remote, paces.clone(), request));
        let connection = builder.serve_connection(TokioIo::new(stream), answer);
        let mut connection = std::pin::pin!(connection);
        let leaving = async { drop(stage.wait_for(|stage| *stage == Stage::Leaving).await) };
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = leaving => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!("{remote}: over TCP: {error}");
            let error = error.downcast_ref::<hyper::Error>();
            if error.is_some_and(hyper::Error::is_parse_too_large) {
                // hyper has answered it.
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                service.responded(&Entry::unread(remote, Version::HTTP_11, status));
            }
        }
    }

    async fn answer(
        self: Arc<Self>,
        remote: SocketAddr,
        shared: Paces,
        request: Request<Incoming>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, io::Error>>, Infallible> {
        let request = request.map(drop);
        let mut report = Report::new(self.service.clone(), Entry::new(remote, &request));
        let (mut head, body) = self.service.site.answer(&request).await;
        let port = self.port.load(Ordering::Relaxed);
        let field = format!("h3=\":{port}\"; ma={REMEMBERED}");
        if let Ok(field) = HeaderValue::try_from(field) {
            head.headers_mut().insert(ALT_SVC, field);
        }
        report.entry.status = head.status();
        let body = match body {
            Some(excerpt) => {
                let chunks = Chunks::new(excerpt, self.service.site.paces(&shared));
                StreamBody::new(frames(chunks, report)).boxed_unsync()
            }
            None => {
                report.is_whole = true;
                Empty::new().map_err(|never| match never {}).boxed_unsync()
            }
        };
        Ok(head.map(|()| body))
    }
}

/// A body as hyper wants it. What is said of it in the end is said when the last of it was handed over, or when
/// nobody wants more.
fn frames(chunks: Chunks, report: Report) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    stream::unfold((chunks, report), |(mut chunks, mut report)| async move {
        let chunk = chunks.next().await?;
        match &chunk {
            Ok(chunk) => report.entry.bytes += chunk.len() as u64,
            Err(error) => report.entry.cut = Some(error.to_string()),
        }
        // hyper does not ask again once it has all that was announced.
        report.is_whole = chunks.is_over();
        Some((chunk.map(Frame::data), (chunks, report)))
    })
}

/// Says what became of a response once it is over.
struct Report {
    service: Arc<Service>,
    _running: Running,
    entry: Entry,
    is_whole: bool,
}

impl Report {
    fn new(service: Arc<Service>, entry: Entry) -> Self {
        let running = Running::new(&service.metrics);
        Self {
            service,
            _running: running,
            entry,
            is_whole: false,
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.is_whole && self.entry.cut.is_none() {
            self.entry.cut = Some("the connection ended".to_owned());
        }
        self.service.responded(&self.entry);
    }
}

/// `TlsAcceptor` tells nothing of itself.
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

fn acceptor(identity: &Identity) -> Result<Acceptor, TlsError> {
    let mut config = tls::rustls_server(identity)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
}
