//! Seeded schedules for the machines and a bad network. What must hold is in [`world`].
//!
//! `MPQ_SEED=n` replays one of them; `MPQ_SCHEDULES=n` sets how many there are.

mod fair;
#[path = "../support/hint.rs"]
mod hint;
mod malice;
mod schedule;
mod tally;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use schedule::{Move, Op, Schedule, Step};
use tally::Tally;
use world::{World, host, simulate};

/// How many seeds are tried.
const SCHEDULES: u64 = 100_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is {text}, which is no number")),
    )
}

/// Leaves out whatever the failure does not need.
fn shrunk(mut schedule: Schedule) -> Schedule {
    let mut index = 0;
    while index < schedule.steps.len() {
        let mut shorter = schedule.clone();
        let left_out = shorter.steps.remove(index);
        // What is fair depends on the time.
        if let Some(next) = shorter.steps.get_mut(index).filter(|_| schedule.fair) {
            next.after = next.after.saturating_add(left_out.after);
        }
        let fails = catch_unwind(|| simulate(&shorter)).is_err();
        match fails {
            true => schedule = shorter,
            false => index += 1,
        }
    }
    schedule
}

#[test]
fn a_hundred_thousand_schedules_end_well() {
    if let Some(seed) = number("MPQ_SEED") {
        let schedule = Schedule::from_seed(seed);
        if catch_unwind(|| simulate(&schedule)).is_err() {
            let shrunk = shrunk(schedule);
            println!("seed {seed} fails by {shrunk:#?}");
            world::TELLS.store(true, Ordering::Relaxed);
            simulate(&shrunk);
        }
        return;
    }
    let schedules = number("MPQ_SCHEDULES").unwrap_or(SCHEDULES);
    let next = AtomicU64::new(0);
    let tally = std::sync::Mutex::new(Tally::default());
    let failed = std::sync::Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= schedules || failed.lock().unwrap().len() > 11 {
                return;
            }
            let schedule = Schedule::from_seed(seed);
            let Ok(world) = catch_unwind(|| simulate(&schedule)) else {
                failed.lock().unwrap().push(seed);
                continue;
            };
            tally.lock().unwrap().add(&schedule, &world);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(AssertUnwindSafe(work));
        });
    });
    let tally = tally.into_inner().unwrap();
    println!("{tally}");
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "see MPQ_SEED={failed:?}");
    tally.check();
}

/// What was found on the way, by the seed that found it.
#[test]
fn schedules_that_have_failed_once_end_well() {
    let found = [
        (
            822,
            "a path was evacuated, and a move announced before it was closed",
        ),
        (
            8_440,
            "all ways to the server were gone, and the ids left were kept for a move",
        ),
        (
            11_186,
            "the interfaces were others while nothing got through",
        ),
        (
            13_307,
            "that a path of before a freeze was validated was heard of after it",
        ),
        (38_587, "an announcement came after its move"),
        (
            40_269,
            "the first probes were lost, and paths were opened untried from then on",
        ),
        (91_657, "the last path was over the link of another one"),
    ];
    for (seed, why) in found {
        let ended = catch_unwind(|| simulate(&Schedule::from_seed(seed)));
        assert!(ended.is_ok(), "MPQ_SEED={seed}: {why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_schedule_says(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        simulate(&Schedule::from_bytes(&bytes));
    }
}

/// How many servers that mean ill are tried.
const MALICIOUS: u64 = 300;

#[test]
fn no_server_makes_a_client_flood_others() {
    if let Some(seed) = number("MPQ_SEED") {
        malice::suffer(seed);
        return;
    }
    let mut failed = Vec::new();
    let mut most = 0;
    for seed in 0..MALICIOUS {
        match catch_unwind(|| malice::suffer(seed)) {
            Ok(sent) => most = most.max(sent),
            Err(_) => failed.push(seed),
        }
    }
    assert!(failed.is_empty(), "see MPQ_SEED={failed:?}");
    // It would prove little if they never came near the bound.
    assert!(most >= 1_000, "{most}");
}

fn quiet() -> Schedule {
    Schedule {
        seed: 1,
        strategy: 0,
        fair: false,
        decoy: false,
        steps: vec![],
    }
}

/// Moves, those that were cancelled, and connections that were made anew.
fn outcome(world: &World) -> (u32, u32, u32) {
    let counts = world.counts;
    (counts.moves, counts.cancelled, counts.resumed)
}

fn a_move(after: u16, to: u8, luck: u8) -> Step {
    let op = Op::Move(Move {
        to,
        others: 0,
        announced: true,
        lead: 100,
        outage: 2_500,
        luck,
        ghost: 255,
    });
    Step { after, op }
}

#[test]
fn a_server_that_moves_twice_keeps_its_client() {
    // By the time of the second there is nothing to cancel.
    let pause = Step {
        after: 2_999,
        op: Op::Cancel,
    };
    let steps = vec![a_move(500, 1, 255), pause, a_move(2_999, 0, 255)];
    let world = simulate(&Schedule { steps, ..quiet() });
    assert_eq!(outcome(&world), (2, 0, 0));
}

#[test]
fn a_failed_freeze_leaves_the_client_at_the_old_address() {
    let steps = vec![a_move(500, 1, 0)];
    let world = simulate(&Schedule { steps, ..quiet() });
    assert_eq!(outcome(&world), (0, 1, 0));
}

#[test]
fn a_move_is_abandoned_at_any_time_and_the_next_one_is_made() {
    let mut abandoned = BTreeSet::new();
    for after in (0..2_000).step_by(20) {
        let op = Op::Move(Move {
            to: 1,
            others: 0,
            announced: true,
            lead: 100,
            outage: 500,
            luck: 100,
            ghost: 255,
        });
        let moving = Step { after: 500, op };
        let cancel = Step {
            after,
            op: Op::Cancel,
        };
        let steps = vec![moving, cancel, a_move(2_999, 2, 255)];
        let world = simulate(&Schedule { steps, ..quiet() });
        assert_eq!(
            world.counts.moves + world.counts.cancelled,
            2,
            "after {after} ms"
        );
        assert_eq!(
            world.counts.cancelled as usize,
            world.abandoned.len(),
            "after {after} ms"
        );
        assert_eq!(world.counts.resumed, 0, "after {after} ms");
        abandoned.extend(world.abandoned);
    }
    let all = ["Announced", "Parking", "Parked", "Resuming (new address)"];
    assert_eq!(abandoned, all.into());
}

#[test]
fn a_move_adds_no_more_than_two_round_trips_to_the_outage() {
    let mut world = World::new(&quiet());
    world.run(Duration::from_millis(500));
    world.apply(&a_move(0, 1, 255).op);
    world.run(Duration::from_millis(100));
    let time = world.time_until_at(host(1));
    // At most: the drain, the outage, a knock or a probe of 100 ms each way, and the validation.
    let limit = Duration::from_millis(500 + 2_500 + 200 + 2 * 100);
    assert!(time <= limit, "{time:?}");
}
