//! Whose turn it is among the answers of a connection (RFC 9218 §10).
//!
//! The more urgent one goes first. Of equal urgency, answers of which a part is of use share by round robin,
//! and with them the first of the others; the rest of those waits, in the order of the requests.
//!
//! noq sends first what is more urgent of that which is written, and what is written for others fills its window
//! all the same. So they may fill a part of it only, which is enough where the first leaves the rest.
//!
//! A client that says nothing of an answer gets its first bytes at once, ahead of what is as urgent: a small
//! file must not wait for a large one. Who has asked for an order gets that order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use h3::quic::StreamId;

use super::priority::Priority;

/// Of an answer of which the client says nothing, so many bytes go at once.
const AT_ONCE: u64 = 16 << 10;

/// Updates may come before their requests (RFC 9218 §7), for so many at the most.
const MOST_EARLY: usize = 64;

/// Values of noq for one urgency, of which a larger one goes first.
const VALUES: i32 = 1 << 27;

/// What is known of the answers of one connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<StreamId, Asked>,
    /// Updates for requests that are yet to come.
    early: BTreeMap<StreamId, Priority>,
    /// The last request that has come.
    newest: Option<StreamId>,
    /// How often the client has taken something.
    taken: u64,
}

/// What the client has said of an answer.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    priority: Option<Priority>,
    /// By an update, which a header does not change (RFC 9218 §7).
    updated: bool,
    /// noq's priority, as it was when this answer was last written to.
    value: i32,
    /// Bytes that were written of it then.
    written: u64,
    /// It waits while the server is parked.
    held: bool,
}

impl Asked {
    /// How many bytes more go at once, if so many are written.
    fn at_once(&self, written: u64) -> Option<u64> {
        let left = AT_ONCE.checked_sub(written).filter(|left| *left > 0);
        left.filter(|_| self.priority.is_none())
    }
}

/// How an answer may be written to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leave {
    /// noq's priority of the stream.
    pub(super) value: i32,
    pub(super) room: Room,
}

/// How much room there is for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// For so many bytes, also where others have filled the window.
    AtOnce(u64),
    Whole,
    /// Another one goes first.
    Part,
}

impl Turns {
    /// The request on this stream has this priority, as its header says.
    pub fn asked(&self, stream: StreamId, priority: Priority) {
        let mut state = self.0.lock().unwrap();
        if let Some(asked) = state.answers.get_mut(&stream)
            && !asked.updated
        {
            asked.priority = Some(priority);
        }
    }

    /// A number that grows whenever the client has taken more of an answer, whichever it is: its flow control, or what
    /// the network carries, have left room for more. None while the server is parked, since nothing is sent then.
    pub fn taken(&self) -> Option<u64> {
        let state = self.0.lock().unwrap();
        let held = state.answers.values().any(|answer| answer.held);
        (!held).then_some(state.taken)
    }

    /// The client has changed its mind about a request, which may be yet to come.
    pub(super) fn updated(&self, stream: StreamId, priority: Priority) {
        let mut state = self.0.lock().unwrap();
        if let Some(asked) = state.answers.get_mut(&stream) {
            asked.priority = Some(priority);
            asked.updated = true;
        } else if stream.is_request()
            && Some(stream) > state.newest
            && state.early.len() < MOST_EARLY
        {
            state.early.insert(stream, priority);
        }
    }

    /// A request has come; it is answered until the result is dropped.
    pub(super) fn begin(&self, stream: StreamId) -> Turn {
        let mut state = self.0.lock().unwrap();
        let priority = state.early.remove(&stream);
        let asked = Asked {
            priority,
            updated: priority.is_some(),
            value: i32::MIN,
            ..Asked::default()
        };
        state.answers.insert(stream, asked);
        state.newest = state.newest.max(Some(stream));
        Turn {
            turns: self.clone(),
            stream,
        }
    }
}

impl State {
    /// When it is the turn of an answer of which so many bytes are written: noq's priority of its stream.
    fn value(&self, stream: StreamId, written: u64) -> i32 {
        let asked = self.answers.get(&stream).copied().unwrap_or_default();
        let priority = asked.priority.unwrap_or_default();
        let is_next = |(other, asked): (&StreamId, &Asked)| {
            let theirs = asked.priority.unwrap_or_default();
            (theirs.urgency == priority.urgency && !theirs.incremental).then_some(*other)
        };
        let place = if asked.at_once(written).is_some() {
            0
        } else if priority.incremental
            || self
                .answers
                .iter()
                .find_map(is_next)
                .is_none_or(|next| next == stream)
        {
            1
        } else {
            let turn = i32::try_from(stream.index()).unwrap_or(i32::MAX);
            turn.saturating_add(2).min(VALUES - 1)
        };
        // Below HTTP/3's own streams, which have 0.
        -1 - i32::from(priority.urgency) * VALUES - place
    }
}

/// The turn of one answer.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    stream: StreamId,
}

impl Turn {
    /// How the answer may be written to, once so many bytes of it are.
    pub(super) fn leave(&self, written: u64) -> Leave {
        let mut state = self.turns.0.lock().unwrap();
        let value = state.value(self.stream, written);
        let State { answers, taken, .. } = &mut *state;
        let at_once = answers.get_mut(&self.stream).and_then(|asked| {
            asked.value = value;
            if asked.written != written || asked.held {
                *taken += 1;
            }
            (asked.written, asked.held) = (written, false);
            asked.at_once(written)
        });
        let room = if let Some(bytes) = at_once {
            Room::AtOnce(bytes)
        } else if state.answers.values().all(|other| other.value <= value) {
            Room::Whole
        } else {
            Room::Part
        };
        Leave { value, room }
    }

