//! A server of plain QUIC, by quinn and h3-quinn, for comparison: it answers as mpq-serve does, by
//! the same code, and knows neither paths nor moves.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mpq_core::Congestion;
use mpq_core::net::Bind;
use mpq_core::tls::{Identity, rustls_server};
use mpq_serve::site::random::Random;
use mpq_serve::site::{Site, respond};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, TokioRuntime};

/// QUIC's usual idle timeout.
const IDLE: Duration = Duration::from_secs(30);

/// What to serve, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address and UDP port to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Length of /random, in bytes
    #[arg(long, value_name = "SIZE", value_parser = mpq_serve::units::size)]
    random: u64,

    /// What the bytes of /random are made from
    #[arg(long, value_name = "N")]
    seed: u64,

    /// Append a line that says where it listens to this file
    #[arg(long, value_name = "FILE")]
    log_file: PathBuf,
}

/// Serves until the process is ended.
///
/// # Errors
/// If it cannot listen, or its socket fails.
pub async fn serve(options: Options) -> Result<()> {
    let identity = Identity::self_signed(&["localhost".to_owned()])?;
    let crypto = QuicServerConfig::try_from(rustls_server(&identity)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(mpq_get::transport::plain_quic::transport(
        IDLE,
        Congestion::default(),
    )?));
    // Its buffers are those of mpq-serve.
    let socket = Bind::from(options.listen).open()?;
    let endpoint = Endpoint::new(
        EndpointConfig::default(),
        Some(config),
        socket,
        Arc::new(TokioRuntime),
    )
    .with_context(|| format!("cannot listen on {}", options.listen))?;
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(&options.log_file)?;
    writeln!(log, "listening on {}", endpoint.local_addr()?)?;

    let site = Arc::new(Site {
        random: Some(Random::new(options.random, options.seed)),
        ..Site::default()
    });
    while let Some(incoming) = endpoint.accept().await {
        let site = site.clone();
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                answer(connection, site).await;
            }
        });
    }
    bail!("the socket is closed")
}

async fn answer(connection: quinn::Connection, site: Arc<Site>) {
    let h3 = h3::server::builder()
        .send_grease(false)
        .build::<_, Bytes>(h3_quinn::Connection::new(connection))
        .await;
    let Ok(mut h3) = h3 else { return };
    while let Ok(Some(request)) = h3.accept().await {
        let site = site.clone();
        tokio::spawn(async move {
            let Ok((request, mut stream)) = request.resolve_request().await else {
                return;
            };
            respond(&site, &request, &mut stream).await;
        });
    }
}
