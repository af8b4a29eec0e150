//! Downloads over every interface, and goes on while the server moves:
//!
//!     cargo run --example download -- localhost:4433 / ca.pem > file

use std::error::Error;
use std::io::Write;

use mpq_core::client::{Client, ClientConfig};
use mpq_core::tls::Trust;

/// Asks `server`, `host:port`, for a path.
pub(crate) async fn download(
    config: ClientConfig,
    server: &str,
    path: &str,
    to: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let client = Client::connect_to(config, server).await?;
    let mut body = client.get(path).await?.into_body();
    while let Some(chunk) = body.chunk().await? {
        to.write_all(&chunk)?;
    }
    client.close().await;
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "a test uses the rest")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [server, path, trusted @ ..] = &arguments[..] else {
        return Err("usage: download HOST:PORT PATH [CA.PEM]".into());
    };
    let config = ClientConfig {
        trust: trusted
            .first()
            .map_or(Trust::System, |file| Trust::CaFile(file.into())),
        ..ClientConfig::default()
    };
    download(config, server, path, &mut std::io::stdout()).await
}
