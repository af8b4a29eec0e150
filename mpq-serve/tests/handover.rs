//! A new process takes over from a running one, and no client notices.

mod support;

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use mpq_core::client::{Body, Client as Follower, ClientConfig, ClientEvent, PathEvent, PathState};
use mpq_core::tls::Trust;
use mpq_serve::site::random::Random;
use nix::sys::signal::Signal;
use support::web::{Protocol, ask, get_plainly};
use support::{Client, Running, Server, lines_of, start, started};
use tempfile::TempDir;

/// What /random has, bytes.
const LONG: u64 = 10_000_000;
/// Of one response: it lasts for four seconds.
const RATE: &str = "20M";
/// How a server that has taken over says so.
const TAKEN_OVER: &str = "has taken over";
/// Nobody, on all systems.
const OTHER_USER: u32 = 65_534;

async fn in_time(test: impl Future<Output = ()>) {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, test).await.expect("it hangs");
}

/// A server that logs requests to a file of its own, and its folder.
struct Generation {
    server: Server,
    address: SocketAddr,
    log: std::path::PathBuf,
}

impl Generation {
    fn pid(&self) -> String {
        self.server.process.0.id().to_string()
    }

    /// How many requests it has answered.
    fn answered(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().count()
    }

    /// It has ended by itself, without a complaint.
    fn ends(&mut self) {
        assert!(self.server.process.0.wait().unwrap().success());
    }
}

fn options<'a>(folder: &'a TempDir, log: &'a Path) -> Vec<String> {
    let pid_file = folder.path().join("pid");
    let size = LONG.to_string();
    [
        "--random",
        &size,
        "--limit-rate",
        RATE,
        "--pid-file",
        pid_file.to_str().unwrap(),
        "--access-log",
        log.to_str().unwrap(),
    ]
    .map(str::to_owned)
    .into()
}

fn first(folder: &TempDir, more: &[&str]) -> Generation {
    let log = folder.path().join("first");
    let mut options = options(folder, &log);
    options.extend(more.iter().copied().map(str::to_owned));
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let (server, address) = start(&options);
    Generation {
        server,
        address,
        log,
    }
}

/// The command that takes over from who the pid file names.
fn successor(folder: &TempDir, name: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
    command
        .arg("handover")
        .args(options(folder, &folder.path().join(name)))
        .args(more)
        .stderr(Stdio::piped());
    command
}

fn next(folder: &TempDir, name: &str, more: &[&str]) -> Generation {
    let process = successor(folder, name, more).spawn().unwrap();
    let (server, address) = started(process);
    Generation {
        server,
        address,
        log: folder.path().join(name),
    }
}

/// The code and the words of a command that fails.
fn failed(mut process: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (process.wait().unwrap().code(), said)
}

async fn follower(server: SocketAddr) -> Follower {
    let config = ClientConfig {
        trust: Trust::Insecure,
        interfaces: vec!["127.0.0.1".into(), "127.0.0.2".into()],
        ..ClientConfig::default()
    };
    let client = Follower::connect(config, server, "localhost")
        .await
        .unwrap();
    let mut events = client.events();
    for _ in 0..2 {
        loop {
            let (_, event) = events.recv().await.unwrap();
            if matches!(event, ClientEvent::Path(PathEvent::Validated(_))) {
                break;
            }
        }
    }
    client
}

/// Reads on to so many bytes, or to the end.
async fn read(body: &mut Body, bytes: &mut Vec<u8>, count: u64) {
    while (bytes.len() as u64) < count
        && let Some(chunk) = body.chunk().await.unwrap()
    {
        bytes.extend_from_slice(&chunk);
    }
}

fn assert_whole(bytes: &[u8]) {
    let mut expected = vec![0; LONG as usize];
    Random::new(LONG, 0).fill(0, &mut expected);
    assert!(bytes == expected, "{} bytes", bytes.len());
}

