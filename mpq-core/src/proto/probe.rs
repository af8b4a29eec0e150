//! Datagrams that ask whether a QUIC server is there, without a path and without any state.
//!
//! A *probe* is a long-header packet of a reserved version, which every QUIC server answers with
//! Version Negotiation (RFC 9000 §6, RFC 8999 §6). A *knock* is the restored server's own word: a
//! packet of the same shape as that answer. Both carry a secret of the connection, so that nobody
//! off the path can forge one. Still they are only hints; a path is validated by QUIC itself.

/// What an answer is addressed to: the token of a probe, or of the server's knocks.
pub type Token = [u8; 8];

/// A client must pad what may open a connection to this size, bytes (RFC 9000 §14.1).
const PROBE_SIZE: usize = 1200;
/// A version of the pattern that is reserved to force negotiation (RFC 9000 §15).
const RESERVED_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
/// Long header, and the fixed bit, which some load balancers want to see.
const LONG_HEADER: u8 = 0xc0;

/// The probe whose answer will carry `token`.
pub fn probe(token: Token) -> Vec<u8> {
    let mut packet = header(RESERVED_VERSION, token, token);
    packet.resize(PROBE_SIZE, 0);
    packet
}

/// The datagram with which a thawed server says that it is there.
pub fn knock(token: Token) -> Vec<u8> {
    let mut packet = header([0; 4], token, token);
    packet.extend_from_slice(&1u32.to_be_bytes());
    packet
}

/// The token of a Version Negotiation packet or knock; `None` for any other packet.
pub fn answered(packet: &[u8]) -> Option<Token> {
    let (_, rest) = packet.split_first()?;
    let rest = rest.strip_prefix(&[0; 4])?;
    let (length, rest) = rest.split_first()?;
    if !has_long_header(packet) || usize::from(*length) != size_of::<Token>() {
        return None;
    }
    rest.first_chunk().copied()
}

/// Whether a packet is none of a connection that is made already (RFC 9000 §17).
pub(crate) fn has_long_header(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x80 != 0)
}

fn header(version: [u8; 4], destination: Token, source: Token) -> Vec<u8> {
    let length = size_of::<Token>() as u8;
    let mut packet = vec![LONG_HEADER];
    packet.extend_from_slice(&version);
    for id in [destination, source] {
        packet.push(length);
        packet.extend_from_slice(&id);
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knock_carries_its_token_and_a_probe_is_no_answer() {
        let token = *b"token678";
        assert_eq!(answered(&knock(token)), Some(token));
        assert_eq!(answered(&probe(token)), None);
        assert_eq!(probe(token).len(), 1200);
    }

    #[test]
    fn anything_else_is_no_answer() {
        let knock = knock(*b"token678");
        for end in 0..14 {
            assert_eq!(answered(&knock[..end]), None, "cut at {end}");
        }
        let mut short_header = knock.clone();
        short_header[0] = 0x40;
        assert_eq!(answered(&short_header), None);
        let mut other_length = knock;
        other_length[5] = 7;
        assert_eq!(answered(&other_length), None);
    }
}
