//! What ties a process to where it was started, and must not while it is frozen: its standard
//! streams, and a session whose leader is out of sight.

use std::fs::{File, OpenOptions};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getsid, setsid};

use crate::log;

/// Points all three streams at `/dev/null`, and starts a session where CRIU could not dump the
/// present one: its leader is outside of this pid namespace (`unshare --pid`, some containers).
pub fn detach() {
    log::flush();
    if getsid(None).is_ok_and(|leader| leader.as_raw() == 0) {
        // Refused to the leader of a process group; CRIU then says what is wrong.
        let _ = setsid();
    }
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(&null);
        attach(&null, &null);
    }
}

/// Takes over the output streams of another process, which must still run.
pub fn take_over(pid: u32) {
    let open = |fd| {
        OpenOptions::new()
            .append(true)
            .open(format!("/proc/{pid}/fd/{fd}"))
    };
    if let (Ok(out), Ok(err)) = (open(1), open(2)) {
        attach(&out, &err);
    }
}

fn attach(out: &File, err: &File) {
    let _ = dup2_stdout(out);
    let _ = dup2_stderr(err);
}
