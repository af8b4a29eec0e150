//! How much of its heap a server keeps.
//!
//! Parts of bodies come and go, as many at a time as the paths hold. glibc returns the memory of each to the
//! kernel, only to take it again for the next: a tenth of the server's CPU time. So it is told to
//! [`keep`] what one connection needs, and to [give it back](give_back) when it would become part of a
//! frozen server's image.

#![allow(unsafe_code, reason = "no library sets the C library's parameters")]

#[cfg(target_env = "gnu")]
use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, malloc_trim, mallopt};

/// How much of each thread's heap stays though it is free, bytes: what a connection may have in flight.
#[cfg(target_env = "gnu")]
const KEPT_FREE: i32 = mpq_core::limits::SEND_WINDOW as i32;
/// The smallest allocation that is returned at once, bytes: more than a part of a body.
#[cfg(target_env = "gnu")]
const RETURNED_AT_ONCE: i32 = 1 << 20;

/// To be called before the threads are started that it is for.
#[cfg(target_env = "gnu")]
pub fn keep() {
    // SAFETY: these set what the allocator goes by from now on.
    unsafe {
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE);
        mallopt(M_MMAP_THRESHOLD, RETURNED_AT_ONCE);
    }
}

/// Returns what is free to the kernel.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: it takes the allocator's locks, and returns only what nobody has.
    unsafe {
        malloc_trim(0);
    }
}

/// Other allocators than glibc's are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn keep() {}

/// Other allocators than glibc's are left as they are.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
