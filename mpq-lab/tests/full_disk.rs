//! A disk that fills while a file is downloaded to it, at many points: the download fails, says so, and loses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::privileged;
use mpq_lab::system::host::built;
use mpq_serve::site::random::Random;
use operated::Operated;
use serde_json::Value;

mod common;
#[path = "common/operated.rs"]
mod operated;

/// What an `Operated` server has.
const SIZE: u64 = 1_000_000;
const SEED: u64 = 7;
/// At how many points it fills.
const POINTS: u64 = 200;
/// Exit code of a file that cannot be written.
const WRITE: i32 = 23;
/// What the record beside a part takes, and the part at the least: a page each.
const PAGE: u64 = 4_096;

/// A file system in memory, of any size.
struct Disk(PathBuf);

impl Disk {
    fn of(folder: &Path, bytes: u64) -> Self {
        fs::create_dir_all(folder).unwrap();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size(bytes), "tmpfs"],
            folder,
        );
        Self(folder.to_owned())
    }

    fn grow(&self, bytes: u64) {
        let options = format!("remount,{}", size(bytes));
        run("mount", &["-o", &options], &self.0);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &[], &self.0);
    }
}

fn size(bytes: u64) -> String {
    format!("size={bytes}")
}

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let done = Command::new(program).args(arguments).arg(folder).status();
    assert!(done.unwrap().success(), "{program} {arguments:?}");
}

fn download(from: &Operated, to: &Disk) -> Output {
    let mut command = Command::new(built("mpq-get").unwrap());
    command.args(["--insecure", "--json", "-o"]);
    command.arg(to.path("file"));
    command.arg(format!("https://{}/random", from.address));
    command.stdin(Stdio::null()).output().unwrap()
}

fn last(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn a_disk_that_fills_at_any_point_costs_nothing_that_was_downloaded() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let server = ["--seed", &SEED.to_string()];
    let server = Operated::start(Path::new("/none"), &server);
    let mut body = vec![0; SIZE as usize];
    Random::new(SIZE, SEED).fill(0, &mut body);
    let mut kept = 0;
    for point in 0..POINTS {
        // A prime number of bytes apart, so that the points are all over.
        let room = PAGE + point * 100_003 % (SIZE - PAGE);
        let disk = Disk::of(&server.folder.path().join("disk"), room);
        let full = download(&server, &disk);
        assert_eq!(full.status.code(), Some(WRITE), "{room}: {full:?}");
        assert!(!disk.path("file").exists(), "{room}");
        let part = fs::read(disk.path("file.part")).unwrap_or_default();
        assert!(part == body[..part.len()], "{room}");
        assert!(
            part.len() as u64 + 3 * PAGE >= room,
            "{room}: {}",
            part.len()
        );
        kept += part.len() as u64;

        disk.grow(2 * SIZE);
        let rest = download(&server, &disk);
        assert!(rest.status.success(), "{room}: {rest:?}");
        let received = last(&rest)["received"].as_u64().unwrap();
        assert_eq!(received, SIZE - part.len() as u64, "{room}");
        assert!(fs::read(disk.path("file")).unwrap() == body, "{room}");
        let left = fs::read_dir(&disk.0).unwrap().count();
        assert_eq!(left, 1, "{room}: more than the file is left");
    }
    assert!(kept > POINTS * SIZE / 4, "{kept} bytes were kept");
}
