//! Faults until the server is in its images.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mpq_lab::system::host::{built, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::criu;
use crate::operated::{OTHER_USER, ScriptedCriu, chmod, helper_of, printed};
use crate::table::{Row, Seen};
use crate::trial::{Serving, Trial};

const BEFORE: &str = "before the announcement";
const ANNOUNCED: &str = "announced, not frozen";
const FROZEN: &str = "frozen, images not complete";
const COMPLETE: &str = "images complete, the process not ended";

pub(crate) const ROWS: &[Row] = &[
    Row::new(BEFORE, "there is no CRIU", no_criu),
    Row::new(BEFORE, "CRIU is too old", old_criu),
    Row::new(BEFORE, "nobody has said where to", no_target),
    Row::new(
        BEFORE,
        "the folder for the images cannot be made",
        no_folder,
    ),
    Row::new(BEFORE, "it is another user's", folder_of_another),
    Row::new(BEFORE, "others may write to it", folder_for_all),
    Row::new(BEFORE, "it is a link", folder_linked),
    Row::new(BEFORE, "it has no room", no_room),
    Row::new(BEFORE, "the program was replaced", replaced),
    Row::new(BEFORE, "the pid file is stale", stale_pid_file),
    Row::new(
        BEFORE,
        "another move is under way, which goes on",
        second_move,
    ),
    Row::new(
        BEFORE,
        "the last move, to B, waits for a client; this one leads to A",
        waiting,
    ),
    Row::new(ANNOUNCED, "SIGTERM", || {
        told_when_announced(Signal::SIGTERM)
    }),
    Row::new(ANNOUNCED, "SIGINT", || told_when_announced(Signal::SIGINT)),
    Row::new(
        ANNOUNCED,
        "`checkpoint` is killed, and the move goes on",
        command_killed,
    ),
    Row::new(ANNOUNCED, "the server is killed", killed_when_announced),
    Row::new(FROZEN, "CRIU fails", criu_fails),
    Row::new(FROZEN, "the folder gets full", full),
    Row::new(
        FROZEN,
        "the helper is killed, and CRIU comes all the same",
        helper_killed,
    ),
    Row::new(FROZEN, "CRIU does not begin", criu_hangs).slow(),
    Row::new(FROZEN, "SIGTERM before CRIU comes", told_before_criu),
    Row::new(
        FROZEN,
        "SIGTERM when the process stands still; it is not heard at B",
        told_too_late,
    ),
    Row::new(FROZEN, "the server is killed", killed_when_frozen),
    Row::new(COMPLETE, "CRIU is killed, and has not said so", || {
        criu_killed(true)
    }),
    Row::new(COMPLETE, "CRIU is killed, and has said so", || {
        criu_killed(false)
    }),
    Row::new(
        COMPLETE,
        "the helper and CRIU are killed; somebody releases what is left",
        both_killed,
    ),
];

/// The checkpoint is refused, or fails.
fn refused(mut trial: Trial, says: &str) -> Seen {
    let output = trial.checkpoint().output().unwrap();
    trial.saw(&output, says);
    trial.finish()
}

fn no_criu() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    trial.operated.criu = "/nowhere/criu".into();
    refused(trial, "no CRIU found")
}

fn old_criu() -> Seen {
    let old = ScriptedCriu::new("--version", "echo 'Version: 3.17'");
    refused(Trial::start(&old.program(), &[]), "is too old")
}

fn no_target() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let pid = trial.operated.pid().to_string();
    let output = trial
        .operated
        .command(&["checkpoint", "--pid", &pid])
        .output()
        .unwrap();
    trial.saw(&output, "nowhere to move to");
    trial.finish()
}

fn refused_in(mut trial: Trial, images: &Path, says: &str) -> Seen {
    let output = trial.operated.checkpoint(images).output().unwrap();
    trial.saw(&output, says);
    trial.finish()
}

fn no_folder() -> Seen {
    let images = Path::new("/proc/images");
    refused_in(Trial::start(&criu(), &[]), images, "/proc/images")
}

fn folder_of_another() -> Seen {
    let trial = Trial::start(&criu(), &[]);
    chown(trial.operated.images(), Some(OTHER_USER), None).unwrap();
    refused(trial, "belongs to user")
}

fn folder_for_all() -> Seen {
    let trial = Trial::start(&criu(), &[]);
    chmod(&trial.operated.images(), 0o777);
    refused(trial, "others may write")
}

fn folder_linked() -> Seen {
    let trial = Trial::start(&criu(), &[]);
    let link = trial.operated.folder.path().join("link");
    symlink(trial.operated.images(), &link).unwrap();
    refused_in(trial, &link, "symbolic link")
}

/// Memory of its own for a folder.
struct Mounted(String);

