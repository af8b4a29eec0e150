//! See the library.

fn main() -> std::process::ExitCode {
    close_inherited();
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
