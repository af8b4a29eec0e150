//! Clients that know nothing of moves keep their downloads while the server moves: a forwarder stays where it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{criu, privileged};
use mpq_lab::system::aioquic;
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operated::{LIMIT, NOT_DUMPED, Operated, ScriptedCriu, assert_refused, printed, wait_until};

mod common;
#[path = "common/operated.rs"]
mod operated;

/// A megabyte takes four seconds.
const SLOWLY: [&str; 2] = ["--limit-rate", "2M"];

/// quinn's client, with a download under way, and the file that it writes.
fn plain(operated: &Operated) -> (Child, PathBuf) {
    let file = operated.folder.path().join("plain");
    let mut command = Command::new(built("mpq-get").unwrap());
    command
        .args(["--protocol", "quic", "--insecure", "--retry", "0"])
        .arg("--output")
        .arg(&file)
        .arg(format!("https://{}/random", operated.address));
    let part = operated.folder.path().join("plain.part");
    (begun(command, &part), file)
}

/// The same of aioquic's.
fn foreign(operated: &Operated) -> (Child, PathBuf) {
    let file = operated.folder.path().join("foreign");
    let (host, port) = operated.address.rsplit_once(':').unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/aioquic_get.py");
    let mut command = Command::new(aioquic::python().unwrap());
    command.arg(script).args([host, port, "/random"]).arg(&file);
    (begun(command, &file), file)
}

/// A client whose download into this file is under way.
fn begun(mut command: Command, file: &Path) -> Child {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let has_begun = || fs::metadata(file).is_ok_and(|file| file.len() > 0);
    wait_until("its first bytes", LIMIT, has_begun);
    child
}

/// The process that a checkpoint says forwards.
fn forwarder(said: &[u8]) -> Pid {
    let said = String::from_utf8_lossy(said);
    let (_, rest) = said.split_once("process ").unwrap();
    let (pid, rest) = rest.split_once(' ').unwrap();
    assert!(rest.starts_with("forwards to 127.0.0.2:"), "{said}");
    Pid::from_raw(pid.parse().unwrap())
}

#[tokio::test]
async fn a_plain_client_downloads_through_a_move_that_is_forwarded() {
    let Some(_alone) = privileged().await else {
        return;
    };
    downloads_through_a_move(plain);
}

#[tokio::test]
async fn so_does_one_that_has_nothing_of_ours() {
    let Some(_alone) = privileged().await else {
        return;
    };
    downloads_through_a_move(foreign);
}

fn downloads_through_a_move(client: fn(&Operated) -> (Child, PathBuf)) {
    let mut operated = Operated::start(&criu(), &SLOWLY);
    let (client, file) = client(&operated);
    let mut checkpoint = operated.checkpoint(&operated.images());
    let output = checkpoint.arg("--forward").output().unwrap();
    let images = printed(&output);
    let forwarder = forwarder(&output.stderr);
    let moved_at = fs::metadata(&file).map_or(0, |file| file.len());
    let restored = operated.restore(&images);
    assert!(restored.status.success(), "{restored:?}");
    let ended = client.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}: {}", operated.log());
    // Who connects to the old address is served as well.
    operated.assert_serves_at(&operated.address);
    let whole = fs::read(operated.folder.path().join("download")).unwrap();
    assert!(fs::read(file).unwrap() == whole, "{} bytes", whole.len());
    assert!(moved_at < whole.len() as u64, "it was over before the move");
    // The forwarder logs where the server does.
    let from = format!("forwarding from {} to ", operated.address);
    assert!(operated.log().contains(&from), "{}", operated.log());
    kill(forwarder, Signal::SIGTERM).unwrap();
}

#[tokio::test]
async fn a_dump_that_fails_gives_the_address_back() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let failing = ScriptedCriu::new(
        "",
        r#"case "$*" in dump*) exit 1;; *) exec $criu "$@";; esac"#,
    );
    let operated = Operated::start(&failing.program(), &SLOWLY);
    let (client, _) = plain(&operated);
    let mut checkpoint = operated.checkpoint(&operated.images());
    let output = checkpoint.arg("--forward").output().unwrap();
    assert_refused(&output, NOT_DUMPED, "");
    let ended = client.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}: {}", operated.log());
    operated.assert_serves_at(&operated.address);
}

/// Nobody is left who would end the forwarder, other than the server.
#[tokio::test]
async fn so_does_a_helper_that_is_killed() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let stuck = ScriptedCriu::new(
        "dump",
        "echo $PPID $$ > $begun.new; mv $begun.new $begun; exec sleep 60",
    );
    let operated = Operated::start(&stuck.program(), &SLOWLY);
    let (client, _) = plain(&operated);
    let mut checkpoint = operated.checkpoint(&operated.images());
    let checkpoint = checkpoint.arg("--forward").spawn().unwrap();
    stuck.wait_until("begun");
    let pids = fs::read_to_string(stuck.file("begun")).unwrap();
    for pid in pids.split_whitespace() {
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    assert_refused(&checkpoint.wait_with_output().unwrap(), NOT_DUMPED, "");
    let ended = client.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}: {}", operated.log());
    operated.assert_serves_at(&operated.address);
}

#[tokio::test]
async fn nobody_forwards_where_there_is_no_such_client() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = Operated::start(&criu(), &[]);
    let mut checkpoint = operated.checkpoint(&operated.images());
    let output = checkpoint.arg("--forward").output().unwrap();
    let images = printed(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("forwards"), "{said}");
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
}
