//! A server in a container moves between two hosts, by ssh and the engine that runs it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{criu, privileged};
use mpq_lab::system::host::built;
use mpq_lab::system::runc;
use mpq_serve::site::random::Random;
use operated::{LIMIT, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use two_hosts::{A, B, Space, said, spaces, ssh, start_sshd};

mod common;
#[path = "common/operated.rs"]
mod operated;
#[path = "common/two_hosts.rs"]
#[allow(dead_code, reason = "the server is another one here")]
mod two_hosts;

/// What is served, bytes: at 4 Mbit/s it takes ten seconds.
const LENGTH: usize = 5_000_000;
/// The container's name, on either host.
const NAME: &str = "server";
/// Exit codes of `move-container`.
const IN_THE_WAY: i32 = 12;
const RETURNED: i32 = 13;

/// Two hosts with a bundle that both can run, as from storage that they share, and the client's.
struct Hosts {
    client: Space,
    a: Space,
    b: Space,
    sshd: Child,
    folder: TempDir,
}

impl Hosts {
    fn start() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        let [client, a, b] = spaces(folder.path());
        let sshd = start_sshd(&b, folder.path());
        let hosts = Self {
            client,
            a,
            b,
            sshd,
            folder,
        };
        hosts.make_bundle();
        let program = built("mpq-serve").unwrap();
        hosts.make_program("mpq-serve", &format!("exec {} \"$@\"", program.display()));
        // No packet filter is here that could lock the network meanwhile.
        fs::write(hosts.file("criu.conf"), "network-lock skip\n").unwrap();
        let engine = format!(
            "LD_LIBRARY_PATH={} exec {} --criu {} --root /run/runc \"$@\"",
            runc::libraries().unwrap().display(),
            runc::program().unwrap().display(),
            criu().display()
        );
        hosts.make_program("runc", &engine);
        hosts
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make_program(&self, name: &str, script: &str) {
        fs::write(self.file(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        operated::chmod(&self.file(name), 0o755);
    }

    /// A container of this machine's programs, in the network of its host.
    fn make_bundle(&self) {
        let root = self.file("bundle/rootfs");
        for folder in ["usr", "proc", "dev", "sys", "run", "etc", "mpq", "data"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        let program = built("mpq-serve").unwrap();
        let bind = |from: &Path, to: &str| json!({"destination": to, "source": from, "type": "bind", "options": ["rbind", "ro"]});
        let own = |kind: &str, to: &str| json!({"destination": to, "source": kind, "type": kind});
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
        let config = json!({
            "ociVersion": "1.0.2",
            "annotations": {"org.criu.config": self.file("criu.conf")},
            "root": {"path": "rootfs"},
            "process": {
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "env": ["PATH=/mpq:/usr/bin"],
                "args": [
                    "mpq-serve",
                    "--listen",
                    "0.0.0.0:4433",
                    "--limit-rate",
                    "4M",
                    "--log-file",
                    "/data/log",
                    "--random",
                    LENGTH.to_string(),
                ],
            },
            "mounts": [
                own("proc", "/proc"),
                own("tmpfs", "/dev"),
                own("tmpfs", "/run"),
                bind(Path::new("/usr"), "/usr"),
                bind(program.parent().unwrap(), "/mpq"),
            ],
            "linux": {"namespaces": namespaces},
        });
        fs::write(self.file("bundle/config.json"), config.to_string()).unwrap();
    }

    /// Starts the container at the first host.
    fn run(&self) {
        let mut run = self.a.command(self.file("runc"));
        let (out, err) = (Stdio::null(), Stdio::null());
        run.args(["run", "--detach", "--bundle"])
            .arg(self.file("bundle"));
        let status = run.arg(NAME).stdout(out).stderr(err).status();
        assert!(status.unwrap().success());
        wait_until("the server", LIMIT, || self.log().contains("certificate"));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("bundle/rootfs/data/log")).unwrap_or_default()
    }

    /// Has the container move to the second host.
    fn moving(&self, options: &[&str]) -> Command {
        let mut command = self.a.command(self.file("mpq-serve"));
        command
            .args(["move-container", NAME, "--to", &format!("root@{B}")])
            .args(["--address", &format!("{B}:4433")])
            .args(["--ssh", &ssh(self.folder.path()), "--engine"])
            .arg(self.file("runc"))
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !options.contains(&"--bundle") {
            command.arg("--bundle").arg(self.file("bundle"));
        }
        command
    }

    /// Begins a download.
    fn download(&self) -> Child {
        let mut get = self.client.command(built("mpq-get").unwrap());
        let child = get
            .args(["--insecure", "--json", "--retry", "0", "--output"])
            .arg(self.file("got"))
            .arg(format!("https://{A}:4433/random"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let part = self.file("got.part");
        let has_begun = || fs::metadata(&part).is_ok_and(|file| file.len() > 0);
        wait_until("its first bytes", LIMIT, has_begun);
        child
    }

    /// The download is complete, over one connection; what the client told.
    fn assert_whole(&self, download: Child) -> Vec<Value> {
        let output = download.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said} {}", self.log());
        let mut expected = vec![0; LENGTH];
        Random::new(LENGTH as u64, 0).fill(0, &mut expected);
        assert!(fs::read(self.file("got")).unwrap() == expected);
        let events: Vec<Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(count(&events, "connected") == 1 && count(&events, "retry") == 0);
        fs::remove_file(self.file("got")).unwrap();
        events
    }

    fn has_container(&self, host: &Space) -> bool {
        let mut state = host.command(self.file("runc"));
        let output = state.args(["state", NAME]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success() && said.contains("\"running\"")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.a, &self.b] {
            let mut delete = host.command(self.file("runc"));
            let _ = delete.args(["delete", "--force", NAME]).output();
        }
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn count(events: &[Value], name: &str) -> usize {
    let of_that_name = events.iter().filter(|event| event["event"] == name);
    of_that_name.count()
}

#[tokio::test]
async fn a_container_goes_on_at_another_host_or_where_it_was() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = Hosts::start();
    hosts.run();

    // Nobody hears of what is in the way.
    let no_bundle = hosts.moving(&["--bundle", "/nowhere"]).output().unwrap();
    let text = said(&no_bundle, IN_THE_WAY);
    assert!(text.contains("in the way at B"), "{text}");
    let look = hosts.moving(&["--dry-run"]).output().unwrap();
    assert!(said(&look, 0).contains("nothing is in the way"));
    assert!(!hosts.log().contains("moving to"), "{}", hosts.log());

    // The engine at B cannot restore it.
    let rootfs = hosts.file("bundle/rootfs").display().to_string();
    hosts.b.shell(&format!("mount -t tmpfs tmpfs {rootfs}"));
    let download = hosts.download();
    let text = said(&hosts.moving(&[]).output().unwrap(), RETURNED);
    assert!(text.contains("bringing the container back"), "{text}");
    assert!(hosts.has_container(&hosts.a) && !hosts.has_container(&hosts.b));
    let events = hosts.assert_whole(download);
    assert!(count(&events, "cancelled") == 1 && count(&events, "resumed") == 0);
    hosts.b.shell(&format!("umount {rootfs}"));

    let download = hosts.download();
    let moved = hosts.moving(&["--json"]).output().unwrap();
    let text = said(&moved, 0);
    let report: Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(report["serving_at"], "B", "{text}");
    assert!(hosts.has_container(&hosts.b) && !hosts.has_container(&hosts.a));
    for host in [&hosts.a, &hosts.b] {
        host.assert_no_images();
    }
    let events = hosts.assert_whole(download);
    assert!(count(&events, "cancelled") == 0 && count(&events, "resumed") == 1);
    // For who looks how long it took (--nocapture).
    println!("{text}{report}");
}
