//! How much of its heap a server keeps.
//!
//! Parts of bodies come and go, as many at a time as the paths hold. glibc returns the memory of each to the
//! kernel, only to take it again for the next: a tenth of the server's CPU time. So it is told to
//! [`keep`] what one connection needs, and to [give it back](give_back) when it would become part of a
//! frozen server's image. Besides, it returns only what is free at the end of a heap: what a crowd of clients
//! needed stays for ever below the few bytes of one that is still there. So it is also told some time after
//! something [was over](Leftovers).

#![allow(unsafe_code, reason = "no library sets the C library's parameters")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

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

/// How often it is looked whether there is something to give back.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(4);
/// So many looks after something was over, all of it is free: a connection that is closed stays for three times its
/// probe timeout (RFC 9000 §10.2).
const LOOKS: u32 = 2;

/// Whether there may be something to give back.
#[derive(Debug, Default)]
pub struct Leftovers {
    looks: AtomicU32,
}

impl Leftovers {
    /// A handshake, a connection or a response is over.
    pub fn add(&self) {
        self.looks.store(LOOKS, Ordering::Relaxed);
    }

    /// A look. Whether something was over lately.
    pub fn look(&self) -> bool {
        let less = |looks: u32| looks.checked_sub(1);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        self.looks.fetch_update(set, read, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_looked_for_until_all_of_it_is_free() {
        let leftovers = Leftovers::default();
        assert!(!leftovers.look(), "nothing was");
        leftovers.add();
        assert!(leftovers.look());
        leftovers.add();
        assert_eq!([(); 3].map(|()| leftovers.look()), [true, true, false]);
    }
}
