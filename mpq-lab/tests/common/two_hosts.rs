//! Two hosts and a client, each with interfaces, mounts and process ids of its own, and an ssh server at the second one.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use mpq_lab::system::host::{built, run};
use mpq_lab::system::sshd;
use mpq_serve::site::random::Random;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::criu;
use crate::operated::{LIMIT, chmod, wait_until};

/// The address of the first one.
pub(crate) const A: &str = "10.77.0.2";
/// That of the second one.
pub(crate) const B: &str = "10.77.0.3";
/// The process id that the server gets, or one just after it: free on the other host.
pub(crate) const SERVER_ID: i32 = 20_000;
/// The folder that it is in, and writes its access log to: there is none on the other host.
pub(crate) const WORK: &str = "/run/work";
/// The length of the file that it serves, bytes.
const LENGTH: usize = 4_000_000;
/// That of what it serves besides,
const RANDOM: usize = 500_000;
/// and what that is made of.
const SEED: u64 = 7;
/// With these the file takes eight seconds.
pub(crate) const SLOWLY: &[&str] = &["--limit-rate", "4M"];

/// A host, for as long as this is there.
pub(crate) struct Space {
    unshare: Child,
    /// Its first process, as it is known outside.
    init: i32,
}

impl Space {
    /// With memory of its own in /run, and in `served/www` below this folder.
    fn start(folder: &Path, name: &str) -> Self {
        let ready = folder.join(name);
        let script = format!(
            "mount -t tmpfs tmpfs /run
             mkdir -p {www}; mount -t tmpfs tmpfs {www}; cp -a {src}/. {www}
             ip link set lo up
             touch {ready}
             while :; do sleep 1000 & wait; done",
            www = folder.join("served/www").display(),
            src = folder.join("src").display(),
            ready = ready.display(),
        );
        let unshare = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--mount-proc", "sh", "-ec", &script])
            .stdin(Stdio::null())
            // It complains when its child is killed.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(name, LIMIT, || ready.exists());
        let pid = unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let init = children.trim().parse().unwrap();
        Self { unshare, init }
    }

