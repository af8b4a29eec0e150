//! What a server that has moved sends on the paths of before.
//!
//! A client knows those paths by the server's old address, and QUIC discards what comes on them from another
//! one (RFC 9000 §9). But the server may have to find out what of that which it sent before the move never
//! arrived: it sends a packet on each of them from its new address, and its acknowledgement tells. So packets
//! from the address that paths are being opened to are shown to noq as if they came from where their connection
//! ID was first seen to come from.
//!
//! The kernel joins what comes from one address into one buffer (GRO), be it of old paths or of new ones, and noq
//! knows one sender of each buffer. Such packets are put into a buffer for each sender.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;

use noq::udp::RecvMeta;

use super::address::canonical;
use crate::proto::probe::has_long_header;

/// noq's connection IDs have this length, bytes.
const ID_LENGTH: usize = 8;
/// How many connection IDs are known; each path has one at a time.
const MAX_IDS: usize = 64;

type Id = [u8; ID_LENGTH];

/// Which connection IDs came from where.
#[derive(Debug, Default)]
pub(super) struct OldPaths {
    known: VecDeque<(Id, SocketAddr)>,
    /// Where the server may be now.
    new_address: Option<SocketAddr>,
}

impl OldPaths {
    /// The server may be there from now on.
    pub(super) fn follow(&mut self, new_address: SocketAddr) {
        self.new_address = Some(new_address);
    }

    /// Puts packets with different senders, which came together, into buffers that are not used yet. Returns
    /// how many buffers are used then. What is left if there are too few is taken for the new address's.
    pub(super) fn part(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        mut used: usize,
    ) -> usize {
        let mut next = 0;
        while next < used && used < buffers.len().min(metas.len()) {
            let (came, free) = buffers.split_at_mut(used);
            let RecvMeta {
                addr, len, stride, ..
            } = metas[next];
            let remote = canonical(addr);
            let came_together = len > stride && len <= free[0].len();
            let moved = match Some(remote) == self.new_address && came_together {
                true => self.move_others(remote, &mut came[next][..len], stride, &mut free[0]),
                false => 0,
            };
            // They may have several senders themselves, and have their turn.
            if moved > 0 {
                metas[used] = metas[next];
                metas[used].len = moved;
                metas[next].len -= moved;
                used += 1;
            }
            next += 1;
        }
        used
    }

    /// Moves all packets to `others` that do not have the sender of the first one. Returns their bytes.
    fn move_others(
        &mut self,
        remote: SocketAddr,
        packets: &mut [u8],
        stride: usize,
        others: &mut [u8],
    ) -> usize {
        let (mut sender, mut kept, mut moved) = (None, 0, 0);
        let stride = stride.max(1);
        for start in (0..packets.len()).step_by(stride) {
            let end = packets.len().min(start + stride);
            let packet = &packets[start..end];
            let from = id(packet).map_or(remote, |id| self.first_from(id, remote));
            if *sender.get_or_insert(from) == from {
                if kept < start {
                    packets.copy_within(start..end, kept);
                }
                kept += end - start;
            } else {
                others[moved..][..packet.len()].copy_from_slice(packet);
                moved += packet.len();
            }
        }
        moved
    }

    /// Who is to be taken for the sender of packets that came together from `remote`.
    pub(super) fn sender<'a>(
        &mut self,
        remote: SocketAddr,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> SocketAddr {
        let mut sender = None;
        for id in packets.filter_map(id) {
            let first_from = self.first_from(id, remote);
            if *sender.get_or_insert(first_from) != first_from {
                return remote;
            }
        }
        match self.new_address {
            Some(new_address) if new_address == remote => sender.unwrap_or(remote),
            _ => remote,
        }
    }

    fn first_from(&mut self, id: Id, remote: SocketAddr) -> SocketAddr {
        if let Some((_, from)) = self.known.iter().rev().find(|(known, _)| *known == id) {
            return *from;
        }
        if self.known.len() == MAX_IDS {
            self.known.pop_front();
        }
        self.known.push_back((id, remote));
        remote
    }
}

/// The destination connection ID of a packet with a short header (RFC 9000 §17.3.1). The fixed bit tells nothing:
/// noq clears it at random (RFC 9287).
fn id(packet: &[u8]) -> Option<Id> {
    let (_, rest) = packet.split_first()?;
    let is_short = !has_long_header(packet);
    is_short.then_some(*rest.first_chunk()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(id: u8) -> Vec<u8> {
        [&[0x40][..], &[id; ID_LENGTH], b"body"].concat()
    }

    #[test]
    fn only_packets_of_old_paths_from_where_the_server_may_be_are_shown_as_before() {
        let [old, new, other] =
            ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(|a| a.parse().unwrap());
        let mut paths = OldPaths::default();
        let sender = |paths: &mut OldPaths, remote, ids: &[u8]| {
            let packets: Vec<_> = ids.iter().map(|id| packet(*id)).collect();
            paths.sender(remote, packets.iter().map(Vec::as_slice))
        };
        assert_eq!(sender(&mut paths, old, &[1]), old);
        assert_eq!(sender(&mut paths, new, &[1]), new, "nobody is there yet");
        paths.follow(new);
        assert_eq!(sender(&mut paths, new, &[1]), old);
        assert_eq!(sender(&mut paths, new, &[1, 1]), old);
        assert_eq!(sender(&mut paths, new, &[2]), new);
        assert_eq!(sender(&mut paths, new, &[1, 2]), new, "the new path counts");
        assert_eq!(sender(&mut paths, other, &[1]), other);
        assert_eq!(paths.sender(new, [&b"\xc0"[..]].into_iter()), new);
    }

    #[test]
    fn a_packet_without_the_fixed_bit_is_known_as_well() {
        let [old, new] = ["10.0.0.1:1", "10.0.0.2:1"].map(|a| a.parse().unwrap());
        let [plain, mut greased] = [packet(1), packet(1)];
        greased[0] = 0;
        let mut paths = OldPaths::default();
        paths.follow(new);
        let mut sender = |remote, packet: &[u8]| paths.sender(remote, [packet].into_iter());
        assert_eq!(sender(old, &plain), old);
        assert_eq!(sender(new, &greased), old);
        assert_eq!(sender(new, &plain), old);
    }
}
