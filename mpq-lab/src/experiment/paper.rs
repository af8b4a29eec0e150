//! What the paper reports: "Server Migration with Multipath-QUIC" (2025), Sections 4 and 5.

use crate::experiment::scenario::Arm;
use crate::experiment::statistics::Range;

const fn range(mean: f64, min: f64, max: f64) -> Range {
    Range { mean, min, max }
}

/// Figure 6: round-trip times of the client's two interfaces, in seconds.
pub const RTT: [Range; 2] = [
    range(0.053_33, 0.051_50, 0.054_94),
    range(0.054_16, 0.052_13, 0.057_01),
];

/// Turnaround in seconds: Figures 7 and 8 without a move, 11 and 12 with one.
pub fn turnaround(arm: Arm, moved: bool) -> Option<Range> {
    match (arm, moved) {
        (Arm::Quic, false) => Some(range(64.82, 60.25, 68.88)),
        (Arm::Multipath | Arm::PaperOlia, false) => Some(range(48.78, 44.01, 52.90)),
        (Arm::Quic, true) => Some(range(109.28, 105.77, 114.16)),
        (Arm::Multipath | Arm::PaperOlia, true) => Some(range(62.72, 57.29, 67.93)),
        _ => None,
    }
}

/// Steady throughput in bit/s, from Figures 9 and 10 and the text.
pub fn throughput(arm: Arm) -> Option<f64> {
    match arm {
        Arm::Quic => Some(14e6),
        Arm::Multipath | Arm::PaperOlia => Some(18e6),
        _ => None,
    }
}
