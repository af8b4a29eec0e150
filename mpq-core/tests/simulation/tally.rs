//! How the schedules ended: for each strategy, how often it was bound to keep its connection, and what excused it
//! otherwise.

use std::collections::BTreeMap;
use std::fmt;

use mpq_core::proto::Strategy;

use crate::schedule::Schedule;
use crate::world::World;
use crate::world::excuse::Excuse;

/// Of fewer schedules, some things may not happen in any.
const MANY: u64 = 10_000;

/// The sum over many schedules.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    schedules: u64,
    /// By its place among all strategies.
    strategies: [Row; Strategy::ALL.len()],
    moves: u64,
    cancelled: u64,
    finished: u64,
    resumed: u64,
    evacuated: u64,
    dead: u64,
    dead_at_server: u64,
    wronged: u64,
    idle: u64,
    settled: u64,
    echoes: u64,
}

/// What one strategy's clients came to.
#[derive(Debug, Default)]
struct Row {
    /// Schedules whose first client has it; those of them that are fair; and the moves in these.
    schedules: u64,
    fair: u64,
    fair_moves: u64,
    /// Connections, those that were kept without an excuse, and those that were lost.
    connections: u64,
    kept: u64,
    lost: u64,
    excuses: BTreeMap<Excuse, u64>,
}

impl Tally {
    /// One more schedule.
    pub(crate) fn add(&mut self, schedule: &Schedule, world: &World) {
        self.schedules += 1;
        let counts = world.counts;
        let row = &mut self.strategies[usize::from(schedule.strategy) % Strategy::ALL.len()];
        row.schedules += 1;
        if schedule.fair {
            row.fair += 1;
            row.fair_moves += u64::from(counts.moves);
        }
        for end in &world.ends {
            let place = Strategy::ALL.iter().position(|s| *s == end.strategy);
            let row = &mut self.strategies[place.unwrap()];
            row.connections += 1;
            row.lost += u64::from(end.is_lost);
            row.kept += u64::from(!end.is_lost && end.excuse.is_none());
            if let Some(excuse) = end.excuse {
                *row.excuses.entry(excuse).or_default() += 1;
            }
        }
        for (sum, count) in [
            (&mut self.moves, counts.moves),
            (&mut self.cancelled, counts.cancelled),
            (&mut self.finished, counts.finished),
            (&mut self.resumed, counts.resumed),
            (&mut self.evacuated, counts.evacuated),
            (&mut self.dead, counts.dead),
            (&mut self.dead_at_server, counts.dead_at_server),
            (&mut self.wronged, counts.wronged),
            (&mut self.idle, counts.idle),
            (&mut self.settled, counts.settled),
            (&mut self.echoes, counts.echoes),
        ] {
            *sum += u64::from(count);
        }
    }

    /// It would prove little if nothing happened.
    pub(crate) fn check(&self) {
        assert!(self.moves > self.schedules / 2 && self.finished > self.schedules);
        assert!(self.cancelled > 0 && self.resumed > 0);
        if self.schedules < MANY {
            return;
        }
        assert!(self.evacuated > 0 && self.dead > 0 && self.dead_at_server > 0);
        assert!(self.idle > 0 && self.settled > 0 && self.echoes > self.moves / 10);
        // The client is the first to notice.
        assert!(10 * self.dead_at_server < self.dead);
        // A path may seem dead when much is lost on it; mostly it is.
        assert!(self.wronged < (self.evacuated + self.dead) / 4);
        for (strategy, row) in Strategy::ALL.iter().zip(&self.strategies) {
            assert!(3 * row.fair >= row.schedules, "{strategy}");
            let moves = *strategy != Strategy::Restart;
            assert!(
                !moves || row.fair_moves > row.fair / 2,
                "{strategy} did not move"
            );
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} schedules: {} moves, {} cancelled; {} downloads, {} resumed; paths: {} evacuated, {} dead, {} dead at \
             the server, {} of these alive; {} silent clients; {} settled; {} knocks returned",
            self.schedules,
            self.moves,
            self.cancelled,
            self.finished,
            self.resumed,
            self.evacuated,
            self.dead,
            self.dead_at_server,
            self.wronged,
            self.idle,
            self.settled,
            self.echoes
        )?;
        writeln!(
            f,
            "{:10} {:>9} {:>6} {:>10} {:>11} {:>8} {:>8}  excuses",
            "strategy", "schedules", "fair", "fair moves", "connections", "kept", "lost"
        )?;
        for (strategy, row) in Strategy::ALL.iter().zip(&self.strategies) {
            let mut excuses: Vec<_> = row.excuses.iter().collect();
            excuses.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let excuses = excuses
                .iter()
                .map(|(excuse, count)| format!("{excuse} {count}"));
            let excuses = excuses.collect::<Vec<_>>().join(", ");
            writeln!(
                f,
                "{:10} {:>9} {:>6} {:>10} {:>11} {:>8} {:>8}  {excuses}",
                strategy.to_string(),
                row.schedules,
                row.fair,
                row.fair_moves,
                row.connections,
                row.kept,
                row.lost
            )?;
        }
        Ok(())
    }
}
