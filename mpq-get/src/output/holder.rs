//! Who has locked a file.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{major, minor};

/// Words for the process that holds the lock on a file, as far as the system tells (proc_locks(5)).
pub(super) fn holder(file: &Metadata) -> String {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let Some(process) = process(&table, file.dev(), file.ino()) else {
        return "another process".to_owned();
    };
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("{} (process {process})", name.trim()),
        Err(_) => format!("process {process}"),
    }
}

/// The process that holds a lock by flock(2) on that file, by the table of all locks.
fn process(table: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            // Those that wait for it have an arrow instead.
            [_, "FLOCK", _, _, process, place, ..] if place == file => process.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn the_holder_is_in_the_table_of_locks() {
        let table = "\
1: POSIX  ADVISORY  WRITE 11 fe:10:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:10:78 0 EOF
3: FLOCK  ADVISORY  WRITE 13 fe:10:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fe:10:77 0 EOF
";
        let device = makedev(0xfe, 0x10);
        assert_eq!(process(table, device, 77), Some(13));
        assert_eq!(process(table, device, 79), None);
        assert_eq!(process("", device, 77), None);
    }
}
