//! The standard streams, which a frozen process must not have on a terminal, pipe or file.

use std::fs::{File, OpenOptions};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Points all three at `/dev/null`.
pub fn detach() {
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
