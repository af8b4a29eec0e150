//! What a running server needs of the host that it is to move to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;

use super::messages::{NeededFile, Needs};
use super::options::MoveOptions;
use crate::checkpoint::command::RunningServer;
use crate::checkpoint::control::Control;
use crate::checkpoint::criu::Criu;
use crate::checkpoint::notes::{ImageFile, RequestId};
use crate::checkpoint::{images, namespace, preflight};
use crate::error::{At, Error};
use crate::listeners::NO_MOVE;

/// What this server needs at B.
///
/// # Errors
/// It cannot be looked at.
pub fn of(server: &RunningServer, options: &MoveOptions) -> Result<Needs, Error> {
    let proc = PathBuf::from(format!("/proc/{}", server.pid));
    let read = |name: &str| {
        let path = proc.join(name);
        fs::read_to_string(&path).at(path)
    };
    let maps = read("maps")?;
    let is_there = |file: &&str| !file.ends_with(preflight::GONE);
    let files: BTreeSet<&str> = preflight::mapped(&maps).filter(is_there).collect();
    let files = files.into_iter().map(|path| {
        let path = PathBuf::from(path);
        // The user of the server has named it.
        let file = match &server.owner {
            Some(owner) => owner.act(|| ImageFile::of(&path)),
            None => ImageFile::of(&path),
        };
        let sha256 = file.at(&path)?.sha256;
        Ok(NeededFile { path, sha256 })
    });
    let settings = server.settings().unwrap_or_default();
    let log_file = options.log_file.clone();
    let log_folder = log_file.as_deref().and_then(Path::parent);
    let folders = settings.folders.into_iter();
    let mut folders: BTreeSet<_> = folders.chain(log_folder.map(PathBuf::from)).collect();
    let mut required: BTreeSet<_> = settings.root.into_iter().collect();
    if server.owner.is_some() {
        // Of an ordinary user nothing is made, but the folder that those are in through which servers are talked to.
        required.append(&mut folders);
        required.extend(server.controls().and_then(Path::parent).map(PathBuf::from));
    }
    let tasks = proc.join("task");
    let tasks = fs::read_dir(&tasks).at(tasks)?.flatten();
    let id = |status| namespace::innermost_id(&fs::read_to_string(status).ok()?);
    Ok(Needs {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: std::env::consts::ARCH.to_owned(),
        processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        processor_of_criu: with_criu(Criu::note_processor).map(|noted| HEXLOWER.encode(&noted)),
        files: files.collect::<Result<_, Error>>()?,
        required: required.into_iter().collect(),
        folders: folders.into_iter().collect(),
        ids: tasks
            .filter_map(|task| id(task.path().join("status")))
            .collect(),
        bytes: images::needed(&server.pid.to_string())?,
        address: options.transfer.address,
        images: options.transfer.images.clone(),
        log_file,
        time_limit: options.time_limit,
    })
}

/// What is in the way of the move at A.
pub fn problems(server: &RunningServer, needs: &Needs) -> Vec<String> {
    let mut problems = criu(&mut None);
    if problems.is_empty() && needs.processor_of_criu.is_none() {
        problems.push("CRIU cannot tell what the processor has (criu cpuinfo dump)".to_owned());
    }
    let settings = server.settings().unwrap_or_default();
    if settings.moves_in_process {
        problems.push("the server was started with --move-in-process".to_owned());
    }
    if settings.is_at_several {
        problems.push(NO_MOVE.to_owned());
    }
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid)).unwrap_or_default();
    if let Some(file) = preflight::replaced(&maps) {
        problems.push(format!(
            "{file} was replaced or removed since the server started"
        ));
    }
    problems.extend(no_room(needs));
    problems
}

/// What is wrong with the CRIU of this host. Its version, if there is one.
pub fn criu(version: &mut Option<String>) -> Vec<String> {
    let criu = match Criu::find("mpq-serve move", None) {
        Ok(criu) => criu,
        Err(error) => return vec![error.to_string()],
    };
    *version = Some(criu.version().to_owned());
    criu.check().err().into_iter().collect()
}

/// Asks the CRIU of this host something that wants a folder. None if it cannot be asked, or has no answer.
fn with_criu<T>(ask: impl FnOnce(&Criu, &Path) -> Result<T, String>) -> Option<T> {
    let criu = Criu::find("mpq-serve move", None).ok()?;
    let folder = images::new_folder(&Control::images(), &RequestId::new()).ok()?;
    let answer = ask(&criu, &folder);
    images::discard(&folder);
    answer.ok()
}

/// What CRIU says that the processor of this host lacks.
pub fn criu_lacks(needs: &Needs) -> Option<String> {
    let noted = needs.processor_of_criu.as_ref()?;
    let noted = HEXLOWER.decode(noted.as_bytes()).unwrap_or_default();
    // Nothing is known of its kind.
    if noted.is_empty() {
        return None;
    }
    let check = |criu: &Criu, folder: &Path| Ok(criu.check_processor(folder, &noted).err());
    with_criu(check)?.map(|reason| format!("the processor is not as at A: {reason}"))
}

/// What is to be said if there is no room for the images on this host.
pub fn no_room(needs: &Needs) -> Option<String> {
    let folder = needs.images.clone().unwrap_or_else(Control::images);
    match images::lacks_room(&folder, needs.bytes) {
        Ok(reason) => reason,
        Err(error) => Some(error.to_string()),
    }
}

/// What a processor can do, as the kernel says it: a program that has looked may use all of it.
pub fn processor(cpuinfo: &str) -> Vec<String> {
    let list = cpuinfo.lines().find_map(|line| {
        let (name, list) = line.split_once(':')?;
        ["flags", "Features"].contains(&name.trim()).then_some(list)
    });
    let words = list.unwrap_or_default().split_whitespace();
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_a_processor_are_found() {
        let x86 = "model name\t: x\nflags\t\t: fpu avx2\n\nflags\t\t: fpu\n";
        assert_eq!(processor(x86), ["fpu", "avx2"]);
        assert_eq!(processor("Features\t: fp asimd\n"), ["fp", "asimd"]);
        assert!(processor("").is_empty());
    }
}
