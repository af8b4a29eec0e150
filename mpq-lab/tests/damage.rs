//! Images that were damaged on their way are found before CRIU reads them, and a CRIU that does not come to an end is
//! ended; the server can still be restored from what is whole.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{criu, privileged};
use operated::{IMAGES, NOT_RESTORED, Operated, ScriptedCriu, assert_refused, chmod};

mod common;
#[path = "common/operated.rs"]
mod operated;

/// The first file there whose name begins so.
fn file(images: &Path, prefix: &str) -> PathBuf {
    let files = fs::read_dir(images).unwrap().flatten();
    let mut names = files.map(|file| file.path());
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap().as_bytes();
        name.starts_with(prefix.as_bytes())
    };
    names.find(is_wanted).unwrap()
}

fn assert_names(output: &Output, file: &Path) {
    assert_refused(output, IMAGES, &file.display().to_string());
}

#[tokio::test]
async fn damaged_images_are_named_and_do_not_reach_criu() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let images = operated.dumped();
    for (prefix, damage) in [
        ("pages-1.img", "cut"),
        ("pages-1.img", "flip"),
        ("core-", "flip"),
        ("core-", "remove"),
        ("manifest.json", "edit"),
    ] {
        let damaged = file(&images, prefix);
        let whole = fs::read(&damaged).unwrap();
        let middle = whole.len() / 2;
        match damage {
            "cut" => fs::write(&damaged, &whole[..middle]).unwrap(),
            "flip" => {
                let mut flipped = whole.clone();
                flipped[middle] ^= 1;
                fs::write(&damaged, flipped).unwrap();
            }
            "remove" => fs::remove_file(&damaged).unwrap(),
            _ => {
                let text = String::from_utf8(whole.clone()).unwrap();
                fs::write(&damaged, text.replace("127.0.0.2", "127.0.0.3")).unwrap();
            }
        }
        assert_names(&operated.restore(&images), &damaged);
        assert!(!images.join("restore.log").exists(), "{prefix} {damage}");
        operated.assert_gone();
        fs::write(&damaged, whole).unwrap();
        chmod(&damaged, 0o600);
    }
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
}

#[tokio::test]
async fn a_criu_that_does_not_end_is_ended_with_all_that_it_has_started() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // Before it has made anything; and when all of the server is there, but does not run.
    for script in [
        "touch $begun; setsid sleep 123456 & sleep 123456",
        "exec $criu \"$@\" --action-script $folder/hang",
    ] {
        let hanging = ScriptedCriu::new("restore", script);
        let begun = hanging.file("begun").display().to_string();
        let hang = "case $CRTOOLS_SCRIPT_ACTION in pre-restore) touch BEGUN; sleep 123456;; esac";
        let hang = hang.replace("BEGUN", &begun);
        hanging.write("hang", &format!("#!/bin/sh\n{hang}\n"));
        let mut operated = Operated::start(&hanging.program(), &[]);
        let images = operated.dumped();
        let output = operated.restore_with(&images, &["--time-limit", "2s"]);
        hanging.wait_until("begun");
        assert_refused(&output, NOT_RESTORED, "took longer than 2 s");
        assert!(!is_running("sleep\x00123456"), "a stray process");
        operated.assert_gone();

        operated.criu = criu();
        let restored = operated.restore(&images);
        operated.assert_restored(&restored);
    }
}

/// Whether there is a process of this command line.
fn is_running(line: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|found| found.starts_with(line.as_bytes()))
}
