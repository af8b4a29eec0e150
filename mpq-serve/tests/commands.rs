//! `checkpoint` and `restore` refuse what cannot be, with one line and an exit code of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use completed::complete;
use mpq_serve::checkpoint::notes::Manifest;

#[path = "support/images.rs"]
mod completed;

/// Runs the program with this `MPQ_CRIU`; its exit code, and the one line that it says.
fn run(arguments: &[&str], criu: &Path) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    let output = command
        .args(arguments)
        .env("MPQ_CRIU", criu)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    (output.status.code().unwrap(), said)
}

fn images(folder: &Path, listen: &str) {
    complete(env!("CARGO_PKG_VERSION"), folder, listen);
}

/// A program that says it is this version of CRIU, and fails at everything else.
fn criu(folder: &Path, version: &str) -> std::path::PathBuf {
    let program = folder.join("criu");
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Version: {version}'\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_server_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("pid");
    let pid_file = ["checkpoint", "--pid-file", missing.to_str().unwrap()];
    let (code, said) = run(&pid_file, Path::new("criu"));
    assert!(code == 6 && said.contains("pid"), "{code} {said}");
    // The highest process id there can be (proc(5)) is half of this.
    let (code, said) = run(&["checkpoint", "--pid", "8388608"], Path::new("criu"));
    assert!(code == 6 && said.contains("8388608"), "{code} {said}");
}

#[test]
fn images_of_another_version_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    complete("0.0.0", folder.path(), "127.0.0.1:4433");
    let restore = ["restore", "--images", folder.path().to_str().unwrap()];
    let (code, said) = run(&restore, Path::new("criu"));
    assert!(code == 3 && said.contains("0.0.0"), "{code} {said}");
}

#[test]
fn no_criu_an_old_one_no_root_and_an_address_of_another_host() {
    let folder = tempfile::tempdir().unwrap();
    // TEST-NET-1 (RFC 5737) is nobody's.
    images(folder.path(), "192.0.2.1:4433");
    let restore = ["restore", "--images", folder.path().to_str().unwrap()];
    let root = nix::unistd::geteuid().is_root();
    let (code, said) = run(&restore, &folder.path().join("nowhere"));
    if !root {
        assert!(code == 5 && said.contains("root"), "{code} {said}");
        return;
    }
    assert!(code == 4 && said.contains("no CRIU"), "{code} {said}");
    let (code, said) = run(&restore, &criu(folder.path(), "3.17.1"));
    assert!(
        code == 4 && said.contains("3.17.1 is too old"),
        "{code} {said}"
    );
    let (code, said) = run(&restore, &criu(folder.path(), "4.2"));
    assert!(
        code == 7 && said.contains("192.0.2.1:4433"),
        "{code} {said}"
    );
    // None of them has cost anything.
    assert!(folder.path().join(Manifest::FILE).exists());
}

#[test]
fn a_restore_that_fails_keeps_the_images() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    images(folder.path(), "127.0.0.1:0");
    let restore = ["restore", "--images", folder.path().to_str().unwrap()];
    let (code, said) = run(&restore, &criu(folder.path(), "4.2"));
    assert!(
        code == 9 && said.contains("the images are kept"),
        "{code} {said}"
    );
    assert!(folder.path().join(Manifest::FILE).exists());
}