/// One request by quinn, which is answered whole.
async fn download(server: SocketAddr) {
    let mut client = Client::connect(server).await;
    let answer = client.ask(&[]).await;
    let received = answer.received.clone();
    answer.end.await.unwrap().unwrap();
    assert!(received.load(std::sync::atomic::Ordering::Relaxed) > LONG);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_go_on_and_new_ones_are_the_new_processs() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let mut old = first(&folder, &[]);
        let follower = follower(old.address).await;
        let (mut body, mut bytes) = (follower.get("/random").await.unwrap().into_body(), vec![]);
        read(&mut body, &mut bytes, LONG / 4).await;
        // One that knows nothing of moves, nor of several paths.
        let mut plain = Client::connect(old.address).await;
        let answer = plain.ask(&[]).await;
        while answer.received() < LONG / 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }

        let new = next(&folder, "second", &["--header", "x-generation: 2"]);
        assert_eq!(new.address, old.address);
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        assert_eq!(pid.trim(), new.pid());
        download(new.address).await;
        assert_eq!(lines_of(&new.log, 1).len(), 1);
        let second = follower_of(&new).await;
        let answered = second.get("/none").await.unwrap();
        assert_eq!(answered.headers()["x-generation"], "2");

        read(&mut body, &mut bytes, LONG).await;
        assert_whole(&bytes);
        let paths = follower.paths();
        let all = paths.iter().all(|path| path.state == PathState::Validated);
        assert!(all && paths.len() == 2, "{paths:?}");
        let received = answer.received.clone();
        answer.end.await.unwrap().unwrap();
        assert!(received.load(std::sync::atomic::Ordering::Relaxed) > LONG);
        old.server.wait_for(TAKEN_OVER);
        old.ends();
        assert_eq!(old.answered(), 2, "those that it had");
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        assert_eq!(pid.trim(), new.pid(), "the old one has taken it away");
        download(new.address).await;
    })
    .await;
}

