//! Process ids that are in use.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::process::{Child, Command};
use std::time::Instant;

use crate::operated::LIMIT;

/// A process that has an id, or none, for as long as this is there.
pub(crate) struct Occupied(Option<Child>);

impl Occupied {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn start(id: i32) -> Self {
        let sleep = || Self(Command::new("sleep").arg("1000").spawn().ok());
        start(id, sleep, |it| it.0.as_ref().unwrap().id() as i32)
    }

    /// Nobody has ended it.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(child) = &mut self.0 {
            assert_eq!(child.try_wait().unwrap(), None);
        }
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts something as a process that has this id, which is free.
pub(crate) fn start<T>(id: i32, start: impl Fn() -> T, id_of: impl Fn(&T) -> i32) -> T {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    let end = Instant::now() + LIMIT;
    loop {
        // Others start processes as well.
        let last = fs::read_to_string(LAST).unwrap();
        fs::write(LAST, (id - 1).to_string()).unwrap();
        let started = start();
        // Nor are those that come afterwards to have ids of other servers.
        fs::write(LAST, last.trim()).unwrap();
        if id_of(&started) == id {
            return started;
        }
        assert!(Instant::now() < end, "no process gets the id {id}");
    }
}
