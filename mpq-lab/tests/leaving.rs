//! What reaches a server while it moves: it leaves when it is told to, but not because it was told before it woke
//! elsewhere; and its log and its pid file are where it is.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{criu, privileged};
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operated::{
    LIMIT, NO_SERVER, Operated, ScriptedCriu, assert_refused, id_told, printed, wait_until,
};

mod common;
#[path = "common/operated.rs"]
mod operated;

fn tell(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A download that takes some seconds and is under way.
fn download(operated: &Operated) -> Child {
    let output = operated.folder.path().join("long");
    let child = Command::new(built("mpq-get").unwrap())
        .args(["--insecure", "--output"])
        .arg(&output)
        .arg(format!("https://{}/random", operated.address))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    operated.wait_for_log(" connected");
    let folder = operated.folder.path();
    let is_partial = |name: &str| name.starts_with("long");
    wait_until("its first bytes", LIMIT, || {
        let files = fs::read_dir(folder).unwrap().flatten();
        let mut sizes = files
            .filter(|file| file.file_name().to_str().is_some_and(is_partial))
            .filter_map(|file| file.metadata().ok());
        sizes.any(|file| file.len() > 0)
    });
    child
}

/// A megabyte takes four seconds.
const SLOWLY: [&str; 2] = ["--limit-rate", "2M"];

#[tokio::test]
async fn a_server_that_is_told_to_leave_before_it_is_frozen_ends_the_move_and_what_is_running() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // While clients are told, and while CRIU is waited for.
    for (lead, when) in [("20s", "moving to"), ("0s", "begun")] {
        let slow = ScriptedCriu::slow(3);
        let mut operated =
            Operated::start(&slow.program(), &[&SLOWLY[..], &["--lead", lead]].concat());
        let client = download(&operated);
        let checkpoint = operated.checkpoint(&operated.images()).spawn().unwrap();
        match when {
            "begun" => slow.wait_until(when),
            when => operated.wait_for_log(when),
        }
        tell(operated.pid(), Signal::SIGTERM);
        let output = checkpoint.wait_with_output().unwrap();
        assert_refused(&output, NO_SERVER, "told to leave");
        let client = client.wait_with_output().unwrap();
        assert!(client.status.success(), "{client:?}: {}", operated.log());
        let status = operated.server.wait().unwrap();
        assert!(status.success(), "{status:?}: {}", operated.log());
        assert!(operated.log().contains("leaving"));
        if when == "begun" {
            slow.wait_until("ended");
        }
        let folders = fs::read_dir(operated.images()).unwrap().flatten();
        let mut files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
        let is_image = |file: fs::DirEntry| file.path().extension().is_some_and(|end| end == "img");
        assert!(!files.any(is_image));
    }
}

#[tokio::test]
async fn a_signal_to_a_server_that_is_frozen_does_not_travel() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for signal in ["TERM", "INT", "USR1"] {
        // It stands still when CRIU comes, so that the signal waits for it, and is dumped.
        let script = r#"case "$*" in
            dump*) pid=$(echo "$*" | sed 's/.*--tree \([0-9]*\).*/\1/'); echo $pid > $begun
                kill -STOP $pid; kill -SIGNAL $pid; exec $criu "$@";;
            restore*) $criu "$@"; code=$?; kill -CONT $(cat $begun); exit $code;;
            *) exec $criu "$@";;
            esac"#
            .replace("SIGNAL", signal);
        let criu = ScriptedCriu::new("", &script);
        let mut operated = Operated::start(&criu.program(), &[]);
        let images = operated.dumped();
        let restored = operated.restore(&images);
        operated.assert_restored(&restored);
        let log = operated.log();
        let is_told = log.contains("a signal from before the move is ignored")
            || log.contains("a second move is refused");
        assert!(is_told, "{log}");
        // It is heard again.
        tell(operated.pid(), Signal::SIGTERM);
        operated.assert_gone();
        operated.restored = None;
    }
}

#[tokio::test]
async fn a_restored_server_leaves_when_it_is_told_to() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let images = operated.dumped();
    let restored = operated.restore(&images);
    assert!(restored.status.success(), "{restored:?}");
    tell(operated.pid(), Signal::SIGTERM);
    operated.assert_gone();
    operated.restored = None;
}

