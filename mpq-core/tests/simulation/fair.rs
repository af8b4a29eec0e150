//! Fair schedules: those in which the first client is bound by the rules of its strategy to keep its connection.
//!
//! Each strategy has to know something, and can do without the rest:
//!
//! | strategy | what it has to be spared |
//! | --- | --- |
//! | `multipath` | nothing but what all are |
//! | `paper` | moves that it is not told of, also since nothing gets through; other interfaces in a move; more than a few moves that do not come about, and interfaces that flap: path ids are used up |
//! | `proactive` | the same, and moves that do not come about once it was told |
//! | `reactive` | moves that it is not told of |
//! | `pool` | nothing but what all are: every place is in the pool |
//! | `symmetric` | firewalls, and other interfaces while it cannot hear of a move |
//! | `restart` | moves without a forwarder |
//!
//! All are spared an interface that flaps while something else is wrong with the ways, since that uses up path ids;
//! and those who answer in the server's name, be it on the path, at one of its addresses, or as a copy
//! of it that was left running; and they have a second at first to exchange their greetings.

use mpq_core::proto::Strategy;

use crate::schedule::{FORWARDED, Move, NO_COPY, Op, Schedule};

/// Before anything happens, milliseconds.
const GREETINGS: u16 = 1_000;
/// Time that an announcement takes at the most, milliseconds; and the drain; and until a client has followed a server
/// that is there, or has the paths again that it lost.
const WORD: u8 = 150;
const DRAIN: u64 = 5_200;
const FOLLOWING: u64 = 6_000;

/// Leaves out what is not fair.
pub(crate) fn adapt(schedule: &mut Schedule) {
    let strategies = Strategy::ALL;
    let strategy = strategies[usize::from(schedule.strategy) % strategies.len()];
    let mut timetable = Timetable::of(strategy);
    schedule.decoy = false;
    schedule.steps.retain_mut(|step| {
        step.after = timetable.pause(step.after, &step.op);
        timetable.allows(&mut step.op)
    });
}

/// When what is going on, milliseconds.
struct Timetable {
    strategy: Strategy,
    /// Whether the client has to be told of a move.
    is_told: bool,
    /// How often it may still spend path ids in vain.
    spends: u32,
    /// How often an interface may still flap.
    flaps: u32,
    now: u64,
    /// When the pause began.
    before: u64,
    /// Until when something is in the way of a word.
    disturbed: u64,
    /// Until when an interface comes and goes.
    flapping: u64,
    /// Until when nothing may be in the way of one, and until when interfaces stay.
    telling: u64,
    moving: u64,
}

impl Timetable {
    fn of(strategy: Strategy) -> Self {
        let told = [Strategy::Paper, Strategy::Proactive, Strategy::Reactive];
        Self {
            strategy,
            is_told: told.contains(&strategy),
            flaps: if strategy == Strategy::Paper { 0 } else { 2 },
            spends: if strategy == Strategy::Paper {
                3
            } else {
                u32::MAX
            },
            now: 0,
            before: 0,
            disturbed: 0,
            flapping: 0,
            telling: 0,
            moving: 0,
        }
    }

    /// How long to wait before this.
    fn pause(&mut self, pause: u16, op: &Op) -> u16 {
        let mut at = self.now + u64::from(pause);
        at = at.max(u64::from(GREETINGS));
        let waits = self.is_told || self.strategy == Strategy::Symmetric;
        if waits && matches!(op, Op::Move(_) | Op::AnotherMove(_)) {
            at = at.max(self.disturbed).max(self.moving);
        }
        self.before = std::mem::replace(&mut self.now, at);
        (at - self.before) as u16
    }

    fn allows(&mut self, op: &mut Op) -> bool {
        let allowed = self.is_fair(op);
        if !allowed {
            self.now = self.before;
        }
        allowed
    }

    fn is_fair(&mut self, op: &mut Op) -> bool {
        match op {
            Op::Forge { .. } | Op::Disconnect { .. } => false,
            Op::Firewall { .. } => self.strategy != Strategy::Symmetric,
            Op::Cancel => self.strategy != Strategy::Proactive && self.spends(),
            Op::Move(wanted) | Op::AnotherMove(wanted) => self.is_fair_move(wanted),
            Op::Blackout { ms } => self.disturbs(u64::from(*ms % 3_000)),
            Op::Partition { ms, .. } => self.disturbs(u64::from(*ms % 5_000)),
            Op::Link { ms, .. } => self.disturbs(u64::from(*ms % 10_000)),
            Op::Locals { .. } => self.is_at_home() && self.spends() && self.disturbs(0),
            Op::Flap { times, ms, .. } => {
                let ends = 2 * u64::from(*times % 20) * (1 + u64::from(*ms));
                let is_calm = self.now >= self.disturbed;
                let allowed = self.is_at_home()
                    && is_calm
                    && take_one(&mut self.flaps)
                    && self.disturbs(ends);
                if allowed {
                    self.flapping = self.now + ends;
                }
                allowed
            }
            Op::Connect { .. } | Op::Replay { .. } => true,
        }
    }

    fn spends(&mut self) -> bool {
        take_one(&mut self.spends)
    }

    fn is_at_home(&self) -> bool {
        let strategies = [Strategy::Paper, Strategy::Proactive, Strategy::Symmetric];
        self.now >= self.moving || !strategies.contains(&self.strategy)
    }

    /// Something is in the way for so long.
    fn disturbs(&mut self, ms: u64) -> bool {
        if self.is_told && self.now < self.telling || self.now < self.flapping {
            return false;
        }
        self.disturbed = self.disturbed.max(self.now + ms + FOLLOWING);
        true
    }

    fn is_fair_move(&mut self, wanted: &mut Move) -> bool {
        wanted.ghost = match self.strategy {
            Strategy::Restart => FORWARDED,
            _ => wanted.ghost.max(NO_COPY),
        };
        if self.is_told {
            wanted.announced = true;
            wanted.lead = wanted.lead.max(WORD);
        }
        if self.strategy == Strategy::Paper {
            wanted.others = 0;
        }
        if self.strategy == Strategy::Proactive || wanted.luck < 64 && !self.spends() {
            wanted.luck = wanted.luck.max(64);
        }
        let parked = self.now + u64::from(wanted.lead) + DRAIN;
        self.telling = self.telling.max(parked);
        let back = parked + u64::from(wanted.outage % 10_000) + u64::from(u8::MAX) + FOLLOWING;
        self.moving = self.moving.max(back);
        true
    }
}

/// Whether there was one left.
fn take_one(left: &mut u32) -> bool {
    let fewer = left.checked_sub(1);
    *left = fewer.unwrap_or_default();
    fewer.is_some()
}
