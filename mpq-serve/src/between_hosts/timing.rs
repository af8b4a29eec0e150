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
    /// From then on until the last client was back that came in time, if there was one.
    pub clients_back: Option<f64>,
}

impl Timing {
    fn rows(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let steps = [
            ("announce, park", self.announce),
            ("wait for CRIU", self.wait),
            ("dump", self.dump),
            ("copy", self.copy),
            ("restore", self.restore),
            ("hand over", self.hand_over),
            ("nobody served", self.pause),
            ("total", self.total),
        ];
        let clients_back = self.clients_back.map(|seconds| ("clients back", seconds));
        steps.into_iter().chain(clients_back)
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
            clients_back: None,
        };
        let table = timing.to_string();
        assert_eq!(table.lines().count(), 8);
        assert_eq!(table.lines().last(), Some("total            12.760 s"));
        let clients_back = Some(0.02);
        let table = Timing {
            clients_back,
            ..timing
        };
        let table = table.to_string();
        assert_eq!(table.lines().last(), Some("clients back      0.020 s"));
    }
}