impl Mounted {
    fn new(folder: &Path, size: &str) -> Self {
        let folder = folder.to_str().unwrap();
        let options = [
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=700"),
            "tmpfs",
            folder,
        ];
        run("mount", options).unwrap();
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", ["--lazy", &self.0]);
    }
}

/// With a folder of this size.
fn refused_within(size: &str, mut trial: Trial, says: &str) -> Seen {
    let mounted = Mounted::new(&trial.operated.images(), size);
    let output = trial.checkpoint().output().unwrap();
    drop(mounted);
    trial.saw(&output, says);
    trial.finish()
}

fn no_room() -> Seen {
    refused_within("1M", Trial::start(&criu(), &[]), "has room for")
}

fn replaced() -> Seen {
    let built = built("mpq-serve").unwrap();
    let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
    let [program, new] = ["mpq-serve", "new"].map(|name| folder.path().join(name));
    fs::hard_link(built, &program).unwrap();
    let trial = Trial::start_program(&program, &criu());
    fs::write(&new, "another version").unwrap();
    fs::rename(&new, &program).unwrap();
    refused(trial, "was replaced or removed")
}

fn stale_pid_file() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let mut innocent = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid_file = trial.operated.folder.path().join("pid");
    fs::write(&pid_file, innocent.id().to_string()).unwrap();
    let mut checkpoint = trial.operated.command(&["checkpoint", "--pid-file"]);
    let output = checkpoint.arg(&pid_file).output().unwrap();
    let ended = innocent.try_wait().unwrap();
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert_eq!(ended, None, "it was signalled");
    trial.saw(&output, "names no running server");
    trial.finish()
}

fn second_move() -> Seen {
    let held = ScriptedCriu::held("dump");
    let mut trial = Trial::start(&held.program(), &[]);
    let first = trial.checkpoint().spawn().unwrap();
    held.wait_until("begun");
    let second = trial.checkpoint().output().unwrap();
    held.go();
    let images = printed(&first.wait_with_output().unwrap());
    trial.saw(&second, "moving already");
    trial.restore(&images);
    trial.finish()
}

fn waiting() -> Seen {
    let mut trial = Trial::start(&criu(), &[]);
    let images = trial.dump();
    trial.download.tell(Signal::SIGSTOP);
    trial.restore(&images);
    let (pid, back) = (
        trial.operated.pid().to_string(),
        trial.operated.address.clone(),
    );
    let arguments = [
        "checkpoint",
        "--pid",
        &pid,
        "--migrate-to",
        &back,
        "--images",
    ];
    let mut checkpoint = trial.operated.command(&arguments);
    checkpoint.arg(trial.operated.images());
    checkpoint.stdout(Stdio::piped()).stderr(Stdio::piped());
    let checkpoint = checkpoint.spawn().unwrap();
    trial.operated.wait_for_log("the next move begins");
    trial.download.tell(Signal::SIGCONT);
    let output = checkpoint.wait_with_output().unwrap();
    let images = printed(&output);
    trial.saw(&output, "once the clients of the last one have come");
    trial.restore(&images);
    trial.finish()
}

fn told_when_announced(signal: Signal) -> Seen {
    let mut trial = Trial::start(&criu(), &["--lead", "20s"]);
    let checkpoint = trial.checkpoint().spawn().unwrap();
    trial.download.wait_until_told();
    trial.end_by(signal);
    let output = checkpoint.wait_with_output().unwrap();
    trial.wait_for_its_end();
    trial.saw(&output, "was told to leave");
    trial.finish()
}

/// The helper hears of the end of its CRIU when the server is being restored already.
fn command_killed() -> Seen {
    let script = r#"case "$*" in
        dump*) echo $PPID >$begun; $criu "$@"; code=$?
            until [ -e $folder/go ]; do sleep 0.01; done; exit $code;;
        restore*) touch $folder/go
            while [ -e /proc/$(cat $begun)/exe ]; do sleep 0.01; done; exec $criu "$@";;
        *) exec $criu "$@";;
        esac"#;
    let criu = ScriptedCriu::new("", script);
    let mut trial = Trial::start(&criu.program(), &["--lead", "1s"]);
    let mut checkpoint = trial.checkpoint().spawn().unwrap();
    trial.download.wait_until_told();
    checkpoint.kill().unwrap();
    let output = checkpoint.wait_with_output().unwrap();
    trial.wait_for_its_end();
    trial.saw(&output, "");
    trial.restore(&trial.operated.images());
    trial.finish()
}

fn killed_when_announced() -> Seen {
    let mut trial = Trial::start_impatient(&criu(), &["--lead", "20s"]);
    let checkpoint = trial.checkpoint().spawn().unwrap();
    trial.download.wait_until_told();
    trial.end_by(Signal::SIGKILL);
    let output = checkpoint.wait_with_output().unwrap();
    trial.wait_for_its_end();
    trial.saw(&output, "was not dumped");
    trial.start_another("127.0.0.1");
    trial.finish()
}

const STAYS: &str = "the server goes on where it was";

