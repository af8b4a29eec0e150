//! Images that are copied by hand leave their host encrypted, and their key goes another way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{criu, privileged};
use mpq_lab::system::host::built;
use mpq_serve::site::random::Random;
use operated::{
    FENCED, IMAGES, LIMIT, NOT_DUMPED, NOT_RESTORED, Operated, ScriptedCriu, assert_refused, copy,
    id_told, mode, wait_until,
};

mod common;
#[path = "common/operated.rs"]
mod operated;

/// The exit code of a server that serves nowhere: the message says what to do.
const NOWHERE: i32 = 14;
/// What an `Operated` server has, and takes four seconds with this.
const SIZE: u64 = 1_000_000;
const SLOWLY: &[&str] = &["--limit-rate", "2M"];

fn checkpoint(operated: &Operated, key: &Path) -> Output {
    let mut checkpoint = operated.checkpoint(&operated.images());
    checkpoint.arg("--seal").arg(key).output().unwrap()
}

fn key_of(operated: &Operated) -> PathBuf {
    operated.folder.path().join("key")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A download that is under way.
fn begun(operated: &Operated) -> Child {
    let download = Command::new(built("mpq-get").unwrap())
        .args(["--insecure", "--json", "--retry", "0", "--output"])
        .arg(operated.folder.path().join("got"))
        .arg(format!("https://{}/random", operated.address))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let part = operated.folder.path().join("got.part");
    wait_until("its first bytes", LIMIT, || {
        fs::metadata(&part).is_ok_and(|file| file.len() > 0)
    });
    download
}

/// It is complete, over one connection, which has followed the server.
fn assert_followed(operated: &Operated, download: Child) {
    let output = download.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}; {}", operated.log());
    let mut expected = vec![0; SIZE as usize];
    Random::new(SIZE, 0).fill(0, &mut expected);
    assert!(fs::read(operated.folder.path().join("got")).unwrap() == expected);
    assert!(said.contains("first_byte_after_move"), "{said}");
    assert!(!said.contains(r#""event":"retry""#), "{said}");
}

#[tokio::test]
async fn a_download_goes_on_from_sealed_images_and_no_others() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), SLOWLY);
    let key = key_of(&operated);
    let download = begun(&operated);
    let dumped = checkpoint(&operated, &key);
    assert!(dumped.status.success(), "{dumped:?}");
    operated.server.wait().unwrap();
    let images = PathBuf::from(String::from_utf8(dumped.stdout).unwrap().trim());
    // Nothing of them is there in clear.
    let sealed = ["images.sealed", "lock", "token.json"];
    assert_eq!(names(&images), sealed);
    assert_eq!(names(&operated.images()).len(), 1);
    assert_eq!(mode(&key), 0o600);

    let release = operated
        .command(&["release", "--images", images.to_str().unwrap()])
        .output();
    assert!(release.unwrap().status.success());
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = copy(&images, elsewhere.path());
    let with = |key: &Path| ["--key".to_owned(), key.display().to_string()];
    let other = elsewhere.path().join("other");
    fs::write(&other, format!("{}\n", "0".repeat(64))).unwrap();
    let restore = |operated: &mut Operated, images: &Path, key: Option<&Path>| {
        let options = key.map(with).into_iter().flatten().collect::<Vec<_>>();
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        operated.restore_with(images, &options)
    };
    let output = restore(&mut operated, &there, None);
    assert_refused(&output, IMAGES, "give the key of their checkpoint");
    let output = restore(&mut operated, &there, Some(&other));
    assert_refused(&output, IMAGES, "sealed with another key");
    // The key is not what gives the right to wake them.
    let output = restore(&mut operated, &images, Some(&key));
    assert_refused(&output, FENCED, "released from here");
    operated.assert_gone();
    assert_eq!(names(&there), sealed);

    let restored = restore(&mut operated, &there, Some(&key));
    operated.assert_restored(&restored);
    assert_followed(&operated, download);
    // Neither what was sealed, nor what was unsealed for CRIU.
    assert_eq!(names(elsewhere.path()), ["other"]);
}

