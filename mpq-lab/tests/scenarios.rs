//! One short run of each kind of scenario and of each arm, on the real network.

use std::time::Duration;

use common::{criu, privileged};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::tcp::{Curl, Nginx, prepare_multipath};
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::experiment::record::{Run, What};
use mpq_lab::experiment::run;
use mpq_lab::experiment::scenario::{Arm, Scenario};
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::ServerA;

mod common;

/// Runs an arm in a scenario of these lines.
async fn once(arm: Arm, lines: &str) -> Run {
    let text = format!("description = 'a test'\narms = ['{arm}']\n{lines}");
    let scenario = Scenario::parse("test", &text).unwrap();
    let run = run::once(&scenario, arm, 1, &criu()).await.unwrap();
    assert_eq!(run.bytes, scenario.size);
    run
}

/// How many of the bytes went over the second interface.
fn over_second(run: &Run) -> f64 {
    let received = run.samples.last().unwrap().received;
    received[1] as f64 / received.iter().sum::<u64>() as f64
}

#[tokio::test]
async fn pings_take_twice_the_delay() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let run = once(Arm::Ping, "size = '0'").await;
    for rtt in &run.rtt {
        assert!(rtt.iter().all(|rtt| *rtt >= 0.050), "{rtt:?}");
    }
}

#[tokio::test]
async fn every_arm_downloads_over_the_interfaces_it_is_meant_to() {
    let Some(_alone) = privileged().await else {
        return;
    };
    for arm in [Arm::Quic, Arm::Tcp] {
        let run = once(arm, "size = '5M'").await;
        assert!(over_second(&run) < 0.01, "{arm}: {}", over_second(&run));
        assert_eq!(run.starts, 1);
    }
    for arm in [Arm::Multipath, Arm::MultipathOlia, Arm::Mptcp] {
        let run = once(arm, "size = '20M'").await;
        assert!(over_second(&run) > 0.1, "{arm}: {}", over_second(&run));
        assert_eq!(run.starts, 1);
    }
}

/// Or they would be no match for ours, where the kernel's own default is another.
#[tokio::test]
async fn tcp_and_each_subflow_of_multipath_tcp_have_cubic() {
    const PATIENCE: Duration = Duration::from_secs(5);
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 50_000_000,
        seed: 0,
    };
    for (multipath, subflows) in [(false, 1), (true, 2)] {
        let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
        let (topology, scratch) = (testbed.topology(), testbed.scratch());
        if multipath {
            prepare_multipath(topology).unwrap();
        }
        let nginx = Nginx::new(scratch, content, multipath).unwrap();
        let _server = nginx.start(topology, ServerA).await.unwrap();
        let curl = Curl::start(topology, ServerA, scratch, multipath, PATIENCE).unwrap();
        let established = async {
            loop {
                let mut command = topology.command(ServerA, "ss");
                command.args(["-HtiO", "state", "established"]);
                let said = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
                if said.lines().count() == subflows {
                    return said;
                }
            }
        };
        tokio::select! {
            said = established => assert!(said.lines().all(|line| line.contains(" cubic ")), "{said}"),
            end = curl.finish() => panic!("has ended without {subflows} subflows: {end:?}"),
        }
    }
}

#[tokio::test]
async fn a_move_is_survived_by_one_and_waited_for_by_the_others() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let lines = "size = '30M'\npatience = '2s'\n\
                 move = { announce = '0.5s', freeze = '1s', thaw = '1.5s' }";
    let moved = once(Arm::Multipath, lines).await;
    assert_eq!((moved.starts, moved.handshakes, moved.requests), (1, 1, 1));
    let order = [
        What::Connected,
        What::Announced,
        What::Parked,
        What::Frozen,
        What::Thawed,
        What::FirstByte,
    ];
    let times: Vec<f64> = order
        .iter()
        .map(|what| moved.when(*what).unwrap())
        .collect();
    assert!(times.is_sorted(), "{:?}", moved.marks);

    for arm in [Arm::Quic, Arm::Tcp, Arm::Mptcp] {
        let run = once(arm, lines).await;
        match arm {
            // It is told that the server leaves, and tries until that is back.
            Arm::Quic => assert!(run.starts >= 2, "{:?}", run.marks),
            _ => assert_eq!(run.starts, 2, "{arm}: {:?}", run.marks),
        }
        // Only after the server was gone.
        let (frozen, lost) = (
            run.when(What::Frozen).unwrap(),
            run.when(What::Lost).unwrap(),
        );
        assert!(lost > frozen, "{arm}: {:?}", run.marks);
    }
}

