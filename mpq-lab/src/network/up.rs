//! `cargo lab up`, `down`, `exec` and `link`: the network that stays, for work by hand and scripts.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};

use crate::network::link_model::{Change, Shape};
use crate::network::model::{Line, Network};
use crate::network::topology::{Host, Topology};
use crate::system::setup;

/// A link and what becomes of it, written `LINK:KEY=VALUE,…`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkOption {
    /// Which one.
    pub line: Line,
    /// What becomes of it.
    pub change: Change,
}

impl FromStr for LinkOption {
    type Err = String;

    fn from_str(text: &str) -> Result<LinkOption, String> {
        let (line, change) = text
            .split_once(':')
            .ok_or("expected LINK:KEY=VALUE,…, as in 0:delay=10ms,rate=20M")?;
        Ok(LinkOption {
            line: line.parse()?,
            change: change.parse()?,
        })
    }
}

/// Makes the network that stays: the paper's, but for these links. One that is there already is kept,
/// and its links are changed. Needs root.
///
/// # Errors
/// If it cannot be made, or a link cannot be so.
pub fn up(options: &[LinkOption]) -> Result<()> {
    if let Some(topology) = Topology::already_up() {
        for option in options {
            topology.set_line(option.line, &option.change)?;
        }
        println!("The network is up already");
        return show();
    }
    let network = network(options)?;
    setup::install_programs()?;
    Topology::put_up(&network)?;
    show()
}

/// The usual network with these changes; what is said of the shared link makes one.
fn network(options: &[LinkOption]) -> Result<Network> {
    let mut network = Network::default();
    for LinkOption { line, change } in options {
        let shape = match line {
            Line::Link(link) => &mut network.links[*link],
            // Of itself it only limits the rate.
            Line::Shared => network.shared.get_or_insert_with(|| Shape {
                delay: std::time::Duration::ZERO,
                ..Shape::default()
            }),
        };
        shape.apply(change);
    }
    network.check().map_err(|error| anyhow!(error))?;
    Ok(network)
}

/// Removes the network that stays, all that runs there, and what runs that were killed have left.
///
/// # Errors
/// If something cannot be removed.
pub fn down() -> Result<()> {
    Topology::take_down()
}

/// Becomes a command that runs on a host of the network that stays.
///
/// # Errors
/// If there is no such network, or the command cannot be started.
pub fn exec(host: Host, command: &[OsString]) -> Result<Infallible> {
    let topology = the_one_up()?;
    let error = Command::new("nsenter")
        .arg(format!("--net={}", topology.namespace_file(host).display()))
        .arg("--")
        .args(command)
        .exec();
    Err(error).context("cannot run nsenter")
}

/// Changes a link of the network that stays.
///
/// # Errors
/// If there is no such network or link, or a link cannot be so.
pub fn set(line: Line, change: &Change) -> Result<()> {
    the_one_up()?.set_line(line, change)
}

/// Prints the links of the network that stays.
///
/// # Errors
/// If there is none.
pub fn show() -> Result<()> {
    let Network { links, shared, .. } = the_one_up()?.network()?;
    for (link, shape) in links.iter().enumerate() {
        println!("{:7}{shape}", Line::Link(link).to_string());
    }
    if let Some(shape) = shared {
        println!("{:7}{shape}", Line::Shared.to_string());
    }
    Ok(())
}

fn the_one_up() -> Result<Topology> {
    Topology::already_up().context("the network is not up; run `cargo lab up` as root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_the_usual_network() {
        let options = ["1:rate=20M,delay=10ms", "1:loss=0.1", "shared:rate=30M"];
        let options = options.map(|option| option.parse().unwrap());
        let network = network(&options).unwrap();
        assert_eq!(network.links[0], Shape::default());
        let second = &network.links[1];
        assert_eq!((second.rate, second.loss), (20_000_000, 0.1));
        assert_eq!(network.shared.unwrap().rate, 30_000_000);

        assert!(super::network(&["0:loss=2".parse().unwrap()]).is_err());
        for wrong in ["0", "2:up=true", "0:speed=1", ":up=true"] {
            assert!(wrong.parse::<LinkOption>().is_err(), "{wrong}");
        }
    }
}
