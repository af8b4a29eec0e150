//! Downloads that are interrupted, and what becomes of what they have left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RETRY_AFTER};
use serde_json::Value;

use crate::server::{
    Answer, File, Outcome, SIZE, Server, UNDER_WAY, body, command, digest, finish, forwarder,
    interrupt, run, spawn,
};

/// Where bodies are cut.
const CUT: usize = 1_000_000;
/// So much of a cut body arrives, at least.
const ARRIVED: u64 = (CUT - UNDER_WAY) as u64;

/// The second version of the usual file.
fn changed() -> File {
    File {
        content: body().iter().rev().copied().collect(),
        fields: vec![(ETAG, "\"v2\"")],
        ranges: true,
    }
}

/// The usual file, if its versions cannot be told apart.
fn anonymous() -> File {
    File {
        fields: Vec::new(),
        ..File::new()
    }
}

fn cut() -> Answer {
    Answer::Cut(File::new(), CUT)
}

pub(super) fn whole() -> Answer {
    Answer::File(File::new())
}

fn busy(retry_after: &str) -> Answer {
    let fields = vec![(RETRY_AFTER, retry_after.to_owned())];
    Answer::Head(StatusCode::SERVICE_UNAVAILABLE, fields)
}

pub(super) fn number(event: &Value, field: &str) -> u64 {
    event[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field}: {event}"))
}

/// The body has been put together from two parts, nothing was asked for twice, and the events say
/// so. Returns where the second part begins.
#[track_caller]
fn assert_resumed(outcome: &Outcome, ranges: &[Option<String>]) -> u64 {
    outcome.succeeds();
    let [resumed] = &outcome.named("resumed")[..] else {
        panic!("resumed once: {}", outcome.stderr);
    };
    let offset = number(resumed, "offset");
    assert!((ARRIVED..=CUT as u64).contains(&offset), "{resumed}");
    assert_eq!(ranges, [None, Some(format!("bytes={offset}-"))]);
    assert!(outcome.named("restarted").is_empty());
    let done = &outcome.named("done")[0];
    assert_eq!(number(done, "bytes"), SIZE as u64);
    assert_eq!(number(done, "received"), SIZE as u64, "each byte came once");
    assert_eq!(done["sha256"], digest());
    assert_eq!(
        (number(done, "requests"), number(done, "handshakes")),
        (2, 2)
    );
    offset
}

#[test]
fn a_lost_connection_is_replaced() {
    for protocol in ["multipath", "quic"] {
        let server = Server::script([cut(), whole()]);
        let right = format!("sha256:{}", digest());
        let line = ["--protocol", protocol, "--checksum", &right, "--json", "-O"];
        let outcome = server.get(&line, "file");
        assert_resumed(&outcome, &server.ranges());
        assert!(fs::read(server.path("file")).unwrap() == body());
        assert_eq!(server.requests()[1].headers()[IF_RANGE], "\"v1\"");
        let [retry] = &outcome.named("retry")[..] else {
            panic!("one more attempt: {}", outcome.stderr);
        };
        assert_eq!((number(retry, "attempt"), &retry["wait"]), (1, &1.0.into()));
        let resumed = &outcome.named("resumed")[0];
        assert_eq!(resumed["remote"], server.address.to_string());
        let paths = &outcome.named("done")[0]["paths"];
        assert!(
            paths.as_array().unwrap().len() >= 2,
            "of both connections: {paths}"
        );
        for left in ["file.part", "file.part.meta"] {
            assert!(!server.path(left).exists(), "{left}");
        }
    }
}

