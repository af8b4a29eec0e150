//! The machine itself: what happens, and what the server does about it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::clients::Clients;
use super::drain::Drain;
use super::knocks::Knocks;
use super::{AlternativeAddresses, Announcement, Arrivals, Input, Output, Stage};
use crate::proto::forward::MAX_CLIENTS;
use crate::proto::frame::Frame;

/// From parking on, a client may still say HELLO for so long: its handshake may have been done just now.
const HELLO_CHANCE: Duration = Duration::from_millis(100);
/// How long clients may take to arrive before the server stops waiting for them.
const ARRIVAL: Duration = Duration::from_secs(30);
/// The new address may come to this host a little later than the server. What is not there then is not there.
const OPENING: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const OPENING_RETRY: Duration = Duration::from_millis(50);

/// The machine of one server.
#[derive(Debug, Default)]
pub struct ServerMachine {
    elsewhere: AlternativeAddresses,
    phase: Phase,
    /// The newest announcement, and its number; 0 before the first.
    announcement: Announcement,
    sequence: u64,
    clients: Clients,
    /// What has become of them in the newest move.
    arrivals: Arrivals,
    outputs: VecDeque<Output>,
}

/// How far a move is.
#[derive(Debug, Default)]
enum Phase {
    /// None is under way.
    #[default]
    Serving,
    /// The clients know.
    Announced {
        /// When the server parks.
        park_at: Instant,
    },
    /// Nothing new is sent.
    Parking {
        /// How long strangers may still say HELLO.
        chance: Instant,
        drain: Drain,
    },
    /// The sockets are closed.
    Parked,
    /// The sockets are being opened.
    Resuming {
        /// At this other address, or where they were.
        listen: Option<SocketAddr>,
        /// How long that is tried at another one.
        until: Instant,
        /// When it is tried again.
        retry_at: Option<Instant>,
    },
    /// At the new address, waiting for its clients.
    Arriving { knocks: Knocks, until: Instant },
}