#[tokio::test]
async fn a_restore_that_fails_leaves_sealed_images_sealed() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let key = key_of(&operated);
    let dumped = checkpoint(&operated, &key);
    let images = PathBuf::from(String::from_utf8(dumped.stdout).unwrap().trim());
    let options = ["--key", key.to_str().unwrap()];
    for script in [
        "exit 1",
        // It is killed when the process is there, and does not run yet.
        "shift; exec $criu restore \"$@\" --action-script $folder/kill",
    ] {
        let failing = ScriptedCriu::new("restore", script);
        failing.write(
            "kill",
            "#!/bin/sh -p\n[ $CRTOOLS_SCRIPT_ACTION = post-restore ] || exit 0\np=$PPID; until grep -q criu \
             /proc/$p/comm; do p=$(cut -d' ' -f4 /proc/$p/stat); done; kill -9 $p\n",
        );
        operated.criu = failing.program();
        let output = operated.restore_with(&images, &options);
        assert_refused(&output, NOT_RESTORED, "the images are kept");
        operated.assert_gone();
        assert_eq!(names(&images), ["images.sealed", "lock", "token.json"]);
        let beside = fs::read_dir(operated.images()).unwrap().flatten();
        let beside = beside.filter(|entry| entry.path() != images);
        // At most CRIU's log.
        for left in beside.flat_map(|entry| names(&entry.path())) {
            assert_eq!(left, "restore.log");
        }
    }
    operated.criu = criu();
    let restored = operated.restore_with(&images, &options);
    operated.assert_restored(&restored);
    assert!(id_told(&restored).is_some() && !images.exists());
}

#[tokio::test]
async fn images_that_cannot_be_sealed_can_be_restored_as_they_are() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // Something has the name already.
    let folder = "$(echo \"$*\" | sed 's/.*--images-dir \\([^ ]*\\).*/\\1/')";
    let script = format!("$criu \"$@\"; code=$?; touch {folder}/images.sealed.part; exit $code");
    let meddling = ScriptedCriu::new("dump", &script);
    let mut operated = Operated::start(&meddling.program(), &[]);
    let key = key_of(&operated);
    let output = checkpoint(&operated, &key);
    assert_refused(&output, NOWHERE, "could not be sealed");
    assert!(!key.exists());
    let images = fs::read_dir(operated.images()).unwrap().next();
    let images = images.unwrap().unwrap().path();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&images.display().to_string()), "{said}");
    operated.criu = criu();
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
}

#[tokio::test]
async fn a_key_of_a_checkpoint_that_fails_goes_and_a_printed_one_is_all_that_is_printed() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let failing = ScriptedCriu::new("dump", "exit 1");
    let mut operated = Operated::start(&failing.program(), &[]);
    let key = key_of(&operated);
    assert_refused(
        &checkpoint(&operated, &key),
        NOT_DUMPED,
        "goes on where it was",
    );
    assert!(!key.exists() && names(&operated.images()).is_empty());
    operated.assert_serves_at(&operated.address);

    operated.criu = criu();
    let dumped = checkpoint(&operated, Path::new("-"));
    assert!(dumped.status.success(), "{dumped:?}");
    let said = String::from_utf8_lossy(&dumped.stderr).into_owned();
    let images = fs::read_dir(operated.images()).unwrap().next();
    let images = images.unwrap().unwrap().path();
    assert!(said.contains(&images.display().to_string()), "{said}");
    // As it comes by ssh.
    fs::write(&key, &dumped.stdout).unwrap();
    operated.server.wait().unwrap();
    let mut restore = operated.command(&["restore", "--key", "-", "--images"]);
    let restore = restore.arg(&images).stdin(fs::File::open(&key).unwrap());
    let restored = restore.output().unwrap();
    operated.restored = id_told(&restored);
    operated.assert_restored(&restored);
}