#[tokio::test]
async fn the_log_and_the_pid_file_are_where_the_server_is() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let [pid_file, second, log] = ["pid", "second", "log"].map(|name| folder.path().join(name));
    let pid_file_option = ["--pid-file", pid_file.to_str().unwrap()];
    let mut operated = Operated::start(&criu(), &pid_file_option);
    let pid = operated.pid().to_string();
    assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), pid);
    let images = operated.dumped();
    assert!(!pid_file.exists(), "a stale pid file");

    // A folder that nobody can make.
    let options = ["--log-file", "/proc/nowhere/log"];
    assert_refused(
        &operated.restore_with(&images, &options),
        1,
        "/proc/nowhere",
    );
    let options = [
        "--log-file",
        log.to_str().unwrap(),
        "--pid-file",
        second.to_str().unwrap(),
    ];
    let before = operated.log();
    let restored = operated.restore_with(&images, &options);
    operated.assert_restored(&restored);
    for file in [&pid_file, &second] {
        assert_eq!(fs::read_to_string(file).unwrap().trim(), pid);
    }
    wait_until("the log", LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("listening on 127.0.0.2"))
    });
    assert_eq!(operated.log(), before);
    tell(operated.pid(), Signal::SIGTERM);
    operated.assert_gone();
    operated.restored = None;
    assert!(!pid_file.exists());
}

#[tokio::test]
async fn who_restores_a_server_without_a_log_file_is_told_that_its_log_is_lost() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // Its log is a pipe, as under a supervisor.
    let mut server = Command::new(built("mpq-serve").unwrap())
        .args(["--listen", "127.0.0.1:0", "--random"])
        .env("MPQ_CRIU", criu())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(500));
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(built("mpq-serve").unwrap());
        command.args(arguments).env("MPQ_CRIU", criu());
        command.stdin(Stdio::null()).output().unwrap()
    };
    let images = folder.path().to_str().unwrap();
    let checkpoint = |pid: i32| {
        let pid = pid.to_string();
        let checkpoint = ["checkpoint", "--pid", &pid, "--images", images];
        printed(&command(
            &[&checkpoint[..], &["--migrate-to", "127.0.0.2:44330"]].concat(),
        ))
    };
    checkpoint(server.id() as i32);
    assert_eq!(server.wait().unwrap().signal(), Some(9));
    let log = folder.path().join("log");
    let restore = ["restore", "--images", images];
    let with_log = ["--log-file", log.to_str().unwrap()];
    let output = command(&restore);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("log will be lost"), "{said}");

    // It has another id where the first process of the system is slow to collect the one that was dumped.
    checkpoint(id_told(&output).unwrap());
    let output = command(&[&restore[..], &with_log[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("log will be lost"), "{said}");
    assert!(fs::read_to_string(&log).unwrap().contains("listening on"));
    tell(id_told(&output).unwrap(), Signal::SIGKILL);
}

#[tokio::test]
async fn a_client_that_has_vanished_delays_the_next_move_and_the_operator_is_told() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &SLOWLY);
    let mut client = download(&operated);
    let images = operated.dumped();
    client.kill().unwrap();
    client.wait().unwrap();
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);

    let begun = Instant::now();
    let second = operated.checkpoint(&operated.images()).spawn().unwrap();
    operated.wait_for_log("the next move begins");
    // That one is refused, since one waits already.
    let third = operated.checkpoint(&operated.images()).output().unwrap();
    assert_refused(&third, operated::BUSY, "moving already");
    let output = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    printed(&output);
    assert!(said.contains("the clients of the last one"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(40));
}

/// Takes two minutes.
#[tokio::test]
async fn a_server_that_moves_all_the_time_forgets_a_client_that_has_vanished() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // It moves to where it is.
    let mut server = Command::new(built("mpq-serve").unwrap())
        .args([
            "--listen",
            "127.0.0.1:44331",
            "--migrate-to",
            "127.0.0.1:44331",
        ])
        .args(["--move-in-process", "0s", "--random", "100M"])
        .args(SLOWLY)
        .arg("--log-file")
        .arg(&log)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let says = |text: &str| fs::read_to_string(&log).unwrap_or_default().contains(text);
    wait_until("it to listen", LIMIT, || says("listening on"));
    let mut client = Command::new(built("mpq-get").unwrap())
        .args(["--insecure", "--output"])
        .arg(folder.path().join("download"))
        .arg("https://127.0.0.1:44331/random")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a client", LIMIT, || says(" connected"));
    sleep(Duration::from_secs(1));
    client.kill().unwrap();
    client.wait().unwrap();
    let begun = Instant::now();
    // The next move begins as soon as the one before is over.
    while !says(" disconnected") {
        if begun.elapsed() > Duration::from_secs(130) {
            let _ = server.kill();
            panic!("it is kept: {}", fs::read_to_string(&log).unwrap());
        }
        tell(server.id() as i32, Signal::SIGUSR1);
        sleep(Duration::from_secs(1));
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
