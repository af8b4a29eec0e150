//! Downloads that go on while CRIU moves their server between hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use capture::{Capture, Datagram};
use common::{criu, privileged};
use mpq_core::client::{ClientEvent, MigrationEvent};
use mpq_lab::arms::mpq_get::{Download, DownloadEvent, Entry, Summary};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::move_summary::MoveSummary;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{self, ServerA, ServerB};
use mpq_lab::system::host::built;

#[path = "common/capture.rs"]
mod capture;
mod common;

/// Runs a download of `content`, with what `during` does meanwhile, and returns its events.
async fn download(
    testbed: &Testbed,
    content: Content,
    during: impl AsyncFnOnce(&mut Download) -> Result<()>,
) -> Vec<Entry> {
    let run = async {
        testbed.serve(ServerA, content, |_| ()).await?;
        let mut download = testbed.download(ServerA)?;
        during(&mut download).await?;
        download.finish().await
    };
    let result = run.await;
    result
        .with_context(|| format!("{content:?}; the logs:\n{}", testbed.logs()))
        .unwrap()
}

fn done(entries: &[Entry]) -> &Summary {
    match &entries.last().unwrap().event {
        DownloadEvent::Done(done) => done,
        event => panic!("the last event is {event:?}"),
    }
}

/// The download is whole, and was one request on one connection.
fn assert_kept(entries: &[Entry], content: Content) {
    let done = done(entries);
    assert_eq!(done.bytes, content.size, "{content:?}");
    assert_eq!(done.sha256, content.sha256(), "{content:?}");
    assert_eq!((done.handshakes, done.requests), (1, 1), "{content:?}");
}

/// SplitMix64: a seed's random number.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[tokio::test]
async fn moves_at_random_moments_keep_every_byte() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for seed in 1..=10 {
        let size = 30_000_000 + random(seed) % 10_000_000;
        // Anywhere but in the last tenth, which may be on its way already.
        let moment = random(seed + 1000) % (size / 10 * 9);
        let content = Content { size, seed };
        eprintln!("seed {seed}: {size} bytes, a move from byte {moment} on");

        let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
        let entries = download(&testbed, content, async |download| {
            download.wait_for_bytes(moment).await?;
            testbed.checkpoint(ServerA, ServerB).await?;
            testbed.restore(ServerB).await?;
            Ok(())
        })
        .await;

        assert_kept(&entries, content);
        let target = ServerB.server_address();
        let summary = MoveSummary::new(&entries, content.sha256(), target, None).unwrap();
        summary.verify().unwrap();
    }
}

/// Otherwise the server might send three times what it received, until the client has answered.
#[tokio::test]
async fn a_client_returns_the_knock_and_is_sent_the_body_before_it_has_answered() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 40_000_000,
        seed: 50,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let mut seen = Vec::new();
    let entries = download(&testbed, content, async |download| {
        download.wait_for_bytes(content.size / 2).await?;
        testbed.checkpoint(ServerA, ServerB).await?;
        let capture = Capture::start(testbed.topology().namespace_file(ServerB))?;
        testbed.restore(ServerB).await?;
        download.wait_for_bytes(content.size / 4 * 3).await?;
        seen = capture.finish()?;
        Ok(())
    })
    .await;
    assert_kept(&entries, content);

    let knock = |datagram: &&Datagram| datagram.version == Some([0; 4]) && datagram.length == 27;
    let client = seen.iter().find(knock).expect("the server knocks").to;
    let with_it = |datagram: &&Datagram| datagram.from == client || datagram.to == client;
    let mut with_it = seen.iter().filter(with_it).filter(|d| !d.is_probe());
    let echo = with_it.find(|datagram| datagram.from == client);
    assert!(echo.as_ref().is_some_and(knock), "{echo:?}");
    let opening = with_it.find(|datagram| datagram.from == client).unwrap();
    let unanswered = with_it.take_while(|datagram| datagram.to == client);
    let sent: usize = unanswered.map(|datagram| datagram.length).sum();
    assert!(sent > 3 * opening.length + 1_500, "{sent} for {opening:?}");
}

