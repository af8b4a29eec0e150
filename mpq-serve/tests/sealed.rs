//! `checkpoint --seal` and `restore --key`: what they refuse, and that it costs nothing. What they do with a server is in
//! `mpq-lab/tests/sealed.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use completed::complete;
use mpq_serve::checkpoint::images::{self, Images};
use mpq_serve::checkpoint::notes::RequestId;
use mpq_serve::checkpoint::sealing::{KeptKey, seal};
use nix::sys::signal::Signal;
use support::start;
use tempfile::TempDir;

#[path = "support/images.rs"]
mod completed;
mod support;

/// Exit codes.
const FAILED: i32 = 1;
const IMAGES: i32 = 3;
const NOT_PERMITTED: i32 = 5;
const FENCED: i32 = 11;

fn mpq_serve(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    command.args(arguments).env("MPQ_CRIU", "/nowhere/criu");
    command.output().unwrap()
}

fn assert_refused(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

/// A folder in memory with one of sealed images in it, and beside that a file with their key.
struct Sealed {
    folder: TempDir,
    images: PathBuf,
    key: PathBuf,
}

impl Sealed {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let images = clear(&folder.path().join("images"));
        let key = folder.path().join("key");
        let kept = KeptKey::create(&key).unwrap();
        seal(&Images::open(&images).unwrap(), kept.key()).unwrap();
        Self {
            folder,
            images,
            key,
        }
    }

    fn restore(&self, key: &Path) -> Output {
        let [images, key] = [&self.images, key].map(|path| path.to_str().unwrap());
        mpq_serve(&["restore", "--images", images, "--key", key])
    }

    /// All that there is, and what is in it.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let folders = [
            self.folder.path(),
            self.images.parent().unwrap(),
            &self.images,
        ];
        let paths = folders
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap());
        let paths = paths.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = paths
            .map(|path| (path.clone(), fs::read(path).unwrap_or_default()))
            .collect();
        files.sort();
        files
    }
}

/// Images in clear, in a folder in this one.
fn clear(parent: &Path) -> PathBuf {
    let folder = images::new_folder(parent, &RequestId::new()).unwrap();
    fs::write(folder.join("pages-1.img"), vec![7; 200_000]).unwrap();
    fs::write(folder.join("core-1.img"), "core").unwrap();
    for name in ["pages-1.img", "core-1.img"] {
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.join(name), private).unwrap();
    }
    complete(env!("CARGO_PKG_VERSION"), &folder, "127.0.0.1:4433");
    folder
}

#[test]
fn what_the_key_does_not_open_is_refused_and_nothing_is_written() {
    let sealed = Sealed::new();
    let in_clear = tempfile::tempdir_in("/dev/shm").unwrap();
    let in_clear = clear(in_clear.path());
    let other = in_clear.parent().unwrap().join("other-key");
    KeptKey::create(&other).unwrap();
    let before = sealed.files();
    assert_refused(&sealed.restore(&other), IMAGES, "sealed with another key");
    let none = in_clear.join("pages-1.img");
    assert_refused(&sealed.restore(&none), IMAGES, "it holds no key");
    let missing = Path::new("/nowhere/key");
    assert_refused(&sealed.restore(missing), FAILED, "/nowhere/key");
    let [images, clear, key] =
        [&sealed.images, &in_clear, &sealed.key].map(|path| path.to_str().unwrap());
    let without = mpq_serve(&["restore", "--images", images]);
    assert_refused(&without, IMAGES, "give the key of their checkpoint");
    let with = mpq_serve(&["restore", "--images", clear, "--key", key]);
    assert_refused(&with, IMAGES, "are not sealed");

    let file = sealed.images.join("images.sealed");
    let whole = fs::read(&file).unwrap();
    for (damaged, reason) in [
        (whole[..10].to_vec(), "it was cut"),
        (whole[..whole.len() - 1].to_vec(), "it was cut or changed"),
        // At the end of a part.
        (whole[..32 + 2 * (65_536 + 16)].to_vec(), "it was cut"),
        ([&whole[..], b"more"].concat(), "it was cut or changed"),
        ([b"x", &whole[1..]].concat(), "does not begin"),
    ] {
        fs::write(&file, &damaged).unwrap();
        assert_refused(&sealed.restore(&sealed.key), IMAGES, reason);
    }
    fs::write(&file, whole).unwrap();
    assert_eq!(sealed.files(), before);

    // What comes next is the same as with images in clear. They stay sealed.
    let output = sealed.restore(&sealed.key);
    let said = String::from_utf8_lossy(&output.stderr);
    match nix::unistd::geteuid().is_root() {
        true => assert_refused(&output, 4, "no CRIU found"),
        false => assert_refused(&output, NOT_PERMITTED, "run mpq-serve restore as root"),
    }
    assert_eq!(sealed.files(), before, "{said}");
}

#[test]
fn sealed_images_are_released_without_their_key() {
    let sealed = Sealed::new();
    let images = sealed.images.to_str().unwrap();
    let released = mpq_serve(&["release", "--images", images]);
    assert!(released.status.success(), "{released:?}");
    assert_eq!(released.stdout, format!("{images}\n").as_bytes());
    let before = sealed.files();
    assert_refused(&sealed.restore(&sealed.key), FENCED, "released from here");
    assert_eq!(sealed.files(), before);
}

#[test]
fn what_is_in_the_way_of_sealing_is_said_before_a_client_hears_of_a_move() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (server, _) = start(&[]);
    let pid = server.process.0.id().to_string();
    let [images, there, link, new] =
        ["images", "there", "link", "new"].map(|name| folder.path().join(name));
    fs::write(&there, "mine").unwrap();
    symlink("nowhere", &link).unwrap();
    let checkpoint = |images: &Path, key: &Path| {
        let [images, key] = [images, key].map(|path| path.to_str().unwrap());
        mpq_serve(&[
            "checkpoint",
            "--pid",
            &pid,
            "--migrate-to",
            "127.0.0.2:4433",
            "--images",
            images,
            "--seal",
            key,
        ])
    };
    for key in [&there, &link] {
        assert_refused(&checkpoint(&images, key), FAILED, "to a new file only");
    }
    let within = images.join("key");
    assert_refused(&checkpoint(&images, &within), FAILED, "must not lie among");
    let on_disk = Path::new("/proc/images");
    assert_refused(&checkpoint(on_disk, &new), NOT_PERMITTED, "not on tmpfs");
    // Found by the server: the key is of no use then.
    let code = match nix::unistd::geteuid().is_root() {
        true => 4,
        false => NOT_PERMITTED,
    };
    assert_eq!(checkpoint(&images, &new).status.code(), Some(code));
    assert_eq!(fs::read(&there).unwrap(), b"mine");
    assert!(!new.exists() && !folder.path().join("nowhere").exists());
    server.tell(Signal::SIGTERM);
    let log: Vec<_> = server.log.iter().collect();
    assert!(
        !log.iter().any(|line| line.contains("moving to")),
        "{log:#?}"
    );
}
