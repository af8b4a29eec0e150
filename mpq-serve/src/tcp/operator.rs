//! How the server is, for operators and their programs: `/metrics` and `/health`, over plain HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::metrics::Metrics;

/// How long the head of a request may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Of what [`Metrics::text`] writes.
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What operators are told, and where.
#[derive(Debug)]
pub(crate) struct Operator {
    metrics: Arc<Metrics>,
    address: Mutex<SocketAddr>,
    is_leaving: AtomicBool,
}

impl Operator {
    pub(crate) fn new(metrics: Arc<Metrics>, address: SocketAddr) -> Self {
        Self {
            metrics,
            address: Mutex::new(address),
            is_leaving: AtomicBool::new(false),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.lock().expect("nobody panics")
    }

    /// The port was left to the system, and is known now.
    pub(crate) fn set_address(&self, address: SocketAddr) {
        *self.address.lock().expect("nobody panics") = address;
    }

    /// The server is ill from now on, so that nobody sends clients to it.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Answers the requests of one connection.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream) {
        let answer = service_fn(|request: Request<Incoming>| {
            let answer = self.answer(request.uri().path());
            async { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(error) = served.await {
            tracing::debug!("an operator's connection: {error}");
        }
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let is_leaving = self.is_leaving.load(Ordering::Relaxed);
        let (status, media_type, text) = match path {
            "/metrics" => (StatusCode::OK, OPENMETRICS, self.metrics.text()),
            "/health" if is_leaving => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "leaving\n".into()),
            "/health" => (StatusCode::OK, TEXT, "serving\n".into()),
            _ => {
                let hint = "there are /metrics and /health\n".into();
                (StatusCode::NOT_FOUND, TEXT, hint)
            }
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, media_type);
        response
    }
}