    /// A command that runs there.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init))
            .args(["--net", "--mount", "--pid", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// What a shell there says to this.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Changes its interfaces, with ids of processes as they are known outside.
    fn ip(&self, arguments: &str) {
        let net = format!("--net=/proc/{}/ns/net", self.init);
        let command = [net.as_str(), "ip"].into_iter();
        run("nsenter", command.chain(arguments.split_whitespace())).unwrap();
    }

    fn connect(&self, client: &Self, name: &str, address: &str) {
        let init = self.init;
        client.ip(&format!(
            "link add {name} type veth peer name eth0 netns {init}"
        ));
        client.ip(&format!("link set {name} master bridge up"));
        self.ip("link set eth0 up");
        self.ip(&format!("addr add {address}/24 dev eth0"));
    }

    /// Whether it has such a process.
    pub(crate) fn has_process(&self, id: i32) -> bool {
        let mut test = self.command("test");
        let status = test.args(["-e", &format!("/proc/{id}")]).status();
        status.unwrap().success()
    }

    /// Nothing with keys in it is left there.
    pub(crate) fn assert_no_images(&self) {
        let left = self.shell("find /run -name '*.img' -o -name 'token.*' -o -name manifest.json");
        assert_eq!(left, "");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // All others end with it.
        let _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
        let _ = self.unshare.wait();
    }
}

/// Both hosts, the client, and a server at the first one.
pub(crate) struct TwoHosts {
    pub(crate) client: Space,
    pub(crate) a: Space,
    pub(crate) b: Space,
    server: Child,
    sshd: Child,
    pub(crate) folder: TempDir,
}

impl TwoHosts {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_by(None, options)
    }

    /// With a server of this user's. It has `/run/user` at the first host.
    pub(crate) fn start_for_user(user: u32, options: &[&str]) -> Self {
        Self::start_by(Some(user), options)
    }

    fn start_by(user: Option<u32>, options: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path();
        fs::create_dir(path.join("src")).unwrap();
        let bytes: Vec<u8> = (0..LENGTH).map(|i| ((i * i) >> 8) as u8).collect();
        fs::write(path.join("src/half"), &bytes[..LENGTH / 8]).unwrap();
        fs::write(path.join("src/file"), bytes).unwrap();
        let [client, a, b] = spaces(path);
        let sshd = start_sshd(&b, path);
        if let Some(user) = user {
            chmod(path, 0o755);
            for name in ["log", "pid"] {
                fs::write(path.join(name), "").unwrap();
                chown(path.join(name), Some(user), Some(user)).unwrap();
            }
            a.shell(&format!("install -d -m 700 -o {user} -g {user} /run/user"));
        }
        let server = start_server(&a, path, user, options);
        let hosts = Self {
            client,
            a,
            b,
            server,
            sshd,
            folder,
        };
        wait_until("the server", LIMIT, || {
            hosts.log().contains("download with")
        });
        hosts
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the server logs, on either host.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// The id of the server, as it is known on its host.
    pub(crate) fn server_id(&self) -> i32 {
        let id = fs::read_to_string(self.file("pid")).unwrap();
        id.trim().parse().unwrap()
    }

    /// Has the server move to the second host, where this is CRIU.
    pub(crate) fn moving(&self, criu_there: &Path, options: &[&str]) -> Command {
        let program = built("mpq-serve").unwrap();
        let there = format!(
            "env MPQ_CRIU={} {}",
            criu_there.display(),
            program.display()
        );
        let ssh = ssh(self.folder.path());
        let mut command = self.a.command(program);
        command
            .args(["move", "--to", &format!("root@{B}"), "--pid-file"])
            .arg(self.file("pid"))
            .args(["--ssh", &ssh, "--remote-program", &there])
            .args(options)
            .env("MPQ_CRIU", criu())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !options.contains(&"--address") {
            command.args(["--address", &format!("{B}:4433")]);
        }
        command
    }

    /// Has a process of the second host have this id, which is free.
    pub(crate) fn occupy(&self, id: i32) {
        self.b.shell(&format!(
            "until [ \"$taken\" = {id} ]; do
                 echo $(({id} - 1)) >/proc/sys/kernel/ns_last_pid
                 sleep 1000 >/dev/null 2>&1 & taken=$!
             done"
        ));
    }

    /// Starts a server at the second host that has the ids of the first one's there.
    pub(crate) fn start_twin(&self, id: i32) -> Child {
        let log = self.file("twin.log");
        let script = format!("echo $(({id} - 1)) >/proc/sys/kernel/ns_last_pid; \"$@\" & wait");
        let mut command = self.b.command("sh");
        command.args(["-c", &script, "sh"]);
        command
            .arg(built("mpq-serve").unwrap())
            .args(["--listen", &format!("{B}:5433"), "--random", "1M"])
            .arg("--log-file")
            .arg(&log);
        let twin = command.spawn().unwrap();
        let has_started =
            || fs::read_to_string(&log).is_ok_and(|log| log.contains("download with"));
        wait_until("the twin", LIMIT, has_started);
        assert!(self.b.has_process(id));
        twin
    }

    /// Begins to download the file from the first host.
    pub(crate) fn download(&self, name: &str) -> Child {
        let to = self.file(&format!("{name}.got"));
        let mut get = self.client.command(built("mpq-get").unwrap());
        get.args(["--insecure", "--json", "--retry", "0", "--output"])
            .arg(to)
            .arg(format!("https://{A}:4433/{}", path(name)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// It has its first bytes.
    pub(crate) fn wait_for_bytes(&self, name: &str) {
        let part = self.file(&format!("{name}.got.part"));
        let is_under_way = || fs::metadata(&part).is_ok_and(|file| file.len() > 0);
        wait_until("its first bytes", LIMIT, is_under_way);
    }

    /// The download is complete, over one connection; what the client told.
    pub(crate) fn assert_whole(&self, name: &str, download: Child) -> Vec<Value> {
        let output = download.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}; {}", self.log());
        let got = self.file(&format!("{name}.got"));
        let expected = match path(name) {
            "random" => {
                let mut bytes = vec![0; RANDOM];
                Random::new(RANDOM as u64, SEED).fill(0, &mut bytes);
                bytes
            }
            file => fs::read(self.file("src").join(file)).unwrap(),
        };
        assert!(fs::read(&got).unwrap() == expected);
        fs::remove_file(got).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let events: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let is = |name: &str| events.iter().any(|event| event["event"] == name);
        assert!(!is("retry") && !is("restarted"), "{said}");
        events
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.sshd] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The client, and both hosts, connected. They have copies of what is in `src` below this folder.
pub(crate) fn spaces(path: &Path) -> [Space; 3] {
    let [client, a, b] = ["client", "a", "b"].map(|name| Space::start(path, name));
    client.ip("link add bridge type bridge");
    client.ip("addr add 10.77.0.1/24 dev bridge");
    client.ip("link set bridge up");
    a.connect(&client, "to-a", A);
    b.connect(&client, "to-b", B);
    [client, a, b]
}

/// Of a download of this name: what comes before the hyphen.
fn path(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

fn start_server(a: &Space, folder: &Path, user: Option<u32>, options: &[&str]) -> Child {
    // A shell that collects it once it is dumped.
    let become_user = user.map(|user| {
        format!("XDG_RUNTIME_DIR=/run/user setpriv --reuid={user} --regid={user} --clear-groups")
    });
    let script = format!(
        "mkdir -m 777 {WORK}; cd {WORK}; echo {SERVER_ID} >/proc/sys/kernel/ns_last_pid; {} \"$@\" & wait",
        become_user.unwrap_or_default()
    );
    let mut command = a.command("sh");
    command.args(["-c", &script, "sh"]);
    command
        .arg(built("mpq-serve").unwrap())
        .args(["--listen", &format!("{A}:4433")])
        .args(["--random", &RANDOM.to_string(), "--seed", &SEED.to_string()])
        .args(options)
        .arg("--pid-file")
        .arg(folder.join("pid"))
        .arg("--log-file")
        .arg(folder.join("log"))
        .args(["--access-log", "access"])
        .arg(folder.join("served/www"))
        .spawn()
        .unwrap()
}

/// What reaches the second host's ssh server, whose folder this is.
pub(crate) fn ssh(folder: &Path) -> String {
    format!(
        "ssh -F none -i {} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no \
         -o BatchMode=yes -o LogLevel=ERROR",
        folder.join("key").display()
    )
}

/// Starts the second host's ssh server.
pub(crate) fn start_sshd(b: &Space, folder: &Path) -> Child {
    for key in ["key", "host_key"] {
        let file = folder.join(key);
        let arguments = [
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-f",
            file.to_str().unwrap(),
        ];
        run("ssh-keygen", arguments).unwrap();
    }
    let file = |name: &str| folder.join(name).display().to_string();
    b.shell(&format!(
        "mkdir -p /run/sshd
         cp /etc/passwd {passwd}
         grep -q ^sshd: {passwd} || echo sshd:x:60000:65534::/run/sshd:/usr/sbin/nologin >>{passwd}
         mount --bind {passwd} /etc/passwd",
        passwd = file("passwd")
    ));
    let config = format!(
        "ListenAddress {B}
         HostKey {}
         AuthorizedKeysFile {}
         PidFile none
         StrictModes no
         PasswordAuthentication no
         UsePAM no\n",
        file("host_key"),
        file("key.pub")
    );
    fs::write(folder.join("sshd.conf"), config).unwrap();
    let libraries = std::env::join_paths(sshd::libraries().unwrap()).unwrap();
    let mut command = b.command(sshd::program().unwrap());
    let sshd = command
        .args(["-D", "-E", &file("sshd.log"), "-f", &file("sshd.conf")])
        .env("LD_LIBRARY_PATH", libraries)
        .spawn()
        .unwrap();
    wait_until("sshd", LIMIT, || {
        let log = fs::read_to_string(folder.join("sshd.log")).unwrap_or_default();
        log.contains("Server listening")
    });
    sshd
}

/// What a command said that ended with this exit code.
pub(crate) fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}
