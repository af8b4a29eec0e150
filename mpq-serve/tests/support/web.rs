//! A client of HTTP/1.1 and HTTP/2 over TCP, made of hyper.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mpq_core::tls::{self, Trust};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Which version to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Asks over TLS. The head is there when this returns, and the body comes.
pub(crate) async fn ask(
    server: SocketAddr,
    protocol: Protocol,
    request: http::request::Builder,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let mut config = tls::rustls_client(&Trust::Insecure)?;
    let name = match protocol {
        Protocol::Http1 => &b"http/1.1"[..],
        Protocol::Http2 => b"h2",
    };
    config.alpn_protocols = vec![name.to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(server).await?;
    let stream = connector.connect("localhost".try_into()?, stream).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(name));
    let stream = TokioIo::new(stream);
    let request = request.body(Empty::<Bytes>::new())?;
    Ok(match protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
        Protocol::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
    })
}

/// GET without TLS: the status, and the text.
pub(crate) async fn get_plainly(
    server: SocketAddr,
    path: &str,
) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TokioIo::new(TcpStream::connect(server).await?);
    let (mut sender, connection) = http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost");
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}
