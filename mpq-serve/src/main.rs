//! See the library.

fn main() -> std::process::ExitCode {
    close_inherited();
    mpq_serve::main()
}

/// Closes what a shell or supervisor has leaked into this process: CRIU could not dump a server
/// with, say, one end of somebody else's socket. The sockets that a supervisor passes on come first (sd_listen_fds(3)).
fn close_inherited() {
    const FIRST: u32 = 3;
    // What is wrong with them is said when they are used.
    let passed_on = sd_notify::listen_fds().map_or(0, |sockets| sockets.len() as u32);
    // SAFETY: nothing has run yet that could own a descriptor above those.
    #[expect(
        unsafe_code,
        reason = "no library closes descriptors that it does not own"
    )]
    unsafe {
        nix::libc::close_range(FIRST.saturating_add(passed_on), u32::MAX, 0);
    }
}