impl ServerMachine {
    /// A server that may be found elsewhere.
    pub fn new(elsewhere: AlternativeAddresses) -> Self {
        Self {
            elsewhere,
            ..Self::default()
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Connected(client) => {
                self.clients.connected(now, client);
                if self.is_parking() {
                    self.outputs.push_back(Output::CloseGate(client));
                }
            }
            Input::Hello(client) => self.hello(now, client),
            Input::Gone(client) => {
                let was_missing = self.clients.gone(client);
                self.arrivals.gone += usize::from(was_missing);
                self.park_if_quiet(now);
                self.arrived_if_all(now);
            }
            // Told for the log; the lead time is the operator's, not the clients'.
            Input::Ready(_) => {}
            Input::Announce(announcement) => {
                if let Phase::Serving = self.phase {
                    self.sequence += 1;
                    self.arrivals = Arrivals::default();
                    if !announcement.targets.is_empty() {
                        let frame = announcement.frame(self.sequence);
                        self.send_all(&frame);
                    }
                    let park_at = now + announcement.lead;
                    self.announcement = announcement;
                    self.enter(Phase::Announced { park_at });
                }
            }
            Input::Quiet => self.end_drain(now, true),
            Input::Closed => {
                if let Phase::Parked = self.phase {
                    self.outputs.push_back(Output::Dump);
                }
            }
            // At its new address it is too late: clients may be there.
            Input::Failed | Input::Abandoned => match self.phase {
                Phase::Announced { .. } | Phase::Parking { .. } => self.cancel(),
                Phase::Parked => self.go_back(now),
                Phase::Resuming {
                    listen: Some(_), ..
                } if input == Input::Abandoned => self.go_back(now),
                _ => {}
            },
            Input::Thawed { listen, before } => {
                if let Phase::Parked = self.phase {
                    match self.has_moved(listen, before) {
                        true => {
                            self.outputs.push_back(Output::Wake);
                            self.resume(now, Some(listen));
                        }
                        false => self.go_back(now),
                    }
                }
            }
            Input::NotReopened => match &mut self.phase {
                Phase::Resuming {
                    listen: Some(_),
                    until,
                    ..
                } if *until <= now => self.go_back(now),
                Phase::Resuming { retry_at, .. } => *retry_at = Some(now + OPENING_RETRY),
                _ => {}
            },
            Input::Reopened => match self.phase {
                Phase::Resuming { listen: None, .. } => self.cancel(),
                Phase::Resuming {
                    listen: Some(_), ..
                } => {
                    self.clients.leave();
                    self.arrivals.expected = self.clients.missing().count();
                    self.enter(Phase::Arriving {
                        knocks: Knocks::new(now),
                        until: now + ARRIVAL,
                    });
                    self.handle_timeout(now);
                }
                _ => {}
            },
            Input::Established(client) => {
                let sequence = self.sequence;
                self.arrived(now, client, Frame::Arrived { sequence });
            }
            Input::Stayed(client) => {
                let sequence = self.sequence;
                self.arrived(now, client, Frame::Cancelled { sequence });
            }
        }
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Announced { park_at } if *park_at <= now => self.park(now),
            Phase::Parking { .. } => {
                self.end_drain(now, false);
                self.park_if_quiet(now);
            }
            Phase::Arriving { knocks, .. } => {
                let due = knocks.due(now, self.clients.missing_followers());
                if !due.is_empty() {
                    self.outputs.push_back(Output::Knock(due));
                }
                self.arrived_if_all(now);
            }
            Phase::Resuming {
                listen, retry_at, ..
            } if retry_at.is_some_and(|at| at <= now) => {
                *retry_at = None;
                self.outputs.push_back(Output::Reopen(*listen));
            }
            _ => {}
        }
    }

    /// When [`ServerMachine::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Announced { park_at } => Some(*park_at),
            Phase::Parking { chance, drain } => match drain {
                Drain::UnderWay { until } => Some(*until),
                Drain::Over => Some(*chance),
            },
            Phase::Arriving { knocks, until } => Some(knocks.next_timeout().min(*until)),
            Phase::Resuming { retry_at, .. } => *retry_at,
            Phase::Serving | Phase::Parked => None,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The number of the newest announcement; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What has become of its clients in the newest move.
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals
    }

    /// What its connections have to know of it.
    pub fn stage(&self) -> Stage {
        match self.phase {
            Phase::Serving => Stage::Serving,
            Phase::Parking { .. } | Phase::Parked => Stage::Parking,
            Phase::Announced { .. } | Phase::Resuming { .. } | Phase::Arriving { .. } => {
                Stage::Moving
            }
        }
    }

    /// Whether a move can be announced.
    pub fn is_serving(&self) -> bool {
        self.stage() == Stage::Serving
    }

    /// Whether body writers are to be held: the server is about to be frozen, or is.
    pub fn is_parking(&self) -> bool {
        self.stage() == Stage::Parking
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        match self.phase {
            Phase::Serving => "Serving",
            Phase::Announced { .. } => "Announced",
            Phase::Parking { .. } => "Parking",
            Phase::Parked => "Parked",
            Phase::Resuming { listen: None, .. } => "Resuming (old address)",
            Phase::Resuming {
                listen: Some(_), ..
            } => "Resuming (new address)",
            Phase::Arriving { .. } => "Arriving",
        }
    }

    /// All changes of the phase go through here.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    fn hello(&mut self, now: Instant, client: u64) {
        if !self.clients.follow(now, client) {
            return;
        }
        if self.elsewhere != AlternativeAddresses::default() {
            let frame = self.elsewhere.frame();
            self.outputs.push_back(Output::Send(client, frame));
        }
        let (lead, parking) = match self.phase {
            Phase::Announced { park_at } => (park_at.saturating_duration_since(now), false),
            Phase::Parking { .. } => (Duration::ZERO, true),
            _ => return,
        };
        if !self.announcement.targets.is_empty() {
            let announcement = Announcement {
                lead,
                ..self.announcement.clone()
            };
            let frame = announcement.frame(self.sequence);
            self.outputs.push_back(Output::Send(client, frame));
            if parking {
                let sequence = self.sequence;
                let frame = Frame::Parked { sequence };
                self.outputs.push_back(Output::Send(client, frame));
            }
        }
        // What it was just told is in flight.
        if let Phase::Parking {
            drain: Drain::Over, ..
        } = self.phase
        {
            self.drain(now);
        }
    }

    /// A client is with the server again, and is told so.
    fn arrived(&mut self, now: Instant, client: u64, frame: Frame) {
        if let Phase::Arriving { .. } = self.phase
            && self.clients.arrive(client)
        {
            self.arrivals.arrived += 1;
            if self.clients.hears(client) {
                self.outputs.push_back(Output::Send(client, frame));
            }
            self.outputs.push_back(Output::OpenGate(client));
        }
        self.arrived_if_all(now);
    }

    /// From now on nothing new is sent.
    fn park(&mut self, now: Instant) {
        self.enter(Phase::Parking {
            chance: now + HELLO_CHANCE,
            drain: Drain::Over,
        });
        self.outputs.push_back(Output::CloseGates);
        if !self.announcement.targets.is_empty() {
            self.send_all(&Frame::Parked {
                sequence: self.sequence,
            });
        }
        if let Some(long_ago) = now.checked_sub(HELLO_CHANCE)
            && !self.announcement.forwarded
        {
            self.dismiss(long_ago);
        }
        self.drain(now);
    }

    /// What was sent is waited for.
    fn drain(&mut self, now: Instant) {
        if let Phase::Parking { drain, .. } = &mut self.phase {
            *drain = Drain::new(now);
            self.outputs.push_back(Output::Drain);
        }
    }

    fn end_drain(&mut self, now: Instant, quiet: bool) {
        if let Phase::Parking { drain, .. } = &mut self.phase
            && drain.end(now, quiet)
        {
            self.outputs.push_back(Output::Hold);
            self.park_if_quiet(now);
        }
    }

    /// Dismisses the strangers that were connected until then; whether there are any.
    fn dismiss(&mut self, until: Instant) -> bool {
        let dismissed = self.clients.dismiss(until);
        let any = !dismissed.is_empty();
        self.arrivals.dismissed += dismissed.len();
        self.outputs
            .extend(dismissed.into_iter().map(Output::Dismiss));
        any
    }

    /// Parks, if nothing is in flight; but first those that cannot follow are told to go, unless they are forwarded.
    /// Whoever connects while they are is only told.
    fn park_if_quiet(&mut self, now: Instant) {
        let Phase::Parking {
            chance,
            drain: Drain::Over,
        } = self.phase
        else {
            return;
        };
        if now < chance && self.clients.has_strangers() {
            return;
        }
        if self.announcement.forwarded {
            let kept = self.clients.keep(MAX_CLIENTS).into_iter().map(Output::Keep);
            self.outputs.extend(kept);
        }
        if self.dismiss(chance) {
            return self.drain(now);
        }
        self.dismiss(now);
        self.enter(Phase::Parked);
        self.outputs.push_back(Output::CloseSockets);
    }

    /// Whether a server that is to listen there after a freeze, and listened here before, may be elsewhere. Any
    /// host has the unspecified address; a specific one says where it is. If that was announced, it may be another
    /// host that has it now.
    fn has_moved(&self, listen: SocketAddr, before: SocketAddr) -> bool {
        listen != before
            || listen.ip().is_unspecified()
            || self.announcement.targets.contains(&listen)
    }

    /// The sockets are opened where they were.
    fn go_back(&mut self, now: Instant) {
        self.resume(now, None);
    }

    fn resume(&mut self, now: Instant, listen: Option<SocketAddr>) {
        self.enter(Phase::Resuming {
            listen,
            until: now + OPENING,
            retry_at: None,
        });
        self.outputs.push_back(Output::Reopen(listen));
    }

    /// Goes on at the old address.
    fn cancel(&mut self) {
        self.enter(Phase::Serving);
        self.send_all(&Frame::Cancelled {
            sequence: self.sequence,
        });
        let gates = self.clients.followers().map(Output::OpenGate);
        self.outputs.extend(gates);
        self.clients.end_keeping();
        self.outputs.push_back(Output::Done { moved: false });
    }

    /// Serves again once every client is here, or had its time.
    fn arrived_if_all(&mut self, now: Instant) {
        let Phase::Arriving { until, .. } = self.phase else {
            return;
        };
        if now < until && self.clients.missing().next().is_some() {
            return;
        }
        self.enter(Phase::Serving);
        self.arrivals.is_over = true;
        let given_up = self.clients.give_up_missing();
        self.outputs
            .extend(given_up.into_iter().map(Output::OpenGate));
        self.clients.end_keeping();
        self.outputs.push_back(Output::Done { moved: true });
    }

    fn send_all(&mut self, frame: &Frame) {
        let followers = self.clients.followers();
        let sent = followers.map(|id| Output::Send(id, frame.clone()));
        self.outputs.extend(sent);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests;