    /// The answer waits now, since the server is parked, until it asks for leave again.
    pub(super) fn hold(&self) {
        let mut state = self.turns.0.lock().unwrap();
        if let Some(asked) = state.answers.get_mut(&self.stream) {
            asked.held = true;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.0.lock().unwrap();
        state.answers.remove(&self.stream);
        state.taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(index: u64) -> StreamId {
        (4 * index).try_into().unwrap()
    }

    fn priority(urgency: u8, incremental: bool) -> Priority {
        Priority {
            urgency,
            incremental,
        }
    }

    /// The answers in the order of their turns, those that share together.
    fn order(turns: &[(&Turn, u64)]) -> Vec<Vec<u64>> {
        let mut by_value: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (turn, written) in turns {
            let value = turn.leave(*written).value;
            assert!(value < 0);
            by_value
                .entry(-value)
                .or_default()
                .push(turn.stream.index());
        }
        by_value.into_values().collect()
    }

    #[test]
    fn who_says_nothing_gets_the_first_bytes_at_once_and_then_its_turn() {
        let turns = Turns::default();
        let [a, b, c] = [0, 1, 2].map(|index| turns.begin(request(index)));
        assert_eq!(
            order(&[(&a, AT_ONCE), (&b, 0), (&c, AT_ONCE - 1)]),
            [vec![1, 2], vec![0]]
        );
        let rooms = [(&a, AT_ONCE), (&b, 0)].map(|(turn, written)| turn.leave(written).room);
        assert_eq!(rooms, [Room::Part, Room::AtOnce(AT_ONCE)]);
        let all = [AT_ONCE, 1 << 40, AT_ONCE];
        let [x, y, z] = all;
        assert_eq!(order(&[(&c, x), (&b, y), (&a, z)]), [[0], [1], [2]]);
        drop(a);
        assert_eq!(order(&[(&c, x), (&b, y)]), [[1], [2]]);
    }

    #[test]
    fn urgency_comes_first_and_incremental_answers_share_with_the_first_of_the_others() {
        let turns = Turns::default();
        let asked: Vec<_> = [
            (3, false),
            (3, true),
            (3, false),
            (3, true),
            (0, false),
            (7, true),
        ]
        .iter()
        .zip(0..)
        .map(|((urgency, incremental), index)| {
            let turn = turns.begin(request(index));
            turns.asked(request(index), priority(*urgency, *incremental));
            turn
        })
        .collect();
        let all: Vec<_> = asked.iter().map(|turn| (turn, 0)).collect();
        assert_eq!(order(&all), [vec![4], vec![0, 1, 3], vec![2], vec![5]]);
        let rooms: Vec<_> = asked.iter().map(|turn| turn.leave(0).room).collect();
        let mut expected = [Room::Part; 6];
        expected[4] = Room::Whole;
        assert_eq!(rooms, expected, "who has asked for an order gets it");
    }

    #[test]
    fn what_is_taken_of_any_answer_counts_and_a_parked_server_is_no_fault_of_the_client() {
        let turns = Turns::default();
        let [a, b] = [0, 1].map(|index| turns.begin(request(index)));
        let mut before = turns.taken();
        let mut is_taken = || std::mem::replace(&mut before, turns.taken()) != turns.taken();
        for (turn, written, expected) in [(&a, 0, false), (&a, 1, true), (&a, 1, false)] {
            turn.leave(written);
            assert_eq!(is_taken(), expected, "{written}");
        }
        b.leave(1);
        assert!(is_taken());
        b.hold();
        assert_eq!(turns.taken(), None);
        b.leave(1);
        assert!(turns.taken().is_some());
        is_taken();
        drop(a);
        assert!(is_taken());
        b.hold();
        drop(b);
        assert!(turns.taken().is_some());
    }

    #[test]
    fn an_update_may_come_early_and_outdoes_the_header() {
        let turns = Turns::default();
        let first = turns.begin(request(0));
        turns.asked(request(0), priority(3, false));
        turns.updated(request(1), priority(1, false));
        let second = turns.begin(request(1));
        turns.asked(request(1), priority(7, false));
        assert_eq!(order(&[(&first, 0), (&second, 0)]), [[1], [0]]);
        turns.updated(request(0), priority(0, true));
        assert_eq!(order(&[(&first, 0), (&second, 0)]), [[0], [1]]);
    }

    #[test]
    fn updates_for_what_never_comes_are_bounded() {
        let turns = Turns::default();
        let turn = turns.begin(request(9));
        for index in 0..1000 {
            turns.updated(request(index), priority(1, true));
            turns.updated((4 * index + 2).try_into().unwrap(), priority(1, true));
        }
        drop(turn);
        let state = turns.0.lock().unwrap();
        assert_eq!((state.early.len(), state.answers.len()), (MOST_EARLY, 0));
        assert_eq!(*state.early.keys().next().unwrap(), request(10));
    }

    #[test]
    fn the_longest_connection_keeps_within_its_urgency() {
        let turns = Turns::default();
        let last = request((1 << 60) - 1);
        let [a, b, c] = [request(0), request(1), last].map(|stream| turns.begin(stream));
        turns.asked(last, priority(2, false));
        turns.asked(request(1), priority(2, false));
        assert_eq!(order(&[(&a, AT_ONCE), (&b, 0), (&c, 0)]).len(), 3);
        assert!(a.leave(AT_ONCE).value < c.leave(0).value);
        turns.updated(last, priority(7, false));
        turns.updated(request(0), priority(7, false));
        assert!(c.leave(0).value > i32::MIN + 1);
    }
}
