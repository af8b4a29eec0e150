//! All links together, as a model: which one a packet goes through after which.
//!
//! ```text
//! client ── link 0 or 1 ── shared, if there is one ── router
//! ```

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::link::{Counters, Link};
use crate::network::link_model::Change;
use crate::network::model::{Line, Network};

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the router.
    Up,
    /// From the router to the client.
    Down,
}

impl Direction {
    pub(crate) const ALL: [Direction; 2] = [Direction::Up, Direction::Down];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Up => "up",
            Direction::Down => "down",
        })
    }
}

/// A packet on its way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parcel<P> {
    pub(super) direction: Direction,
    /// The link it goes through.
    pub(super) link: usize,
    pub(super) bytes: u64,
    pub(super) packet: P,
}

/// The links of a network, both directions of each. Times are as for [`Link`].
#[derive(Debug)]
pub(super) struct Wires<P> {
    /// By direction, then by link.
    links: [[Link<Parcel<P>>; 2]; 2],
    /// By direction.
    shared: Option<[Link<Parcel<P>>; 2]>,
    /// The devices'; kept for [`Wires::network`].
    offload: bool,
}

impl<P> Wires<P> {
    pub(super) fn new(network: &Network, random: &mut Rng) -> Wires<P> {
        let mut link = |shape| Link::new(shape, random.fork());
        let links = &network.links;
        Wires {
            links: Direction::ALL.map(|_| links.each_ref().map(|shape| link(shape.clone()))),
            shared: network
                .shared
                .as_ref()
                .map(|shape| Direction::ALL.map(|_| link(shape.clone()))),
            offload: network.offload,
        }
    }

    /// The links as they are now.
    pub(super) fn network(&self) -> Network {
        let shape = |link: &Link<_>| link.shape().clone();
        Network {
            links: self.links[0].each_ref().map(shape),
            shared: self.shared.as_ref().map(|links| shape(&links[0])),
            offload: self.offload,
        }
    }

    /// Changes both directions of a link.
    ///
    /// # Errors
    /// If there is no such link, or it cannot be so.
    pub(super) fn change(
        &mut self,
        line: Line,
        change: &Change,
        now: Duration,
    ) -> Result<(), String> {
        // What was under way before is where it was until now.
        self.forward(now);
        for direction in Direction::ALL {
            let link = match line {
                Line::Link(link) => self.links[direction as usize].get_mut(link),
                Line::Shared => self
                    .shared
                    .as_mut()
                    .map(|links| &mut links[direction as usize]),
            };
            link.ok_or_else(|| format!("this network has no link {line}"))?
                .change(change, now)?;
        }
        Ok(())
    }

    /// Takes a packet, or gives back one that is dropped.
    pub(super) fn push(&mut self, parcel: Parcel<P>, now: Duration) -> Result<(), P> {
        let (direction, bytes) = (parcel.direction, parcel.bytes);
        let first = match (&mut self.shared, direction) {
            (Some(shared), Direction::Down) => &mut shared[direction as usize],
            _ => &mut self.links[direction as usize][parcel.link],
        };
        first
            .push(parcel, bytes, now)
            .map_err(|parcel| parcel.packet)
    }

    /// The next packet that has arrived at the other side until now, and when.
    pub(super) fn pop(&mut self, now: Duration) -> Option<(Duration, Parcel<P>)> {
        self.forward(now);
        let [up, down] = &mut self.links;
        match &mut self.shared {
            Some([shared, _]) => pop_first([shared].into_iter().chain(down), now),
            None => pop_first(up.iter_mut().chain(down), now),
        }
    }

    /// Nothing happens before this time, if nothing is pushed.
    pub(super) fn next(&self) -> Option<Duration> {
        let links = self.links.iter().flatten();
        links
            .chain(self.shared.iter().flatten())
            .filter_map(Link::next)
            .min()
    }

    /// What has happened since the last call.
    pub(super) fn take_counters(&mut self) -> Counters {
        let mut sum = Counters::default();
        let links = self.links.iter_mut().flatten();
        for link in links.chain(self.shared.iter_mut().flatten()) {
            let Counters { dropped, lost } = link.take_counters();
            sum.dropped += dropped;
            sum.lost += lost;
        }
        sum
    }

