//! Faults once the server is in its images.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::common::criu;
use crate::operated::{LIMIT, ScriptedCriu, age, chmod, id_told, printed, wait_until};
use crate::table::{Row, Seen};
use crate::trial::{Serving, Trial};

const COMPLETE: &str = "dumped";
const COPIED: &str = "copied";
const RESTORING: &str = "restoring";
const RESTORED: &str = "the process is there, and does not run yet";
const RUNNING: &str = "the server runs at B";

pub(crate) const ROWS: &[Row] = &[
    Row::new(
        COMPLETE,
        "`restore --listen A` in the folder: it is taken back",
        taken_back,
    ),
    Row::new(
        COMPLETE,
        "released, and a script runs `restore` in the folder",
        released,
    ),
    Row::new(COMPLETE, "the images are removed", removed),
    Row::new(COPIED, "an image is cut", || damaged(cut, "instead of")),
    Row::new(COPIED, "an image is changed", || {
        damaged(flip, "its contents have changed")
    }),
    Row::new(COPIED, "an image is missing", || {
        damaged(remove, "it is missing")
    }),
    Row::new(COPIED, "there is one image too many", || {
        damaged(add, "it is none of them")
    }),
    Row::new(COPIED, "the manifest is changed", || {
        damaged(edit, "its contents have changed")
    }),
    Row::new(COPIED, "the images were not released", not_released),
    Row::new(
        COPIED,
        "the time of the release is over; `--rollback --listen A`",
        too_late,
    ),
    Row::new(RESTORING, "there is no CRIU", no_criu),
    Row::new(RESTORING, "the address is in use", address_in_use),
    Row::new(RESTORING, "the address is not one of this host", || {
        restore_refused(
            &["--listen", "192.0.2.1:4433"],
            "cannot listen on 192.0.2.1:4433",
        )
    }),
    Row::new(
        RESTORING,
        "the process id is in use; it gets a namespace of its own",
        pid_in_use,
    ),
    Row::new(RESTORING, "the log file cannot be written", || {
        restore_refused(&["--log-file", "/proc/nowhere/log"], "/proc/nowhere")
    }),
    Row::new(RESTORING, "CRIU fails", || {
        criu_fails(
            &ScriptedCriu::new("restore", "exit 1"),
            "the images are kept",
        )
    }),
    Row::new(RESTORING, "CRIU does not come to an end", || {
        let script = "setsid sleep 123456 & sleep 123456";
        criu_fails(
            &ScriptedCriu::new("restore", script),
            "took longer than 1 s",
        )
    }),
    Row::new(
        RESTORING,
        "`restore` is killed, and another one comes; CRIU goes on",
        command_killed,
    ),
    Row::new(
        RESTORING,
        "the address is in use when the server wakes, and free a moment later",
        taken,
    ),
    Row::new(RESTORED, "CRIU does not come to an end", hangs),
    Row::new(
        RESTORED,
        "CRIU is killed, and the images are not spent yet",
        || {
            let killed = ScriptedCriu::killed("restore", "post-restore", true, "");
            criu_fails(&killed, "the images are kept")
        },
    ),
    Row::new(RESTORED, "CRIU is killed, and the images are spent", spent).slow(),
    Row::new(RUNNING, "CRIU is killed", criu_killed),
    Row::new(RUNNING, "`restore` is run again", || {
        again("holds no images", |_, images| images.into())
    }),
    Row::new(RUNNING, "`restore` is run with a copy", || {
        again("they are a copy", Trial::copy)
    }),
    Row::new(RUNNING, "a client sleeps through the move", client_sleeps),
    Row::new(RUNNING, "SIGTERM", told),
    Row::new(RUNNING, "the server is killed", killed),
];

fn listen_at_a(trial: &Trial) -> [String; 2] {
    ["--listen".to_owned(), trial.operated.address.clone()]
}

fn taken_back() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let options = listen_at_a(&trial);
    let output = trial
        .operated
        .restore_with(&images, &options.each_ref().map(String::as_str));
    trial.saw(&output, "");
    trial.finish()
}

fn released() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let there = trial.released_copy(&images);
    trial.restore_in_vain(&images, &[], "released from here");
    trial.restore(&there);
    trial.finish()
}

fn removed() -> Seen {
    let mut trial = Trial::start_impatient(&criu(), &[]);
    let images = trial.dump();
    fs::remove_dir_all(&images).unwrap();
    trial.expect(Serving::ImagesLost);
    trial.restore_in_vain(&images, &[], "holds no images");
    trial.start_another("127.0.0.1");
    trial.finish()
}

fn damaged(damage: fn(&Path), says: &str) -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let there = trial.released_copy(&images);
    damage(&there);
    trial.restore_in_vain(&there, &[], says);
    fs::remove_dir_all(&there).unwrap();
    let there = trial.copy(&images);
    trial.restore(&there);
    trial.finish()
}

const IMAGE: &str = "pages-1.img";

fn cut(images: &Path) {
    let whole = fs::read(images.join(IMAGE)).unwrap();
    fs::write(images.join(IMAGE), &whole[..whole.len() / 2]).unwrap();
}

fn flip(images: &Path) {
    let mut flipped = fs::read(images.join(IMAGE)).unwrap();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(images.join(IMAGE), flipped).unwrap();
}

fn remove(images: &Path) {
    fs::remove_file(images.join(IMAGE)).unwrap();
}

fn add(images: &Path) {
    let more = images.join("core-1.img");
    fs::write(&more, "").unwrap();
    chmod(&more, 0o600);
}

fn edit(images: &Path) {
    let manifest = images.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("127.0.0.2", "127.0.0.3")).unwrap();
}

