//! `cargo lab calibrate`: measures whether the emulated links are what was asked for.
//!
//! All figures but the lateness are taken at the hosts: round-trip times by ping, rates and losses by
//! datagrams that a receiver of our own counts.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::network::emulator::Direction;
use crate::network::flood::{Flood, Pace};
use crate::network::link_model::{MTU, Shape};
use crate::network::model::{Emulation, Network};
use crate::network::ping::ping;
use crate::network::topology::{Host, Topology};
use crate::system::counters::{MOST_STEAL, Steal};

/// What a round trip may take beyond the links' delays.
const MOST_BEYOND_DELAY: Duration = Duration::from_millis(4);
/// How far a rate may be off, as a part of it.
const MOST_OFF_RATE: f64 = 0.01;
/// How late half of the packets may be, in seconds.
const MOST_LATENESS: f64 = 0.000_2;
/// How often a measurement that was disturbed, or that is off, is repeated. A core that stood still
/// is not always seen: a flood that has sent nothing for a while is off without a late packet. What
/// is wrong with the network itself is wrong every time.
const REPEATS: u32 = 3;

/// Pings of one link.
const PINGS: usize = 20;
/// How long a rate is measured.
const MEASURED: Duration = Duration::from_secs(2);
/// How much more is sent than a link carries.
const OVERLOAD: f64 = 1.25;
/// How much of its rate is sent over a link whose losses are counted.
const UNDERLOAD: f64 = 0.5;

/// What was asked for, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// What was asked for.
    pub network: Network,
    /// Both links.
    pub links: [LinkFigures; 2],
    /// What the emulator tells of itself.
    pub emulation: Emulation,
    /// Share of the CPU time that the machine's host gave to others meanwhile.
    pub steal: f64,
    /// How often the measurement was repeated since the machine was disturbed.
    pub repeats: u32,
}

/// What was measured on one link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// The shortest round trip, in seconds.
    pub rtt_min: f64,
    /// The median round trip, in seconds.
    pub rtt_median: f64,
    /// The longest round trip, in seconds.
    pub rtt_max: f64,
    /// Rate to the router, bit/s of IP packets, while more is sent.
    pub rate_up: f64,
    /// Rate to the client, bit/s of IP packets, while more is sent.
    pub rate_down: f64,
    /// The part of the packets that were lost at half the rate, of both directions; only measured
    /// where losses were asked for.
    pub loss: Option<Loss>,
}

/// Packets that were lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Packets sent.
    pub sent: u64,
    /// Those that did not arrive.
    pub lost: u64,
}

/// Makes a network, measures its links and removes it. Needs root; takes some ten seconds.
///
/// # Errors
/// If the network cannot be made, or a figure is not as asked for; the message has all of them.
pub async fn calibrate(network: &Network) -> Result<Calibration> {
    let mut repeats = 0;
    let calibration = loop {
        let topology = Topology::new(network)?;
        let calibration = measure(&topology, network, repeats).await?;
        if repeats == REPEATS || !calibration.doubtful() {
            break calibration;
        }
        repeats += 1;
    };
    let wrong = calibration.wrong();
    ensure!(
        wrong.is_empty(),
        "the network is not as asked for: {}\n{calibration}",
        wrong.join("; ")
    );
    Ok(calibration)
}

impl LinkFigures {
    fn rates(&self) -> [(Direction, f64); 2] {
        [
            (Direction::Up, self.rate_up),
            (Direction::Down, self.rate_down),
        ]
    }
}

/// By how many of `count` packets the losses at this probability may differ from their mean: four
/// standard deviations.
fn deviations(count: f64, probability: f64) -> f64 {
    4.0 * (count * probability * (1.0 - probability)).sqrt()
}

impl Calibration {
    /// Whether the figures may tell of the machine's host and not of the links.
    fn doubtful(&self) -> bool {
        self.steal > MOST_STEAL || !self.wrong().is_empty()
    }

