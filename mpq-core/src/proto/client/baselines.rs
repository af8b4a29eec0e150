//! What only the strategies of the literature do, which are there for comparison.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// `proactive`: until the announcement is acknowledged, and READY on its way.
pub(super) const LEAVING: Duration = Duration::from_millis(50);
/// `paper`: who opens paths to where the server will be.
///
/// A path is opened by a packet with a PATH_CHALLENGE on a path id of its own, and noq repeats that packet
/// until it is answered: after three times the initial RTT, then after twice as long each time, and every 2 s
/// in the end. That is how the paper's detection path behaves ("QUIC doubles the delay for retransmission"),
/// except that its quic-go went on to double the delay up to a minute. The repetition keeps the path id.
///
/// What noq cannot do is to open ever new paths to a server that is frozen. Path ids are never reused, a peer
/// grants a new one only for one that it knows to be abandoned, and a frozen peer grants none: of the
/// [`PATHS`](crate::limits) ids, those that are left would be used up after a few repetitions. A larger limit only
/// moves that end. Each id costs either end up to 12 connection ids, of which the peer is told as soon as the
/// connection is made: at 30 bytes each, 360 bytes on the wire in either direction, and about 1 KB of memory, for
/// every connection, also for those that never move. So one path is opened from each interface to each target, and
/// stays. Where targets times interfaces are more than the ids that are left, the first targets have paths.
///
/// Nor can noq end a continuation path at once, as the paper does when the server ceases to respond. It would tell
/// the server (PATH_ABANDON) over that very path, as no other is validated, and not again; the restored server would
/// go on to use the path, and what it sends there would be lost. So nothing is sent over the path any more, and it is
/// closed once another one is there to tell that by. A server that is heard on it in between has not ceased to
/// respond, and the path goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detection {
    /// Nobody.
    Off,
    /// The address whose path was ended for it.
    From(IpAddr),
    /// Every address: the server has ceased to respond.
    FromAll,
}

impl Detection {
    /// Whether this address does.
    pub(super) fn includes(self, local: IpAddr) -> bool {
        match self {
            Detection::Off => false,
            Detection::From(detecting) => detecting == local,
            Detection::FromAll => true,
        }
    }
}

/// The targets that are gone to before anybody has answered there, one after the other.
#[derive(Debug, Default)]
pub(super) struct Turns(usize);

impl Turns {
    /// The next of them.
    pub(super) fn next(&mut self, targets: &[SocketAddr]) -> Option<SocketAddr> {
        let target = targets.get(self.0 % targets.len().max(1)).copied();
        self.0 += 1;
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_take_turns() {
        let targets = [1, 2].map(|host| ([10, 1, 0, host], 443).into());
        let mut turns = Turns::default();
        let next = [(); 3].map(|()| turns.next(&targets).unwrap());
        assert_eq!(next, [targets[0], targets[1], targets[0]]);
        assert_eq!(turns.next(&[]), None);
    }
}
