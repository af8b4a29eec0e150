//! What a download does to the files that are there already.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use http::header::LAST_MODIFIED;
use serde_json::Value;

use super::server::{Answer, File, SIZE, Server, body, command, digest, finish, interrupt, spawn};

/// More than a server sends without an acknowledgement.
const CUT: usize = 1_000_003;
/// Bytes that a pipe holds.
const PIPE: usize = 65_536;

fn whole() -> Answer {
    Answer::File(File::new())
}

fn all_that_comes(event: &Value) -> bool {
    event["event"] == "progress" && event["bytes"] == CUT as u64
}

#[test]
fn two_downloads_do_not_write_into_one_file() {
    let server = Server::script([Answer::Stuck(File::new(), CUT)]);
    let url = server.url("file");
    let first = spawn(&server.identity, &["-O", &url], all_that_comes);
    let holder = format!("mpq-get (process {}) downloads into it", first.id());
    server.get(&["-O"], "file").fails(23, &holder);
    // Nor does one of something else, which would replace the file in the end.
    server.get(&["-o", "file"], "other").fails(23, &holder);
    assert!(fs::read(server.path("file.part")).unwrap() == body()[..CUT]);
    interrupt(&first);
    finish(first).fails(130, "bytes are kept in file.part");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_part_that_is_a_trap_is_refused() {
    let server = Server::script([]);
    fs::write(server.path("precious"), "mine").unwrap();
    let part = server.path("file.part");
    symlink("precious", &part).unwrap();
    server.get(&["-O"], "file").fails(23, "symbolic link");
    fs::remove_file(&part).unwrap();
    fs::hard_link(server.path("precious"), &part).unwrap();
    server.get(&["-O"], "file").fails(23, "hard link");
    fs::remove_file(&part).unwrap();
    make_fifo(&part);
    server.get(&["-O"], "file").fails(23, "no regular file");
    assert_eq!(fs::read(server.path("precious")).unwrap(), b"mine");
    assert!(server.requests().is_empty());
}

#[test]
fn a_link_is_written_through() {
    let server = Server::script([whole(), whole()]);
    fs::create_dir(server.path("folder")).unwrap();
    for name in ["there", "none"] {
        symlink(format!("folder/{name}"), server.path(name)).unwrap();
    }
    fs::write(server.path("folder/there"), "before").unwrap();
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(server.path("folder/there"), mode).unwrap();
    for name in ["there", "none"] {
        server.get(&["-o", name], "file").succeeds();
        assert!(server.path(name).is_symlink());
        let end = server.path("folder").join(name);
        assert!(fs::read(&end).unwrap() == body());
    }
    let known = server.path("folder/there").metadata().unwrap();
    assert_eq!(known.mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(server.path("folder")).unwrap().count(), 2);
}

#[test]
fn a_file_with_another_name_keeps_it() {
    let server = Server::script([whole()]);
    fs::write(server.path("file"), "before").unwrap();
    fs::hard_link(server.path("file"), server.path("alias")).unwrap();
    server.get(&["-O"], "file").succeeds();
    assert!(fs::read(server.path("alias")).unwrap() == body());
    assert!(!server.path("file.part").exists());
}

#[test]
fn a_file_that_may_not_be_written_is_not_replaced() {
    let server = Server::script([]);
    // Even root may not write to a program that runs.
    fs::copy("/bin/sleep", server.path("file")).unwrap();
    let mut running = Command::new(server.path("file")).arg("60").spawn().unwrap();
    server.get(&["-O"], "file").fails(23, "cannot write file");
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(server.requests().is_empty());
    assert!(!server.path("file.part").exists());
}

#[test]
fn standard_output_by_its_file_name_is_standard_output() {
    let server = Server::script([whole(), whole(), whole()]);
    for name in ["/dev/stdout", "/dev/fd/1"] {
        let outcome = server.get(&["-s", "-o", name], "file");
        outcome.succeeds();
        assert!(outcome.stdout == body(), "{name}");
    }
    // A file that it leads to gets the body behind what is there already.
    let path = server.path("log");
    fs::write(&path, "before").unwrap();
    let log = fs::File::options().append(true).open(&path).unwrap();
    let line = ["--cacert", "ca.pem", "-s", "-o", "/dev/stdout"];
    let mut command = command(server.folder(), &line);
    let status = command
        .arg(server.url("file"))
        .stdout(log)
        .status()
        .unwrap();
    assert!(status.success());
    assert!(fs::read(&path).unwrap() == [&b"before"[..], &body()[..]].concat());
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
}

fn make_fifo(path: &std::path::Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn a_pipe_is_written_to_and_stays() {
    let server = Server::script([whole()]);
    make_fifo(&server.path("pipe"));
    let path = server.path("pipe");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        fs::File::open(path).unwrap().read_to_end(&mut all).unwrap();
        all
    });
    server.get(&["-o", "pipe"], "file").succeeds();
    assert!(reader.join().unwrap() == body());
    let known = server.path("pipe").symlink_metadata().unwrap();
    assert!(known.file_type().is_fifo());
}

