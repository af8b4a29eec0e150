//! A server on loopback, and what its operator does with it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Exit codes of `checkpoint` and `restore`.
pub(crate) const IMAGES: i32 = 3;
pub(crate) const NOT_PERMITTED: i32 = 5;
pub(crate) const NO_SERVER: i32 = 6;
pub(crate) const NOT_DUMPED: i32 = 8;
pub(crate) const NOT_RESTORED: i32 = 9;
pub(crate) const BUSY: i32 = 10;
pub(crate) const FENCED: i32 = 11;

/// For whatever is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Nobody, on all systems.
pub(crate) const OTHER_USER: u32 = 65_534;

/// A server on loopback, and the folder of its operator.
pub(crate) struct Operated {
    pub(crate) server: Child,
    pub(crate) folder: TempDir,
    pub(crate) criu: PathBuf,
    /// Where it listens.
    pub(crate) address: String,
    /// The restored one.
    pub(crate) restored: Option<i32>,
}

impl Operated {
    pub(crate) fn start(criu: &Path, options: &[&str]) -> Self {
        Self::start_as(&built("mpq-serve").unwrap(), criu, options)
    }

    pub(crate) fn start_as(program: &Path, criu: &Path, options: &[&str]) -> Self {
        Self::start_in(new_folder(), program, criu, "127.0.0.1:0", options)
    }

    /// One that has this folder, and listens there.
    pub(crate) fn start_in(
        folder: TempDir,
        program: &Path,
        criu: &Path,
        listen: &str,
        options: &[&str],
    ) -> Self {
        let server = spawn(program, criu, folder.path(), listen, options);
        Self::started(server, folder, criu)
    }

    /// One that runs as this user, who has no more of the folder than a log and `run`, with the pid file in it.
    pub(crate) fn start_for_user(criu: &Path, user: u32, options: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let [images, run, log] = ["images", "run", "log"].map(|name| folder.path().join(name));
        fs::create_dir(images).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(&log, "").unwrap();
        chmod(folder.path(), 0o755);
        for path in [&run, &log] {
            chown(path, Some(user), Some(user)).unwrap();
        }
        let program = built("mpq-serve").unwrap();
        let mut command = command(&program, folder.path(), "127.0.0.1:0", options);
        command.arg("--pid-file").arg(run.join("pid"));
        command.env("XDG_RUNTIME_DIR", run).uid(user).gid(user);
        let server = command.spawn().unwrap();
        Self::started(server, folder, criu)
    }

    fn started(server: Child, folder: TempDir, criu: &Path) -> Self {
        let mut operated = Self {
            server,
            folder,
            criu: criu.to_owned(),
            address: String::new(),
            restored: None,
        };
        operated.wait_for_log("certificate");
        let log = operated.log();
        let (_, rest) = log.split_once("listening on ").unwrap();
        operated.address = rest.lines().next().unwrap().to_owned();
        operated
    }

    /// Starts another server at this address, in the place of one that has ended.
    pub(crate) fn start_anew(&mut self, address: &str, options: &[&str]) {
        let folder = self.folder.path();
        fs::remove_file(folder.join("log")).unwrap();
        let program = built("mpq-serve").unwrap();
        self.server = spawn(&program, &self.criu, folder, address, options);
        self.wait_for_log("certificate");
    }

    pub(crate) fn pid(&self) -> i32 {
        self.server.id() as i32
    }

