//! What would have a dump fail: found before any client hears of the move.

use std::fs;
use std::path::{Path, PathBuf};

use super::criu::Criu;
use super::images;
use super::notes::RequestId;
use crate::error::{At, Error};

/// Checks that a process, which is named as in `/proc`, can be dumped, by this CRIU or the one that is found, and makes
/// the folder for its images in `parent`.
///
/// # Errors
/// What is in the way.
pub fn prepare(
    process: &str,
    parent: &Path,
    request: &RequestId,
    criu: Option<&Path>,
) -> Result<PathBuf, Error> {
    Criu::find("mpq-serve checkpoint", criu)?;
    check_filter()?;
    check_maps(process)?;
    let folder = images::new_folder(parent, request)?;
    images::check_room(&folder, process).inspect_err(|_| images::discard(&folder))?;
    Ok(folder)
}

/// Checks that CRIU, which inherits them from this process, has no filters of system calls: it could not put aside those of
/// the process that it dumps then (ptrace(2), `PTRACE_O_SUSPEND_SECCOMP`).
fn check_filter() -> Result<(), Error> {
    const STATUS: &str = "/proc/self/status";
    match is_filtered(&fs::read_to_string(STATUS).at(STATUS)?) {
        true => Err(Error::Dump(
            "system calls are filtered (seccomp), and CRIU cannot dump what has such a filter from within it: leave \
             SystemCallFilter=, RestrictRealtime=, LockPersonality= and the like out of the unit"
                .to_owned(),
        )),
        false => Ok(()),
    }
}

/// Whether a process with this status has a filter of system calls (proc_pid_status(5)).
fn is_filtered(status: &str) -> bool {
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() != "0")
}

/// Checks that what a process has in memory is still in its place: that of this id, or `self`.
///
/// # Errors
/// What is not.
pub fn check_maps(process: &str) -> Result<(), Error> {
    let maps = format!("/proc/{process}/maps");
    let maps = fs::read_to_string(&maps).at(maps)?;
    match replaced(&maps) {
        Some(file) => Err(Error::Dump(format!(
            "{file} was replaced or removed since the server started; CRIU needs it as it was"
        ))),
        None => Ok(()),
    }
}

/// The first file that is in memory, such as the program or a library, but no more in its place (proc_pid_maps(5)).
pub fn replaced(maps: &str) -> Option<&str> {
    mapped(maps).find_map(|file| file.strip_suffix(GONE))
}

/// What is added to the name of a file that has another one in its place, or none.
pub const GONE: &str = " (deleted)";

/// The files that are in memory, in parts: some more than once.
pub fn mapped(maps: &str) -> impl Iterator<Item = &str> {
    // These never have a place.
    const WITHOUT_PLACE: [&str; 4] = ["/dev/zero", "/memfd:", "/SYSV", "/[aio]"];
    maps.lines().filter_map(|line| {
        let file = &line[line.find('/')?..];
        let is_file = !WITHOUT_PLACE.iter().any(|other| file.starts_with(other));
        is_file.then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_system_calls_is_seen() {
        assert!(!is_filtered(
            "Name:\tmpq-serve\nSeccomp:\t0\nSeccomp_filters:\t0\n"
        ));
        assert!(is_filtered(
            "Name:\tmpq-serve\nSeccomp:\t2\nSeccomp_filters:\t1\n"
        ));
        // Some kernels know none.
        assert!(!is_filtered("Name:\tmpq-serve\n"));
    }

    #[test]
    fn a_replaced_library_is_seen() {
        let maps = "\
55d0-55d1 r--p 00000000 08:01 1  /usr/bin/mpq-serve
7f00-7f01 rw-p 00000000 00:00 0
7f01-7f02 rw-s 00000000 00:01 2  /memfd:x (deleted)
7f02-7f03 rw-s 00000000 00:01 3  /dev/zero (deleted)
";
        assert_eq!(replaced(maps), None);
        let maps = format!("{maps}7f03-7f04 r-xp 00000000 08:01 4  /usr/lib/libc.so.6 (deleted)\n");
        assert_eq!(replaced(&maps), Some("/usr/lib/libc.so.6"));
    }
}
