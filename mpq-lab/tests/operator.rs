//! What an operator does with a server that moves, and what goes wrong for one: nothing of his is lost, and the server
//! is dumped, or serves on and says so.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;

use common::{criu, privileged};
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operated::{
    BUSY, IMAGES, NOT_DUMPED, NOT_PERMITTED, OTHER_USER, Operated, ScriptedCriu, assert_refused,
    chmod, helper_of, mode, printed,
};

mod common;
#[path = "common/operated.rs"]
mod operated;

#[tokio::test]
async fn what_is_in_the_folder_of_the_images_is_left_alone() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let folder = operated.images();
    chmod(&folder, 0o755);
    fs::write(folder.join("precious"), "kept").unwrap();
    fs::create_dir(folder.join("more")).unwrap();

    let images = printed(&operated.checkpoint(&folder).output().unwrap());
    assert_eq!(mode(&folder), 0o755);
    assert!(folder.join("precious").exists());
    assert_eq!(images.parent(), Some(folder.as_path()));
    assert_eq!(mode(&images), 0o700);
    for file in fs::read_dir(&images).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    // What others could have changed, or copied in part, is not woken.
    operated.server.wait().unwrap();
    let pages = images.join("pages-1.img");
    chmod(&pages, 0o666);
    assert_refused(
        &operated.restore(&images),
        NOT_PERMITTED,
        "others may write",
    );
    chmod(&pages, 0o600);
    chown(&images, Some(OTHER_USER), None).unwrap();
    assert_refused(&operated.restore(&images), NOT_PERMITTED, "belongs to user");
    chown(&images, Some(0), None).unwrap();
    let whole = fs::read(&pages).unwrap();
    fs::write(&pages, &whole[..whole.len() / 2]).unwrap();
    assert_refused(&operated.restore(&images), IMAGES, "instead of");
    fs::write(&pages, whole).unwrap();

    // The folder that it is in says enough.
    let restored = operated.restore(&folder);
    assert!(restored.status.success(), "{restored:?}");
    operated.assert_serves_at(&operated.target("127.0.0.2"));
    assert_eq!(mode(&folder), 0o755);
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["more", "precious"]);

    // It is the same server, and can be told to move again.
    let pid = operated.restored.unwrap().to_string();
    let target = operated.target("127.0.0.1");
    let again = [
        "checkpoint",
        "--pid",
        &pid,
        "--migrate-to",
        &target,
        "--images",
    ];
    printed(&operated.command(&again).arg(&folder).output().unwrap());
}

#[tokio::test]
async fn a_folder_that_somebody_else_has_prepared_is_refused_before_a_client_hears_of_the_move() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let operated = Operated::start(&criu(), &[]);
    let folder = operated.images();
    let refuse = |images: &Path, code, reason: &str| {
        let output = operated.checkpoint(images).output().unwrap();
        assert_refused(&output, code, reason);
        operated.assert_unmoved();
    };
    chown(&folder, Some(OTHER_USER), None).unwrap();
    refuse(&folder, NOT_PERMITTED, "belongs to user 65534");
    refuse(
        &folder.join("below"),
        NOT_PERMITTED,
        "belongs to user 65534",
    );
    chown(&folder, Some(0), None).unwrap();
    chmod(&folder, 0o777);
    refuse(&folder, NOT_PERMITTED, "others may write");
    chmod(&folder, 0o700);
    let link = operated.folder.path().join("link");
    symlink(&folder, &link).unwrap();
    refuse(&link, NOT_PERMITTED, "symbolic link");
    // No folder can be made there, and none big enough.
    refuse(Path::new("/proc/images"), 1, "/proc/images");
    let mount = |command: &str, arguments: &[&str]| {
        let mut command = Command::new(command);
        let status = command.args(arguments).arg(&folder).status().unwrap();
        assert!(status.success(), "{command:?}");
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=1M", "tmpfs"]);
    let output = operated.checkpoint(&folder).output().unwrap();
    let left = fs::read_dir(&folder).unwrap().count();
    mount("umount", &[]);
    assert_refused(&output, NOT_DUMPED, "has room for");
    assert_eq!(left, 0);
    operated.assert_unmoved();
}

