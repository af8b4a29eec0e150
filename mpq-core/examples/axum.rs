//! An axum application over HTTP/3 that moves to another address every five seconds, with all of its
//! connections. It prints how to download from it:
//!
//!     cargo run --features axum --example axum

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use axum_h3::H3Router;
use mpq_core::server::{Server, ServerConfig};
use mpq_core::tls::Identity;

/// Serves any router as it is, until the server is closed.
pub(crate) async fn serve(server: Server, router: Router) {
    if let Err(error) = H3Router::from(router).serve(server.acceptor()).await {
        eprintln!("{error}");
    }
}

#[tokio::main]
#[allow(dead_code, reason = "a test uses the rest")]
async fn main() -> Result<(), Box<dyn Error>> {
    let identity = Identity::self_signed(&["localhost".to_owned()])?;
    let pin = identity.fingerprint();
    let addresses = ["127.0.0.1:4433", "127.0.0.2:4433"].map(|a| a.parse::<SocketAddr>().unwrap());
    let server = Server::bind(addresses[0], &identity, ServerConfig::default())?;
    let router = Router::new().route("/", get(|| async { "hello\n" }));
    tokio::spawn(serve(server.clone(), router));
    for next in addresses.iter().cycle().skip(1) {
        let address = server.local_addr();
        println!("now: cargo run --example download -- {address} / {pin}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.move_to(*next).await?;
    }
    Ok(())
}
