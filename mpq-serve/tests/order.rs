//! Which answer of a connection goes first (RFC 9218).

mod support;

use std::time::Duration;

use support::{Client, link, start};

/// What a long answer has, bytes.
const LONG: u64 = 10_000_000;
const LIMIT: Duration = Duration::from_secs(60);

/// Two answers, of which the first has begun before the second is asked for. Returns what has come of the other
/// one when one is over, and whether that was the first.
async fn race(
    first: &[(&str, &str)],
    second: &[(&str, &str)],
    update: Option<&str>,
) -> (bool, u64) {
    let work = async {
        let (_server, address) = start(&["--random", &LONG.to_string()]);
        let mut client = Client::connect(link(address).await).await;
        let mut first = client.ask(first).await;
        while first.received() < LONG / 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut second = client.ask(second).await;
        if let Some(priority) = update {
            client.update(1, priority).await;
        }
        tokio::select! {
            end = &mut first.end => {
                end.unwrap().unwrap();
                (true, second.received())
            }
            end = &mut second.end => {
                end.unwrap().unwrap();
                (false, first.received())
            }
        }
    };
    tokio::time::timeout(LIMIT, work).await.unwrap()
}

#[tokio::test]
async fn a_small_answer_does_not_wait_for_a_large_one() {
    let (is_first, received) = race(&[], &[("range", "bytes=0-25")], None).await;
    assert!(!is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn who_asks_for_an_order_gets_one_after_the_other() {
    let in_order = [("priority", "u=3")];
    let (is_first, received) = race(&in_order, &in_order, None).await;
    assert!(is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn answers_of_which_a_part_is_of_use_share() {
    let part = [("priority", "i")];
    let (_, received) = race(&part, &part, None).await;
    assert!(received > LONG / 2, "{received}");
}

#[tokio::test]
async fn the_more_urgent_goes_first() {
    let (is_first, received) = race(&[("priority", "u=3, i")], &[("priority", "u=1")], None).await;
    assert!(!is_first && received < LONG / 2, "{received}");
}

#[tokio::test]
async fn a_client_may_change_its_mind() {
    let in_order = [("priority", "u=3")];
    let (is_first, received) = race(&in_order, &in_order, Some("u=1")).await;
    assert!(!is_first && received < LONG / 2, "{received}");
}
