//! Downloads over every interface, and goes on while the server moves:
//!
//!     cargo run --example download -- example.org:4433 /file > file
//!
//! A server whose certificate nobody has issued is trusted by the SHA-256 of the certificate, as the third argument.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

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
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [server, path, pin @ ..] = &arguments[..] else {
        eprintln!("usage: download HOST:PORT PATH [SHA-256 OF THE CERTIFICATE]");
        return ExitCode::from(2);
    };
    let pin = pin.first().cloned();
    let config = ClientConfig {
        trust: pin.map_or(Trust::System, Trust::Pinned),
        ..ClientConfig::default()
    };
    match download(config, server, path, &mut std::io::stdout()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
