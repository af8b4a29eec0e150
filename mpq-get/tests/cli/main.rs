//! The program itself against servers of an independent stack: quinn and h3-quinn, which know
//! nothing of multipath or moves.

mod files;
mod frames;
mod limits;
mod own;
mod resume;
mod server;

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use server::{Outcome, SIZE, Server, body, command, digest, forwarder, run};

#[test]
fn a_file_arrives_byte_for_byte() {
    let server = Server::start();
    let outcome = server.get(&["-O"], "file");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(fs::read(server.path("file")).unwrap() == body());
    assert!(!server.path("file.part").exists());
    let line = format!("sha256 {}  file", digest());
    assert!(
        outcome.stderr.lines().any(|known| known == line),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.is_empty());
}

#[test]
fn stdout_gets_the_body_and_nothing_else() {
    let server = Server::start();
    let outcome = server.get(&["-s"], "file");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(outcome.stdout == body());
    assert_eq!(outcome.stderr, "");
}

#[test]
fn any_certificate_will_do_with_k() {
    let server = Server::start();
    let outcome = run(server.folder(), &["-k", "-o", "copy", &server.url("file")]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(fs::read(server.path("copy")).unwrap() == body());
}

#[test]
fn json_tells_the_download() {
    let server = Server::start();
    let outcome = server.get(&["--json", "-o", "copy"], "file");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let events = outcome.events();
    let connected = &events[0];
    assert_eq!(connected["event"], "connected");
    assert_eq!(connected["remote"], server.address.to_string());
    assert_eq!(connected["multipath"], false, "quinn has one path");
    assert!(connected["unix"].as_f64().unwrap() > 1e9);
    let done = events.last().unwrap();
    assert_eq!(done["event"], "done");
    assert_eq!(
        (&done["bytes"], &done["received"]),
        (&SIZE.into(), &SIZE.into())
    );
    assert_eq!(done["sha256"], digest());
    assert_eq!(done["handshakes"], 1);
    assert_eq!(done["requests"], 1);
    assert!(
        done["paths"][0]["bytes"].as_u64().unwrap() > SIZE as u64,
        "{done}"
    );
    assert!(done["paths"][0]["rtt"].as_f64().unwrap() > 0.0, "{done}");
    assert!(done["cpu"].as_f64().unwrap() > 0.0, "{done}");
    // The whole body passes through it, but need not be in it at any one time.
    assert!(done["peak_memory"].as_u64().unwrap() > 1 << 20, "{done}");
    let progress = events
        .iter()
        .find(|event| event["event"] == "progress")
        .unwrap();
    let path = &progress["paths"][0];
    assert_eq!(path["path"], 0, "{progress}");
    assert_eq!(path["remote"], server.address.to_string());
    assert!(path["bytes"].as_u64().unwrap() > 0, "{progress}");
    assert!(
        events
            .iter()
            .all(|event| event["t"].as_f64().is_some_and(|t| t >= 0.0))
    );
}

#[test]
fn the_right_checksum_passes() {
    let server = Server::start();
    let right = format!("sha256:{}", digest());
    assert!(
        server
            .get(&["-O", "--checksum", &right], "file")
            .status
            .success()
    );
}

#[test]
fn a_body_with_a_wrong_checksum_is_put_away() {
    let server = Server::start();
    let wrong = format!("sha256:{}", "0".repeat(64));
    let outcome = server.get(&["-O", "--checksum", &wrong], "file");
    outcome.fails(111, &format!("{SIZE} bytes are kept in file.bad"));
    assert!(fs::read(server.path("file.bad")).unwrap() == body());
    assert!(!server.path("file").exists());
}

#[test]
fn a_short_body_keeps_the_part() {
    let server = Server::start();
    server
        .get(&["--retry", "0", "-O"], "short")
        .fails(18, "try again; 3000017 bytes are kept in short.part");
    assert!(!server.path("short").exists());
}

#[test]
fn not_found_touches_no_file() {
    let server = Server::start();
    fs::write(server.path("gone.part"), "earlier").unwrap();
    server.get(&["-O"], "gone").fails(22, "404 Not Found");
    assert!(!server.path("gone").exists());
    assert_eq!(fs::read(server.path("gone.part")).unwrap(), b"earlier");
}

#[test]
fn a_redirect_names_the_new_place() {
    let server = Server::start();
    server
        .get(&["-O"], "moved")
        .fails(22, "ask for https://localhost/file");
}

#[test]
fn signals_keep_the_part() {
    let server = Server::start();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = command(server.folder(), &["-k", "-o", "cut", &server.url("stuck")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let part = server.path("cut.part");
        let half = SIZE as u64 / 2;
        let mut polls = 0;
        while part.metadata().map_or(0, |known| known.len()) < half {
            polls += 1;
            assert!(polls < 3000, "half of the body never came");
            std::thread::sleep(Duration::from_millis(10));
        }
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        let outcome = Outcome {
            status,
            stdout: Vec::new(),
            stderr,
        };
        outcome.fails(code, &format!("{half} bytes are kept in cut.part"));
        assert!(fs::read(&part).unwrap() == body()[..SIZE / 2]);
        assert!(!server.path("cut").exists());
        fs::remove_file(part).unwrap();
    }
}

#[test]
fn nobody_has_to_read_what_it_says() {
    let server = Server::start();
    for json in [&["--json"][..], &[]] {
        let options = ["-k", "-o", "copy", &server.url("file")];
        let mut child = command(server.folder(), &[json, &options].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("RUST_LOG", "trace")
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(fs::read(server.path("copy")).unwrap() == body());
        fs::remove_file(server.path("copy")).unwrap();
    }
}

#[test]
fn a_full_disk_is_an_error() {
    Server::start()
        .get(&["-o", "/dev/full"], "file")
        .fails(23, "free some space");
}

#[test]
fn a_missing_folder_is_an_error() {
    Server::start()
        .get(&["-o", "none/file"], "file")
        .fails(23, "create the folder");
}

#[test]
fn an_unknown_certificate_is_refused() {
    let server = Server::start();
    let outcome = run(server.folder(), &["-O", &server.url("file")]);
    outcome.fails(60, "--cacert FILE, or the --pin that mpq-serve prints");
    assert!(!server.path("file.part").exists());
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let server = Server::start();
    let url = format!("https://{}/file", server.address);
    run(server.folder(), &["--cacert", "ca.pem", "-O", &url]).fails(60, "127.0.0.1");
}

#[test]
fn an_unusable_ca_file_is_named() {
    let server = Server::start();
    let url = server.url("file");
    fs::write(server.path("empty.pem"), "nothing").unwrap();
    for name in ["none.pem", "empty.pem"] {
        run(server.folder(), &["--cacert", name, "-O", &url]).fails(77, name);
    }
}

#[test]
fn addresses_that_do_not_answer_cost_a_moment_each() {
    let server = Server::start();
    let port = server.address.port();
    let _mute = ["127.0.0.8", "127.0.0.9"].map(|ip| UdpSocket::bind((ip, port)).unwrap());
    let addresses = format!("localhost:{port}:127.0.0.8,127.0.0.9,127.0.0.1");
    let line = ["--resolve", &addresses, "--connect-timeout", "40", "-O"];
    let begun = Instant::now();
    server.get(&line, "file").succeeds();
    // They had a third of that time each before.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_first_refusal_is_final() {
    let folder = tempfile::tempdir().unwrap();
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("https://127.0.0.1:{port}/file");
    let outcome = run(folder.path(), &["-k", "--json", "-O", &url]);
    outcome.fails(7, "refused the connection");
    assert!(outcome.named("retry").is_empty());
    let line = [
        "-k",
        "--json",
        "-O",
        "--retry-connrefused",
        "--retry",
        "1",
        &url,
    ];
    let outcome = run(folder.path(), &line);
    outcome.fails(7, "refused the connection");
    assert_eq!(outcome.named("retry").len(), 1);
}

#[test]
fn of_several_interfaces_one_that_is_not_there_is_left_out() {
    let server = Server::start();
    let line = ["--interface", "none0", "--interface", "lo", "--json", "-O"];
    let outcome = server.get(&line, "file");
    outcome.succeeds();
    let left_out = &outcome.named("interface_left_out")[0];
    assert_eq!(left_out["interface"], "none0");
    assert!(
        outcome
            .stderr
            .contains("warning: interface none0 is left out")
    );
}

#[test]
fn an_unknown_interface_is_named() {
    Server::start()
        .get(&["--interface", "none0"], "file")
        .fails(45, "none0");
}

#[test]
fn an_unknown_host_is_named() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["https://host.invalid/file"]).fails(6, "host.invalid");
}

#[test]
fn a_closed_port_refuses() {
    // Bound and given up again, so that nobody else has it.
    let address = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("https://{address}/file");
    run(folder.path(), &["-k", "--retry", "0", &url]).fails(7, "refused");
}

#[test]
fn silence_is_a_timeout() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("https://{}/file", silent.local_addr().unwrap());
    let line = [
        "-k",
        "--retry",
        "0",
        "--connect-timeout",
        "0.5",
        url.as_str(),
    ];
    run(folder.path(), &line).fails(28, "--connect-timeout");
}

