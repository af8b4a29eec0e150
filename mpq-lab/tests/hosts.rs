//! `mpq-serve move` between two hosts, which share no mounts, process ids or interfaces, by ssh.

use std::process::Child;

use common::{criu, privileged};
use mpq_lab::system::host::built;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use operated::{LIMIT, OTHER_USER, ScriptedCriu, wait_until};
use serde_json::{Value, json};
use two_hosts::{B, SLOWLY, Space, TwoHosts, WORK, said};

mod common;
#[path = "common/operated.rs"]
mod operated;
#[path = "common/two_hosts.rs"]
mod two_hosts;

/// Exit codes of `move`.
const IN_THE_WAY: i32 = 12;
const RETURNED: i32 = 13;

/// A download that is under way.
fn begun(hosts: &TwoHosts) -> Child {
    let download = hosts.download("file");
    hosts.wait_for_bytes("file");
    download
}

fn has(events: &[Value], name: &str) -> bool {
    events.iter().any(|event| event["event"] == name)
}

#[tokio::test]
async fn a_download_goes_on_at_another_host_after_one_command() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start(SLOWLY);
    let server = hosts.server_id();
    let download = begun(&hosts);
    let moved = hosts.moving(&criu(), &["--json"]).output().unwrap();
    let said = said(&moved, 0);
    let report: Value = serde_json::from_slice(&moved.stdout).unwrap();
    let events = hosts.assert_whole("file", download);
    assert!(has(&events, "first_byte_after_move"), "{events:?}");
    assert!(said.contains("serving at B"), "{said}");
    assert_eq!(report["serving_at"], "B");
    assert_eq!(report["pid"], server);
    assert!(report["bytes"].as_u64() > Some(100_000), "{report}");
    let pause = report["seconds"]["pause"].as_f64();
    assert!(pause > Some(0.0) && pause < report["seconds"]["total"].as_f64());
    assert!(said.contains("1 of 1 clients are back"), "{said}");
    assert_eq!(report["clients"], clients(1, 1));
    assert!(report["seconds"]["clients_back"].as_f64() > Some(0.0));
    assert!(said.contains(&format!("made the folder {WORK}")), "{said}");
    hosts.b.shell(&format!("grep -q /file {WORK}/access"));
    // For who looks how long it took (--nocapture).
    println!("{said}{report}");
    assert!(hosts.b.has_process(server) && !hosts.a.has_process(server));
    hosts.a.assert_no_images();
    hosts.b.assert_no_images();
}

/// What a move tells of its clients, of whom none have left.
fn clients(expected: u64, back: u64) -> Value {
    json!({
        "expected": expected,
        "back": back,
        "missing": expected - back,
        "gone": 0,
        "dismissed": 0,
    })
}

#[tokio::test]
async fn a_client_that_does_not_come_in_time_is_missed_and_no_failure() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start(SLOWLY);
    let server = hosts.server_id();
    let download = begun(&hosts);
    hosts.client.shell("pkill -STOP mpq-get");
    let options = ["--json", "--await-clients", "500ms"];
    let moved = hosts.moving(&criu(), &options).output().unwrap();
    let text = said(&moved, 0);
    assert!(
        text.contains("0 of 1 clients are back, 1 not here yet"),
        "{text}"
    );
    let report: Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(report["clients"], clients(1, 0));
    assert_eq!(report["seconds"]["clients_back"], Value::Null);
    assert!(hosts.b.has_process(server));
    hosts.a.assert_no_images();
    hosts.client.shell("pkill -CONT mpq-get");
    // So it is with nsenter, which stops itself when what it runs is stopped.
    kill(Pid::from_raw(download.id() as i32), Signal::SIGCONT).unwrap();
    hosts.assert_whole("file", download);
}

#[tokio::test]
async fn all_that_is_in_the_way_is_said_at_once_and_no_client_hears_of_it() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start(SLOWLY);
    let server = hosts.server_id();
    let look = |options: &[&str], code| {
        let options = [options, &["--dry-run"]].concat();
        let output = hosts.moving(&criu(), &options).output().unwrap();
        assert!(output.stdout.is_empty());
        said(&output, code)
    };
    let text = look(&[], 0);
    assert!(text.contains("nothing is in the way"), "{text}");

    // What is served is not there, and the address is no host's. That its ids are in use is not in the way.
    hosts.occupy(server);
    let text = look(&[], 0);
    assert!(text.contains("nothing is in the way"), "{text}");
    let served = hosts.file("served");
    hosts
        .b
        .shell(&format!("mount -t tmpfs tmpfs {}", served.display()));
    let text = look(&["--address", "10.77.0.99:4433"], IN_THE_WAY);
    for part in [
        "there is no folder",
        "cannot listen on 10.77.0.99:4433",
        "serving at A; the move has not begun: 2 things are in the way",
    ] {
        assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
    }
    // CRIU has what the one at A has noted of the processor there.
    let other = ScriptedCriu::new(
        "cpuinfo?check",
        "$criu \"$@\" && test -s \"$4/cpuinfo.img\" && echo 'Error (cpu.c:1): unsupported bits' >&2; exit 1",
    );
    let output = hosts.moving(&other.program(), &["--dry-run"]).output();
    let text = said(&output.unwrap(), IN_THE_WAY);
    let part = "in the way at B, root@10.77.0.3: the processor is not as at A: \
                criu cpuinfo check: Error (cpu.c:1): unsupported bits";
    assert_eq!(text.matches(part).count(), 1, "{text}");
    // Nor without --dry-run.
    let output = hosts.moving(&criu(), &[]).output().unwrap();
    assert!(said(&output, IN_THE_WAY).contains("something is in the way"));
    assert!(!hosts.log().contains("moving to"), "{}", hosts.log());
    hosts.b.assert_no_images();
}

