//! The program, a slow link to it, and a client made of quinn and bytes.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod link;
mod raw_client;
pub(crate) mod site;
pub(crate) mod web;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) use link::link;
pub(crate) use raw_client::{Answer, Client, connect, connect_for, request};

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a file, once there are so many.
pub(crate) fn lines_of(log: &Path, count: usize) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{lines:#?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running server, and the lines of its log after that which says where it listens.
pub(crate) struct Server {
    pub(crate) process: Running,
    pub(crate) log: mpsc::Receiver<String>,
}

impl Server {
    pub(crate) fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.0.id() as i32), signal).unwrap();
    }

    /// The most memory that it has had so far, kB.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.figure("VmHWM:")
    }

    /// The memory that it has now, kB.
    pub(crate) fn memory(&self) -> u64 {
        self.figure("VmRSS:")
    }

    /// What the kernel says of it (proc_pid_status(5)).
    fn figure(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()));
        let status = status.unwrap();
        let (_, figure) = status.split_once(name).unwrap();
        figure.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Waits until the log says this.
    pub(crate) fn wait_for(&self, text: &str) {
        assert!(self.log.iter().any(|line| line.contains(text)), "{text}");
    }
}

/// Starts the program on loopback, with `/random` unless the options say what else. Returns where it listens, too.
pub(crate) fn start(options: &[&str]) -> (Server, SocketAddr) {
    start_in(options, &[])
}

/// As [`start`], with these variables in its environment.
pub(crate) fn start_in(options: &[&str], variables: &[(&str, &OsStr)]) -> (Server, SocketAddr) {
    let serves = ["--random", "--root", "--config"];
    let has_content = options.iter().any(|option| serves.contains(option));
    let random: &[&str] = if has_content { &[] } else { &["--random"] };
    let process = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(["--listen", "127.0.0.1:0"])
        .args(random)
        .args(options)
        .envs(variables.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    started(process)
}

/// A server that has said where it listens, and that.
pub(crate) fn started(mut process: Child) -> (Server, SocketAddr) {
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let listen = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once("listening on ")?;
        Some(address.parse().unwrap())
    });
    let (sender, log) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = lines.map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    let process = Running(process);
    (Server { process, log }, listen.expect("it listens"))
}
