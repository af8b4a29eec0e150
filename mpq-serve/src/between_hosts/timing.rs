//! What the steps of a move took.

use std::fmt;

use serde::Serialize;

/// In seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// From the announcement until the server was parked: the lead, and what was in flight.
    pub announce: f64,
    /// Until CRIU was started.
    pub wait: f64,
    /// Until the images were complete, and the process had ended.
    pub dump: f64,
    /// Until the images were sent.
    pub copy: f64,
    /// Until the server was restored at B.
    pub restore: f64,
    /// Until it served there.
    pub hand_over: f64,
    /// From parking on until then: nobody served.
    pub pause: f64,
    /// All of it.
    pub total: f64,
}

impl Timing {
    fn rows(&self) -> [(&'static str, f64); 8] {
        [
            ("announce, park", self.announce),
            ("wait for CRIU", self.wait),
            ("dump", self.dump),
            ("copy", self.copy),
            ("restore", self.restore),
            ("hand over", self.hand_over),
            ("nobody served", self.pause),
            ("total", self.total),
        ]
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, seconds) in self.rows() {
            writeln!(f, "{step:<15}{seconds:>8.3} s")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_a_line() {
        let timing = Timing {
            announce: 0.5,
            wait: 0.0,
            dump: 0.1,
            copy: 0.05,
            restore: 0.1,
            hand_over: 0.01,
            pause: 0.26,
            total: 12.76,
        };
        let table = timing.to_string();
        assert_eq!(table.lines().count(), 8);
        assert_eq!(table.lines().last(), Some("total            12.760 s"));
    }
}
