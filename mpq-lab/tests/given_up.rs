//! Moves that end a client's connection: what it has is kept, and the rest is asked for anew.

use std::time::Duration;

use anyhow::{Context, Result};
use common::{criu, privileged};
use mpq_lab::arms::mpq_get::{Download, DownloadEvent, Summary};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{ServerA, ServerB};
use mpq_lab::system::host::unix;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod common;

const CONTENT: Content = Content {
    size: 40_000_000,
    seed: 90,
};
/// Longer than a server waits for a client after a move, and then hears nothing from it.
const SLEEP: Duration = Duration::from_secs(100);
/// Until a client has left a server that answers but does not go on, and has all, seconds. It makes three attempts,
/// which take 2 s each, or 8 s of one who has measured that it slept.
const LEFT: f64 = 20.0;
const LEFT_AFTER_SLEEP: f64 = 40.0;

/// What a download tells at its end, with what `during` does after a third of it.
async fn download(
    testbed: &Testbed,
    during: impl AsyncFnOnce(&mut Download) -> Result<()>,
) -> Summary {
    let run = async {
        testbed.serve(ServerA, CONTENT, |_| ()).await?;
        let mut download = testbed.download(ServerA)?;
        download.wait_for_bytes(CONTENT.size / 3).await?;
        during(&mut download).await?;
        let entries = download.finish().await?;
        match &entries.last().context("there is no event")?.event {
            DownloadEvent::Done(done) => Ok(done.clone()),
            event => anyhow::bail!("the last event is {event:?}"),
        }
    };
    run.await
        .with_context(|| format!("the logs:\n{}", testbed.logs()))
        .unwrap()
}

/// Whole, by a second connection that was asked for the rest only. That may be in parts: on a busy machine a round
/// trip over these links is about as long as one request can fill.
fn assert_resumed(done: &Summary) {
    assert_eq!(done.sha256, CONTENT.sha256());
    assert_eq!(done.handshakes, 2, "{done:?}");
    assert_eq!(done.received, CONTENT.size, "every byte once: {done:?}");
}

#[tokio::test]
async fn a_client_that_slept_until_the_server_gave_it_up_connects_again_where_the_server_is_now() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let mut woke = 0.0;
    let done = download(&testbed, async |download| {
        let client = Pid::from_raw(download.pid().context("it has ended")?);
        kill(client, Signal::SIGSTOP)?;
        testbed.checkpoint(ServerA, ServerB).await?;
        testbed.restore(ServerB).await?;
        tokio::time::sleep(SLEEP).await;
        woke = unix();
        Ok(kill(client, Signal::SIGCONT)?)
    })
    .await;
    assert_resumed(&done);
    let took = unix() - woke;
    assert!(took < LEFT_AFTER_SLEEP, "{took} s");
}

#[tokio::test]
async fn a_server_that_cannot_be_restored_is_left_for_another_one_at_the_new_address() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let mut began = 0.0;
    let done = download(&testbed, async |_| {
        testbed.checkpoint(ServerA, ServerB).await?;
        // Its images are there, but nobody restores them.
        testbed.serve(ServerB, CONTENT, |_| ()).await?;
        began = unix();
        Ok(())
    })
    .await;
    assert_resumed(&done);
    let took = unix() - began;
    assert!(took < LEFT, "{took} s");
}
