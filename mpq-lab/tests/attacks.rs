//! Whoever attacks a server neither slows a good client down by much nor takes the server's memory.

use common::{criu, privileged};
use mpq_lab::arms::attacker::Attack;
use mpq_lab::bench::attacks::{heading, measure};

mod common;

/// Pairs of downloads of each kind: the median of so many is right where one of them was disturbed.
const ROUNDS: u32 = 3;

#[tokio::test]
async fn a_good_client_keeps_its_rate_and_the_server_its_memory_under_every_attack() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let mut wrong = Vec::new();
    println!("{}", heading());
    for attack in Attack::ALL {
        let outcome = measure(attack, ROUNDS, &criu()).await.unwrap();
        println!("{outcome}");
        assert!(outcome.deeds > 100, "{outcome:?}");
        wrong.extend(outcome.faults());
    }
    assert_eq!(wrong, [""; 0]);
}