    /// Hands packets on from the first link to the second, each at the time at which it comes out.
    fn forward(&mut self, now: Duration) {
        let Some([shared_up, shared_down]) = &mut self.shared else {
            return;
        };
        let [up, down] = &mut self.links;
        while let Some((due, parcel)) = pop_first(up.iter_mut(), now) {
            let bytes = parcel.bytes;
            // It is counted where it is dropped.
            let _ = shared_up.push(parcel, bytes, due);
        }
        while let Some((due, parcel)) = shared_down.pop(now) {
            let (link, bytes) = (parcel.link, parcel.bytes);
            let _ = down[link].push(parcel, bytes, due);
        }
    }
}

/// The packet that has come out first of any of these links.
fn pop_first<'a, P: 'a>(
    links: impl Iterator<Item = &'a mut Link<P>>,
    now: Duration,
) -> Option<(Duration, P)> {
    links
        .filter_map(|link| Some((link.due(now)?, link)))
        .min_by_key(|(due, _)| *due)
        .and_then(|(_, link)| link.pop(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::link_model::Shape;

    fn shape(text: &str) -> Shape {
        let mut shape = Shape::default();
        shape.apply(&text.parse().unwrap());
        shape
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn parcel(direction: Direction, link: usize, packet: u32) -> Parcel<u32> {
        Parcel {
            direction,
            link,
            bytes: 1500,
            packet,
        }
    }

    fn drain(wires: &mut Wires<u32>, until: Duration) -> Vec<(Duration, Parcel<u32>)> {
        std::iter::from_fn(|| wires.pop(until)).collect()
    }

    #[test]
    fn links_and_directions_are_apart() {
        let network = Network {
            links: [shape("delay=10ms"), shape("delay=20ms")],
            ..Network::default()
        };
        let mut wires = Wires::new(&network, &mut Rng::with_seed(1));
        for (packet, direction, link) in [
            (1, Direction::Up, 0),
            (2, Direction::Up, 1),
            (3, Direction::Down, 0),
            (4, Direction::Down, 1),
        ] {
            wires
                .push(parcel(direction, link, packet), ms(packet.into()))
                .unwrap();
        }
        assert_eq!(wires.next(), Some(ms(11)));
        let out: Vec<_> = drain(&mut wires, ms(99))
            .into_iter()
            .map(|(due, parcel)| (due, parcel.packet, parcel.direction, parcel.link))
            .collect();
        assert_eq!(
            out,
            [
                (ms(11), 1, Direction::Up, 0),
                (ms(13), 3, Direction::Down, 0),
                (ms(22), 2, Direction::Up, 1),
                (ms(24), 4, Direction::Down, 1),
            ]
        );
    }

    #[test]
    fn both_links_go_through_the_shared_one() {
        let network = Network {
            links: [shape("delay=10ms"), shape("delay=11ms")],
            // A packet a millisecond, and no more than one at once.
            shared: Some(shape("rate=12M,burst=1500,latency=99ms,delay=5ms")),
            ..Network::default()
        };
        for direction in Direction::ALL {
            let mut wires = Wires::new(&network, &mut Rng::with_seed(1));
            for packet in 0..4 {
                for link in [1, 0] {
                    wires.push(parcel(direction, link, packet), ms(0)).unwrap();
                }
            }
            assert!(drain(&mut wires, ms(15) - Duration::from_nanos(1)).is_empty());
            let out = drain(&mut wires, ms(99));
            let times: Vec<_> = out.iter().map(|(due, _)| *due).collect();
            let expected = match direction {
                // Those of link 0 come to the bottleneck first.
                Direction::Up => [15, 16, 17, 18, 19, 20, 21, 22],
                // They leave the bottleneck one a millisecond, of both links in turn.
                Direction::Down => [16, 16, 18, 18, 20, 20, 22, 22],
            };
            let expected = expected.map(ms);
            assert_eq!(times, expected, "{direction:?}");
        }
    }

    #[test]
    fn changes_go_to_both_directions_of_one_link() {
        let network = Network::default();
        let mut wires = Wires::<u32>::new(&network, &mut Rng::with_seed(1));
        let down = "up=false".parse().unwrap();
        wires.change(Line::Link(1), &down, ms(1)).unwrap();
        for direction in Direction::ALL {
            assert_eq!(wires.push(parcel(direction, 1, 7), ms(2)), Err(7));
            assert_eq!(wires.push(parcel(direction, 0, 8), ms(2)), Ok(()));
        }
        assert_eq!(wires.take_counters().dropped, 2);
        assert!(!wires.network().links[1].up && wires.network().links[0].up);
        for line in [Line::Shared, Line::Link(2)] {
            let refused = wires.change(line, &down, ms(3)).unwrap_err();
            assert!(refused.contains(&line.to_string()), "{refused}");
        }
    }
}
