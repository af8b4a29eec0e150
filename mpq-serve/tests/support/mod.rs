//! The program, a slow link to it, and a client made of quinn and bytes.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod link;
mod raw_client;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

pub(crate) use link::link;
pub(crate) use raw_client::{Answer, Client, connect};

/// A running server, and the lines of its log after that which says where it listens.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) log: mpsc::Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the program on loopback. Returns where it listens, too.
pub(crate) fn start(options: &[&str]) -> (Server, SocketAddr) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(["--listen", "127.0.0.1:0"])
        .args(options)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
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
    (Server { process, log }, listen.unwrap())
}
