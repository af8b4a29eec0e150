//! Of all copies of a server's images one can be woken, and once: two servers of one set of keys never run.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use common::{criu, privileged};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operated::{
    BUSY, FENCED, NOT_RESTORED, Operated, ScriptedCriu, age, assert_refused, copy, printed,
    wait_until,
};

mod common;
#[path = "common/operated.rs"]
mod operated;

const TOKEN: &str = "token.json";

fn release(operated: &Operated, images: &Path, valid: &str) -> Output {
    let mut release = operated.command(&["release", "--for", valid, "--images"]);
    release.arg(images).output().unwrap()
}

#[tokio::test]
async fn a_copy_wakes_only_once_it_was_released_and_then_nothing_else_does() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let images = operated.dumped();
    // On another host.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = copy(&images, elsewhere.path());
    assert_refused(&operated.restore(&there), FENCED, "they are a copy");
    assert_refused(
        &release(&operated, &there, "10m"),
        FENCED,
        "they are a copy",
    );
    let rollback = ["--rollback"];
    let output = operated.restore_with(&there, &rollback);
    assert_refused(&output, FENCED, "they are a copy");

    assert_eq!(printed(&release(&operated, &images, "10m")), images);
    fs::copy(images.join(TOKEN), there.join(TOKEN)).unwrap();
    // As a script might that is run when the host starts.
    assert_refused(&operated.restore(&images), FENCED, "released from here");
    let output = operated.restore_with(&images, &rollback);
    assert_refused(&output, FENCED, "may still wake");
    operated.assert_gone();

    let restored = operated.restore(&there);
    operated.assert_restored(&restored);
    assert_refused(&operated.restore(&images), FENCED, "released from here");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_released_comes_back() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // As soon as it is given back; when the time is over; and if somebody is certain.
    for how in ["given back", "rollback", "force"] {
        let mut operated = Operated::start(&criu(), &[]);
        let images = operated.dumped();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        let valid = if how == "rollback" { "0s" } else { "10m" };
        printed(&release(&operated, &images, valid));
        let there = copy(&images, elsewhere.path());
        let options = match how {
            "given back" => {
                printed(&release(&operated, &there, "10m"));
                fs::copy(there.join(TOKEN), images.join(TOKEN)).unwrap();
                vec![]
            }
            "rollback" => {
                // Clocks may differ by a minute.
                let output = operated.restore_with(&images, &["--rollback"]);
                assert_refused(&output, FENCED, "may still wake");
                age(&images);
                age(&there);
                vec!["--rollback"]
            }
            _ => vec!["--force"],
        };
        let restored = operated.restore_with(&images, &options);
        operated.assert_restored(&restored);
        if how != "force" {
            let reason = match how {
                "rollback" => "which is over",
                _ => "released from here",
            };
            assert_refused(&operated.restore(&there), FENCED, reason);
        }
    }
}

#[tokio::test]
async fn a_criu_that_is_killed_when_the_server_has_woken_costs_nothing_but_the_images() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let script = "$criu \"$@\"; touch $ended; kill -9 $$";
    let killed = ScriptedCriu::new("restore", script);
    let mut operated = Operated::start(&killed.program(), &[]);
    let images = operated.dumped();
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let before = copy(&images, elsewhere.path());
    let restored = operated.restore(&images);
    killed.wait_until("ended");
    operated.assert_restored(&restored);
    assert_refused(&operated.restore(&before), FENCED, "they are a copy");
}

#[tokio::test]
async fn images_are_spent_as_soon_as_the_server_could_run_and_not_before() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let kept = ("the images are kept", None);
    let spent = ("cannot be used again", Some("woken already"));
    for (script, (reason, then)) in [
        // Something is wrong, or CRIU is killed, before. Of its scripts the last one runs first.
        ("\"$@\" --action-script $folder/fail", kept),
        ("\"$@\" --action-script $folder/kill", kept),
        // CRIU is killed just afterwards, and the server never runs.
        ("--action-script $folder/kill \"$@\"", spent),
    ] {
        let script = format!("shift; exec $criu restore {script}");
        let failing = ScriptedCriu::new("restore", &script);
        let at = |step: &str, what: &str| {
            format!("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != {step} ] || {what}\n")
        };
        failing.write("fail", &at("pre-restore", "exit 1"));
        let find =
            "p=$PPID; until grep -q criu /proc/$p/comm; do p=$(cut -d' ' -f4 /proc/$p/stat); done";
        let kill = format!("{{ {find}; kill -9 $p; }}");
        failing.write("kill", &at("post-restore", &kill));
        let mut operated = Operated::start(&failing.program(), &[]);
        let images = operated.dumped();
        assert_refused(&operated.restore(&images), NOT_RESTORED, reason);
        operated.assert_gone();

        operated.criu = criu();
        let again = operated.restore_with(&images, &["--force"]);
        match then {
            Some(reason) => assert_refused(&again, FENCED, reason),
            None => operated.assert_restored(&again),
        }
    }
}

#[tokio::test]
async fn a_restore_that_is_killed_leaves_its_images_to_criu() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let slow = ScriptedCriu::new("restore", "touch $begun; sleep 2; exec $criu \"$@\"");
    let mut operated = Operated::start(&slow.program(), &[]);
    let images = operated.dumped();
    let mut first: Command = operated.command(&["restore", "--images"]);
    let mut first = first.arg(&images).spawn().unwrap();
    slow.wait_until("begun");
    assert_refused(&operated.restore(&images), BUSY, "being restored");
    first.kill().unwrap();
    first.wait().unwrap();
    assert_refused(&operated.restore(&images), BUSY, "being restored");
    wait_until("the token's end", Duration::from_secs(30), || {
        images.join("token.spent").exists()
    });
    operated.restored = Some(operated.pid());
    operated.assert_serves_at(&operated.target("127.0.0.2"));
    for options in [&[][..], &["--force"]] {
        let output = operated.restore_with(&images, options);
        assert_refused(&output, FENCED, "woken already");
    }
    // It lives.
    sleep(Duration::from_millis(10));
    kill(Pid::from_raw(operated.pid()), None::<Signal>).unwrap();
}
