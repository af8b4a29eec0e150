//! See the library.

fn main() -> std::process::ExitCode {
    close_inherited();
    keep_memory();
    mpq_serve::main()
}

/// Closes what a shell or supervisor has leaked into this process: CRIU could not dump a server
/// with, say, one end of somebody else's socket.
fn close_inherited() {
    const FIRST: u32 = 3;
    // SAFETY: nothing has run yet that could own a descriptor above those of the standard streams.
    #[expect(
        unsafe_code,
        reason = "no library closes descriptors that it does not own"
    )]
    unsafe {
        nix::libc::close_range(FIRST, u32::MAX, 0);
    }
}

/// Has the allocator keep some of what was freed. Parts of bodies come and go, and glibc returns the memory
/// of each to the kernel, only to take it again for the next: a tenth of the server's CPU time.
#[cfg(target_env = "gnu")]
fn keep_memory() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};

    /// How much of each heap's free end, bytes. It is part of a frozen server's image.
    const KEPT: i32 = 4 << 20;
    /// The smallest allocation that is always returned, bytes: more than a part of a body.
    const RETURNED: i32 = 1 << 20;
    // SAFETY: sets what the allocator goes by; nothing else runs yet.
    #[expect(unsafe_code, reason = "no library sets glibc's parameters")]
    unsafe {
        mallopt(M_TRIM_THRESHOLD, KEPT);
        mallopt(M_MMAP_THRESHOLD, RETURNED);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_memory() {}
