//! What goes wrong when: each fault at each phase of a move, with a real server, a real client and CRIU, and what is
//! seen then. `docs/faults.md` has the table; `UPDATE_FAULTS=1` writes it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use common::privileged;
use table::{Row, Seen};

mod at_a;
mod at_b;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/operated.rs"]
mod operated;
mod table;
mod trial;
mod watch;

/// Rows at a time: most of each is waiting.
const LANES: usize = 8;
/// Runs only the rows whose fault has this text, and compares nothing.
const ONLY: &str = "MPQ_FAULTS";

fn rows() -> Vec<Row> {
    [at_a::ROWS, at_b::ROWS].concat()
}

#[tokio::test]
async fn at_every_fault_one_host_serves_and_downloads_end_well() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let only = std::env::var(ONLY).ok();
    let mut rows = rows();
    rows.retain(|row| only.as_ref().is_none_or(|only| row.fault.contains(only)));
    let seen = run(&rows);
    let failed = |(row, seen): (&Row, &Option<Seen>)| seen.is_none().then_some(row.fault);
    let failed: Vec<_> = rows.iter().zip(&seen).filter_map(failed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let text = table::render(rows.into_iter().zip(seen.into_iter().flatten()));
    match only {
        Some(_) => eprintln!("{text}"),
        None => table::compare(&text),
    }
}

#[test]
fn every_fault_is_in_the_documentation() {
    let rows = rows();
    let documented = table::documented();
    let missing = |row: &&Row| !documented.contains(&format!("| {} |", row.fault));
    let missing: Vec<_> = rows.iter().filter(missing).map(|row| row.fault).collect();
    assert!(
        missing.is_empty(),
        "{missing:#?}; run the test as root with UPDATE_FAULTS=1"
    );
}

/// What is seen of each; nothing of one that failed, which has said why.
fn run(rows: &[Row]) -> Vec<Option<Seen>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    // Those that take longest begin first; taken from the end.
    order.sort_by_key(|row| (rows[*row].is_slow, std::cmp::Reverse(*row)));
    let order = Mutex::new(order);
    let seen = Mutex::new(vec![None; rows.len()]);
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some(next) = order.lock().unwrap().pop() else {
                        break;
                    };
                    let row = rows[next];
                    let begun = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(row.run));
                    let outcome = if result.is_ok() { "seen" } else { "FAILED" };
                    let seconds = begun.elapsed().as_secs_f64();
                    eprintln!("{outcome} in {seconds:.1} s: {}: {}", row.phase, row.fault);
                    seen.lock().unwrap()[next] = result.ok();
                }
            });
        }
    });
    seen.into_inner().unwrap()
}