    /// What is not as asked for.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (link, figures) in self.links.iter().enumerate() {
            if !self.network.links[link].up {
                continue;
            }
            let [least, most] = self.rtt(link);
            if !(least..=most).contains(&figures.rtt_median) {
                wrong.push(format!("the round trip over link {link}"));
            }
            for (direction, rate) in figures.rates() {
                let off = (rate / self.rate(link, direction) - 1.0).abs();
                if off > self.most_off(link, direction) {
                    wrong.push(format!("the rate {direction} link {link}"));
                }
            }
            if let Some(Loss { sent, lost }) = figures.loss {
                let (sent, asked) = (sent as f64, self.loss(link));
                if (lost as f64 - sent * asked).abs() > deviations(sent, asked).max(1.0) {
                    wrong.push(format!("the losses of link {link}"));
                }
            }
        }
        if self.emulation.median_lateness > MOST_LATENESS {
            wrong.push("the lateness".into());
        }
        wrong
    }

    /// The links that a packet over this link goes through.
    fn path(&self, link: usize) -> impl Iterator<Item = &Shape> {
        [&self.network.links[link]]
            .into_iter()
            .chain(&self.network.shared)
    }

    /// The least and the most that a round trip over a link may take, in seconds.
    fn rtt(&self, link: usize) -> [f64; 2] {
        let sum = |of: fn(&Shape) -> Duration| 2 * self.path(link).map(of).sum::<Duration>();
        let (delay, jitter) = (sum(|shape| shape.delay), sum(|shape| shape.jitter));
        [delay - jitter, delay + jitter + MOST_BEYOND_DELAY].map(|time| time.as_secs_f64())
    }

    /// Bit/s that the slowest link carries.
    fn bottleneck(&self, link: usize) -> f64 {
        let rates = self.path(link).map(|shape| shape.rate as f64);
        rates.fold(f64::INFINITY, f64::min)
    }

    /// Bit/s that arrive at the end of a link while more is sent.
    fn rate(&self, link: usize, direction: Direction) -> f64 {
        let mut path: Vec<_> = self.path(link).collect();
        if direction == Direction::Down {
            path.reverse();
        }
        // What is lost has passed the bottleneck before.
        path.iter().fold(f64::INFINITY, |rate, shape| {
            rate.min(shape.rate as f64) * (1.0 - shape.loss)
        })
    }

    /// How far a rate may be off, as a part of it; losses are by chance.
    fn most_off(&self, link: usize, direction: Direction) -> f64 {
        let packets = self.rate(link, direction) * MEASURED.as_secs_f64() / (MTU as f64 * 8.0);
        MOST_OFF_RATE + deviations(packets, self.loss(link)) / packets
    }

    /// More than a link carries, long enough to measure its rate.
    fn overload(&self, link: usize) -> Pace {
        let rate = self.bottleneck(link);
        // The buckets are full at first.
        let bursts: u64 = self.path(link).map(|shape| shape.burst).sum();
        let drained = bursts as f64 * 8.0 / (rate * (OVERLOAD - 1.0));
        // Still more than enough where much is lost on the way.
        let kept = (1.0 - self.loss(link)).max(0.1);
        Pace {
            rate: rate * OVERLOAD / kept,
            settle: Duration::from_secs_f64(drained * 2.0),
            measure: MEASURED,
        }
    }

    /// The part of packets that a link, and the shared one, lose.
    fn loss(&self, link: usize) -> f64 {
        1.0 - self
            .path(link)
            .map(|shape| 1.0 - shape.loss)
            .product::<f64>()
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (link, figures) in self.links.iter().enumerate() {
            if !self.network.links[link].up {
                writeln!(f, "link {link}  is down")?;
                continue;
            }
            let ms = |seconds: f64| seconds * 1e3;
            let [least, most] = self.rtt(link).map(ms);
            writeln!(
                f,
                "link {link}  round trip   asked {least:.2} to {most:.2} ms, \
                 measured {:.2} (min) {:.2} (median) {:.2} (max) ms",
                ms(figures.rtt_min),
                ms(figures.rtt_median),
                ms(figures.rtt_max)
            )?;
            for (direction, rate) in figures.rates() {
                let asked = self.rate(link, direction);
                writeln!(
                    f,
                    "        rate {direction:7} asked {:.2} Mbit/s, measured {:.2} Mbit/s ({:+.2}%)",
                    asked / 1e6,
                    rate / 1e6,
                    (rate / asked - 1.0) * 100.0
                )?;
            }
            if let Some(Loss { sent, lost }) = figures.loss {
                writeln!(
                    f,
                    "        loss         asked {:.3}%, measured {:.3}% ({lost} of {sent})",
                    self.loss(link) * 100.0,
                    lost as f64 / sent as f64 * 100.0
                )?;
            }
        }
        let Emulation {
            median_lateness,
            worst_lateness,
            packets,
            dropped,
            lost,
            refused,
        } = self.emulation;
        writeln!(
            f,
            "emulator  late by {:.3} ms (median), {:.3} ms (worst); {packets} packets carried, \
             {dropped} dropped, {lost} lost, {refused} refused",
            median_lateness * 1e3,
            worst_lateness * 1e3
        )?;
        writeln!(
            f,
            "machine   {:.1}% of its time stolen; measured again {} times for disturbances",
            self.steal * 100.0,
            self.repeats
        )
    }
}