#[test]
fn a_pipe_that_nobody_reads_is_left_when_told_to() {
    let server = Server::script([whole()]);
    make_fifo(&server.path("pipe"));
    let url = server.url("file");
    let begun = |event: &Value| event["event"] == "progress" && event["bytes"] != 0;
    let child = spawn(&server.identity, &["-o", "pipe", &url], begun);
    interrupt(&child);
    let asked = Instant::now();
    finish(child).fails(130, "SIGINT");
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_complete_file_is_not_fetched_again() {
    let server = Server::script([whole(), whole(), whole()]);
    fs::write(server.path("file"), body()).unwrap();
    let inode = server.path("file").metadata().unwrap().ino();
    let right = format!("sha256:{}", digest());
    let outcome = server.get(&["-C", "-O", "--checksum", &right, "--json"], "file");
    outcome.succeeds();
    let done = &outcome.named("done")[0];
    assert_eq!(
        (&done["received"], &done["sha256"]),
        (&0.into(), &digest().into())
    );
    assert_eq!(server.ranges(), [Some(format!("bytes={SIZE}-"))]);
    assert_eq!(server.path("file").metadata().unwrap().ino(), inode);
    assert!(!server.path("file.part").exists());
    // A file that is shorter is of another version, as far as anybody knows.
    fs::write(server.path("file"), &body()[..CUT]).unwrap();
    let outcome = server.get(&["-C", "-O", "--json"], "file");
    outcome.succeeds();
    assert_eq!(server.ranges()[1..], [Some(format!("bytes={CUT}-")), None]);
    assert!(fs::read(server.path("file")).unwrap() == body());
}

#[test]
fn a_complete_file_with_a_wrong_checksum_stays() {
    let server = Server::script([whole()]);
    fs::write(server.path("file"), vec![0; SIZE]).unwrap();
    let right = format!("sha256:{}", digest());
    let outcome = server.get(&["-C", "-O", "--checksum", &right], "file");
    outcome.fails(111, "the file is another one or damaged");
    assert!(fs::read(server.path("file")).unwrap() == vec![0; SIZE]);
}

#[test]
fn the_longest_names_are_written() {
    let name = "a".repeat(255);
    let server = Server::script([Answer::Stuck(File::new(), CUT), whole()]);
    let url = server.url("file");
    let child = spawn(&server.identity, &["-o", &name, &url], all_that_comes);
    interrupt(&child);
    finish(child).fails(130, "the next run goes on");
    server.get(&["-o", &name], "file").succeeds();
    assert_eq!(server.ranges()[1], Some(format!("bytes={CUT}-")));
    assert!(fs::read(server.path(&name)).unwrap() == body());
    let left = fs::read_dir(server.folder()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_str().unwrap().contains(".part")),
        "{left:?}"
    );
}

#[test]
fn what_is_not_found_leaves_nothing() {
    let server = Server::script([Answer::Head(StatusCode::NOT_FOUND, Vec::new())]);
    server.get(&["-O"], "file").fails(22, "404");
    assert!(!server.path("file.part").exists() && !server.path("file").exists());
}

#[test]
fn the_file_may_have_the_servers_time() {
    const TIME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let mut file = File::new();
    file.fields.push((LAST_MODIFIED, TIME));
    file.content = Bytes::from_static(b"old");
    let server = Server::script([Answer::File(file.clone()), Answer::File(file)]);
    let time = || server.path("file").metadata().unwrap().modified().unwrap();
    server.get(&["-O"], "file").succeeds();
    assert!(time() > SystemTime::now() - Duration::from_secs(60));
    server.get(&["-R", "-O"], "file").succeeds();
    assert_eq!(time(), httpdate::parse_http_date(TIME).unwrap());
}

#[test]
fn nobody_reads_what_is_said() {
    for closed in ["2>&-", "2>/dev/full", ">&-", "2>&- >&-"] {
        let server = Server::script([whole()]);
        let line = format!("exec \"$0\" --cacert ca.pem -v --json -o file \"$1\" {closed}",);
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            &line,
            env!("CARGO_BIN_EXE_mpq-get"),
            &server.url("file"),
        ]);
        let shell = shell.current_dir(server.folder()).stdout(Stdio::null());
        let status = shell.stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{closed}: {status}");
        assert!(fs::read(server.path("file")).unwrap() == body(), "{closed}");
    }
}

/// A pipe that is full, and its reader.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'\n'; PIPE]).unwrap();
    (reader, writer)
}

/// A download that says and tells all that it can.
fn talkative(server: &Server, stdout: PipeWriter, stderr: PipeWriter) -> Child {
    let line = ["--cacert", "ca.pem", "-v", "--json", "-O"];
    let mut command = command(server.folder(), &line);
    let command = command.arg(server.url("file")).stdout(stdout);
    command.stderr(stderr).spawn().unwrap()
}

#[test]
fn a_reader_that_is_stuck_does_not_stop_a_download() {
    let server = Server::script([whole()]);
    let (mut said, stderr) = full_pipe();
    let (mut events, stdout) = full_pipe();
    let mut child = talkative(&server, stdout, stderr);
    let complete = || fs::read(server.path("file")).is_ok_and(|file| file == body());
    wait_until(complete);
    assert_eq!(
        child.try_wait().unwrap(),
        None,
        "nobody has read its last words"
    );
    let read = |pipe: &mut PipeReader| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    };
    let said = std::thread::spawn(move || read(&mut said));
    assert!(read(&mut events).contains("\"done\""));
    assert!(said.join().unwrap().contains(&digest()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_is_stuck_does_not_hold_up_the_end() {
    let server = Server::script([Answer::Stuck(File::new(), CUT)]);
    let (_said, stderr) = full_pipe();
    let (_events, stdout) = full_pipe();
    let mut child = talkative(&server, stdout, stderr);
    let part = server.path("file.part");
    wait_until(|| part.metadata().is_ok_and(|known| known.len() == CUT as u64));
    interrupt(&child);
    let asked = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    assert!(fs::read(part).unwrap() == body()[..CUT]);
}

/// Looks again and again; whoever runs the tests ends what never comes.
fn wait_until(mut there: impl FnMut() -> bool) {
    while !there() {
        std::thread::sleep(Duration::from_millis(10));
    }
}
