//! A server in a container, which an engine moves between two hosts: it is parked, and the engine does the rest.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{criu, privileged};
use mpq_lab::system::host::built;
use mpq_lab::system::runc;
use operated::{LIMIT, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;
use two_hosts::{A, B, Space, spaces};

mod common;
#[path = "common/operated.rs"]
mod operated;
#[path = "common/two_hosts.rs"]
#[allow(dead_code, reason = "there is no ssh here")]
mod two_hosts;

/// What is served, bytes: at 4 Mbit/s it takes ten seconds.
const LENGTH: usize = 5_000_000;
/// The container's name, on either host.
const NAME: &str = "server";

/// Two hosts, and what the engine needs at each.
struct Hosts {
    client: Space,
    a: Space,
    b: Space,
    folder: TempDir,
}

impl Hosts {
    fn start() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        let [client, a, b] = spaces(folder.path());
        let hosts = Self {
            client,
            a,
            b,
            folder,
        };
        for name in ["bundle-a", "bundle-b"] {
            hosts.make_bundle(&hosts.file(name));
        }
        // This host has no packet filter that could lock the network meanwhile.
        fs::write(hosts.file("criu.conf"), "network-lock skip\n").unwrap();
        hosts
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A container of this host's programs, in its network.
    fn make_bundle(&self, bundle: &Path) {
        let root = bundle.join("rootfs");
        for folder in ["usr", "proc", "dev", "sys", "run", "etc", "mpq", "data"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        let status = self
            .runc(&self.a)
            .args(["spec", "--bundle"])
            .arg(bundle)
            .status();
        assert!(status.unwrap().success());
        let file = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["root"]["readonly"] = json!(false);
        config["annotations"]["org.criu.config"] = json!(self.file("criu.conf"));
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!([
            "/mpq/mpq-serve",
            "--listen",
            "0.0.0.0:4433",
            "--limit-rate",
            "4M",
            "--log-file",
            "/data/log",
            "--random",
            LENGTH.to_string(),
        ]);
        let programs = built("mpq-serve").unwrap();
        let bind = |from: &Path, to: &str| json!({"destination": to, "source": from, "type": "bind", "options": ["rbind", "ro"]});
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(bind(Path::new("/usr"), "/usr"));
        mounts.push(bind(programs.parent().unwrap(), "/mpq"));
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        fs::write(file, config.to_string()).unwrap();
    }

    /// The engine at this host.
    fn runc(&self, host: &Space) -> Command {
        let mut command = host.command(runc::program().unwrap());
        command
            .env("LD_LIBRARY_PATH", runc::libraries().unwrap())
            .arg("--root")
            .arg("/run/runc")
            .arg("--criu")
            .arg(criu());
        command
    }

    fn does(&self, host: &Space, arguments: &[&str], bundle: Option<&str>) -> Output {
        let mut command = self.runc(host);
        let (verb, rest) = arguments.split_first().unwrap();
        command.arg(verb);
        if let Some(bundle) = bundle {
            command.arg("--bundle").arg(self.file(bundle));
        }
        // Not a pipe, which the container would keep open.
        let said = fs::File::create(self.file("said")).unwrap();
        let (out, err) = match bundle {
            Some(_) => (Stdio::null(), Stdio::null()),
            None => (Stdio::null(), said.into()),
        };
        let output = command.args(rest).stdout(out).stderr(err).output().unwrap();
        let said = fs::read_to_string(self.file("said")).unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?} {said}");
        output
    }

    /// Parks the server that is at `from` and has the engine bring it to `to`.
    fn move_container(&self, [from, to]: [&Space; 2], address: &str, bundles: [&str; 2]) {
        let address = format!("{address}:4433");
        let (images, work) = (self.file("images"), self.file("work"));
        let paths = [images.to_str().unwrap(), work.to_str().unwrap()];
        let folders = ["--image-path", paths[0], "--work-path", paths[1]];
        let park = ["exec", NAME, "/mpq/mpq-serve", "park", "--pid", "1"];
        let park = [&park[..], &["--migrate-to", &address]].concat();
        self.does(from, &park, None);
        self.does(
            from,
            &[&["checkpoint"], &folders[..], &[NAME]].concat(),
            None,
        );
        let [old, new] = bundles.map(|bundle| self.file(bundle).join("rootfs/data"));
        fs::remove_dir_all(&new).unwrap();
        fs::rename(old, new).unwrap();
        fs::create_dir(self.file(bundles[0]).join("rootfs/data")).unwrap();
        let restore = [&["restore", "--detach"], &folders[..], &[NAME]].concat();
        self.does(to, &restore, Some(bundles[1]));
        fs::remove_dir_all(images).unwrap();
    }

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
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.a, &self.b] {
            let _ = self.runc(host).args(["delete", "--force", NAME]).output();
        }
    }
}

#[tokio::test]
async fn an_engine_moves_the_container_of_a_server_to_another_host_and_back() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = Hosts::start();
    hosts.does(&hosts.a, &["run", "--detach", NAME], Some("bundle-a"));
    let log = |bundle: &str| fs::read_to_string(hosts.file(bundle).join("rootfs/data/log"));
    let listens = || log("bundle-a").is_ok_and(|log| log.contains("certificate"));
    wait_until("the server", LIMIT, listens);
    let download = hosts.download();
    let (there, back) = ([&hosts.a, &hosts.b], [&hosts.b, &hosts.a]);
    hosts.move_container(there, B, ["bundle-a", "bundle-b"]);
    let is_there = || log("bundle-b").is_ok_and(|log| log.contains("Arriving → Serving"));
    wait_until("the client", LIMIT, is_there);
    hosts.move_container(back, A, ["bundle-b", "bundle-a"]);
    let output = download.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {:?}", log("bundle-a"));
    let got = fs::read(hosts.file("got")).unwrap();
    let mut expected = vec![0; LENGTH];
    mpq_serve::site::random::Random::new(LENGTH as u64, 0).fill(0, &mut expected);
    assert!(got == expected, "{} bytes", got.len());
    let events: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        [count("connected"), count("resumed"), count("retry")],
        [1, 2, 0],
        "{said}"
    );
    let gaps = events.iter().filter_map(|event| event["gap"].as_f64());
    // For who looks how long it took (--nocapture).
    println!("no byte for {:?} s", gaps.collect::<Vec<_>>());
}