#[tokio::test]
async fn a_server_goes_and_comes_back_in_one_download() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 60_000_000,
        seed: 20,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let entries = download(&testbed, content, async |download| {
        download.wait_for_bytes(content.size / 4).await?;
        testbed.checkpoint(ServerA, ServerB).await?;
        testbed.restore(ServerB).await?;
        download
            .wait_for(|event| matches!(event, DownloadEvent::FirstByteAfterMove { .. }))
            .await?;
        download.wait_for_bytes(content.size / 2).await?;
        testbed.checkpoint(ServerB, ServerA).await?;
        testbed.restore(ServerA).await?;
        Ok(())
    })
    .await;

    assert_kept(&entries, content);
    let stations: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry.event {
            DownloadEvent::FirstByteAfterMove { remote, .. } => Some(remote),
            _ => None,
        })
        .collect();
    assert_eq!(stations, [ServerB, ServerA].map(Host::server_address));
}

#[tokio::test]
async fn a_server_that_comes_back_where_it_was_is_waited_for_as_in_any_move() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 40_000_000,
        seed: 45,
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let entries = download(&testbed, content, async |download| {
        download.wait_for_bytes(content.size / 2).await?;
        testbed.checkpoint(ServerA, ServerA).await?;
        tokio::time::sleep(Duration::from_secs(45)).await;
        testbed.restore(ServerA).await?;
        Ok(())
    })
    .await;
    assert_kept(&entries, content);
}

#[tokio::test]
async fn a_freeze_beyond_the_idle_timeout_keeps_the_connection() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 30_000_000,
        seed: 30,
    };
    // The usual idle timeout of QUIC is 30 s.
    let freeze = Duration::from_secs(35);
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let mut frozen = 0.0;
    let entries = download(&testbed, content, async |download| {
        download.wait_for_bytes(content.size / 2).await?;
        let dump = testbed.checkpoint(ServerA, ServerB).await?;
        tokio::time::sleep(freeze).await;
        let restored = testbed.restore(ServerB).await?;
        frozen = restored.thawed - dump.dump_started;
        Ok(())
    })
    .await;

    assert!(frozen >= freeze.as_secs_f64(), "frozen for {frozen} s only");
    assert_kept(&entries, content);
    let target = ServerB.server_address();
    MoveSummary::new(&entries, content.sha256(), target, None)
        .unwrap()
        .verify()
        .unwrap();
}

/// So it is in some containers, and wherever a supervisor outside started the shell.
#[tokio::test]
async fn a_server_moves_whose_session_leader_is_outside_of_its_pid_namespace() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // The shell stays, as the first process of the namespace, to collect orphans.
    let demo = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", "\"$0\" demo || exit 1"])
        .arg(built("mpq-lab").unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{demo:?}");
    assert!(said.contains("with CRIU"), "{said}");
}

#[tokio::test]
async fn a_dump_that_fails_leaves_the_server_where_it_was() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 40_000_000,
        seed: 40,
    };
    let folder = tempfile::tempdir().unwrap();
    // It passes for a CRIU until it has to dump.
    let failing = folder.path().join("criu");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *dump*) echo 'no dump today' >&2; exit 1;; esac\nexec '{}' \"$@\"\n",
        criu().display()
    );
    fs::write(&failing, script).unwrap();
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).unwrap();

    let testbed = Testbed::new(&failing, &Network::default()).unwrap();
    let mut refusal = String::new();
    let entries = download(&testbed, content, async |download| {
        download.wait_for_bytes(content.size / 2).await?;
        if let Err(error) = testbed.checkpoint(ServerA, ServerB).await {
            refusal = format!("{error:#}");
        }
        Ok(())
    })
    .await;

    assert!(!refusal.is_empty(), "the checkpoint has not failed");
    assert_kept(&entries, content);
    let cancelled = |entry: &Entry| {
        matches!(
            entry.event,
            DownloadEvent::Connection(ClientEvent::Migration(MigrationEvent::Cancelled { .. }))
        )
    };
    assert!(entries.iter().any(cancelled), "{entries:?}");
    let stayed = ServerA.server_address();
    let done = done(&entries);
    assert!(
        done.paths.iter().all(|path| path.remote == stayed),
        "{done:?}"
    );
}