fn not_released() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let there = trial.copy(&images);
    trial.restore_in_vain(&there, &[], "they are a copy");
    assert!(trial.release(&images, "10m").status.success());
    fs::copy(images.join("token.json"), there.join("token.json")).unwrap();
    trial.restore(&there);
    trial.finish()
}

fn too_late() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let there = trial.released_copy(&images);
    for folder in [&images, &there] {
        // Its time was ten minutes.
        (0..6).for_each(|_| age(folder));
    }
    trial.restore_in_vain(&there, &[], "which is over");
    let [option, a] = listen_at_a(&trial);
    trial.restore_with(&images, &["--rollback", &option, &a]);
    trial.finish()
}

fn no_criu() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    trial.operated.criu = "/nowhere/criu".into();
    trial.restore_in_vain(&images, &[], "no CRIU found");
    trial.operated.criu = criu();
    trial.restore(&images);
    trial.finish()
}

fn address_in_use() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let other = UdpSocket::bind(trial.operated.target("127.0.0.2")).unwrap();
    let output = trial.operated.restore(&images);
    drop(other);
    trial.saw(&output, "cannot listen on 127.0.0.2");
    trial.restore(&images);
    trial.finish()
}

fn restore_refused(options: &[&str], says: &str) -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    trial.restore_in_vain(&images, options, says);
    trial.restore(&images);
    trial.finish()
}

fn pid_in_use() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let output = trial.checkpoint().output().unwrap();
    let images = printed(&output);
    // Nobody has collected the process yet.
    let mut restore = trial.operated.command(&["restore", "--images"]);
    let output = restore.arg(&images).output().unwrap();
    trial.operated.restored = id_told(&output);
    trial.saw(&output, "");
    trial.finish()
}

/// This CRIU does; another one does better.
fn criu_fails(failing: &ScriptedCriu, says: &str) -> Seen {
    let mut trial = Trial::start(&failing.program(), &[]);
    let images = trial.dump();
    trial.restore_in_vain(&images, &["--time-limit", "1s"], says);
    trial.operated.criu = criu();
    trial.restore(&images);
    trial.finish()
}

fn hangs() -> Seen {
    let hanging = ScriptedCriu::new("restore", "exec $criu \"$@\" --action-script $folder/hang");
    let hang = "case $CRTOOLS_SCRIPT_ACTION in pre-restore) sleep 123456;; esac";
    hanging.write("hang", &format!("#!/bin/sh\n{hang}\n"));
    criu_fails(&hanging, "took longer than 1 s")
}

fn command_killed() -> Seen {
    let held = ScriptedCriu::held("restore");
    let mut trial = Trial::start(&held.program(), &[]);
    let images = trial.dump();
    let mut restore = trial.operated.command(&["restore", "--images"]);
    let mut first = restore.arg(&images).spawn().unwrap();
    held.wait_until("begun");
    first.kill().unwrap();
    first.wait().unwrap();
    let output = trial.operated.restore(&images);
    trial.heard(&output, "are being restored");
    held.go();
    trial.operated.restored = Some(trial.operated.pid());
    wait_until("the server", LIMIT, || trial.answers("127.0.0.2"));
    trial.look();
    trial.finish()
}

fn taken() -> Seen {
    let held = ScriptedCriu::held("restore");
    let mut trial = Trial::start(&held.program(), &[]);
    let images = trial.dump();
    let mut restore = trial.operated.command(&["restore", "--images"]);
    restore
        .arg(&images)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let restore = restore.spawn().unwrap();
    held.wait_until("begun");
    let other = UdpSocket::bind(trial.operated.target("127.0.0.2")).unwrap();
    held.go();
    trial.operated.restored = Some(trial.operated.pid());
    trial.operated.wait_for_log("cannot listen on");
    drop(other);
    let output = restore.wait_with_output().unwrap();
    trial.saw(&output, "");
    trial.finish()
}

fn spent() -> Seen {
    let killed = ScriptedCriu::killed("restore", "post-restore", false, "");
    let mut trial = Trial::start_impatient(&killed.program(), &[]);
    let images = trial.dump();
    trial.restore_in_vain(&images, &[], "cannot be used again");
    trial.start_another("127.0.0.1");
    trial.finish()
}

fn criu_killed() -> Seen {
    let killed = ScriptedCriu::new("restore", "$criu \"$@\"; kill -9 $$");
    let mut trial = Trial::start(&killed.program(), &[]);
    let images = trial.dump();
    let output = trial.operated.restore(&images);
    trial.saw(&output, "");
    trial.finish()
}

/// From images of which this makes others.
fn again(says: &str, others: fn(&Trial, &Path) -> PathBuf) -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    let others = others(&trial, &images);
    trial.restore(&images);
    trial.restore_in_vain(&others, &[], says);
    trial.finish()
}

fn client_sleeps() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    trial.download.tell(Signal::SIGSTOP);
    let images = trial.dump();
    trial.restore(&images);
    trial.download.tell(Signal::SIGCONT);
    trial.finish()
}

/// A server at B, with its client.
fn moved() -> Trial {
    let mut trial = Trial::start_impatient(&criu(), &[]);
    let images = trial.dump();
    trial.restore(&images);
    trial.download.wait_until_moved();
    trial
}

fn told() -> Seen {
    let mut trial = moved();
    trial.end_by(Signal::SIGTERM);
    trial.wait_for_its_end();
    trial.look();
    trial.finish()
}

fn killed() -> Seen {
    let mut trial = moved();
    trial.end_by(Signal::SIGKILL);
    trial.wait_for_its_end();
    trial.look();
    trial.start_another("127.0.0.2");
    trial.finish()
}
