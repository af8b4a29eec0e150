//! The figures of one run: throughput over time, the parts of its move, what that cost.

use crate::experiment::record::{Run, What};

/// Rates are taken over this long, in seconds: two round trips of the paper's network, and what the
/// samples are apart. In a longer one, what is still silence would hide that the rate is there.
const WINDOW: f64 = 0.1;
/// The part of a connection's start that does not count as steady, in seconds.
const START: f64 = 1.0;
/// What most packets have, bytes.
const PACKET: u64 = 1500;
/// So much of the rate before the move counts as recovered.
const RECOVERED: f64 = 0.9;

/// Bits a second over each interface between each sample and the one before: (seconds, rates).
pub fn throughput(run: &Run) -> Vec<(f64, [f64; 2])> {
    run.samples
        .windows(2)
        .map(|pair| {
            let span = pair[1].unix - pair[0].unix;
            let rates = [0, 1]
                .map(|link| (pair[1].received[link] - pair[0].received[link]) as f64 * 8.0 / span);
            (pair[1].unix, rates)
        })
        .collect()
}

/// Bits a second of IP packets between two moments, in seconds.
fn rate(run: &Run, from: f64, until: f64) -> Option<f64> {
    let at = |moment: f64| {
        let next = run
            .samples
            .iter()
            .position(|sample| sample.unix >= moment)?;
        let sum = |index: usize| run.samples[index].received.iter().sum::<u64>() as f64;
        if next == 0 {
            return Some(sum(0));
        }
        let (a, b) = (&run.samples[next - 1], &run.samples[next]);
        let part = (moment - a.unix) / (b.unix - a.unix);
        Some(sum(next - 1) + part * (sum(next) - sum(next - 1)))
    };
    (until > from).then_some((at(until)? - at(from)?) * 8.0 / (until - from))
}

/// Steady throughput: bits a second of IP packets after the first second, until the server stops or
/// the file ends.
pub fn steady(run: &Run) -> Option<f64> {
    let last = run.samples.last()?.unix.min(run.turnaround);
    let until = run.when(What::Frozen).unwrap_or(last);
    // A short run has its start only.
    rate(run, START.min(until / 2.0), until)
}

/// The parts of a move, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// From the announcement until the client was told that the server is parked.
    pub announced: Option<f64>,
    /// From there until the server was frozen.
    pub parked: Option<f64>,
    /// From freeze to thaw.
    pub outage: f64,
    /// From thaw until the client had found the server, or a new one began.
    pub detection: Option<f64>,
    /// From thaw to the first body byte.
    pub first_byte: Option<f64>,
    /// From thaw until 90% of the rate before was reached.
    pub recovered: Option<f64>,
    /// What was received between announcement and freeze, of what the same time brought before.
    pub kept: Option<f64>,
}

/// The parts of a run's move.
pub fn parts(run: &Run) -> Option<Parts> {
    let (frozen, thawed) = (run.when(What::Frozen)?, run.when(What::Thawed)?);
    let between = |from, to| Some(run.when(to)? - run.when(from)?);
    let after = |what| {
        let later = run.marks.iter().filter(|mark| mark.what == what);
        later.map(|mark| mark.t - thawed).find(|t| *t >= 0.0)
    };
    let before = steady(run);
    let recovered = before.and_then(|before| {
        let mut starts = run.samples.iter().map(|sample| sample.unix - WINDOW);
        let start = starts.find(|start| {
            *start >= thawed - WINDOW / 2.0
                && rate(run, *start, start + WINDOW).is_some_and(|now| now >= RECOVERED * before)
        })?;
        Some((start + WINDOW - thawed).max(0.0))
    });
    let kept = run.when(What::Announced).and_then(|announced| {
        let from = (2.0 * announced - frozen).max(START.min(announced / 2.0));
        Some(rate(run, announced, frozen)? / rate(run, from, announced)?)
    });
    Some(Parts {
        announced: between(What::Announced, What::Parked),
        parked: between(What::Parked, What::Frozen),
        outage: thawed - frozen,
        detection: after(What::Detected),
        first_byte: after(What::FirstByte),
        recovered,
        kept,
    })
}

/// Bytes of IP packets that the client's interfaces have received.
pub fn received(run: &Run) -> f64 {
    let last = run.samples.last();
    last.map_or(0.0, |last| last.received.iter().sum::<u64>() as f64)
}

/// What a move has cost beyond the outage itself: its turnaround less the outage and the mean of
/// the same without a move, in seconds.
pub fn added(run: &Run, without: f64) -> Option<f64> {
    Some(run.turnaround - run.outage()? - without)
}

/// What was sent for nothing, bytes of IP packets: again, though no link had dropped it, or to a client
/// that had it already.
pub fn wasted(run: &Run) -> Option<f64> {
    let in_vain = run.sent_again.saturating_sub(run.dropped) * PACKET;
    let twice = run.body?.saturating_sub(run.bytes);
    Some((in_vain + twice) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::record::examples::moved;

    fn near(a: Option<f64>, b: f64) {
        let a = a.unwrap();
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn what_is_sent_again_or_twice_for_nothing_is_wasted() {
        let mut run = moved();
        assert_eq!(wasted(&run), Some(3002.0));
        run.dropped = 9;
        assert_eq!(wasted(&run), Some(2.0));
        run.body = None;
        assert_eq!(wasted(&run), None);
    }

    #[test]
    fn a_move_has_its_parts() {
        let run = moved();
        near(steady(&run), 150e6);
        let parts = parts(&run).unwrap();
        near(parts.announced, 0.4);
        near(parts.parked, 0.1);
        near(Some(parts.outage), 2.0);
        near(parts.detection, 0.1);
        near(parts.first_byte, 0.2);
        near(parts.recovered, 0.1);
        near(parts.kept, 1.0);
        near(added(&run, 3.5), 0.5);
    }

    #[test]
    fn throughput_is_told_by_path() {
        let throughput = throughput(&moved());
        assert_eq!(throughput.len(), 60);
        near(Some(throughput[5].1[0]), 100e6);
        near(Some(throughput[5].1[1]), 50e6);
        near(Some(throughput[30].1[0]), 0.0);
    }
}
