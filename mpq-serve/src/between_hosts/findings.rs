//! What a host has of what a server needs that is to move here.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use super::messages::{Findings, NeededFile, Needs};
use super::needs::{self, processor};
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
    let folders = needs.folders.iter().filter(|folder| !folder.is_dir());
    problems.extend(folders.map(|folder| format!("there is no folder {}", folder.display())));
    problems.extend(used_ids(&needs.ids));
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

fn used_ids(ids: &[i32]) -> Option<String> {
    let is_used = |id: &&i32| Path::new(&format!("/proc/{id}")).exists();
    let used: Vec<_> = ids.iter().filter(is_used).map(i32::to_string).collect();
    let list = used.join(", ");
    (!used.is_empty())
        .then(|| format!("in use are process ids of the server and its threads: {list}"))
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
            folders: vec!["/".into(), "/nowhere".into()],
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
            &format!("threads: {own_id}"),
            "cannot listen on 192.0.2.1:4433",
            "has room for",
        ] {
            assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
        }
        assert!(!found.kernel.is_empty());
    }
}
