//! Whom a client trusts, seen in real handshakes on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mpq_core::client::ConnectError;
use mpq_core::tls::{self, Identity, Trust};
use noq::ConnectionError;

/// The outcome of a handshake at the client and at the server.
async fn handshake(
    identity: &Identity,
    trust: &Trust,
    name: &str,
) -> [Result<(), ConnectionError>; 2] {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let crypto = tls::server_config(identity).unwrap();
    let config = noq::ServerConfig::with_crypto(Arc::new(crypto));
    let server = noq::Endpoint::server(config, loopback).unwrap();
    let client = noq::Endpoint::client(loopback).unwrap();
    let crypto = tls::client_config(trust).unwrap();
    client.set_default_client_config(noq::ClientConfig::new(Arc::new(crypto)));
    let connecting = client.connect(server.local_addr().unwrap(), name).unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (connected, accepted) = tokio::join!(connecting, accepting);
    [connected.map(drop), accepted.map(drop)]
}

fn is_the_certificates(error: &ConnectionError) -> bool {
    matches!(
        ConnectError::from(error.clone()),
        ConnectError::Certificate(_)
    )
}

/// An identity for `localhost` and 127.0.0.1, and a file with its certificate.
fn identity(dir: &tempfile::TempDir, name: &str) -> (Identity, Trust) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let file = |kind| dir.path().join(format!("{name}.{kind}.pem"));
    let (cert, key) = (file("cert"), file("key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (
        Identity::from_pem(&cert, &key).unwrap(),
        Trust::CaFile(cert),
    )
}

#[tokio::test]
async fn a_known_certificate_is_trusted_for_its_names_only() {
    let dir = tempfile::tempdir().unwrap();
    let (server, trust) = identity(&dir, "server");
    let (_, other) = identity(&dir, "other");
    for name in ["localhost", "127.0.0.1"] {
        assert_eq!(handshake(&server, &trust, name).await, [Ok(()), Ok(())]);
    }
    for (trust, name) in [(&trust, "example.org"), (&other, "localhost")] {
        let [client, server] = handshake(&server, trust, name).await;
        let client = client.unwrap_err();
        assert!(is_the_certificates(&client), "{client:?}");
        assert!(server.is_err());
    }
}

#[tokio::test]
async fn the_system_does_not_trust_a_self_signed_certificate_but_insecure_does() {
    let server = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    assert_eq!(
        handshake(&server, &Trust::Insecure, "example.org").await,
        [Ok(()), Ok(())]
    );
    let [client, at_server] = handshake(&server, &Trust::System, "localhost").await;
    assert!(is_the_certificates(&client.unwrap_err()));
    // The server learns of it by the alert.
    let at_server = at_server.unwrap_err();
    assert!(is_the_certificates(&at_server), "{at_server:?}");
}

#[tokio::test]
async fn a_pin_is_a_sha256_with_or_without_saying_so() {
    let server = Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let digest = server.fingerprint();
    for pin in [
        digest.clone(),
        digest.to_uppercase(),
        format!("sha256:{digest}"),
    ] {
        let ended = handshake(&server, &Trust::Pinned(pin), "example.org").await;
        assert_eq!(ended, [Ok(()), Ok(())]);
    }
    let other = Trust::Pinned(format!("sha256:{}", "0".repeat(64)));
    let [client, _] = handshake(&server, &other, "localhost").await;
    assert!(is_the_certificates(&client.unwrap_err()));
    for bad in [
        "",
        "sha256:",
        &digest[1..],
        &format!("sha1:{digest}"),
        &"x".repeat(64),
    ] {
        let error = tls::rustls_client(&Trust::Pinned(bad.to_owned())).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("64 hexadecimal digits"), "{said}");
    }
}

#[test]
fn other_failures_are_not_the_certificates() {
    for error in [
        ConnectionError::TimedOut,
        ConnectionError::Reset,
        ConnectionError::LocallyClosed,
    ] {
        assert!(!is_the_certificates(&error));
    }
}
