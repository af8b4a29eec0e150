//! Network devices whose other end is this process.

#![expect(
    unsafe_code,
    reason = "TUNSETIFF, which makes the device, and TUNSETOFFLOAD have no safe wrapper"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use crate::system::host::inside;

/// A TUN device: it carries IP packets. It goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    offload: bool,
}

/// `struct ifreq` with its flags, of `linux/if.h`.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

/// Of `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = nix::request_code_write!(b'T', 202, size_of::<libc::c_int>());
const TUNSETOFFLOAD: libc::c_ulong = nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>());
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// Checksums, TCP and UDP over IPv4 and IPv6 (`TUN_F_CSUM`, `TSO4`, `TSO6`, `USO4`, `USO6`).
const OFFLOADS: libc::c_uint = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

/// Bytes of `struct virtio_net_hdr` of `linux/virtio_net.h`, which is before each packet then.
const HEADER: usize = 10;
const GSO_UDP_L4: u8 = 5;
/// What a device gives at most in one, bytes.
pub(crate) const LARGEST_READ: usize = HEADER + (1 << 16);

impl Tun {
    /// Makes a device of this name in the network namespace that the file stands for. With `offload`
    /// it takes what the host sends in one as one packet, with a header that tells how to cut it.
    ///
    /// # Errors
    /// Without privileges, or if the name is taken; with `offload`, if the kernel is older than 6.2.
    pub(crate) fn new(namespace: &Path, name: &str, offload: bool) -> io::Result<Tun> {
        let file = inside(namespace, || {
            File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
        })?;
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            flags: IFF_TUN | IFF_NO_PI | if offload { IFF_VNET_HDR } else { 0 },
            rest: [0; 22],
        };
        // The last byte stays zero.
        let places = request.name[..libc::IFNAMSIZ - 1].iter_mut();
        for (place, byte) in places.zip(name.bytes()) {
            *place = byte;
        }
        // SAFETY: the descriptor is open, and the request has the size and layout of an ifreq, which
        // is all the kernel reads and writes.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        if offload {
            // SAFETY: the descriptor is open, and the argument is a number.
            Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) })?;
        }
        Ok(Tun { file, offload })
    }

    /// Reads the next packet that the host has sent; none is waiting if it would block.
    ///
    /// # Errors
    /// As read(2).
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// How many bytes of IP packets are on a wire for what was read.
    pub(crate) fn on_the_wire(&self, packet: &[u8]) -> usize {
        match packet.split_at_checked(HEADER) {
            Some((header, batch)) if self.offload => cut(header, batch),
            _ => packet.len(),
        }
    }

    /// Hands to the host what another device of the same kind has given.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Bytes of the packets that this one is to be cut into, each with headers of its own.
fn cut(header: &[u8], batch: &[u8]) -> usize {
    let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (kind, size, transport) = (header[1], field(4), field(6));
    if size == 0 {
        return batch.len();
    }
    let headers = transport
        + match kind {
            GSO_UDP_L4 => 8,
            // TCP tells the length of its own.
            _ => batch
                .get(transport + 12)
                .map_or(0, |byte| usize::from(byte >> 4) * 4),
        };
    let packets = batch.len().saturating_sub(headers).div_ceil(size);
    batch.len() + packets.saturating_sub(1) * headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with this type, size of a segment, and offset of the transport's header.
    fn header(kind: u8, size: u16, transport: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[1] = kind;
        header[4..6].copy_from_slice(&size.to_ne_bytes());
        header[6..8].copy_from_slice(&transport.to_ne_bytes());
        header
    }

    #[test]
    fn every_packet_of_a_batch_has_headers() {
        assert_eq!(cut(&header(0, 0, 0), &[0; 1500]), 1500);
        // Three datagrams, the last of one byte.
        let batch = [0; 20 + 8 + 2 * 1472 + 1];
        assert_eq!(cut(&header(GSO_UDP_L4, 1472, 20), &batch), 1500 + 1500 + 29);
        // Two segments over IPv6, with twelve bytes of TCP options.
        let mut batch = [0; 40 + 32 + 2 * 1428];
        batch[40 + 12] = 8 << 4;
        assert_eq!(cut(&header(4, 1428, 40), &batch), 1500 + 1500);
    }
}