fn criu_fails() -> Seen {
    let failing = ScriptedCriu::new("dump", "exit 1");
    refused(Trial::start(&failing.program(), &[]), STAYS)
}

/// Where CRIU is to write its images, in a script.
const WITH_IMAGES: &str = r#"images=$(echo "$*" | sed 's/.*--images-dir \([^ ]*\).*/\1/')"#;
/// The process that it is to dump.
const WITH_PID: &str = r#"pid=$(echo "$*" | sed 's/.*--tree \([0-9]*\).*/\1/')"#;

fn full() -> Seen {
    let script = format!(
        "{WITH_IMAGES}\nhead -c 100M /dev/zero >$images/../other 2>/dev/null\nexec $criu \"$@\""
    );
    let criu = ScriptedCriu::new("dump", &script);
    refused_within("50M", Trial::start(&criu.program(), &[]), STAYS)
}

/// Nothing with keys in it is left of a dump that does not count.
fn assert_no_images(trial: &Trial) {
    let folders = fs::read_dir(trial.operated.images()).unwrap().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
    let left: Vec<_> = files.map(|file| file.path()).collect();
    let is_image = |path: &PathBuf| path.extension().is_some_and(|end| end == "img");
    assert!(!left.iter().any(is_image), "{left:?}");
}

fn helper_killed() -> Seen {
    let held = ScriptedCriu::held("dump");
    let mut trial = Trial::start(&held.program(), &[]);
    let checkpoint = trial.checkpoint().spawn().unwrap();
    held.wait_until("begun");
    let helper = helper_of(trial.operated.pid()).unwrap();
    kill(Pid::from_raw(helper), Signal::SIGKILL).unwrap();
    let output = checkpoint.wait_with_output().unwrap();
    held.go();
    held.wait_until("ended");
    trial.saw(&output, STAYS);
    assert_no_images(&trial);
    trial.finish()
}

fn criu_hangs() -> Seen {
    let hangs = ScriptedCriu::new("dump", "exec sleep 1000");
    let trial = Trial::start(&hangs.program(), &[]);
    refused(trial, "has not begun in 20 s")
}

fn told_before_criu() -> Seen {
    let held = ScriptedCriu::held("dump");
    let mut trial = Trial::start(&held.program(), &[]);
    let checkpoint = trial.checkpoint().spawn().unwrap();
    held.wait_until("begun");
    trial.end_by(Signal::SIGTERM);
    let output = checkpoint.wait_with_output().unwrap();
    trial.wait_for_its_end();
    held.go();
    held.wait_until("ended");
    trial.saw(&output, "was told to leave");
    assert_no_images(&trial);
    trial.finish()
}

fn told_too_late() -> Seen {
    // The signal waits for it, and is dumped.
    let script = format!(
        r#"case "$*" in
        dump*) {WITH_PID}; echo $pid >$begun; kill -STOP $pid; kill -TERM $pid; exec $criu "$@";;
        restore*) $criu "$@"; code=$?; kill -CONT $(cat $begun); exit $code;;
        *) exec $criu "$@";;
        esac"#
    );
    let criu = ScriptedCriu::new("", &script);
    let mut trial = Trial::start(&criu.program(), &[]);
    let output = trial.checkpoint().output().unwrap();
    trial.wait_for_its_end();
    trial.saw(&output, "");
    let images = printed(&output);
    trial.restore(&images);
    trial
        .operated
        .wait_for_log("a signal from before the move is ignored");
    trial.finish()
}

fn killed_when_frozen() -> Seen {
    let script = format!("{WITH_PID}\nkill -9 $pid; exec $criu \"$@\"");
    let criu = ScriptedCriu::new("dump", &script);
    let mut trial = Trial::start_impatient(&criu.program(), &[]);
    trial.expect(Serving::Killed);
    let output = trial.checkpoint().output().unwrap();
    trial.wait_for_its_end();
    trial.saw(&output, "was not dumped");
    trial.start_another("127.0.0.1");
    trial.finish()
}

fn criu_killed(is_before: bool) -> Seen {
    let killed = ScriptedCriu::killed("dump", "post-dump", is_before, "");
    let trial = Trial::start(&killed.program(), &[]);
    refused(trial, STAYS)
}

/// Two servers with the same keys would run if these images could be restored somewhere.
fn both_killed() -> Seen {
    let also = "kill -9 $(cut -d' ' -f4 /proc/$criu/stat); touch $(dirname $0)/ended";
    let killed = ScriptedCriu::killed("dump", "post-dump", false, also);
    let mut trial = Trial::start(&killed.program(), &[]);
    let output = trial.checkpoint().output().unwrap();
    killed.wait_until("ended");
    trial.saw(&output, STAYS);
    let images = trial.operated.images();
    let output = trial.release(&images, "10m");
    trial.saw(&output, "holds no images");
    trial.finish()
}
