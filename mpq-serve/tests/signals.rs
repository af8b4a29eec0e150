//! What signals do to a running server.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use quinn::rustls::pki_types::CertificateDer;
use support::{connect, start, start_in};

/// Makes a certificate, and writes it and its key.
fn issue(cert: &Path, key: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(cert, made.cert.pem()).unwrap();
    fs::write(key, made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// What a new connection is shown.
async fn shown(server: std::net::SocketAddr) -> CertificateDer<'static> {
    let connection = connect(server).await.unwrap();
    let chain = connection.peer_identity().unwrap();
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    chain[0].clone()
}

#[tokio::test]
async fn a_certificate_is_read_again_and_a_bad_one_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    let first = issue(&cert, &key);
    let files = [&cert, &key].map(|file| file.to_str().unwrap());
    let (server, address) = start(&["--cert", files[0], "--key", files[1]]);
    let before = connect(address).await.unwrap();
    assert_eq!(shown(address).await, first);

    let second = issue(&cert, &key);
    server.tell(Signal::SIGHUP);
    server.wait_for("read again");
    assert_eq!(shown(address).await, second);

    for (file, bad) in [(&cert, "nonsense"), (&key, "")] {
        fs::write(file, bad).unwrap();
        server.tell(Signal::SIGHUP);
        server.wait_for("stays as it was");
        assert_eq!(shown(address).await, second);
    }
    assert!(before.close_reason().is_none());
}

#[tokio::test]
async fn signals_without_a_meaning_do_not_end_it() {
    let (mut server, address) = start(&[]);
    server.tell(Signal::SIGUSR2);
    server.wait_for("SIGUSR2");
    server.tell(Signal::SIGHUP);
    server.wait_for("no --cert");
    let shown_before = shown(address).await;
    assert_eq!(shown(address).await, shown_before);
    assert!(server.process.0.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn systemd_is_told_when_the_server_is_ready_reloads_moves_and_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let port = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
    let target = port.local_addr().unwrap().to_string();
    drop(port);
    let moving = ["--migrate-to", &target, "--move-in-process", "0"];
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    issue(&cert, &key);
    let files = [&cert, &key].map(|file| file.to_str().unwrap());
    let moving = [&moving[..], &["--cert", files[0], "--key", files[1]]].concat();
    let (mut server, address) = start_in(&moving, &[("NOTIFY_SOCKET", path.as_os_str())]);
    let ready = format!("READY=1\nSTATUS=Serving at {address}\n");
    assert_eq!(told(), ready);
    server.tell(Signal::SIGHUP);
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(told(), ready);
    // systemctl knows nothing of what comes of a reload; its `status` says it.
    fs::write(&cert, "nonsense").unwrap();
    server.tell(Signal::SIGHUP);
    assert!(told().starts_with("RELOADING=1\n"));
    let failed = told();
    assert!(
        failed.contains("; the certificate stays as it was: "),
        "{failed}"
    );
    server.tell(Signal::SIGUSR1);
    assert_eq!(told(), format!("STATUS=Moving to [{target}]\n"));
    let pid = server.process.0.id();
    assert_eq!(
        told(),
        format!("MAINPID={pid}\nREADY=1\nSTATUS=Serving at {target}\n")
    );
    server.tell(Signal::SIGTERM);
    assert!(told().starts_with("STOPPING=1\nSTATUS=Leaving"));
    assert!(server.process.0.wait().unwrap().success());
}
