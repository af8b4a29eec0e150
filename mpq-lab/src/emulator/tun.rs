//! Network devices whose other end is this process.

#![expect(
    unsafe_code,
    reason = "TUNSETIFF, which makes the device, has no safe wrapper"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use crate::host::inside;

/// A TUN device: it carries IP packets. It goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct Tun(File);

/// `struct ifreq` with its flags, of `linux/if.h`.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

/// Of `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = nix::request_code_write!(b'T', 202, size_of::<libc::c_int>());
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;

impl Tun {
    /// Makes a device of this name in the network namespace that the file stands for.
    ///
    /// # Errors
    /// Without privileges, or if the name is taken.
    pub(crate) fn new(namespace: &Path, name: &str) -> io::Result<Tun> {
        let file = inside(namespace, || {
            File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
        })?;
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            flags: IFF_TUN | IFF_NO_PI,
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
        Ok(Tun(file))
    }

    /// Reads the next packet that the host has sent; none is waiting if it would block.
    ///
    /// # Errors
    /// As read(2).
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Hands a packet to the host.
    ///
    /// # Errors
    /// As write(2).
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