#[tokio::test]
async fn whatever_fails_before_the_hand_over_has_the_server_serve_where_it_was() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start(SLOWLY);
    let server = hosts.server_id();
    for (script, reason) in [
        // Whoever receives it is killed, and CRIU goes on; CRIU fails; the operator ends the move.
        ("kill -9 $PPID; exec $criu \"$@\"", "the way to B has ended"),
        ("exit 1", "CRIU: exit status: 1"),
        ("touch $begun; sleep 1; exec $criu \"$@\"", "told to end"),
    ] {
        let faulty = ScriptedCriu::new("restore", script);
        let download = begun(&hosts);
        let moving = hosts.moving(&faulty.program(), &[]).spawn().unwrap();
        if reason == "told to end" {
            faulty.wait_until("begun");
            let id = hosts.a.shell("pgrep -f 'mpq-serve move'");
            let id = id.lines().next().unwrap();
            hosts.a.shell(&format!("kill -TERM {id}"));
        }
        let text = said(&moving.wait_with_output().unwrap(), RETURNED);
        assert!(text.contains("serving at A"), "{text}");
        assert!(text.contains(reason), "{text}");
        let events = hosts.assert_whole("file", download);
        assert!(has(&events, "cancelled"), "{events:?}");
        assert!(hosts.a.has_process(server));
        hosts.a.assert_no_images();
        wait_until("its end at B", LIMIT, || !hosts.b.has_process(server));
        wait_until("its images' end", LIMIT, || {
            hosts.b.shell("find /run -name '*.img'").is_empty()
        });
        hosts.b.assert_no_images();
    }

    // It can still move.
    let download = begun(&hosts);
    said(&hosts.moving(&criu(), &[]).output().unwrap(), 0);
    hosts.assert_whole("file", download);
    assert!(hosts.b.has_process(server));
}

#[tokio::test]
async fn root_moves_the_server_of_an_ordinary_user_to_another_host() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start_for_user(OTHER_USER, SLOWLY);
    let server = hosts.server_id();
    let user = |host: &Space| host.shell(&format!("stat -c %u /proc/{server} /run/user/mpq-serve"));
    let is_users = format!("{OTHER_USER}\n{OTHER_USER}\n");
    assert_eq!(user(&hosts.a), is_users);
    let output = hosts.moving(&criu(), &[]).output().unwrap();
    let text = said(&output, IN_THE_WAY);
    assert!(text.contains("there is no folder /run/user"), "{text}");
    let make =
        format!("install -d -m 700 -o {OTHER_USER} -g {OTHER_USER} /run/user; mkdir -m 777 {WORK}");
    hosts.b.shell(&make);

    // It comes back as the same.
    let faulty = ScriptedCriu::new("restore", "exit 1");
    let download = begun(&hosts);
    let output = hosts.moving(&faulty.program(), &[]).output().unwrap();
    said(&output, RETURNED);
    assert!(has(&hosts.assert_whole("file", download), "cancelled"));
    assert_eq!(user(&hosts.a), is_users);

    let download = begun(&hosts);
    said(&hosts.moving(&criu(), &[]).output().unwrap(), 0);
    hosts.assert_whole("file", download);
    assert_eq!(user(&hosts.b), is_users);
    assert!(!hosts.a.has_process(server));
    hosts.a.assert_no_images();
    hosts.b.assert_no_images();
}

#[tokio::test]
async fn a_hundred_downloads_go_on_at_another_host() {
    let Some(_alone) = privileged().await else {
        return;
    };
    a_hundred_follow(&TwoHosts::start(FOR_LONG));
}

#[tokio::test]
async fn a_hundred_downloads_go_on_where_another_server_has_the_same_ids() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let hosts = TwoHosts::start(FOR_LONG);
    let server = hosts.server_id();
    // As on two hosts that boot alike.
    let mut twin = hosts.start_twin(server);
    let moved = a_hundred_follow(&hosts);
    // Its id is another one there, and the other server has its own.
    let id = moved["pid"].as_i64().unwrap() as i32;
    assert_ne!(id, server);
    assert_eq!(hosts.server_id(), id);
    let get = built("mpq-get").unwrap();
    hosts.client.shell(&format!(
        "{} --insecure --output /run/got https://{B}:5433/random",
        get.display()
    ));
    twin.kill().unwrap();
    twin.wait().unwrap();
}

/// Half a megabyte takes twenty seconds then.
const FOR_LONG: &[&str] = &["--limit-rate", "200k"];

/// Each of a hundred downloads follows the server to the other host. What the move tells.
fn a_hundred_follow(hosts: &TwoHosts) -> Value {
    let of_files = (0..50).map(|number| format!("half-{number}"));
    let names = of_files.chain((0..50).map(|number| format!("random-{number}")));
    let downloads: Vec<_> = names.map(|name| (hosts.download(&name), name)).collect();
    for (_, name) in &downloads {
        hosts.wait_for_bytes(name);
    }
    let moved = hosts.moving(&criu(), &["--json"]).output().unwrap();
    let text = said(&moved, 0);
    for (download, name) in downloads {
        let events = hosts.assert_whole(&name, download);
        assert!(has(&events, "first_byte_after_move"), "{name}: {events:?}");
    }
    println!("{text}{}", String::from_utf8_lossy(&moved.stdout));
    let report: Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(report["clients"], clients(100, 100));
    report
}
