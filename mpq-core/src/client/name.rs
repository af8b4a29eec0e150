//! A server by its name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use http::uri::Authority;
use tokio::net::lookup_host;

use super::{Client, ClientConfig};
use crate::error::ConnectError;

/// Of https (RFC 9110 §4.2.2).
const HTTPS: u16 = 443;

impl Client {
    /// Connects to `authority`, which is `host` or `host:port` as in a URL: asks the system for the host's
    /// addresses, and tries one after the other until one answers. They share the time that
    /// [`ClientConfig::connect_timeout`] gives.
    ///
    /// # Errors
    /// [`ConnectError::Name`] if there is no such host; otherwise why the last address did not serve.
    pub async fn connect_to(config: ClientConfig, authority: &str) -> Result<Self, ConnectError> {
        let unknown = |source| ConnectError::Name {
            name: authority.to_owned(),
            source,
        };
        let parsed: Authority = authority
            .parse()
            .map_err(|error| unknown(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let host = parsed.host().trim_start_matches('[').trim_end_matches(']');
        let port = parsed.port_u16().unwrap_or(HTTPS);
        let start = Instant::now();
        let looked_up = tokio::time::timeout(config.connect_timeout, lookup_host((host, port)));
        let found = looked_up
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unknown)?;
        let addresses: Vec<SocketAddr> = found.collect();
        let mut last = unknown(io::ErrorKind::NotFound.into());
        for (index, remote) in addresses.iter().enumerate() {
            let waiting = (addresses.len() - index) as u32;
            let left = config.connect_timeout.saturating_sub(start.elapsed());
            let config = ClientConfig {
                connect_timeout: left / waiting,
                ..config.clone()
            };
            match Self::connect(config, *remote, host).await {
                Err(error) if error.is_of_the_address() => last = error,
                connected => return connected,
            }
        }
        Err(last)
    }
}

/// What a URL says of a server.
pub(super) fn authority(host: &str, port: u16) -> String {
    let host = match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.to_owned(),
    };
    match port {
        HTTPS => host,
        port => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leaves_the_usual_port_out() {
        assert_eq!(authority("a.example", 443), "a.example");
        assert_eq!(authority("a.example", 4433), "a.example:4433");
        assert_eq!(authority("::1", 443), "[::1]");
        assert_eq!(authority("127.0.0.1", 1), "127.0.0.1:1");
    }
}
