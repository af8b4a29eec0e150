//! A client that does not read while its server parks, since it is stopped, and goes on before the server does, or
//! long after.

use std::time::Duration;

use anyhow::{Context, Result};
use common::{criu, privileged};
use mpq_lab::arms::mpq_get::{DownloadEvent, Summary};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{ServerA, ServerB};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod common;

const MILLISECOND: Duration = Duration::from_millis(1);
/// Before the freeze, which takes 0.1 s at the least.
const HEAD_START: Duration = Duration::from_millis(50);

/// Stops the client for so long in the midst of a download, and moves the server in the meantime.
async fn stopped_for(time: Duration, content: Content) -> Result<Summary> {
    let testbed = Testbed::new(&criu(), &Network::default())?;
    let run = async {
        testbed.serve(ServerA, content, |_| ()).await?;
        let mut download = testbed.download(ServerA)?;
        download.wait_for_bytes(content.size / 3).await?;
        let client = Pid::from_raw(download.pid().context("it has ended")?);
        kill(client, Signal::SIGSTOP)?;
        let awake = async {
            tokio::time::sleep(time).await;
            anyhow::Ok(kill(client, Signal::SIGCONT)?)
        };
        let moved = async {
            tokio::time::sleep(HEAD_START).await;
            testbed.checkpoint(ServerA, ServerB).await?;
            testbed.restore(ServerB).await?;
            anyhow::Ok(())
        };
        tokio::try_join!(awake, moved)?;
        download.finish().await
    };
    let entries = run
        .await
        .with_context(|| format!("{time:?}; the logs:\n{}", testbed.logs()))?;
    match &entries.last().context("there is no event")?.event {
        DownloadEvent::Done(done) => Ok(done.clone()),
        event => anyhow::bail!("the last event is {event:?}"),
    }
}

#[tokio::test]
async fn a_client_that_is_stopped_while_its_server_parks_keeps_every_byte_and_its_connection() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for time in [250, 1_000, 4_000, 15_000].map(|ms| MILLISECOND * ms) {
        for seed in 70..73 {
            let content = Content {
                size: 40_000_000,
                seed,
            };
            let done = stopped_for(time, content).await.unwrap();
            assert_eq!(done.sha256, content.sha256(), "{time:?}");
            // The rest may be asked for in parts, where the stop was measured as a long round trip.
            assert_eq!(done.handshakes, 1, "{time:?}");
            assert_eq!(done.received, content.size, "every byte once");
        }
    }
}
