//! Images that cannot be restored are refused with one line and an exit code of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use mpq_lab::system::host::built;

/// What `mpq-serve` exits with for images that are missing or of another program.
const NO_IMAGES: Option<i32> = Some(3);

fn restore(images: &Path) -> Output {
    Command::new(built("mpq-serve").unwrap())
        .args(["restore", "--images"])
        .arg(images)
        .output()
        .unwrap()
}

fn assert_refused(output: &Output) {
    assert_eq!(output.status.code(), NO_IMAGES, "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

#[test]
fn missing_images() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(&restore(&folder.path().join("nowhere")));
    assert_refused(&restore(folder.path()));
}

#[test]
fn images_of_another_program() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let manifest = folder.path().join("manifest.json");
    let text = r#"{"program":"other","pid":2,"listen":"127.0.0.1:4433",
        "targets":["127.0.0.2:4433"],"sequence":1,
        "announced":1.0,"parked":1.0,"dump_started":1.0,"dumped":1.0}"#;
    fs::write(&manifest, text).unwrap();
    assert_refused(&restore(folder.path()));
    assert!(manifest.exists(), "what is of others is not removed");
}
