//! Datagrams that cost the server something before anybody is known by name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::initial::Initials;
use super::{Deeds, PACE};

/// Sent at a time: this many in each [`PACE`].
const AT_ONCE: u64 = 10;
/// Those of a flood are made once, and sent again and again from elsewhere.
const DIFFERENT: u64 = 10_000;

/// First datagrams of handshakes that never go on.
pub(super) async fn flood(server: SocketAddr, deeds: &Deeds) -> Result<()> {
    let initials = Initials::new();
    let datagrams: Vec<_> = (0..DIFFERENT).map(|n| initials.datagram(n)).collect();
    send_each(server, deeds, |number| {
        datagrams[(number % DIFFERENT) as usize].clone()
    })
    .await
}

/// First datagrams with wrong bytes, parts of them, other versions, and packets of no connection.
pub(super) async fn nonsense(server: SocketAddr, deeds: &Deeds) -> Result<()> {
    let initials = Initials::new();
    let datagrams: Vec<_> = (0..DIFFERENT).map(|n| initials.datagram(n)).collect();
    let mut random = fastrand::Rng::with_seed(1);
    send_each(server, deeds, |number| {
        let mut datagram = datagrams[(number % DIFFERENT) as usize].clone();
        match number % 6 {
            // A bit of it is another.
            0 => datagram[random.usize(..1200)] ^= 1 << random.u32(..8),
            1 => datagram.truncate(random.usize(1..1200)),
            // A version that is reserved, or any (RFC 9000 §6).
            2 => datagram[1..5].copy_from_slice(&random.u32(..).to_be_bytes()),
            // Handshake, 0-RTT and Retry.
            3 => datagram[0] ^= 0x10 << random.u32(..2),
            // A short header.
            4 => datagram[0] &= 0x7f,
            _ => random.fill(&mut datagram),
        }
        datagram
    })
    .await
}

/// Sends them at the pace, each from another port, and every other from an address that is nobody's.
async fn send_each(
    server: SocketAddr,
    deeds: &Deeds,
    mut datagram: impl FnMut(u64) -> Vec<u8>,
) -> Result<()> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        if number % AT_ONCE == 0 {
            pace.tick().await;
        }
        let source = match number % 2 {
            0 => Ipv4Addr::UNSPECIFIED,
            _ => Ipv4Addr::from_bits(0xc612_0000 | number as u32 & 0x1_ffff),
        };
        let socket = UdpSocket::bind((source, 0))?;
        // An answer that nobody waited for may be told of here.
        let _ = socket.send_to(&datagram(number), server);
        deeds.add(1);
    }
    Ok(())
}