#[tokio::test]
async fn a_second_request_is_refused_and_leaves_the_first_alone() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // The second comes while clients are told, and while the server is parked.
    for (lead, when) in [("2s", "moving to"), ("0s", "begun")] {
        let slow = ScriptedCriu::slow(2);
        let operated = Operated::start(&slow.program(), &["--lead", lead]);
        let first = operated.checkpoint(&operated.images()).spawn().unwrap();
        match when {
            "begun" => slow.wait_until(when),
            when => operated.wait_for_log(when),
        }
        let second = operated.checkpoint(&operated.images()).output().unwrap();
        kill(Pid::from_raw(operated.pid()), Signal::SIGUSR1).unwrap();
        printed(&first.wait_with_output().unwrap());
        assert_refused(&second, BUSY, "moving already");
        assert!(operated.log().contains("a second move is refused"));
    }
}

#[tokio::test]
async fn a_request_during_a_move_by_signal_is_refused() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for (lead, when) in [("2s", "moving to"), ("0s", "begun")] {
        let slow = ScriptedCriu::slow(2);
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let images = folder.path().display().to_string();
        let options = [
            "--images",
            &images,
            "--migrate-to",
            "127.0.0.2:4433",
            "--lead",
            lead,
        ];
        let mut operated = Operated::start(&slow.program(), &options);
        kill(Pid::from_raw(operated.pid()), Signal::SIGUSR1).unwrap();
        match when {
            "begun" => slow.wait_until(when),
            when => operated.wait_for_log(when),
        }
        let second = operated.checkpoint(&operated.images()).output().unwrap();
        operated.server.wait().unwrap();
        slow.wait_until("ended");
        let made: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert_eq!(made.len(), 1, "{made:?}");
        assert!(made[0].path().join("manifest.json").exists());
        assert_refused(&second, BUSY, "moving already");
    }
}

#[tokio::test]
async fn a_replaced_program_is_found_before_a_client_hears_of_the_move() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mpq-serve");
    let install = || {
        let new = folder.path().join("new");
        fs::copy(built("mpq-serve").unwrap(), &new).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    install();
    let operated = Operated::start_as(&program, &criu(), &[]);
    install();
    let output = operated.checkpoint(&operated.images()).output().unwrap();
    assert_refused(&output, NOT_DUMPED, "was replaced or removed");
    operated.assert_unmoved();
}

#[tokio::test]
async fn a_server_at_several_addresses_is_not_moved_and_no_client_hears_of_a_move() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let operated = Operated::start(&criu(), &["--listen", "[::1]:0"]);
    let output = operated.checkpoint(&operated.images()).output().unwrap();
    assert_refused(&output, NOT_DUMPED, "it listens on several addresses");
    assert_eq!(fs::read_dir(operated.images()).unwrap().count(), 0);
    let pid = operated.pid().to_string();
    let mut park = operated.command(&["park", "--pid", &pid, "--migrate-to"]);
    let output = park.arg(operated.target("127.0.0.2")).output().unwrap();
    assert_refused(&output, NOT_DUMPED, "it listens on several addresses");
    operated.assert_unmoved();
    assert!(operated.log().contains("listening on [::1]:"));
}

#[tokio::test]
async fn a_helper_that_is_killed_leaves_the_server_where_it_was() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let slow = ScriptedCriu::slow(3);
    let operated = Operated::start(&slow.program(), &[]);
    let checkpoint = operated.checkpoint(&operated.images()).spawn().unwrap();
    slow.wait_until("begun");
    let helper = helper_of(operated.pid()).unwrap();
    kill(Pid::from_raw(helper), Signal::SIGKILL).unwrap();
    let output = checkpoint.wait_with_output().unwrap();
    assert_refused(&output, NOT_DUMPED, "the server goes on where it was");
    operated.assert_serves_at(&operated.address);
    // CRIU still comes, and lets it be.
    slow.wait_until("ended");
    operated.assert_serves_at(&operated.address);
    assert_no_images(&operated);
}

/// Nothing with keys in it is left of a dump that does not count.
fn assert_no_images(operated: &Operated) {
    let folders = fs::read_dir(operated.images()).unwrap().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
    let left: Vec<_> = files.map(|file| file.file_name()).collect();
    let is_image = |name: &&std::ffi::OsString| name.to_string_lossy().ends_with(".img");
    assert_eq!(left.iter().find(is_image), None, "{left:?}");
}
