//! What the program says at its start, and with which certificate.

mod support;

use quinn::rustls::pki_types::CertificateDer;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use support::{connect, start};

fn refused(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mpq-serve"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

async fn shown(server: SocketAddr) -> Vec<CertificateDer<'static>> {
    let connection = connect(server).await.unwrap();
    let chain = connection.peer_identity().unwrap();
    *chain.downcast().unwrap()
}

#[test]
fn it_says_where_it_is_and_how_to_download() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a file.iso"), "x").unwrap();
    let (server, address) = start(&["--root", folder.path().to_str().unwrap()]);
    let mut lines = server.log.iter();
    let mut after = |what: &str| {
        let line = lines.find_map(|line| Some(line.split_once(what)?.1.to_owned()));
        line.unwrap_or_else(|| panic!("it does not say {what}"))
    };
    let fingerprint = after("certificate sha256 ");
    assert_eq!(after("serving "), format!("https://{address}/"));
    let command = format!("mpq-get --pin sha256:{fingerprint} -O https://{address}/a%20file.iso");
    assert_eq!(after("download with: "), command);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let (code, said) = refused(&[]);
    assert!(code == 2 && said.contains("nothing to serve"), "{said}");
    let (code, said) = refused(&["/missing/directory"]);
    assert!(code == 1 && said.contains("/missing/directory"), "{said}");
}

#[tokio::test]
async fn a_certificate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("kept");
    let options = ["--save-cert", dir.to_str().unwrap()];
    let (server, address) = start(&options);
    let first = shown(address).await;
    drop(server);
    let (_server, address) = start(&options);
    assert_eq!(shown(address).await, first);
}