    /// An address to move to: with this host part, and the same port.
    pub(crate) fn target(&self, host: &str) -> String {
        let (_, port) = self.address.rsplit_once(':').unwrap();
        format!("{host}:{port}")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_until(text, LIMIT, || self.log().contains(text));
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(built("mpq-serve").unwrap());
        command.args(arguments).env("MPQ_CRIU", &self.criu);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn checkpoint(&self, images: &Path) -> Command {
        let (pid, target) = (self.pid().to_string(), self.target("127.0.0.2"));
        let mut command = self.command(&["checkpoint", "--pid", &pid, "--migrate-to", &target]);
        command.arg("--images").arg(images);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Restores the dumped server, whose process is collected first.
    pub(crate) fn restore(&mut self, images: &Path) -> Output {
        self.restore_with(images, &[])
    }

    /// The same, with these options.
    pub(crate) fn restore_with(&mut self, images: &Path, options: &[&str]) -> Output {
        self.server.wait().unwrap();
        let mut restore = self.command(&["restore", "--images"]);
        let output = restore.arg(images).args(options).output().unwrap();
        if output.status.success() {
            self.restored = id_told(&output);
        }
        output
    }

    /// The images of the server, which is dumped, and its process collected.
    pub(crate) fn dumped(&mut self) -> PathBuf {
        let images = printed(&self.checkpoint(&self.images()).output().unwrap());
        self.server.wait().unwrap();
        images
    }

    /// It has been restored, and answers where it was to be.
    pub(crate) fn assert_restored(&self, output: &Output) {
        assert!(output.status.success(), "{output:?}");
        self.assert_serves_at(&self.target("127.0.0.2"));
    }

    /// Nothing of it runs.
    pub(crate) fn assert_gone(&self) {
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        wait_until("its end", LIMIT, || !process.exists());
    }

    /// It answers there.
    pub(crate) fn assert_serves_at(&self, address: &str) {
        let output = Command::new(built("mpq-get").unwrap())
            .args(["--insecure", "--retry-connrefused", "--output"])
            .arg(self.folder.path().join("download"))
            .arg(format!("https://{address}/random"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{output:?}; its log:\n{}",
            self.log()
        );
    }

    /// It serves where it was, and no client has heard of a move.
    pub(crate) fn assert_unmoved(&self) {
        self.assert_serves_at(&self.address);
        assert!(!self.log().contains("moving to"), "{}", self.log());
    }
}

/// A folder in memory, with one for images in it.
pub(crate) fn new_folder() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::create_dir(folder.path().join("images")).unwrap();
    folder
}

fn spawn(program: &Path, criu: &Path, folder: &Path, listen: &str, options: &[&str]) -> Child {
    let mut command = command(program, folder, listen, options);
    command.env("MPQ_CRIU", criu).spawn().unwrap()
}

fn command(program: &Path, folder: &Path, listen: &str, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--listen", listen, "--random", "1M"])
        .args(options)
        .arg("--log-file")
        .arg(folder.join("log"))
        .stdin(Stdio::null());
    command
}

impl Drop for Operated {
    fn drop(&mut self) {
        if let Some(pid) = self.restored {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub(crate) fn wait_until(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < end, "waited too long for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// The process that waits with CRIU for this server.
pub(crate) fn helper_of(server: i32) -> Option<i32> {
    let wanted = format!("dump\0--pid\0{server}\0");
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    })
}

/// As if two minutes had passed since these images were released.
pub(crate) fn age(images: &Path) {
    let token = images.join("token.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&token).unwrap()).unwrap();
    let until = &mut value["holder"]["released"]["until"];
    *until = (until.as_u64().unwrap() - 120).into();
    fs::write(token, value.to_string()).unwrap();
}

/// A copy of a folder with images, as `cp -a` makes it.
pub(crate) fn copy(images: &Path, to: &Path) -> PathBuf {
    let copy = to.join("copy");
    fs::create_dir(&copy).unwrap();
    chmod(&copy, 0o700);
    for file in fs::read_dir(images).unwrap().flatten() {
        let to = copy.join(file.file_name());
        fs::copy(file.path(), &to).unwrap();
        chmod(&to, 0o600);
    }
    copy
}

/// The process id that a restore has printed.
pub(crate) fn id_told(output: &Output) -> Option<i32> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    report["pid"].as_i64().map(|pid| pid as i32)
}

/// The folder that a checkpoint has printed.
pub(crate) fn printed(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let images = PathBuf::from(said.trim());
    assert!(images.join("manifest.json").exists(), "{output:?}");
    images
}

pub(crate) fn assert_refused(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(reason), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "{said}");
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A CRIU that has something done to it.
pub(crate) struct ScriptedCriu(TempDir);

impl ScriptedCriu {
    /// One that takes a while until it begins to dump.
    pub(crate) fn slow(seconds: u32) -> Self {
        let script = "touch $begun; sleep {}; $criu \"$@\"; code=$?; touch $ended; exit $code";
        Self::new("dump", &script.replace("{}", &seconds.to_string()))
    }

    /// One that waits until it is [let](Self::go) begin with this.
    pub(crate) fn held(action: &str) -> Self {
        let wait = "until [ -e $folder/go ]; do sleep 0.01; done";
        let script =
            format!("touch $begun; {wait}; $criu \"$@\"; code=$?; touch $ended; exit $code");
        Self::new(action, &script)
    }

    pub(crate) fn go(&self) {
        fs::write(self.file("go"), "").unwrap();
    }

    /// This shell script takes its place where it does this; `$criu` is the program, `$folder` that of the
    /// script, and `$begun` and `$ended` files in it.
    pub(crate) fn new(action: &str, script: &str) -> Self {
        let scripted = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "#!/bin/sh -p\n\
             criu='{criu}' folder='{folder}' begun='{folder}/begun' ended='{folder}/ended'\n\
             case \"$*\" in {action}*) ;; *) exec $criu \"$@\";; esac\n\
             {script}\n",
            criu = crate::common::criu().display(),
            folder = scripted.0.path().display(),
        );
        scripted.write("criu", &text);
        scripted
    }

    /// One that is killed at this step of its action, just before our program hears of that, or just afterwards.
    /// First of all what `also` says is done; `$criu` is its process there.
    pub(crate) fn killed(action: &str, step: &str, is_before: bool, also: &str) -> Self {
        // Of its scripts the last one runs first.
        let options = match is_before {
            true => "\"$@\" --action-script $folder/kill",
            false => "--action-script $folder/kill \"$@\"",
        };
        let killed = Self::new(action, &format!("shift; exec $criu {action} {options}"));
        let find = "criu=$PPID; until grep -q criu /proc/$criu/comm; do \
                    criu=$(cut -d' ' -f4 /proc/$criu/stat); done";
        killed.write(
            "kill",
            &format!(
                "#!/bin/sh -p\n[ $CRTOOLS_SCRIPT_ACTION = {step} ] || exit 0\n{find}\n{also}\nkill -9 $criu\n"
            ),
        );
        killed
    }

    /// A script beside it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
        chmod(&self.file(name), 0o755);
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.file("criu")
    }

    pub(crate) fn wait_until(&self, what: &str) {
        wait_until(what, LIMIT, || self.file(what).exists());
    }
}
