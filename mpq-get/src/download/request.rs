//! What is to be downloaded, how, and where to.

use std::time::Duration;

use clap::ValueEnum;
use mpq_core::client::ClientConfig;
use url::{Host, Url};

use super::pace::SpeedLimit;
use super::retry::Policy;
use crate::output::Destination;
use crate::resolve::overrides::Overrides;

/// The transport under HTTP/3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Protocol {
    /// Multipath QUIC: all interfaces, follows a server that moves
    #[default]
    Multipath,
    /// Plain QUIC for comparison: the first interface only, lost when the server moves
    Quic,
}

/// A download, checked as far as it can be without the network.
#[derive(Debug)]
pub struct DownloadRequest {
    /// What to get: an https URL with a host and without a fragment.
    pub url: Url,
    /// Where the body goes.
    pub destination: Destination,
    /// SHA-256 the body must have, in lower-case hexadecimal.
    pub checksum: Option<String>,
    /// Whether a file that is there may be complete.
    pub resume: bool,
    /// Whether the file gets the time that the server gives.
    pub remote_time: bool,
    /// Most requests at a time.
    pub segments: usize,
    /// How often to try.
    pub retry: Policy,
    /// How long all of it may take.
    pub max_time: Option<Duration>,
    /// How slowly the body may come.
    pub speed_limit: SpeedLimit,
    /// Where to connect to, regardless of the URL.
    pub overrides: Overrides,
    /// By which transport.
    pub protocol: Protocol,
    /// How to connect.
    pub client: ClientConfig,
}

impl DownloadRequest {
    /// The host to resolve and to check the certificate for; an IPv6 address without brackets.
    pub fn host(&self) -> String {
        match self.url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => unreachable!("an https URL has a host"),
        }
    }

    /// The UDP port to connect to.
    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or(443)
    }
}
