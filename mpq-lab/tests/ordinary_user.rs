//! Root moves the server of an ordinary user, who can have root do nothing by that but what the user could do.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{criu, privileged};
use mpq_serve::checkpoint::process::Identity;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use occupied::Occupied;
use operated::{
    LIMIT, NO_SERVER, NOT_DUMPED, NOT_PERMITTED, OTHER_USER, Operated, ScriptedCriu,
    assert_refused, chmod, mode, printed, wait_until,
};

mod common;
#[path = "common/occupied.rs"]
mod occupied;
#[path = "common/operated.rs"]
mod operated;

/// The folder in which the user's server makes the one through which it is talked to.
fn run_folder(operated: &Operated) -> PathBuf {
    operated.folder.path().join("run")
}

fn control(operated: &Operated) -> PathBuf {
    let name = format!("{}-", operated.pid());
    let folder = run_folder(operated).join("mpq-serve");
    let mut found = files(&folder);
    let is_it = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(&name)
    };
    found.find(is_it).unwrap()
}

/// A server of the user, and a folder that belongs to root, with the one for the images.
fn start(criu: &Path) -> Operated {
    Operated::start_for_user(criu, OTHER_USER, &["--lead", "100ms"])
}

fn checkpoint(operated: &Operated, server: &[&str]) -> Output {
    let mut checkpoint = operated.command(&["checkpoint", "--migrate-to"]);
    checkpoint.arg(operated.target("127.0.0.2"));
    checkpoint
        .args(server)
        .arg("--images")
        .arg(operated.images());
    checkpoint.output().unwrap()
}

/// It goes on, and a client that had heard of the move was told that it is off.
fn assert_goes_on(operated: &Operated) {
    operated.wait_for_log("Resuming (old address) → Serving");
    operated.assert_serves_at(&operated.address);
    let mut left = fs::read_dir(operated.images()).unwrap().flatten();
    let keys = left.find(|folder| folder.path().join("pages-1.img").exists());
    assert!(keys.is_none(), "{keys:?}");
}

/// Who has a process.
fn user_of(pid: i32) -> u32 {
    fs::metadata(format!("/proc/{pid}")).unwrap().uid()
}

/// A control group that is removed with this.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// None where there is no second version of them (proc_pid_mountinfo(5)).
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let folder = Path::new(mount.split(' ').nth(4)?).join("mpq-lab-test");
        let _ = fs::create_dir(&folder);
        Some(Self(folder))
    }

    fn take(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The control groups of a process.
fn groups_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

/// systemd knows a service by its control group: one that is restored is of the unit that has it restored.
#[tokio::test]
async fn a_server_is_restored_in_the_control_group_of_who_restores_it() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let Some(group) = ControlGroup::new() else {
        return eprintln!("SKIPPED: there are no control groups of the second version here");
    };
    let mut operated = start(&criu());
    let pid = operated.pid();
    group.take(pid);
    assert_ne!(groups_of(pid), groups_of(std::process::id() as i32));
    let images = printed(&checkpoint(&operated, &["--pid", &pid.to_string()]));
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
    assert_eq!(
        groups_of(operated.restored.unwrap()),
        groups_of(std::process::id() as i32)
    );
}

#[tokio::test]
async fn root_moves_the_server_of_an_ordinary_user() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut operated = start(&criu());
    let pid_file = run_folder(&operated).join("pid");
    assert_eq!(user_of(operated.pid()), OTHER_USER);

    let output = checkpoint(&operated, &["--pid-file", pid_file.to_str().unwrap()]);
    let images = printed(&output);
    assert_eq!(images.parent(), Some(operated.images().as_path()));
    assert_eq!(mode(&images), 0o700);
    for path in fs::read_dir(&images)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().uid(), 0, "{}", path.display());
    }
    assert!(!pid_file.exists());

    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
    let pid = operated.restored.unwrap();
    assert_eq!((pid, user_of(pid)), (operated.pid(), OTHER_USER));
    let owned = [
        pid_file.clone(),
        control(&operated),
        operated.folder.path().join("log"),
    ];
    for path in owned.into_iter().chain(files(&control(&operated))) {
        let metadata = fs::metadata(&path).unwrap();
        let of = (metadata.uid(), metadata.gid());
        assert_eq!(of, (OTHER_USER, OTHER_USER), "{}", path.display());
    }
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{pid}\n"));
    assert!(!images.exists());
    assert!(operated.log().contains("Parked → Resuming (new address)"));

    // And once more, to where its id is in use; and on from there.
    let images = printed(&checkpoint(&operated, &["--pid", &pid.to_string()]));
    assert!(images.join("token.json").exists());
    let occupied = Occupied::start(pid);
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
    let id = operated.restored.unwrap();
    assert_ne!(id, pid);
    assert_eq!(user_of(id), OTHER_USER);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{id}\n"));
    let images = printed(&checkpoint(&operated, &["--pid", &id.to_string()]));
    drop(occupied);
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
    // It has its first id again, unless the system was slow to take that back.
    assert_eq!(user_of(operated.restored.unwrap()), OTHER_USER);
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
}

