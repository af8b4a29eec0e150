//! How a forwarder, at the address that a server has left, tells it for whom it forwards.
//!
//! A client that knows nothing of moves sends to the old address for as long as its connection lasts, and hears what
//! comes from there only. A forwarder that stays there has a socket for each such client, and sends from it
//! to the server what comes from the client. The server must know which client is behind which of these sockets before
//! it can speak first: the forwarder *introduces* each of them.
//!
//! An introduction has the shape of a Version Negotiation packet, which a server discards (RFC 9000 §17.2.1). Its
//! connection IDs are the client's address, and a keyed hash of that. The key is known to the server and to whom it
//! has handed its address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ring::hmac;

use super::probe::{QUIC_V1, Secret, header};

/// How many clients a forwarder forwards for.
pub const MAX_CLIENTS: usize = 4_096;

/// The hash has this length, bytes.
const TAG_LENGTH: usize = 32;
/// An address, IPv4 ones as IPv6 ones are mapped to them, and a port.
const ADDRESS_LENGTH: usize = 16 + 2;

/// Makes introductions, and tells whether one is good.
#[derive(Clone)]
pub struct ForwardKey(hmac::Key);

impl ForwardKey {
    /// From what the server has drawn for this move.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The datagram that introduces a client, with a random byte.
    pub fn introduction(&self, client: SocketAddr, random: u8) -> Vec<u8> {
        let address = bytes(client);
        let tag = hmac::sign(&self.0, &address);
        let mut packet = header(random, [0; 4], tag.as_ref(), &address);
        packet.extend_from_slice(&QUIC_V1.to_be_bytes());
        packet
    }

    /// Whom a packet introduces; `None` if it is something else, or made with another key.
    pub fn introduced(&self, packet: &[u8]) -> Option<SocketAddr> {
        let (first, rest) = packet.split_first()?;
        let rest = rest.strip_prefix(&[0; 4])?;
        let rest = rest.strip_prefix(&[TAG_LENGTH as u8])?;
        let (tag, rest) = rest.split_first_chunk::<TAG_LENGTH>()?;
        let rest = rest.strip_prefix(&[ADDRESS_LENGTH as u8])?;
        let (address, _) = rest.split_first_chunk::<ADDRESS_LENGTH>()?;
        let is_good = hmac::verify(&self.0, address, tag).is_ok();
        (first & 0x80 != 0 && is_good).then(|| read(address))
    }
}

impl fmt::Debug for ForwardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardKey")
    }
}

/// A client as introductions name it: without the scope of an IPv6 address, which means something on one host only.
pub fn name(client: SocketAddr) -> SocketAddr {
    read(&bytes(client))
}

fn bytes(address: SocketAddr) -> [u8; ADDRESS_LENGTH] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_LENGTH];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn read(bytes: &[u8; ADDRESS_LENGTH]) -> SocketAddr {
    let (ip, port) = bytes.split_first_chunk::<16>().expect("it is longer");
    let ip = Ipv6Addr::from(*ip).to_canonical();
    (ip, u16::from_be_bytes([port[0], port[1]])).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_names_a_client_to_who_has_the_key() {
        let [ours, other] = [[1; 32], [2; 32]].map(|secret| ForwardKey::new(&secret));
        for address in ["192.0.2.1:50000", "[2001:db8::1]:443"] {
            let client = address.parse().unwrap();
            let packet = ours.introduction(client, 7);
            assert_eq!(ours.introduced(&packet), Some(client));
            assert_eq!(other.introduced(&packet), None);
            for end in 0..packet.len() - 4 {
                assert_eq!(ours.introduced(&packet[..end]), None, "cut at {end}");
            }
            for at in 1..packet.len() - 4 {
                let mut changed = packet.clone();
                changed[at] ^= 1;
                assert_eq!(ours.introduced(&changed), None, "another byte {at}");
            }
        }
    }
}
