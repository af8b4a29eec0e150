//! An HTTP/3 service of one's own that moves to another address every five seconds, with all of its
//! connections. Its certificate is for `example download`:
//!
//!     cargo run --example serve -- cert.pem key.pem

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use http::Response;
use mpq_core::server::{Handshake, Server, ServerConfig};
use mpq_core::tls::Identity;

/// How many times `hello` the body has.
const HELLOS: u64 = 100_000;

/// Serves until the server is closed.
pub(crate) async fn serve(server: Server) {
    while let Some(handshake) = server.accept().await {
        tokio::spawn(answer(handshake));
    }
}

/// Answers what one client asks for, one after the other.
async fn answer(handshake: Handshake) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut session = handshake.await?;
    while let Some(request) = session.h3.accept().await? {
        let (_request, mut stream) = request.resolve_request().await?;
        stream.send_response(Response::new(())).await?;
        for count in 0..HELLOS {
            stream.send_data(format!("hello {count}\n").into()).await?;
        }
        stream.finish().await?;
    }
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "a test uses the rest")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [certificate, key] = &arguments[..] else {
        return Err("usage: serve CERTIFICATE.PEM KEY.PEM".into());
    };
    let identity = Identity::from_pem(certificate.as_ref(), key.as_ref())?;
    let addresses = ["127.0.0.1:4433", "127.0.0.2:4433"].map(|a| a.parse::<SocketAddr>().unwrap());
    let server = Server::bind(addresses[0], &identity, ServerConfig::default())?;
    tokio::spawn(serve(server.clone()));
    for address in addresses.iter().cycle().skip(1) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        println!("now at {}", server.move_to(*address).await?);
    }
    Ok(())
}