#[tokio::test]
async fn every_strategy_does_what_its_source_says() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let lines = "size = '20M'\npatience = '2s'\n\
                 move = { announce = '0.3s', freeze = '0.5s', thaw = '0.8s' }";
    for arm in [
        Arm::Paper,
        Arm::Proactive,
        Arm::Reactive,
        Arm::Pool,
        Arm::Symmetric,
    ] {
        let run = once(arm, lines).await;
        let figures = (run.starts, run.handshakes, run.requests);
        assert_eq!(figures, (1, 1, 1), "{arm}: {:?}", run.marks);
        let heeds = arm.strategy().unwrap().heeds_announcements();
        assert_eq!(run.when(What::Announced).is_some(), heeds, "{arm}");
        assert!(run.when(What::Resumed).is_some(), "{arm}: {:?}", run.marks);
    }
    let run = once(Arm::Restart, lines).await;
    assert!(run.starts >= 2, "{:?}", run.marks);
    assert_eq!(run.when(What::Announced), None);
}

#[tokio::test]
async fn a_crash_makes_every_client_start_again() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let lines = "size = '30M'\npatience = '2s'\nmove = { freeze = '1s', thaw = '1.5s' }";
    for arm in [Arm::Quic, Arm::Multipath] {
        let run = once(arm, lines).await;
        assert_eq!(run.starts, 2, "{arm}: {:?}", run.marks);
        assert!(run.when(What::Announced).is_none());
    }
}

#[tokio::test]
async fn links_slow_down_lose_and_are_shared_as_the_scenario_says() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let run = once(
        Arm::Multipath,
        "size = '20M'\nevents = [{ at = '0.3s', link = 1, change = { rate = '1M', burst = '10k' } }]",
    )
    .await;
    assert!(over_second(&run) < 0.2, "{}", over_second(&run));

    let lossy = "size = '5M'\nlinks = [{ loss = 0.01 }, { loss = 0.01 }]";
    assert!(once(Arm::Multipath, lossy).await.sent_again > 0);

    let shared =
        "size = '10M'\nrival = true\nshared = { rate = '50M', burst = '200k', delay = '0ms' }";
    let run = once(Arm::Multipath, shared).await;
    assert!(
        (0.05..0.95).contains(&run.share.unwrap()),
        "{:?}",
        run.share
    );
}

#[tokio::test]
async fn a_body_is_asked_for_in_parts_where_the_links_hold_more_than_a_window() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let far = "links = [{ burst = '2M', delay = '150ms' }, { burst = '1M', delay = '150ms' }]";
    for arm in [Arm::Quic, Arm::Multipath] {
        let run = once(arm, &format!("{far}\nsize = '20M'")).await;
        assert_eq!((run.starts, run.handshakes), (1, 1), "{arm}");
        assert!(run.requests > 1, "{arm}");
    }
    let moves = "size = '40M'\nmove = { announce = '3s', freeze = '4s', thaw = '4.5s' }";
    let run = once(Arm::Multipath, &format!("{far}\n{moves}")).await;
    assert_eq!((run.starts, run.handshakes), (1, 1), "{:?}", run.marks);
    assert!(run.requests > 1 && run.when(What::FirstByte).is_some());
}
