//! First datagrams of QUIC clients (RFC 9000 §17.2.2): real ones, after which nothing more comes.

use std::sync::Arc;

use mpq_core::crates::rustls::Side;
use mpq_core::crates::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use mpq_core::crates::rustls::quic::{ClientConnection, Suite, Version};
use mpq_core::tls::{Trust, rustls_client};

/// Bytes of one.
pub(crate) const LENGTH: usize = 1200;
/// What answers are sent to.
const SOURCE: [u8; 8] = *b"harmless";
/// Of a QUIC packet with a long header, after the first byte.
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const TAG: usize = 16;

/// Makes first datagrams.
pub(crate) struct Initials {
    hello: Vec<u8>,
    suite: Suite,
}

impl Initials {
    /// All with the same ClientHello.
    pub(crate) fn new() -> Self {
        let tls = Arc::new(rustls_client(&Trust::Insecure).unwrap());
        let name = "localhost".try_into().unwrap();
        // initial_source_connection_id.
        let parameters = [&[0x0f, SOURCE.len() as u8], &SOURCE[..]].concat();
        let mut client = ClientConnection::new(tls, Version::V1, name, parameters).unwrap();
        let mut hello = Vec::new();
        client.write_hs(&mut hello);
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite();
        Self {
            hello,
            suite: suite.unwrap(),
        }
    }

    /// One of another connection for each number.
    pub(crate) fn datagram(&self, number: u64) -> Vec<u8> {
        self.with_token(&number.to_be_bytes(), &[])
    }

    /// One to this connection id, with what a Retry has brought.
    pub(crate) fn with_token(&self, destination: &[u8], token: &[u8]) -> Vec<u8> {
        let keys = self
            .suite
            .keys(destination, Side::Client, Version::V1)
            .local;
        // With a packet number of four bytes.
        let mut packet = vec![0xc3];
        packet.extend(VERSION_1);
        for id in [destination, &SOURCE] {
            packet.push(id.len() as u8);
            packet.extend(id);
        }
        packet.extend(two_bytes(token.len()));
        packet.extend(token);
        let rest = LENGTH - packet.len() - 2;
        packet.extend(two_bytes(rest));
        let number = packet.len();
        packet.extend([0; 4]);
        let payload = packet.len();
        // A CRYPTO frame, and PADDING.
        packet.extend([0x06, 0x00]);
        packet.extend(two_bytes(self.hello.len()));
        packet.extend(&self.hello);
        packet.resize(LENGTH - TAG, 0);
        let (header, payload) = packet.split_at_mut(payload);
        let tag = keys.packet.encrypt_in_place(0, header, payload).unwrap();
        packet.extend(tag.as_ref());
        let (header, sample) = packet.split_at_mut(number + 4);
        let (first, number) = header.split_at_mut(number);
        keys.header
            .encrypt_in_place(&sample[..keys.header.sample_len()], &mut first[0], number)
            .unwrap();
        packet
    }
}

/// A varint of two bytes.
fn two_bytes(value: usize) -> [u8; 2] {
    (0x4000 | value as u16).to_be_bytes()
}

/// What a server answered with Retry (RFC 9000 §17.2.5): what it is to be sent to, and its token. None if it
/// answered with anything else.
pub(crate) fn retry(datagram: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if datagram[0] & 0xf0 != 0xf0 {
        return None;
    }
    let mut rest = &datagram[1 + VERSION_1.len()..];
    let mut id = || {
        let (length, after) = rest.split_first().unwrap();
        let (id, after) = after.split_at((*length).into());
        rest = after;
        id.to_vec()
    };
    let (_, source) = (id(), id());
    Some((source, rest[..rest.len() - TAG].to_vec()))
}