async fn follower_of(generation: &Generation) -> Follower {
    follower(generation.address).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_in_a_row_and_each_ends_when_it_is_done() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let mut generations = vec![first(&folder, &[])];
        let address = generations[0].address;
        let mut downloads = Vec::new();
        for name in ["second", "third"] {
            let client = follower(address).await;
            let mut body = client.get("/random").await.unwrap().into_body();
            let mut bytes = Vec::new();
            read(&mut body, &mut bytes, 1).await;
            downloads.push((client, body, bytes));
            generations.push(next(&folder, name, &[]));
        }
        download(address).await;
        for (_client, body, bytes) in &mut downloads {
            read(body, bytes, LONG).await;
            assert_whole(bytes);
        }
        drop(downloads);
        generations[0].ends();
        generations[1].ends();
        lines_of(&generations[2].log, 1);
        let answered: Vec<_> = generations.iter().map(Generation::answered).collect();
        assert_eq!(answered, [1, 1, 1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_is_killed_leaves_the_old_ones_downloads_alone() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let mut old = first(&folder, &[]);
        let client = follower(old.address).await;
        let (mut body, mut bytes) = (client.get("/random").await.unwrap().into_body(), vec![]);
        read(&mut body, &mut bytes, LONG / 8).await;
        let new = next(&folder, "second", &[]);
        old.server.wait_for(TAKEN_OVER);
        drop(new);
        read(&mut body, &mut bytes, LONG / 2).await;
        // The pid file names the one that was killed.
        let pid = old.pid();
        let last = next(&folder, "third", &["--pid", &pid]);
        download(last.address).await;
        read(&mut body, &mut bytes, LONG).await;
        assert_whole(&bytes);
        old.ends();
        assert_eq!([old.answered(), lines_of(&last.log, 1).len()], [1, 1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_process_that_is_killed_leaves_the_new_ones_downloads_alone() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let old = first(&folder, &[]);
        let address = old.address;
        let _lost = follower(address).await.get("/random").await.unwrap();
        let new = next(&folder, "second", &[]);
        let client = follower(address).await;
        let (mut body, mut bytes) = (client.get("/random").await.unwrap().into_body(), vec![]);
        read(&mut body, &mut bytes, LONG / 8).await;
        drop(old);
        read(&mut body, &mut bytes, LONG).await;
        assert_whole(&bytes);
        drop(new);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_can_be_told_to_leave_while_the_old_one_finishes() {
    in_time(async {
        for new_leaves in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut old = first(&folder, &[]);
            let client = follower(old.address).await;
            let (mut body, mut bytes) = (client.get("/random").await.unwrap().into_body(), vec![]);
            read(&mut body, &mut bytes, LONG / 8).await;
            let mut new = next(&folder, "second", &[]);
            old.server.wait_for(TAKEN_OVER);
            let leaving = if new_leaves { &mut new } else { &mut old };
            leaving.server.tell(Signal::SIGTERM);
            leaving.server.wait_for("leaving");
            read(&mut body, &mut bytes, LONG).await;
            assert_whole(&bytes);
            old.ends();
            match new_leaves {
                true => new.ends(),
                false => download(new.address).await,
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_serve_leaves_the_old_one_serving() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let old = first(&folder, &[]);
        let bad = folder.path().join("bad.pem");
        fs::write(&bad, "nonsense").unwrap();
        let bad = bad.to_str().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        for (wrong, why) in [
            (&["--cert", bad, "--key", bad][..], "holds no certificate"),
            (&["--root", "/nonexistent"][..], "/nonexistent"),
            // Found when it has what the old one listened with.
            (&["--metrics", &taken][..], "cannot listen on"),
        ] {
            let process = successor(&folder, "second", wrong).spawn().unwrap();
            let (code, said) = failed(process);
            assert_eq!(code, Some(15), "{said}");
            assert!(said.contains("the old server serves as before"), "{said}");
            assert!(said.contains(why), "{said}");
            download(old.address).await;
        }
        assert_eq!(lines_of(&old.log, 3).len(), 3);
        let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
        assert_eq!(pid.trim(), old.pid());
        // And can be taken over from.
        drop(next(&folder, "third", &[]));
    })
    .await;
}

#[test]
fn what_is_no_server_is_not_taken_over_from() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Running(Command::new("sleep").arg("1000").spawn().unwrap());
    let pid = other.0.id().to_string();
    let (code, said) = failed(
        successor(&folder, "second", &["--pid", &pid])
            .spawn()
            .unwrap(),
    );
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("no mpq-serve of this user"), "{said}");
    assert!(other.0.try_wait().unwrap().is_none());
    let process = successor(&folder, "second", &["--pid", "999999999"]).spawn();
    assert_eq!(failed(process.unwrap()).0, Some(6));
    let (code, said) = failed(successor(&folder, "second", &[]).spawn().unwrap());
    assert_eq!(code, Some(6), "{said}");
}

/// As root; an ordinary user can start nothing as somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_users_server_is_not_taken_over_from() {
    if !nix::unistd::geteuid().is_root() {
        return println!("not root: nothing is shown");
    }
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let old = first(&folder, &[]);
        let process = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
            .args(["handover", "--random", "--pid", &old.pid()])
            .uid(OTHER_USER)
            .gid(OTHER_USER)
            .stderr(Stdio::piped())
            .spawn();
        let (code, said) = failed(process.unwrap());
        assert_eq!(code, Some(6), "{said}");
        download(old.address).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_listens_over_tcp_is_taken_over_too() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let metrics = free.local_addr().unwrap();
        drop(free);
        let own = metrics.to_string();
        let more = ["--tcp", "--metrics", &own];
        let mut old = first(&folder, &more);
        let random = || Request::get("https://localhost/random").header("host", "localhost");
        let begun = ask(old.address, Protocol::Http1, random()).await.unwrap();
        let new = next(&folder, "second", &more);
        let again = ask(new.address, Protocol::Http2, random()).await.unwrap();
        assert_eq!(
            begun.into_body().collect().await.unwrap().to_bytes().len() as u64,
            LONG
        );
        old.ends();
        assert_eq!(
            again.into_body().collect().await.unwrap().to_bytes().len() as u64,
            LONG
        );
        assert_eq!(lines_of(&new.log, 1).len(), 1);
        assert_eq!(old.answered(), 1);
        assert_eq!(
            get_plainly(metrics, "/health").await.unwrap(),
            (200, "serving\n".into())
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_at_several_addresses_is_taken_over_at_all_of_them() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let mut old = first(&folder, &["--listen", "[::1]:0"]);
        let line = old
            .server
            .log
            .iter()
            .find(|line| line.contains("listening on "))
            .unwrap();
        let (_, second) = line.split_once("listening on ").unwrap();
        let second: SocketAddr = second.parse().unwrap();
        let new = next(&folder, "second", &[]);
        for address in [old.address, second] {
            download(address).await;
        }
        old.ends();
        assert_eq!(lines_of(&new.log, 2).len(), 2);
        assert_eq!(old.answered(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_hears_which_process_it_is_and_of_no_end() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&socket).unwrap();
        supervisor
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let heard = || {
            let mut buffer = [0; 4096];
            let length = supervisor.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_mpq-serve"));
        let log = folder.path().join("first");
        command
            .args(["--listen", "127.0.0.1:0"])
            .args(options(&folder, &log))
            .env("NOTIFY_SOCKET", &socket)
            .stderr(Stdio::piped());
        let (mut old, _) = started(command.spawn().unwrap());
        assert!(heard().contains("READY=1"));
        let mut command = successor(&folder, "second", &[]);
        let new = started(command.env("NOTIFY_SOCKET", &socket).spawn().unwrap());
        let main = format!("MAINPID={}", new.0.process.0.id());
        assert!(heard().contains(&main));
        assert!(old.process.0.wait().unwrap().success());
        new.0.tell(Signal::SIGTERM);
        assert!(heard().contains("STOPPING=1"), "the old one has said so");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_come_from_a_file_as_for_the_first_process() {
    in_time(async {
        let folder = tempfile::tempdir().unwrap();
        let old = first(&folder, &[]);
        let config = folder.path().join("config.toml");
        fs::write(&config, "header = ['x-generation: file']\n").unwrap();
        let config = ["--config", config.to_str().unwrap()];
        let new = next(&folder, "second", &config);
        let client = follower(new.address).await;
        let answer = client.get("/none").await.unwrap();
        assert_eq!(answer.headers()["x-generation"], "file");
        drop(old);
    })
    .await;
}