async fn measure(topology: &Topology, network: &Network, repeats: u32) -> Result<Calibration> {
    let steal = Steal::now()?;
    let mut calibration = Calibration {
        network: network.clone(),
        links: [LinkFigures::default(); 2],
        emulation: Emulation::default(),
        steal: 0.0,
        repeats,
    };
    let up: Vec<usize> = (0..2).filter(|link| network.links[*link].up).collect();
    for &link in &up {
        let mut times = ping(topology, link, PINGS).await?;
        times.sort_by(f64::total_cmp);
        let figures = &mut calibration.links[link];
        figures.rtt_min = times[0];
        figures.rtt_median = times[times.len() / 2];
        figures.rtt_max = times[times.len() - 1];
    }
    // Together, as they are used; but what they share would limit their sum.
    let together: Vec<Vec<usize>> = match network.shared {
        None => vec![up.clone()],
        Some(_) => up.iter().map(|link| vec![*link]).collect(),
    };
    for direction in Direction::ALL {
        for links in &together {
            let floods = links.iter().map(|&link| {
                let pace = calibration.overload(link);
                Ok((
                    link,
                    flood(topology, network.offload, direction, link).start(pace)?,
                ))
            });
            for (link, flood) in floods.collect::<Result<Vec<_>>>()? {
                let received = flood.finish().await?;
                let figures = &mut calibration.links[link];
                match direction {
                    Direction::Up => figures.rate_up = received.rate,
                    Direction::Down => figures.rate_down = received.rate,
                }
            }
        }
    }
    for &link in &up {
        if calibration.loss(link) > 0.0 {
            let pace = Pace {
                rate: calibration.bottleneck(link) * UNDERLOAD,
                settle: Duration::ZERO,
                measure: MEASURED,
            };
            let mut loss = Loss::default();
            for direction in Direction::ALL {
                let flood = flood(topology, network.offload, direction, link).start(pace)?;
                let received = flood.finish().await?;
                loss.sent += received.sent;
                loss.lost += received.sent - received.arrived;
            }
            calibration.links[link].loss = Some(loss);
        }
    }
    calibration.emulation = topology.emulation()?;
    calibration.steal = steal.share()?;
    Ok(calibration)
}

/// Datagrams from one end of a link to the other.
fn flood(topology: &Topology, offload: bool, direction: Direction, link: usize) -> Flood {
    let [client, server] = [Host::Client, Host::ServerA].map(|host| topology.namespace_file(host));
    match direction {
        Direction::Up => Flood {
            from: client,
            device: Some(format!("eth{link}")),
            to: server,
            address: Host::ServerA.address(),
            offload,
        },
        Direction::Down => Flood {
            from: server,
            device: None,
            to: client,
            address: Ipv4Addr::new(10, 0, link as u8, 2),
            offload,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        let figures = |rate: f64| LinkFigures {
            rtt_min: 0.0501,
            rtt_median: 0.0502,
            rtt_max: 0.06,
            rate_up: rate,
            rate_down: rate * 0.995,
            loss: None,
        };
        Calibration {
            network: Network::default(),
            links: [figures(100e6), figures(50e6)],
            emulation: Emulation {
                median_lateness: 0.000_1,
                ..Emulation::default()
            },
            steal: 0.01,
            repeats: 0,
        }
    }

    fn wrong(change: impl FnOnce(&mut Calibration)) -> String {
        let mut calibration = calibration();
        change(&mut calibration);
        calibration.wrong().join(", ")
    }

    #[test]
    fn every_figure_is_checked() {
        assert_eq!(wrong(|_| ()), "");
        let says = "the round trip over link 0";
        assert_eq!(wrong(|found| found.links[0].rtt_median = 0.0499), says);
        assert_eq!(wrong(|found| found.links[0].rtt_median = 0.0541), says);
        let says = "the rate up link 1";
        assert_eq!(wrong(|found| found.links[1].rate_up = 49.4e6), says);
        let says = "the rate down link 0";
        assert_eq!(wrong(|found| found.links[0].rate_down = 101.1e6), says);
        let says = "the lateness";
        assert_eq!(
            wrong(|found| found.emulation.median_lateness = 0.000_3),
            says
        );
    }

    #[test]
    fn what_may_be_the_machines_fault_is_measured_again() {
        let doubtful = |steal, rate| {
            let mut found = calibration();
            found.steal = steal;
            found.links[0].rate_up = rate;
            found.doubtful()
        };
        assert!(!doubtful(0.0, 100e6));
        assert!(doubtful(0.0, 90e6) && doubtful(0.06, 100e6));
    }

    #[test]
    fn losses_may_be_off_by_chance_only() {
        let with = |lost| {
            wrong(|found| {
                found.network.links[0].loss = 0.01;
                found.links[0].rate_up = 99e6;
                found.links[0].rate_down = 99e6;
                found.links[0].loss = Some(Loss { sent: 10_000, lost });
            })
        };
        assert_eq!([with(65), with(135)], ["", ""]);
        let says = "the losses of link 0";
        assert_eq!([with(55), with(145)], [says, says]);
    }

    #[test]
    fn a_shared_link_limits_and_delays() {
        let shared = Shape {
            rate: 30_000_000,
            delay: Duration::from_millis(5),
            ..Shape::default()
        };
        let mut found = calibration();
        found.network.shared = Some(shared);
        assert_eq!(found.rate(1, Direction::Down), 30e6);
        found.network.links[1].loss = 0.5;
        assert_eq!(found.rate(1, Direction::Down), 15e6);
        assert_eq!(found.rate(1, Direction::Up), 25e6);
        assert_eq!(found.rtt(1), [0.06, 0.064]);
    }

    #[test]
    fn a_calibration_can_be_kept() {
        let json = serde_json::to_string(&calibration()).unwrap();
        let read: Calibration = serde_json::from_str(&json).unwrap();
        assert_eq!(read, calibration());
    }
}
