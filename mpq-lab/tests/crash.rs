//! A server that dies without a word, and another one in its place, which only DNS knows.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::Result;
use common::{criu, privileged};
use mpq_lab::arms::mpq_get::{Download, DownloadEvent};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{Client, ServerA, ServerB};
use mpq_lab::system::host::{built, inside};

mod common;

const NAME: &str = "files.example";
/// The type of an IPv4 address (RFC 1035 §3.2.2).
const A: [u8; 2] = [0, 1];

/// A name server for one name, in the client's namespace.
struct Dns {
    address: Arc<AtomicU32>,
    asked: Arc<AtomicU64>,
}

impl Dns {
    fn start(testbed: &Testbed, address: Ipv4Addr) -> Result<Self> {
        let namespace = testbed.topology().namespace_file(Client);
        let socket = inside(&namespace, || UdpSocket::bind("127.0.0.1:53"))?;
        let dns = Self {
            address: Arc::new(AtomicU32::new(address.into())),
            asked: Arc::default(),
        };
        let (address, asked) = (dns.address.clone(), dns.asked.clone());
        // Ends with the process of the tests.
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let address = Ipv4Addr::from(address.load(Ordering::Relaxed));
                if let Some(answer) = answer(&query[..length], address) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(dns)
    }

    fn set(&self, address: Ipv4Addr) {
        self.address.store(address.into(), Ordering::Relaxed);
    }
}

/// The answer to a query of one question: this address if it is of type A, and nothing otherwise.
fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)? + HEADER + 1;
    let question = query.get(HEADER..name + 4)?;
    let is_a = query[name..name + 2] == A;
    // A response, recursion available; one question, and at most one answer.
    let counts = [0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
    let mut answer = [&query[..2], &counts, question].concat();
    if is_a {
        // The name of the question, class IN, not to be kept, four bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// A download by name, with a resolv.conf of its own.
fn download(testbed: &Testbed) -> Result<Download> {
    let resolv = testbed.scratch().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.1\n")?;
    let mut command = testbed.topology().command(Client, "unshare");
    let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    command
        .args(["--mount", "sh", "-c", mount])
        .arg(&resolv)
        .arg(built("mpq-get")?)
        .args(["--insecure", "--interface", "eth0", "--interface", "eth1"])
        .args(["--idle-timeout", "2", "--retry", "10", "--output"])
        .arg(testbed.scratch().join("download"))
        .arg(format!(
            "https://{NAME}:{}/random",
            ServerA.server_address().port()
        ));
    Download::start(command)
}

#[tokio::test]
async fn a_download_resumes_from_where_dns_says_that_the_server_is_now() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 40_000_000,
        seed: 60,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let dns = Dns::start(&testbed, ServerA.address()).unwrap();
    testbed.serve(ServerA, content, |_| ()).await.unwrap();
    let mut download = download(&testbed).unwrap();
    download.wait_for_bytes(content.size / 2).await.unwrap();
    testbed.kill().unwrap();
    let before = dns.asked.load(Ordering::Relaxed);
    dns.set(ServerB.address());
    testbed.serve(ServerB, content, |_| ()).await.unwrap();
    let entries = download.finish().await.unwrap();

    assert!(dns.asked.load(Ordering::Relaxed) > before, "it asks again");
    let resumed = entries.iter().find_map(|entry| match entry.event {
        DownloadEvent::Reconnected { remote, offset } => Some((remote, offset)),
        _ => None,
    });
    let (remote, offset) = resumed.expect("it goes on");
    assert_eq!(remote, ServerB.server_address());
    // Nothing that was on the disk is asked for again.
    assert!(offset >= content.size / 2, "{offset}");
    let DownloadEvent::Done(done) = &entries.last().unwrap().event else {
        panic!("{entries:?}");
    };
    assert_eq!(done.bytes, content.size);
    assert_eq!(done.sha256, content.sha256());
    let over_b = done.paths.iter().filter(|path| path.remote == remote);
    let received: u64 = over_b.map(|path| path.received).sum();
    let rest = content.size - offset;
    assert!(
        (rest..rest + rest / 10).contains(&received),
        "{received} bytes for the last {rest}"
    );
}
