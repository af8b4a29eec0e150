//! What a host has of what a server needs that is to move here.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::messages::{Findings, NeededFile, Needs};
use super::needs::{self, processor};
use crate::checkpoint::namespace;
use crate::checkpoint::notes::{ImageFile, now};

/// Looks at everything.
pub fn of(needs: &Needs) -> Findings {
    let mut criu = None;
    let mut problems = needs::criu(&mut criu);
    let own = env!("CARGO_PKG_VERSION");
    if needs.version != own {
        problems.push(format!("mpq-serve is {own}, and {} at A", needs.version));
    }
    problems.extend(other_processor(needs));
    problems.extend(needs::criu_lacks(needs));
    problems.extend(needs.files.iter().filter_map(other_file));
    let missing = needs.required.iter().filter(|folder| !folder.is_dir());
    problems.extend(missing.map(|folder| format!("there is no folder {}", folder.display())));
    problems.extend(needs.folders.iter().filter_map(|folder| unmakeable(folder)));
    if let (false, Err(error)) = (namespace::in_use(&needs.ids).is_empty(), namespace::check()) {
        let ids = "process ids of the server are in use";
        problems.push(format!(
            "{ids}, and no namespace of ids can be made: {error}"
        ));
    }
    problems.extend(too_high(&needs.ids));
    if let Err(error) = UdpSocket::bind(needs.address) {
        problems.push(format!("cannot listen on {}: {error}", needs.address));
    }
    problems.extend(needs::no_room(needs));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Findings {
        problems,
        kernel: kernel.trim().to_owned(),
        criu,
        clock: now(),
    }
}

fn other_processor(needs: &Needs) -> Option<String> {
    let own = std::env::consts::ARCH;
    if needs.machine != own {
        return Some(format!(
            "the processor is of {own}, and of {} at A",
            needs.machine
        ));
    }
    let own = processor(&fs::read_to_string("/proc/cpuinfo").ok()?);
    let own: BTreeSet<_> = own.iter().collect();
    let is_missing = |flag: &&String| !own.contains(*flag);
    let missing: Vec<_> = needs.processor.iter().filter(is_missing).cloned().collect();
    let list = missing.join(" ");
    (!missing.is_empty()).then(|| format!("the processor lacks {list}, which that of A has"))
}

/// CRIU does not copy the program, or a library: it maps those that are here.
fn other_file(needed: &NeededFile) -> Option<String> {
    let path = needed.path.display();
    match ImageFile::of(&needed.path) {
        Ok(file) if file.sha256 == needed.sha256 => None,
        Ok(_) => Some(format!("{path} is another one than at A")),
        Err(error) => Some(format!("{path}: {error}")),
    }
}

/// Why a folder is not there, and cannot be made.
fn unmakeable(folder: &Path) -> Option<String> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let reason = match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        _ if !there.is_dir() => format!("{} is no folder", there.display()),
        Err(error) if there != folder => format!("{}: {}", there.display(), error.desc()),
        _ => return None,
    };
    let folder = folder.display();
    Some(format!("the folder {folder} cannot be made: {reason}"))
}

/// The kernel gives out no such ids, nor lets CRIU.
fn too_high(ids: &[i32]) -> Option<String> {
    let file = "/proc/sys/kernel/pid_max";
    let end: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let highest = *ids.iter().max()?;
    (highest >= end).then(|| {
        format!("the server has a process id of {highest}, and kernel.pid_max is {end}: raise it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_said() {
        let here = std::env::current_exe().unwrap();
        let own_id = std::process::id() as i32;
        let needs = Needs {
            version: "0.0.0".into(),
            machine: std::env::consts::ARCH.into(),
            processor: vec!["hyperspace".into()],
            processor_of_criu: None,
            files: vec![
                NeededFile {
                    sha256: ImageFile::of(&here).unwrap().sha256,
                    path: here.clone(),
                },
                NeededFile {
                    path: here,
                    sha256: "0".into(),
                },
                NeededFile {
                    path: "/nowhere/program".into(),
                    sha256: "0".into(),
                },
            ],
            required: vec!["/nowhere".into()],
            folders: vec![
                "/".into(),
                "/nowhere/made".into(),
                "/proc/version/made".into(),
            ],
            ids: vec![own_id, i32::MAX],
            bytes: u64::MAX,
            address: "192.0.2.1:4433".parse().unwrap(),
            images: Some("/proc/nowhere".into()),
            log_file: None,
            time_limit: Default::default(),
        };
        let found = of(&needs);
        let said = found.problems.join("\n");
        for part in [
            "0.0.0 at A",
            "lacks hyperspace",
            "is another one than at A",
            "/nowhere/program: ",
            "no folder /nowhere",
            "the folder /proc/version/made cannot be made: /proc/version is no folder",
            "a process id of 2147483647",
            "cannot listen on 192.0.2.1:4433",
            "has room for",
        ] {
            assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
        }
        assert!(!found.kernel.is_empty());
    }
}