#[test]
fn a_date_tells_versions_apart_if_it_is_old_enough() {
    let dated = |date| File {
        fields: vec![
            (LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (DATE, date),
        ],
        ..File::new()
    };
    let old = dated("Sun, 06 Nov 1994 09:49:37 GMT");
    let server = Server::script([Answer::Cut(old.clone(), CUT), Answer::File(old)]);
    assert_resumed(&server.get(&["--json", "-O"], "file"), &server.ranges());

    let fresh = dated("Sun, 06 Nov 1994 08:49:38 GMT");
    let server = Server::script([Answer::Cut(fresh.clone(), CUT), Answer::File(fresh)]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert_eq!(server.ranges(), [None, None]);
}

#[test]
fn a_file_that_has_changed_is_started_over() {
    let server = Server::script([cut(), Answer::File(changed())]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == changed().content);
    let restarted = &outcome.named("restarted")[0];
    assert_eq!(restarted["reason"], "the file has changed");
    assert!(
        outcome
            .stderr
            .contains("warning: starting over: the file has changed")
    );
    let done = &outcome.named("done")[0];
    assert_eq!(number(done, "bytes"), SIZE as u64);
    assert!(number(done, "received") >= SIZE as u64 + ARRIVED, "{done}");
    assert_ne!(done["sha256"], digest());
}

#[test]
fn a_body_that_is_broken_off_is_asked_for_again() {
    // As by a server whose file changes under the download.
    let server = Server::script([Answer::Reset(File::new(), CUT), Answer::File(changed())]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == changed().content);
    let reason = &outcome.named("retry")[0]["reason"];
    assert!(reason.as_str().unwrap().contains("broke off"), "{reason}");
}

#[test]
fn a_changed_file_is_resumed_as_what_it_is_now() {
    let server = Server::script([cut(), Answer::Cut(changed(), CUT), Answer::File(changed())]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == changed().content);
    assert_eq!(server.requests()[2].headers()[IF_RANGE], "\"v2\"");
    let resumed = number(&outcome.named("resumed")[0], "offset");
    assert_eq!(server.ranges()[2], Some(format!("bytes={resumed}-")));
}

#[test]
fn a_server_without_ranges_is_asked_for_everything() {
    let file = File {
        ranges: false,
        ..File::new()
    };
    let server = Server::script([Answer::Cut(file.clone(), CUT), Answer::File(file)]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == body());
    let reason = &outcome.named("restarted")[0]["reason"];
    assert_eq!(reason, "the server does not send parts of the file");
}

#[test]
fn a_failed_condition_starts_over_on_the_same_connection() {
    let failed = Answer::Head(StatusCode::PRECONDITION_FAILED, Vec::new());
    let server = Server::script([cut(), failed, Answer::File(changed())]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == changed().content);
    let done = &outcome.named("done")[0];
    assert_eq!(
        (number(done, "requests"), number(done, "handshakes")),
        (3, 2)
    );
    assert_eq!(server.ranges()[2], None);
}

#[test]
fn two_versions_that_cannot_be_told_apart_are_not_joined() {
    let server = Server::script([Answer::Cut(anonymous(), CUT), Answer::File(anonymous())]);
    let outcome = server.get(&["--json", "-O"], "file");
    outcome.succeeds();
    assert_eq!(server.ranges(), [None, None]);
    assert!(fs::read(server.path("file")).unwrap() == body());
    assert_eq!(outcome.named("restarted").len(), 1);
    assert_eq!(outcome.named("done")[0]["sha256"], digest());
}

#[test]
fn a_part_that_does_not_fit_is_the_servers_error() {
    for range in ["bytes 0-9/3000017", "bytes 1000-1009/*", "nonsense"] {
        let part = vec![(CONTENT_RANGE, range.to_owned())];
        let server = Server::script([cut(), Answer::Head(StatusCode::PARTIAL_CONTENT, part)]);
        let outcome = server.get(&["-O"], "file");
        outcome.fails(95, range);
        let part = fs::read(server.path("file.part")).unwrap();
        assert!(part.len() as u64 >= ARRIVED && body().starts_with(&part));
    }
}

#[test]
fn stdout_goes_on_but_does_not_start_over() {
    let server = Server::script([cut(), whole()]);
    let outcome = server.get(&["-s"], "file");
    outcome.succeeds();
    assert!(outcome.stdout == body());

    let server = Server::script([cut(), Answer::File(changed())]);
    let outcome = server.get(&[], "file");
    outcome.fails(33, "the file has changed");
    assert!(body().starts_with(&outcome.stdout) && outcome.stdout.len() as u64 >= ARRIVED);

    let server = Server::script([Answer::Cut(anonymous(), CUT)]);
    let outcome = server.get(&[], "file");
    outcome.fails(95, "closed the connection");
    assert_eq!(server.requests().len(), 1, "it would only repeat itself");
    assert!(body().starts_with(&outcome.stdout));
}

#[test]
fn what_could_not_be_written_is_asked_for_again() {
    let cut = 2 * CUT;
    let server = Server::script([Answer::Cut(File::new(), cut), whole()]);
    let url = server.url("file");
    let mut child = command(server.folder(), &["--cacert", "ca.pem", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the connection is lost, nobody reads the body.
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(told.any(|line| line.unwrap().contains("attempt 1")));
    std::thread::spawn(move || told.for_each(drop));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == body());
    let range = server.ranges()[1].clone().unwrap();
    let first: usize = range["bytes=".len()..range.len() - 1].parse().unwrap();
    assert!(first < cut - UNDER_WAY, "{first} bytes could be written");
}

#[test]
fn a_stopped_download_is_gone_on_with() {
    let server = Server::script([Answer::Stuck(File::new(), CUT), whole()]);
    let url = server.url("file");
    let all_that_comes =
        |event: &Value| event["event"] == "progress" && event["bytes"] == CUT as u64;
    let child = spawn(&server.identity, &["-O", &url], all_that_comes);
    interrupt(&child);
    let outcome = finish(child);
    outcome.fails(
        130,
        &format!("{CUT} bytes are kept in file.part, the next run"),
    );
    assert!(fs::read(server.path("file.part")).unwrap() == body()[..CUT]);
    let meta = fs::read(server.path("file.part.meta")).unwrap();
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    let expected = serde_json::json!({ "url": url, "if_range": "\"v1\"", "length": SIZE });
    assert_eq!(meta, expected);

    let right = format!("sha256:{}", digest());
    let outcome = server.get(&["-O", "--json", "--checksum", &right], "file");
    outcome.succeeds();
    assert!(fs::read(server.path("file")).unwrap() == body());
    assert_eq!(server.ranges()[1], Some(format!("bytes={CUT}-")));
    assert!(!server.path("file.part.meta").exists());
    let done = &outcome.named("done")[0];
    assert_eq!(number(done, "bytes"), SIZE as u64);
    assert_eq!(number(done, "received"), (SIZE - CUT) as u64);
}

/// Puts down what an earlier run might have left.
fn leave(server: &Server, part: &[u8], meta: &Value) {
    fs::write(server.path("file.part"), part).unwrap();
    fs::write(server.path("file.part.meta"), meta.to_string()).unwrap();
}

#[test]
fn a_part_of_something_else_is_left_alone() {
    let other = serde_json::json!({ "url": "https://localhost/b", "if_range": "\"v1\"" });
    for (meta, reason) in [(Some(other), "https://localhost/b"), (None, "no record")] {
        let server = Server::script([whole()]);
        let theirs = &body()[1..CUT];
        fs::write(server.path("file.part"), theirs).unwrap();
        if let Some(meta) = &meta {
            leave(&server, theirs, meta);
        }
        let outcome = server.get(&["-O", "--json"], "file");
        outcome.succeeds();
        assert_eq!(server.ranges(), [None]);
        let left = &outcome.named("left_alone")[0];
        assert_eq!(left["path"], "file.part");
        let said = left["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{said}");
        assert!(outcome.stderr.contains("file.part is left alone"));
        assert!(fs::read(server.path("file")).unwrap() == body());
        assert!(fs::read(server.path("file.part")).unwrap() == theirs);
        assert_eq!(server.path("file.part.meta").exists(), meta.is_some());
        assert!(!server.path("file.1.part").exists());
    }
}

#[test]
fn a_second_part_is_gone_on_with() {
    let server = Server::script([
        cut(),
        Answer::Head(StatusCode::NOT_FOUND, Vec::new()),
        whole(),
    ]);
    fs::write(server.path("file.part"), "mine").unwrap();
    let outcome = server.get(&["-O"], "file");
    outcome.fails(22, "bytes are kept in file.1.part, the next run goes on");
    let kept = fs::read(server.path("file.1.part")).unwrap().len();
    server.get(&["-O"], "file").succeeds();
    let range = format!("bytes={kept}-");
    assert_eq!(server.ranges().last().unwrap().as_ref(), Some(&range));
    assert_eq!(fs::read(server.path("file.part")).unwrap(), b"mine");
}

#[test]
fn a_part_is_kept_until_the_body_comes() {
    let server = Server::script([Answer::Head(StatusCode::NOT_FOUND, Vec::new())]);
    let meta = serde_json::json!({ "url": server.url("file"), "if_range": "\"v1\"" });
    leave(&server, b"earlier", &meta);
    let outcome = server.get(&["-O"], "file");
    outcome.fails(22, "7 bytes are kept in file.part");
    assert_eq!(fs::read(server.path("file.part")).unwrap(), b"earlier");
    assert!(server.path("file.part.meta").exists());
}

#[test]
fn a_part_that_is_complete_is_only_asked_about() {
    let server = Server::script([whole()]);
    let meta = |tag: &str| serde_json::json!({ "url": server.url("file"), "if_range": tag, "length": SIZE });
    leave(&server, &body(), &meta("\"v1\""));
    let outcome = server.get(&["-O", "--json"], "file");
    outcome.succeeds();
    assert_eq!(server.ranges(), [Some(format!("bytes={SIZE}-"))]);
    assert!(fs::read(server.path("file")).unwrap() == body());
    let done = &outcome.named("done")[0];
    assert_eq!(
        (number(done, "received"), &done["sha256"]),
        (0, &digest().into())
    );
}

#[test]
fn a_part_that_is_too_long_is_started_over() {
    let server = Server::script([whole(), whole()]);
    let meta = serde_json::json!({ "url": server.url("file"), "if_range": "\"v1\"" });
    let long = [&body()[..], b"more"].concat();
    leave(&server, &long, &meta);
    let outcome = server.get(&["-O", "--json"], "file");
    outcome.succeeds();
    assert_eq!(
        server.ranges(),
        [Some(format!("bytes={}-", SIZE + 4)), None]
    );
    assert_eq!(number(&outcome.named("done")[0], "handshakes"), 1);
    assert!(fs::read(server.path("file")).unwrap() == body());
}

#[test]
fn a_damaged_part_is_found_out() {
    let server = Server::script([whole()]);
    let meta = serde_json::json!({ "url": server.url("file"), "if_range": "\"v1\"" });
    leave(&server, &vec![0; CUT], &meta);
    let right = format!("sha256:{}", digest());
    let outcome = server.get(&["-O", "--checksum", &right], "file");
    outcome.fails(111, "bytes are kept in file.bad");
    let bad = fs::read(server.path("file.bad")).unwrap();
    assert!(bad[..CUT] == vec![0; CUT] && bad[CUT..] == body()[CUT..]);
    for name in ["file", "file.part", "file.part.meta"] {
        assert!(!server.path(name).exists(), "{name}");
    }
}

#[test]
fn the_server_says_how_long_to_wait() {
    let server = Server::script([busy("2"), whole()]);
    let outcome = server.get(&["-O", "--json"], "file");
    outcome.succeeds();
    let retry = &outcome.named("retry")[0];
    assert_eq!((&retry["wait"], number(retry, "attempt")), (&2.0.into(), 1));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn attempts_end() {
    let server = Server::script([busy("0"), busy("0"), busy("0")]);
    let outcome = server.get(&["--retry", "2", "-O", "--json"], "file");
    outcome.fails(22, "503 Service Unavailable");
    let waits = outcome.named("retry");
    let waits: Vec<_> = waits
        .iter()
        .map(|retry| retry["wait"].as_f64().unwrap())
        .collect();
    assert_eq!(waits, [1.0, 2.0]);
    assert_eq!(server.requests().len(), 3);

    let server = Server::script([busy("100")]);
    let outcome = server.get(&["--retry-max-time", "50", "-O", "--json"], "file");
    outcome.fails(22, "503 Service Unavailable");
    assert!(outcome.named("retry").is_empty());

    let server = Server::script([Answer::Head(StatusCode::NOT_FOUND, Vec::new())]);
    server.get(&["-O"], "file").fails(22, "404 Not Found");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn progress_gives_new_attempts() {
    // Three failures, with one attempt each time.
    let part = |limit| Answer::Cut(File::new(), limit);
    let server = Server::script([part(CUT), part(CUT / 2), part(CUT / 2), whole()]);
    let outcome = server.get(&["--retry", "1", "-O", "--json"], "file");
    outcome.succeeds();
    let attempts = outcome.named("retry");
    let attempts: Vec<_> = attempts
        .iter()
        .map(|retry| number(retry, "attempt"))
        .collect();
    assert_eq!(attempts, [1, 1, 1]);
    assert_eq!(outcome.named("done")[0]["sha256"], digest());
}

#[test]
fn a_signal_ends_the_waiting() {
    let server = Server::script([cut(), busy("600")]);
    let url = server.url("file");
    let waiting = |event: &Value| event["event"] == "retry" && event["wait"] == 600.0;
    let child = spawn(&server.identity, &["-O", &url], waiting);
    interrupt(&child);
    finish(child).fails(130, "bytes are kept in file.part");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_vanished_is_found_at_its_other_address() {
    let first = Server::script([whole()]);
    let front = forwarder(first.address, 500);
    let url = format!("https://localhost:{}/file", front.port());
    let second = SocketAddr::new("127.0.0.2".parse().unwrap(), front.port());
    let addresses = format!("localhost:{}:127.0.0.2,127.0.0.1", front.port());
    let line = [
        &["--resolve", addresses.as_str(), "--idle-timeout", "0.5"],
        &[
            "--connect-timeout",
            "2",
            "--retry",
            "10",
            "-O",
            url.as_str(),
        ][..],
    ];
    let running = |event: &Value| event["event"] == "progress" && event["bytes"] != 0;
    let child = spawn(&first.identity, &line.concat(), running);
    let second = Server::script_at(&first.identity, second, [whole()]);
    finish(child).succeeds();
    assert!(fs::read(first.path("file")).unwrap() == body());
    let [Some(range)] = &second.ranges()[..] else {
        panic!("one request for the rest: {:?}", second.ranges());
    };
    assert_ne!(range, "bytes=0-");
    assert_eq!(first.ranges(), [None]);
}

#[test]
fn overrides_change_the_address_and_nothing_else() {
    let server = Server::script([whole(), whole()]);
    let port = server.address.port();
    let elsewhere = format!("::localhost:{port}");
    let line = [
        "--connect-to",
        &elsewhere,
        "-o",
        "a",
        "https://localhost/file",
    ];
    server.identity.run(&line).succeeds();
    let address = format!("*:443:{}", server.address.ip());
    let both = [
        &[
            "--connect-to",
            "localhost:443:other.test:",
            "--resolve",
            &address,
        ],
        &[
            "--connect-to",
            &elsewhere,
            "-o",
            "b",
            "https://localhost/file",
        ][..],
    ];
    // The first that matches leads to a port where nobody listens.
    let once = [&["--retry", "0"], &both.concat()[..]].concat();
    server.identity.run(&once).fails(7, "127.0.0.1:443");
    let requests = server.requests();
    let authority = requests[0].uri().authority().unwrap();
    assert_eq!(authority.as_str(), "localhost");

    let address = format!("other.test:{port}:127.0.0.1");
    let url = format!("https://other.test:{port}/file");
    let line = ["--resolve", &address, "-o", "c", &url];
    server.identity.run(&line).fails(60, "other.test");
}

#[test]
fn stdout_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["-C", "https://localhost/file"]).fails(2, "-o FILE");
}

#[test]
fn an_empty_file_is_a_file() {
    let file = File {
        content: Bytes::new(),
        ..File::new()
    };
    let server = Server::script([Answer::File(file)]);
    server.get(&["-C", "-O"], "file").succeeds();
    assert_eq!(fs::read(server.path("file")).unwrap(), b"");
    assert!(!server.path("file.part.meta").exists());
}