#[tokio::test]
async fn whatever_fails_leaves_the_users_server_where_it_was() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // What fails is CRIU, or root's helper is killed before it comes, or when the images are complete.
    let dead_helper = "kill -9 $PPID; sleep 1";
    for (criu, reason) in [
        (ScriptedCriu::new("dump", "exit 1"), "CRIU: exit status: 1"),
        (
            ScriptedCriu::new("dump", dead_helper),
            "has ended without a word",
        ),
        (
            ScriptedCriu::killed("dump", "post-dump", false, ""),
            "CRIU: signal: 9",
        ),
        (
            ScriptedCriu::killed(
                "dump",
                "post-dump",
                false,
                "kill -9 $(cut -d' ' -f4 /proc/$criu/stat)",
            ),
            "has ended without a word",
        ),
    ] {
        let mut operated = start(&criu.program());
        let pid = operated.pid().to_string();
        assert_refused(&checkpoint(&operated, &["--pid", &pid]), NOT_DUMPED, reason);
        assert_goes_on(&operated);
        // It can still move.
        operated.criu = crate::criu();
        let images = printed(&checkpoint(&operated, &["--pid", &pid]));
        let restored = operated.restore(&images);
        operated.assert_restored(&restored);
    }
}

#[tokio::test]
async fn a_command_that_is_killed_leaves_the_server_at_one_place() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let begin = |operated: &Operated| {
        let mut command = operated.checkpoint(&operated.images());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    // While clients are told, nobody is left to dump it.
    let operated = Operated::start_for_user(&criu(), OTHER_USER, &["--lead", "2s"]);
    let mut command = begin(&operated);
    operated.wait_for_log("moving to");
    command.kill().unwrap();
    command.wait().unwrap();
    assert_goes_on(&operated);
    operated.wait_for_log("nobody waits for it any more");

    // And once CRIU runs it is dumped all the same.
    let held = ScriptedCriu::held("dump");
    let mut operated = start(&held.program());
    let mut command = begin(&operated);
    held.wait_until("begun");
    command.kill().unwrap();
    command.wait().unwrap();
    held.go();
    operated.server.wait().unwrap();
    let folder = files(&operated.images()).next().unwrap();
    wait_until("its token", LIMIT, || folder.join("token.json").exists());
    let restored = operated.restore(&folder);
    operated.assert_restored(&restored);
}

#[tokio::test]
async fn the_user_is_not_root() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let operated = start(&criu());
    let pid = operated.pid().to_string();
    let mut own = operated.command(&["checkpoint", "--pid", &pid]);
    own.arg("--migrate-to").arg(operated.target("127.0.0.2"));
    own.uid(OTHER_USER).gid(OTHER_USER);
    own.env("XDG_RUNTIME_DIR", run_folder(&operated));
    assert_refused(&own.output().unwrap(), NOT_PERMITTED, "as root");
    operated.assert_unmoved();
}

#[tokio::test]
async fn a_user_has_no_other_server_dumped() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let operated = start(&criu());
    let of_root = Operated::start(&criu(), &[]);
    let of_third = Operated::start_for_user(&criu(), OTHER_USER - 1, &[]);
    let pid_file = run_folder(&operated).join("pid");
    let refuse = |code, reason: &str| {
        let output = checkpoint(&operated, &["--pid-file", pid_file.to_str().unwrap()]);
        assert_refused(&output, code, reason);
    };
    // It names one of root, one of a third user, or leads to such a user's file.
    let own = |path: &Path| lchown(path, Some(OTHER_USER), None).unwrap();
    for other in [&of_root, &of_third] {
        fs::write(&pid_file, other.pid().to_string()).unwrap();
        refuse(NOT_PERMITTED, "belongs to user 65534");
    }
    fs::remove_file(&pid_file).unwrap();
    symlink(run_folder(&of_third).join("pid"), &pid_file).unwrap();
    own(&pid_file);
    refuse(NOT_PERMITTED, "belongs to user 65534");

    // The folder is a link to that of another server, which is said to be this process.
    let control = control(&operated);
    fs::rename(&control, control.with_extension("away")).unwrap();
    symlink(self::control(&of_third), &control).unwrap();
    own(&control);
    let pid = operated.pid().to_string();
    let output = checkpoint(&operated, &["--pid", &pid]);
    assert_refused(&output, NO_SERVER, "no mpq-serve");
    // Or it belongs to somebody else.
    fs::remove_file(&control).unwrap();
    fs::rename(control.with_extension("away"), &control).unwrap();
    chown(&control, Some(OTHER_USER - 1), None).unwrap();
    let output = checkpoint(&operated, &["--pid", &pid]);
    assert_refused(&output, NOT_PERMITTED, "belongs to user 65533");
    for server in [&operated, &of_root, &of_third] {
        server.assert_unmoved();
    }
}

