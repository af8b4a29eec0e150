//! A server whose process ids are in use where it is restored, by CRIU in a namespace of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{criu, privileged};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use occupied::Occupied;
use operated::{LIMIT, Operated, printed, wait_until};

mod common;
#[path = "common/occupied.rs"]
mod occupied;
#[path = "common/operated.rs"]
mod operated;

/// Where a server is, one after the other.
const PLACES: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"];

fn pid_file(operated: &Operated) -> PathBuf {
    operated.folder.path().join("pid")
}

fn started() -> Operated {
    let operated = Operated::start(&criu(), &[]);
    assert!(!pid_file(&operated).exists());
    operated
}

/// Moves the server to this place, by its pid file, while these processes have its ids. Returns what `restore` says.
fn moved(operated: &mut Operated, place: &str, occupied: impl FnOnce(&Path) -> Occupied) -> Output {
    let pid_file = pid_file(operated);
    let pid_file = pid_file.to_str().unwrap();
    let (images, target) = (operated.images(), operated.target(place));
    let mut checkpoint = operated.command(&["checkpoint", "--pid-file", pid_file]);
    checkpoint
        .args(["--migrate-to", &target, "--images"])
        .arg(images);
    let images = printed(&checkpoint.output().unwrap());
    operated.server.wait().unwrap();
    let mut occupied = occupied(&images);
    let output = operated.restore_with(&images, &["--pid-file", pid_file]);
    assert!(output.status.success(), "{output:?}");
    operated.assert_serves_at(&target);
    occupied.assert_alive();
    output
}

/// The one that the pid file names, which `restore` has told as well.
fn id(operated: &Operated) -> i32 {
    let id = fs::read_to_string(pid_file(operated)).unwrap();
    assert_eq!(id.trim().parse().ok(), operated.restored);
    id.trim().parse().unwrap()
}

/// The first process of the namespace that this one is in, if that is another than ours.
fn init_of(id: i32) -> Option<i32> {
    let namespace = |id: &str| fs::read_link(format!("/proc/{id}/ns/pid")).unwrap();
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let is_inside = namespace(&id.to_string()) != namespace("self");
    is_inside.then(|| parent.unwrap().trim().parse().unwrap())
}

#[tokio::test]
async fn a_server_moves_on_and_comes_back_wherever_its_ids_are_in_use() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = started();
    let first = operated.pid();
    fs::write(pid_file(&operated), first.to_string()).unwrap();
    // Twice in a row, as between three hosts, and back to where its ids are free.
    for place in &PLACES[..2] {
        moved(&mut operated, place, |_| Occupied::start(first));
        let id = id(&operated);
        assert_ne!(id, first);
        assert!(init_of(id).is_some());
    }
    moved(&mut operated, PLACES[2], |_| Occupied::none());
    assert_eq!((id(&operated), init_of(first)), (first, None));
}

#[tokio::test]
async fn a_thread_id_in_use_is_as_good_as_a_process_id() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = started();
    let first = operated.pid();
    fs::write(pid_file(&operated), first.to_string()).unwrap();
    moved(&mut operated, PLACES[0], |images| {
        let names = fs::read_dir(images).unwrap().flatten();
        let names = names.filter_map(|image| image.file_name().into_string().ok());
        let id = |name: String| -> Option<i32> {
            let id = name.strip_prefix("core-")?.strip_suffix(".img")?;
            id.parse().ok()
        };
        Occupied::start(names.filter_map(id).max().unwrap())
    });
    assert!(init_of(id(&operated)).is_some());
}

#[tokio::test]
async fn a_namespace_ends_with_its_server_and_as_that_has_ended() {
    let Some(_alone) = privileged().await else {
        return;
    };
    set_child_subreaper(true).unwrap();
    for (signal, code) in [(Signal::SIGTERM, 0), (Signal::SIGKILL, 128 + 9)] {
        let mut operated = started();
        let first = operated.pid();
        fs::write(pid_file(&operated), first.to_string()).unwrap();
        moved(&mut operated, PLACES[0], |_| Occupied::start(first));
        let init = init_of(id(&operated)).unwrap();
        kill(Pid::from_raw(id(&operated)), signal).unwrap();
        let init = Pid::from_raw(init);
        assert_eq!(waitpid(init, None), Ok(WaitStatus::Exited(init, code)));
        operated.restored = None;
    }
}

/// It may have the same id as ours on its host.
#[tokio::test]
async fn two_servers_of_one_process_id_are_told_apart() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = started();
    let first = operated.pid();
    fs::write(pid_file(&operated), first.to_string()).unwrap();
    let images = operated.dumped();
    // Which looks for it by a process of its own.
    let criu = criu();
    let other = occupied::start(first, || Operated::start(&criu, &[]), Operated::pid);
    let output = operated.restore(&images);
    operated.assert_restored(&output);
    let unmoved = || {
        other.assert_unmoved();
        assert!(other.log().lines().all(|line| !line.contains("ignored")));
    };
    unmoved();
    // Each of them moves when it is told to.
    let id = operated.restored.unwrap();
    let (parent, target) = (operated.images(), operated.target("127.0.0.3"));
    let mut checkpoint = operated.command(&["checkpoint", "--pid", &id.to_string()]);
    checkpoint
        .args(["--migrate-to", &target, "--images"])
        .arg(parent);
    let images = printed(&checkpoint.output().unwrap());
    wait_until("its end", LIMIT, || {
        !Path::new(&format!("/proc/{id}/exe")).exists()
    });
    unmoved();
    printed(&other.checkpoint(&other.images()).output().unwrap());
    let output = operated.restore(&images);
    assert!(output.status.success(), "{output:?}");
    operated.assert_serves_at(&target);
}
