//! Another implementation's client, quinn with h3-quinn, downloads from the real program.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Buf;
use data_encoding::HEXLOWER;
use http::Request;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use support::start;

fn trusting(certificate: CertificateDer<'static>) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

#[tokio::test]
async fn quinn_gets_random_byte_exact_and_the_log_has_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = [cert, key].map(|file| file.to_str().unwrap().to_owned());
    let options = [
        "--random",
        "20M",
        "--seed",
        "7",
        "--cert",
        &files[0],
        "--key",
        &files[1],
        "--congestion",
        "olia",
    ];
    let (server, address) = start(&options);

    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(trusting(made.cert.der().clone()));
    let connection = endpoint
        .connect(address, "localhost")
        .unwrap()
        .await
        .unwrap();
    let (mut driver, mut requests) = h3::client::new(h3_quinn::Connection::new(connection))
        .await
        .unwrap();
    let driver = tokio::spawn(async move { driver.wait_idle().await });
    let request = Request::get("https://localhost/random").body(()).unwrap();
    let mut stream = requests.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    let response = stream.recv_response().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], "20000000");
    let mut digest = Sha256::new();
    let mut received = 0;
    while let Some(mut chunk) = stream.recv_data().await.unwrap() {
        received += chunk.remaining();
        digest.update(chunk.copy_to_bytes(chunk.remaining()));
    }
    let digest = HEXLOWER.encode(&digest.finalize());
    assert_eq!(
        (received, digest),
        (20_000_000, mpq_serve::site::random::sha256(20_000_000, 7))
    );
    drop(requests);
    driver.abort();
    endpoint.close(0_u32.into(), b"");
    endpoint.wait_idle().await;

    // The whole connection, and its only path.
    let client = endpoint.local_addr().unwrap().to_string();
    for path in [None, Some("0")] {
        let figures = figures(&server.log);
        assert_eq!(figures["connection"], client, "{figures:?}");
        assert_eq!(figures.get("path").map(String::as_str), path);
        let number = |name: &str| figures[name].parse::<f64>().unwrap();
        assert!(
            number("sent") - number("lost") > received as f64,
            "{figures:?}"
        );
        assert!(
            number("sent_packets") > number("sent") / 65_536.0,
            "{figures:?}"
        );
        assert!(number("received") > 0.0, "{figures:?}");
        let positive: &[_] = match path {
            None => &["seconds", "paths", "cpu", "peak_memory"],
            Some(_) => &["rtt", "window"],
        };
        assert!(
            positive.iter().all(|name| number(name) > 0.0),
            "{figures:?}"
        );
    }
}

/// The next line of figures in the log, by name.
fn figures(log: &mpsc::Receiver<String>) -> BTreeMap<String, String> {
    // Only ends a test that hangs.
    let patience = Duration::from_secs(60);
    loop {
        let line = log.recv_timeout(patience).expect("figures");
        if let Some((_, figures)) = line.split_once(" stats ") {
            let pair = |pair: &str| {
                let (name, value) = pair.split_once('=').expect("name=value");
                (name.to_owned(), value.to_owned())
            };
            return figures.split(' ').map(pair).collect();
        }
    }
}
