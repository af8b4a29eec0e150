//! A server that root has started, and that became another user.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{criu, privileged};
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use operated::{OTHER_USER, Operated, chmod, new_folder, printed};
use tempfile::TempDir;

mod common;
#[path = "common/operated.rs"]
mod operated;

/// `CAP_NET_BIND_SERVICE` (capabilities(7)), in the form of proc_pid_status(5).
const BINDS: &str = "0000000000000400";
/// The only port below 1024 that clients follow a server to.
const LOW_PORT: &str = "127.0.0.1:443";
const NOTHING: &str = "0000000000000000";

/// What the kernel says of a process and of each of its threads: who it is, and what it may do.
fn rights(pid: i32) -> Vec<[String; 7]> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let rights = threads.map(|thread| {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let names = [
            "Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "CapInh:", "CapAmb:",
        ];
        names.map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let words: Vec<_> = line.unwrap().split_whitespace().collect();
            words.join(" ")
        })
    });
    rights.collect()
}

/// Each thread is the user, by real, effective, saved and file system id, with these capabilities.
fn assert_is_user(pid: i32, user: &User, capabilities: &str) {
    let ids = |id: u32| vec![id.to_string(); 4].join(" ");
    let groups = nix::unistd::getgrouplist(&std::ffi::CString::new(&*user.name).unwrap(), user.gid);
    let mut groups: Vec<_> = groups.unwrap().iter().map(|group| group.as_raw()).collect();
    groups.sort_unstable();
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    let wanted = [
        ids(user.uid.as_raw()),
        ids(user.gid.as_raw()),
        groups.join(" "),
    ];
    let threads = rights(pid);
    assert!(threads.len() > 1);
    for thread in threads {
        assert_eq!(thread[..3], wanted);
        assert_eq!(thread[3..], [capabilities; 4]);
    }
}

/// A folder of root's, into which nobody else may write, with a certificate and the key to it.
fn folder() -> TempDir {
    let folder = new_folder();
    chmod(folder.path(), 0o755);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("cert"), made.cert.pem()).unwrap();
    fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    chmod(&path("key"), 0o600);
    folder
}

fn start(listen: &str, user: &User) -> Operated {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [cert, key, pid, access] = ["cert", "key", "pid", "access"].map(path);
    let program = built("mpq-serve").unwrap();
    let options = [
        "--user",
        &user.name,
        "--cert",
        &cert,
        "--key",
        &key,
        "--pid-file",
        &pid,
        "--access-log",
        &access,
    ];
    Operated::start_in(folder, &program, &criu(), listen, &options)
}

fn owner(path: &Path) -> u32 {
    fs::metadata(path).unwrap().uid()
}

#[tokio::test]
async fn a_server_becomes_a_user_for_good_and_moves() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let user = User::from_uid(OTHER_USER.into()).unwrap().unwrap();
    let mut operated = start(LOW_PORT, &user);
    assert_is_user(operated.pid(), &user, BINDS);
    operated.assert_serves_at(&operated.address);
    let path = |name: &str| operated.folder.path().join(name);
    for written in ["log", "access", "pid"].map(path) {
        assert_eq!(owner(&written), OTHER_USER, "{}", written.display());
    }
    let pid = fs::read_to_string(path("pid")).unwrap();
    assert_eq!(pid, format!("{}\n", operated.pid()));

    // It cannot read what only root can.
    kill(Pid::from_raw(operated.pid()), Signal::SIGHUP).unwrap();
    operated.wait_for_log("the certificate stays as it was");
    let log = operated.log();
    let line = log.lines().find(|line| line.contains("stays")).unwrap();
    for said in [
        "key",
        "Permission denied",
        &format!("user {} reads it now", user.name),
    ] {
        assert!(line.contains(said), "{line}");
    }
    operated.assert_serves_at(&operated.address);

    // It listens on the port again, twice: what it may do moves along.
    for _ in 0..2 {
        let (id, target) = (
            operated.restored.unwrap_or(operated.pid()).to_string(),
            operated.target("127.0.0.2"),
        );
        let mut checkpoint =
            operated.command(&["checkpoint", "--pid", &id, "--migrate-to", &target]);
        checkpoint.arg("--images").arg(operated.images());
        let images = printed(&checkpoint.output().unwrap());
        let restored = operated.restore(&images);
        operated.assert_restored(&restored);
        let id = operated.restored.unwrap();
        assert_is_user(id, &user, BINDS);
        let pid = fs::read_to_string(operated.folder.path().join("pid")).unwrap();
        assert_eq!(pid, format!("{id}\n"));
    }
}

#[tokio::test]
async fn a_server_of_another_port_keeps_no_right_of_roots() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let user = User::from_uid(OTHER_USER.into()).unwrap().unwrap();
    let operated = start("127.0.0.1:0", &user);
    assert_is_user(operated.pid(), &user, NOTHING);
    operated.assert_serves_at(&operated.address);
}

#[tokio::test]
async fn a_file_that_the_user_cannot_write_is_said_and_nothing_is_made_where_others_can_write() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let user = User::from_uid(OTHER_USER.into()).unwrap().unwrap();
    let folder = folder();
    let (log, shared) = (folder.path().join("log"), folder.path().join("shared"));
    let run = |log: &Path| {
        let mut command = std::process::Command::new(built("mpq-serve").unwrap());
        command.args([
            "--random",
            "--listen",
            "127.0.0.1:0",
            "--user",
            &user.name,
            "--log-file",
        ]);
        let output = command.arg(log).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    fs::write(&log, "").unwrap();
    let (code, said) = run(&log);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("Permission denied") && said.contains("chown"),
        "{said}"
    );

    // Nor reach it.
    let secret = folder.path().join("images");
    chmod(&secret, 0o700);
    let mut command = std::process::Command::new(built("mpq-serve").unwrap());
    command.args(["--listen", "127.0.0.1:0", "--user", &user.name]);
    let output = command.arg(&secret).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("images: Permission denied: user"), "{said}");

    // A third user may lead root elsewhere there.
    fs::create_dir_all(shared.join("inner")).unwrap();
    chmod(&shared, 0o777);
    let (code, said) = run(&shared.join("inner/log"));
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("others may write to it"), "{said}");
    assert!(!shared.join("inner/log").exists());
}
