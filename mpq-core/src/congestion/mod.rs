//! Which congestion control a sender uses. All but OLIA are noq's and treat each path by itself.

pub(crate) mod careful_resume;
pub(crate) mod controller;
mod olia;
mod saved_paths;
pub(crate) mod send_control;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use std::time::Instant;

use noq::congestion::{Bbr3Config, Controller, ControllerFactory, CubicConfig, NewRenoConfig};

pub use self::careful_resume::{Resume, UnknownResume};
use self::olia::Olia;

/// A congestion control algorithm. It matters at the end that sends, mostly the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC (RFC 9438), each path by itself.
    #[default]
    Cubic,
    /// BBR version 3 (draft-ietf-ccwg-bbr), each path by itself.
    Bbr,
    /// NewReno (RFC 9002, section 7), each path by itself.
    NewReno,
    /// OLIA (Khalili et al., CoNEXT 2012): all paths of a connection together take no more from a
    /// shared link than one NewReno connection would.
    Olia,
}

/// What makes the controllers of one connection's paths.
pub(crate) type Factory = dyn ControllerFactory + Send + Sync;

/// A name that is none of [`Congestion::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected cubic, bbr, newreno or olia")]
pub struct UnknownCongestion;

impl Congestion {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Cubic, Self::Bbr, Self::NewReno, Self::Olia];

    /// What makes the controllers of one connection; another connection needs another, since
    /// OLIA's paths know each other by it.
    pub(crate) fn factory(self) -> Arc<Factory> {
        Arc::new(Algorithm::new(self))
    }
}

/// The algorithm of one connection.
#[derive(Debug)]
pub(crate) struct Algorithm {
    congestion: Congestion,
    olia: Arc<Olia>,
}

impl Algorithm {
    pub(crate) fn new(congestion: Congestion) -> Self {
        Self {
            congestion,
            olia: Arc::default(),
        }
    }

    /// Whether it goes by a model of the path (a rate and a round-trip time), rather than by a window.
    fn has_model(&self) -> bool {
        self.congestion == Congestion::Bbr
    }

    /// Begins with this window, bytes, or with that of a new connection; in slow start in any case.
    fn begin(&self, now: Instant, mtu: u16, window: Option<u64>) -> Box<dyn Controller> {
        match self.congestion {
            Congestion::Cubic => {
                let mut config = CubicConfig::default();
                window.map(|window| config.initial_window(window));
                Arc::new(config).build(now, mtu)
            }
            Congestion::Bbr => {
                let mut config = Bbr3Config::default();
                window.map(|window| config.initial_window(window));
                Arc::new(config).build(now, mtu)
            }
            Congestion::NewReno => {
                let mut config = NewRenoConfig::default();
                window.map(|window| config.initial_window(window));
                Arc::new(config).build(now, mtu)
            }
            Congestion::Olia => self.olia.clone().begin(mtu, window),
        }
    }
}

impl ControllerFactory for Algorithm {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        self.begin(now, mtu, None)
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::NewReno => "newreno",
            Self::Olia => "olia",
        })
    }
}

impl FromStr for Congestion {
    type Err = UnknownCongestion;

    fn from_str(name: &str) -> Result<Self, UnknownCongestion> {
        let named = |known: &Self| known.to_string() == name;
        Self::ALL.into_iter().find(named).ok_or(UnknownCongestion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for congestion in Congestion::ALL {
            assert_eq!(congestion.to_string().parse(), Ok(congestion));
        }
        for resume in Resume::ALL {
            assert_eq!(resume.to_string().parse(), Ok(resume));
            assert!(UnknownResume.to_string().contains(&resume.to_string()));
        }
        assert_eq!("reno".parse::<Congestion>(), Err(UnknownCongestion));
        let message = UnknownCongestion.to_string();
        assert!(
            Congestion::ALL
                .iter()
                .all(|c| message.contains(&c.to_string()))
        );
    }
}
