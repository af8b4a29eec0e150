//! Images that no CRIU has written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mpq_serve::checkpoint::images::finish;
use mpq_serve::checkpoint::notes::Manifest;

/// Says that the images in this folder are complete: of this version of the program, and of a server that announced to
/// be there.
pub(crate) fn complete(version: &str, folder: &Path, listen: &str) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let manifest = Manifest {
        program: Manifest::PROGRAM.into(),
        version: version.into(),
        // Beyond the highest that there can be (proc(5)).
        pid: 8_388_608,
        id_outside: None,
        control: folder.join("control"),
        listen: listen.parse().unwrap(),
        targets: vec![listen.parse().unwrap()],
        sequence: 1,
        announced: 0.0,
        parked: 0.0,
        dump_started: 0.0,
        dumped: 0.0,
        pid_file: None,
        owner: None,
        log_file: Some(folder.join("log")),
        logs_to_journal: false,
        folders: Vec::new(),
        files: Default::default(),
    };
    finish(folder, manifest).unwrap();
}