#[tokio::test]
async fn what_a_user_plants_has_root_write_and_remove_nothing() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let held = ScriptedCriu::held("dump");
    let mut operated = start(&held.program());
    let secret = operated.folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    chmod(&secret, 0o700);
    let (pid, control) = (operated.pid().to_string(), control(&operated));
    // As if it were the server's own.
    fs::write(secret.join("pid"), &pid).unwrap();
    for (name, kind) in [("command.lock", "fifo"), ("request.new", "link")] {
        let path = control.join(name);
        let _ = fs::remove_file(&path);
        match kind {
            "fifo" => mkfifo(&path, Mode::S_IRWXU).unwrap(),
            _ => symlink(secret.join("pid"), &path).unwrap(),
        }
        lchown(&path, Some(OTHER_USER), None).unwrap();
        let output = checkpoint(&operated, &["--pid", &pid]);
        assert!(!output.status.success(), "{output:?}");
        operated.assert_unmoved();
        fs::remove_file(path).unwrap();
    }
    let text = fs::read_to_string(secret.join("pid")).unwrap();
    assert_eq!(text, pid, "it is no note");

    // What the server says of itself when it is parked leads to root's files.
    let mut command = operated.command(&["checkpoint", "--pid", &pid, "--migrate-to"]);
    command.arg(operated.target("127.0.0.2")).arg("--images");
    command.arg(operated.images()).stdout(Stdio::piped());
    let dumping = command.spawn().unwrap();
    held.wait_until("begun");
    let parked = files(&control).find(|file| file.display().to_string().contains("/parked-"));
    let parked = parked.unwrap();
    let text = fs::read(&parked).unwrap();
    let mut said: serde_json::Value = serde_json::from_slice(&text).unwrap();
    said["pid"] = 1.into();
    said["control"] = secret.join("control").display().to_string().into();
    said["pid_file"] = secret.join("pid").display().to_string().into();
    said["log_file"] = secret.join("log").display().to_string().into();
    said["owner"] = serde_json::Value::Null;
    fs::write(&parked, said.to_string()).unwrap();
    held.go();
    let images = printed(&dumping.wait_with_output().unwrap());
    assert!(secret.join("pid").exists());
    let refused = operated.restore(&images);
    assert_refused(&refused, 1, "log: Permission denied");
    assert!(!secret.join("log").exists());
    let log = operated.folder.path().join("log");
    let restored = operated.restore_with(&images, &["--log-file", log.to_str().unwrap()]);
    operated.assert_restored(&restored);
    assert_eq!(operated.restored, Some(operated.pid()));
    assert_eq!(user_of(operated.pid()), OTHER_USER);
    assert!(!secret.join("control").exists());
}

/// What a process of the user does that is told to move: it says that it has failed, in these words.
const LIAR: &str = r#"
    d=$XDG_RUNTIME_DIR/mpq-serve/$$
    mkdir -p -m 700 $d
    answer() {
        id=$(sed 's/.*"id":"\([0-9-]*\)".*/\1/' $d/request.json)
        printf '{"failure":{"message":"all is \\u001b[32mwell","code":0}}' >$d/failed-$id.json
    }
    trap answer USR1
    touch $d/ready
    while :; do sleep 0.01; done
"#;

#[tokio::test]
async fn a_user_has_root_believe_in_no_success_and_print_no_control_characters() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let operated = start(&criu());
    let mut command = Command::new("sh");
    command
        .args(["-c", LIAR])
        .env("XDG_RUNTIME_DIR", run_folder(&operated));
    let mut liar = command.uid(OTHER_USER).gid(OTHER_USER).spawn().unwrap();
    let pid = liar.id() as i32;
    let control = control(&operated).with_file_name(pid.to_string());
    wait_until("the liar", LIMIT, || control.join("ready").exists());
    let server = control.join("server.json");
    let identity = Identity::of(pid).unwrap();
    fs::write(&server, serde_json::to_vec(&identity).unwrap()).unwrap();
    chown(&server, Some(OTHER_USER), None).unwrap();

    let output = checkpoint(&operated, &["--pid", &pid.to_string()]);
    liar.kill().unwrap();
    liar.wait().unwrap();
    assert_refused(&output, NOT_DUMPED, "all is \u{fffd}[32mwell");
    assert_eq!(fs::read_dir(operated.images()).unwrap().count(), 0);
}
