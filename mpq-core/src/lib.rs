//! HTTP/3 over Multipath QUIC, with servers that move under running downloads.
//!
//! [`client::Client`] downloads over every interface and follows a server that moves;
//! [`server::Server`] serves, and moves with all of its connections.
//!
//! # A download
//! It goes on while the server moves, on the same connection. There is nothing to do for that.
//!
//! ```no_run
//! use mpq_core::client::{Client, ClientConfig};
//! # async fn download() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect_to(ClientConfig::default(), "example.org:4433").await?;
//! let mut body = client.get("/file").await?.into_body();
//! while let Some(chunk) = body.chunk().await? {
//!     std::io::Write::write_all(&mut std::io::stdout(), &chunk)?;
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # A service that moves
//! What answers the requests knows nothing of moves: while the server is frozen, it waits to write.
//!
//! ```no_run
//! use mpq_core::server::{Handshake, Server, ServerConfig};
//! use mpq_core::tls::Identity;
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::self_signed(&["localhost".to_owned()])?;
//! let server = Server::bind("127.0.0.1:4433".parse()?, &identity, ServerConfig::default())?;
//! tokio::spawn({
//!     let server = server.clone();
//!     async move {
//!         while let Some(handshake) = server.accept().await {
//!             tokio::spawn(answer(handshake));
//!         }
//!     }
//! });
//! server.move_to("127.0.0.2:4433".parse()?).await?;
//! # Ok(())
//! # }
//!
//! async fn answer(handshake: Handshake) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let mut session = handshake.await?;
//!     while let Some(request) = session.h3.accept().await? {
//!         let (_request, mut stream) = request.resolve_request().await?;
//!         stream.send_response(http::Response::new(())).await?;
//!         stream.send_data("hello".into()).await?;
//!         stream.finish().await?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! [`Server::move_to`](server::Server::move_to) goes to another address of the same host.
//! [`Server::relocate`](server::Server::relocate) freezes the process in between: it may be dumped here and
//! restored on another host.
//!
//! # An axum application that moves
//! With the feature `axum`; the `Router` is any one. tonic-h3 takes the same
#![cfg_attr(
    feature = "axum",
    doc = "[acceptor](server::Server::acceptor).\n\n```no_run"
)]
#![cfg_attr(not(feature = "axum"), doc = "acceptor.\n\n```ignore")]
//! use axum::{Router, routing::get};
//! use mpq_core::server::{Server, ServerConfig};
//! use mpq_core::tls::Identity;
//! # async fn serve() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let identity = Identity::self_signed(&["localhost".to_owned()])?;
//! let server = Server::bind("127.0.0.1:4433".parse()?, &identity, ServerConfig::default())?;
//! let router = Router::new().route("/", get(|| async { "hello" }));
//! tokio::spawn(axum_h3::H3Router::from(router).serve(server.acceptor()));
//! server.move_to("127.0.0.2:4433".parse()?).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it is made
//! What to do when is decided by the sans-IO machines of [`proto`], which also explains the protocol. Below
//! are the sockets of each interface ([`net`]), HTTP/3 over noq ([`mod@h3`]) and the congestion control.
//!
//! Data flows one way: sockets → noq → driver → machine → its outputs.
#![forbid(unsafe_code)]

pub mod client;
mod congestion;
mod error;
pub mod forwarder;
mod frame_io;
pub mod h3;
pub mod limits;
pub mod net;
mod printable;
pub mod proto;
#[cfg(feature = "qlog")]
mod qlog;
mod runtime;
#[cfg(feature = "serde")]
mod seconds;
pub mod server;
mod stats;
mod time;
pub mod tls;
mod transport;
mod usage;

/// The crates whose types are part of the interface, in the versions that it has them of.
pub mod crates {
    #[cfg(feature = "axum")]
    pub use h3_util;
    pub use {bytes, h3, http, noq, rustls, tokio};
}

pub use congestion::{Congestion, Resume, UnknownCongestion, UnknownResume};
pub use printable::{is_unprintable, printable};
pub use proto::PathId;
pub use stats::{PathStats, PathTraffic, Traffic};
pub use usage::Usage;
