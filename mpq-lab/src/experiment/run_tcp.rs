//! A run of curl and nginx, over TCP or Multipath TCP.

use anyhow::{Result, bail, ensure};
use tokio::time::{Instant, sleep_until};

use crate::arms::sample::Side;
use crate::arms::tcp::{self, Curl, Nginx};
use crate::experiment::record::{Mark, What};
use crate::experiment::scenario::Arm;
use crate::experiment::stage::{MOST_STARTS, Outcome, Stage, replaced};
use crate::network::topology::Host::{ServerA, ServerB};
use crate::system::host::unix;

/// Downloads while the server and the links do what the scenario says, and tells what that has shown.
pub(super) async fn download(stage: &Stage<'_>) -> Result<Outcome> {
    let multipath = stage.arm == Arm::Mptcp;
    let topology = stage.testbed.topology();
    if multipath {
        tcp::prepare_multipath(topology)?;
    }
    let nginx = Nginx::new(stage.testbed.scratch(), stage.scenario.content(), multipath)?;
    let mut first = nginx.start(topology, ServerA).await?;
    watch(stage, Side::Server, first.id());

    let (zero, start) = (Instant::now(), unix());
    let curls = async {
        let mut lost = Vec::new();
        for starts in 1..=MOST_STARTS {
            let host = if starts == 1 { ServerA } else { ServerB };
            let curl = Curl::start(
                topology,
                host,
                stage.testbed.scratch(),
                multipath,
                stage.scenario.patience,
            )?;
            watch(stage, Side::Client, curl.pid());
            match curl.finish().await? {
                Ok(file) => return Ok((lost, starts, unix(), file)),
                Err(why) if stage.scenario.moves.is_none() => bail!("curl: {why}"),
                Err(_) => lost.push(Mark::new(unix(), What::Lost)),
            }
        }
        bail!("curl has failed {MOST_STARTS} times")
    };
    let moves = async {
        let Some(moves) = &stage.scenario.moves else {
            return Ok((Vec::new(), None));
        };
        // Its host falls silent, as one does that is suspended.
        sleep_until(zero + moves.freeze).await;
        let frozen = unix();
        tcp::disconnect(topology, ServerA)?;
        first.start_kill()?;
        sleep_until(zero + moves.thaw(stage.number).unwrap_or(moves.freeze)).await;
        let second = nginx.start(topology, ServerB).await?;
        watch(stage, Side::Server, second.id());
        Ok((replaced(frozen, unix()), Some(second)))
    };
    let links = stage.change_links(zero);
    let ((lost, starts, end, file), (mut marks, second), ()) =
        tokio::try_join!(curls, moves, links)?;
    let sent_again = tcp::sent_again(topology)?;
    drop(second);
    ensure!(
        tcp::sha256(&file)? == stage.expected,
        "the content is not right"
    );
    marks.extend(lost);
    Ok(Outcome {
        start,
        end,
        starts,
        handshakes: 1,
        requests: 1,
        marks,
        sent_again,
        ..Outcome::default()
    })
}

/// Counts what this process uses, unless it has ended.
fn watch(stage: &Stage<'_>, side: Side, pid: Option<u32>) {
    if let Some(pid) = pid.and_then(|pid| pid.try_into().ok()) {
        stage.sampler.watch(side, pid);
    }
}
