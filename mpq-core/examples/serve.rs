//! An HTTP/3 service of one's own that moves to another address every five seconds, with all of its
//! connections. It prints how to download from it:
//!
//!     cargo run --example serve

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use http::Response;
use mpq_core::server::{Handshake, Server, ServerConfig};
use mpq_core::tls::Identity;

/// How many times `hello` the body has.
const HELLOS: u64 = 600;

/// Serves until the server is closed. Of each body a line is sent every `period`.
pub(crate) async fn serve(server: Server, period: Duration) {
    while let Some(handshake) = server.accept().await {
        tokio::spawn(answer(handshake, period));
    }
}

/// Answers what one client asks for, one after the other.
async fn answer(
    handshake: Handshake,
    period: Duration,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut session = handshake.await?;
    while let Some(request) = session.h3.accept().await? {
        let (_request, mut stream) = request.resolve_request().await?;
        stream.send_response(Response::new(())).await?;
        for count in 0..HELLOS {
            stream.send_data(format!("hello {count}\n").into()).await?;
            tokio::time::sleep(period).await;
        }
        stream.finish().await?;
    }
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "a test uses the rest")]
async fn main() -> Result<(), Box<dyn Error>> {
    let identity = Identity::self_signed(&["localhost".to_owned()])?;
    let pin = identity.fingerprint();
    let addresses = ["127.0.0.1:4433", "127.0.0.2:4433"].map(|a| a.parse::<SocketAddr>().unwrap());
    let server = Server::bind(addresses[0], &identity, ServerConfig::default())?;
    tokio::spawn(serve(server.clone(), Duration::from_millis(100)));
    for next in addresses.iter().cycle().skip(1) {
        let address = server.local_addr();
        println!("now: cargo run --example download -- {address} / {pin}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.move_to(*next).await?;
    }
    Ok(())
}
