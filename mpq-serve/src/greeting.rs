//! What a server says at its start: where it can be asked, and how.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use mpq_core::tls::Identity;

use crate::site::Site;
use crate::site::files::{Entry, url_path};

/// How many URLs are told: hosts of containers have hundreds of addresses.
const MAX_URLS: usize = 8;

/// The addresses of this host at which a server that listens there can be asked, those that others can reach first.
pub(crate) fn addresses(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let addresses = interfaces.into_iter().map(|interface| interface.ip());
    let is_usable = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        // One of a link is nothing without its interface.
        IpAddr::V6(address) => listen.is_ipv6() && !address.is_unicast_link_local(),
    };
    let mut addresses: Vec<_> = addresses.filter(is_usable).collect();
    addresses.sort_by_key(|address| (address.is_loopback(), address.is_ipv6()));
    addresses.dedup();
    addresses
}

/// Says where the site is, of a server that listens on these, and how to download from it.
pub(crate) fn tell(listens: &[SocketAddr], identity: &Identity, site: &Site) {
    let fingerprint = identity.fingerprint();
    tracing::info!("certificate sha256 {fingerprint}");
    let all_at = |listen: &SocketAddr| {
        let port = listen.port();
        let addresses = addresses(listen.ip()).into_iter();
        addresses.map(move |address| format!("https://{}", SocketAddr::new(address, port)))
    };
    let urls: Vec<_> = listens.iter().flat_map(all_at).collect();
    for url in urls.iter().take(MAX_URLS) {
        tracing::info!("serving {url}/");
    }
    if let Some(url) = urls.first() {
        let path = example(site);
        tracing::info!("download with: mpq-get --pin sha256:{fingerprint} -O {url}{path}");
    }
}

/// Something that can be downloaded.
fn example(site: &Site) -> String {
    let entries = site.root.as_ref().map(|root| root.list(Path::new(".")));
    let entries = entries.and_then(Result::ok).unwrap_or_default();
    if site.random.is_some() {
        if entries.iter().any(|entry| entry.name == "random") {
            tracing::warn!("/random is the file of that name, and not what --random makes");
        }
        return "/random".to_owned();
    }
    let file = entries.iter().find(|entry| !entry.is_directory);
    file.map_or("/PATH".to_owned(), |Entry { name, .. }| url_path(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_as_it_is_and_all_of_them_without_those_of_links() {
        let one = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(addresses(one), [one]);
        let v4 = addresses(IpAddr::from([0, 0, 0, 0]));
        assert!(v4.iter().all(IpAddr::is_ipv4) && !v4.is_empty());
        // Others can reach the first, if they can reach any.
        let is_loopback: Vec<_> = v4.iter().map(IpAddr::is_loopback).collect();
        assert!(is_loopback.is_sorted());
    }
}
