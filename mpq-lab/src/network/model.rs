//! What a network is asked to be, all links together, and what its emulator tells of itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::network::link_model::Shape;

/// The least bucket that what is carried in one, with the headers of each packet, fits into; bytes.
const OFFLOAD_BURST: u64 = 100_000;

/// One of the emulated links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum Line {
    /// Between the client and the router: 0 or 1.
    Link(usize),
    /// The one that the packets of both go through.
    Shared,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Link(link) => write!(f, "{link}"),
            Line::Shared => f.write_str("shared"),
        }
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Line, String> {
        match text {
            "0" => Ok(Line::Link(0)),
            "1" => Ok(Line::Link(1)),
            "shared" => Ok(Line::Shared),
            _ => Err("expected 0, 1 or shared".into()),
        }
    }
}

/// What the links do.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Those between the client and the router.
    pub links: [Shape; 2],
    /// One more that the packets of both go through, between them and the router.
    pub shared: Option<Shape>,
    /// Whether packets that a host sends in one (UDP and TCP segmentation offload, up to 64 KiB) are
    /// carried, and dropped, in one, as many Ethernet devices take them. Their bytes count as those of
    /// the packets. It saves CPU time on fast links, and makes slow ones bursty.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub offload: bool,
}

impl Default for Network {
    /// The paper's (its Table 2).
    fn default() -> Network {
        let second = Shape {
            rate: 50_000_000,
            burst: 200_000,
            ..Shape::default()
        };
        Network {
            links: [Shape::default(), second],
            shared: None,
            offload: false,
        }
    }
}

impl Network {
    /// Whether a network can be so.
    ///
    /// # Errors
    /// What is wrong, and with which link and field.
    pub fn check(&self) -> Result<(), String> {
        let named = [
            ("links[0]", Some(&self.links[0])),
            ("links[1]", Some(&self.links[1])),
        ];
        for (name, shape) in named.into_iter().chain([("shared", self.shared.as_ref())]) {
            if let Some(shape) = shape {
                shape.check().map_err(|error| format!("{name}: {error}"))?;
                if self.offload && (shape.loss > 0.0 || shape.burst < OFFLOAD_BURST) {
                    return Err(format!(
                        "{name}: with offload, loss must be 0 and burst {OFFLOAD_BURST} bytes or more, \
                         since 64 KiB are lost or pass in one"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What the emulator has done. What it carries in one, with [`Network::offload`], is one packet here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct Emulation {
    /// Half of the packets left a link at most this late, in seconds.
    pub median_lateness: f64,
    /// How late the latest packet left a link, in seconds.
    pub worst_lateness: f64,
    /// Packets that were carried from one side to the other.
    pub packets: u64,
    /// Packets that found a full queue, or a link that was down.
    pub dropped: u64,
    /// Packets that were lost at random, as asked for.
    pub lost: u64,
    /// Packets that the host they were for did not take.
    pub refused: u64,
}

impl Emulation {
    /// What it has done in this time and in the time after it. Half of the packets were at most as late as
    /// in the worse of the two.
    #[must_use]
    pub fn and_then(self, later: Self) -> Self {
        Self {
            median_lateness: self.median_lateness.max(later.median_lateness),
            worst_lateness: self.worst_lateness.max(later.worst_lateness),
            packets: self.packets + later.packets,
            dropped: self.dropped + later.dropped,
            lost: self.lost + later.lost,
            refused: self.refused + later.refused,
        }
    }

    /// Packets that did not come out of a link.
    pub fn missing(&self) -> u64 {
        self.dropped + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_network_is_the_papers() {
        let network = Network::default();
        assert_eq!(network.check(), Ok(()));
        let queues = network.links.each_ref().map(Shape::queue);
        assert_eq!(queues, [412_500, 206_250]);
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        for line in [Line::Link(0), Line::Link(1), Line::Shared] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert!("2".parse::<Line>().is_err());
    }
}
