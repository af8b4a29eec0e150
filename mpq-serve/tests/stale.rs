//! A process id that is left behind, in a pid file or a control folder, names nobody: no other process may pay
//! for it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use mpq_serve::checkpoint::control::Control;
use mpq_serve::checkpoint::process::Identity;

fn mpq_serve() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
}

/// An innocent process.
struct Innocent(Child);

impl Innocent {
    fn start() -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        Self(child)
    }

    fn id(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process id of a server that was killed, so that its control folder is still there.
fn killed_server() -> i32 {
    let mut server = mpq_serve()
        .args(["--listen", "127.0.0.1:0", "--random"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(server.stderr.take().unwrap());
    let listens = |line: Result<String, _>| line.unwrap().contains("listening on");
    assert!(log.lines().any(listens));
    server.kill().unwrap();
    server.wait().unwrap();
    server.id() as i32
}

#[test]
fn a_stale_pid_file_ends_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("server.pid");
    let mut innocent = Innocent::start();
    // It has the id that a server had, whose control folder is still there.
    let left = Control::of(innocent.id());
    left.create().unwrap();
    let now = Identity::of(innocent.id()).unwrap();
    let started = now.started - 2;
    left.write(&Identity { started, ..now }).unwrap();
    fs::write(&pid_file, innocent.id().to_string()).unwrap();
    for (option, value) in [
        ("--pid-file", pid_file.display().to_string()),
        ("--pid", innocent.id().to_string()),
    ] {
        let output = mpq_serve()
            .args(["checkpoint", "--migrate-to", "127.0.0.2:4433"])
            .args([option, &value])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(innocent.0.try_wait().unwrap(), None, "it lives: {said}");
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains(&value), "{said}");
        assert!(!left.exists(), "what the dead server left is gone");
    }
}

#[test]
fn a_new_server_cleans_up_what_a_killed_one_left() {
    let first = Control::of(killed_server());
    killed_server();
    assert!(!first.exists());
}
