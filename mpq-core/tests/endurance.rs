//! Fifty moves in one download.

mod support;

use std::time::Duration;

use mpq_core::client::{ClientEvent, MigrationEvent};
use mpq_core::proto::server::Announcement;
use mpq_core::server::Thaw;
use support::{Bench, MILLISECOND, announcement, in_use, until};

/// By which the download must grow between two moves, bytes.
const PROOF: u64 = 128 << 10;
const MOVES: usize = 50;
/// After so many moves, everything that is kept from one to the next is there.
const SETTLED: usize = 10;
/// Memory that may come and go, bytes.
const SLACK: u64 = 16 << 20;

/// What is resident of this process now, bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_moves_planned_and_unplanned() {
    let mut rng = fastrand::Rng::with_seed(50);
    let bench = Bench::new(50);
    let places = [1, 2].map(|host| bench.network.at(host));
    let client = bench.connect(places[0]).await;
    let mut events = client.events();
    let download = bench.download(&client).await;
    let (mut unplanned, mut settled) = (0, 0);
    for number in 1..=MOVES {
        download.grows(PROOF).await;
        let place = places[number % 2];
        let told = rng.bool();
        unplanned += usize::from(!told);
        let outage = MILLISECOND * rng.u32(0..200);
        let announced = Announcement {
            targets: if told { vec![place] } else { vec![] },
            ..announcement(&[], Duration::ZERO)
        };
        let freeze = async {
            tokio::time::sleep(outage).await;
            Thaw::At(place)
        };
        let moved = bench.server.relocate(announced, freeze, |_| ()).await;
        assert_eq!(moved.unwrap(), place);
        until(
            &mut events,
            |event| matches!(event, ClientEvent::Migration(MigrationEvent::Settled { remote }) if *remote == place),
        )
        .await;
        if number == SETTLED {
            settled = memory();
        }
    }
    let grown = memory().saturating_sub(settled);
    assert!(
        grown < SLACK,
        "{grown} bytes more than after {SETTLED} moves"
    );
    assert!((10..=40).contains(&unplanned), "a mixture: {unplanned}");
    // There are ids for as many paths as are needed: one from each address, after each move.
    let last = in_use(&client).iter().map(|path| path.id).max().unwrap();
    assert!(u32::from(last) as usize >= 2 * MOVES, "{last}");
    assert_eq!(in_use(&client).len(), 2);
    download.grows(PROOF).await;
    download.whole().await;
    assert_eq!((client.handshakes(), bench.sessions()), (1, 1));
    client.close().await;
}