#[test]
fn plain_quic_gets_the_same() {
    let server = Server::start();
    let outcome = server.get(&["--protocol", "quic", "--json", "-O"], "file");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(fs::read(server.path("file")).unwrap() == body());
    let events = outcome.events();
    let named = |name| events.iter().filter(move |event| event["event"] == name);
    assert_eq!(named("connected").next().unwrap()["multipath"], false);
    let done = named("done").next().unwrap();
    assert_eq!(done["sha256"], digest());
    assert_eq!(
        (&done["handshakes"], &done["requests"]),
        (&1.into(), &1.into())
    );
    let [path] = &done["paths"].as_array().unwrap()[..] else {
        panic!("one path: {done}");
    };
    for path in [path, named("path_validated").next().unwrap()] {
        assert_eq!(path["interface"], "lo");
        assert_eq!(path["local"], "127.0.0.1");
        assert_eq!(path["remote"], server.address.to_string());
    }
    assert!(path["bytes"].as_u64().unwrap() > SIZE as u64, "{done}");
}

#[test]
fn plain_quic_leaves_by_the_first_interface() {
    let server = Server::start();
    let both = ["--interface", "127.0.0.2", "--interface", "127.0.0.3"];
    let outcome = server.get(
        &[&["--protocol", "quic", "--json", "-O"], &both[..]].concat(),
        "file",
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let paths = &outcome.events().pop().unwrap()["paths"];
    assert_eq!(paths[0]["local"], "127.0.0.2");
    assert_eq!(paths.as_array().unwrap().len(), 1);
}

#[test]
fn plain_quic_fails_in_the_same_ways() {
    let server = Server::start();
    let quic = ["--protocol", "quic"];
    let get = |options: &[&str], path| server.get(&[&quic, options].concat(), path);
    get(&["-O"], "gone").fails(22, "404 Not Found");
    get(&["--retry", "0", "-O"], "short").fails(18, "bytes are kept in short.part");
    get(&["--interface", "none0"], "file").fails(45, "none0");
    let get = |options: &[&str]| run(server.folder(), &[&quic, options].concat());
    get(&[&server.url("file")]).fails(60, "-k");
    let numeric = format!("https://{}/file", server.address);
    get(&["--cacert", "ca.pem", &numeric]).fails(60, "127.0.0.1");
    get(&["--cacert", "none.pem", &numeric]).fails(77, "none.pem");
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/file", free.local_addr().unwrap());
    let once = ["-k", "--retry", "0"];
    get(&[&once[..], &["--connect-timeout", "0.5", url.as_str()]].concat())
        .fails(28, "--connect-timeout");
    drop(free);
    get(&[&once[..], &[url.as_str()]].concat()).fails(7, "refused");
    let other = Server::with_alpn(b"doq");
    other.get(&quic, "file").fails(95, "no HTTP/3 server");
}

#[test]
fn a_server_that_goes_without_a_word_is_a_timeout() {
    for protocol in ["multipath", "quic"] {
        let server = Server::start();
        let address = forwarder(server.address, 500);
        let url = format!("https://localhost:{}/file", address.port());
        let line = [
            &["--protocol", protocol, "--idle-timeout", "0.5", "--json"],
            &["--retry", "0", "--cacert", "ca.pem", "-O", url.as_str()][..],
        ];
        let outcome = run(server.folder(), &line.concat());
        outcome.fails(28, "bytes are kept in file.part");
        let part = fs::read(server.path("file.part")).unwrap();
        assert!(!part.is_empty() && body().starts_with(&part), "{protocol}");
        assert!(!server.path("file").exists());
        let last = outcome.events().pop().unwrap();
        assert_eq!(
            (&last["event"], &last["code"]),
            (&"error".into(), &28.into())
        );
    }
}

#[test]
fn what_echoes_datagrams_is_no_server() {
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = echo.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = echo.recv_from(&mut datagram) {
            // The client may have gone.
            let _ = echo.send_to(&datagram[..length], from);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let url = format!("https://{address}/file");
    let line = [
        "-k",
        "--retry",
        "0",
        "--connect-timeout",
        "0.5",
        url.as_str(),
    ];
    run(folder.path(), &line).fails(28, "no answer");
}

#[test]
fn another_protocol_is_told() {
    let server = Server::with_alpn(b"doq");
    server.get(&["-O"], "file").fails(95, "no HTTP/3 server");
}

#[test]
fn usage_and_urls_are_checked_first() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |line: &[&str], code, text| run(folder.path(), line).fails(code, text);
    fails(&["http://localhost/"], 1, "https://");
    fails(&["--json", "https://localhost/"], 2, "-o FILE");
    fails(&["https://local host/"], 3, "bad URL");
    fails(&["-O", "https://localhost/"], 23, "-o FILE");
    assert_eq!(run(folder.path(), &["--nonsense"]).status.code(), Some(2));
}
