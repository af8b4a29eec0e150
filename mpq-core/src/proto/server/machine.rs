//! The machine itself: what happens, and what the server does about it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{AlternativeAddresses, Announcement, Input, Output};
use crate::proto::frame::Frame;

/// Between the knocks after a thaw; doubled each time.
const FIRST_KNOCK: Duration = Duration::from_millis(50);
/// They are no closer than so long for each client that is knocked at: many clients are not knocked at
/// all at once, and each has time to answer.
const EACH_KNOCK: Duration = Duration::from_millis(1);
/// From parking on, a client may still say HELLO for so long: its handshake may have been done just now.
const HELLO_CHANCE: Duration = Duration::from_millis(100);
/// How long clients may take to arrive before the server stops waiting for them.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The machine of one server.
#[derive(Debug, Default)]
pub struct ServerMachine {
    elsewhere: AlternativeAddresses,
    state: State,
    clients: BTreeMap<u64, Client>,
    sequence: u64,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Client {
    connected: Instant,
    standing: Standing,
}

/// How a client stands with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has not said that it can follow.
    Stranger,
    /// It was told to connect anew.
    Dismissed,
    /// It follows, and is on the present address.
    Here,
    /// It follows, and has not arrived.
    Missing,
}

impl Client {
    fn follows(&self) -> bool {
        matches!(self.standing, Standing::Here | Standing::Missing)
    }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Serving,
    Announced(Announcement, Instant),
    Parking {
        announcement: Announcement,
        /// How long strangers may still say HELLO.
        chance: Instant,
        /// Nothing is in flight; only they are waited for.
        quiet: bool,
    },
    Parked,
    Resuming {
        moved: bool,
    },
    /// At the new address, waiting for its clients.
    Arriving {
        knock_at: Instant,
        interval: Duration,
        until: Instant,
    },
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
                self.clients.entry(client).or_insert(Client {
                    connected: now,
                    standing: Standing::Stranger,
                });
            }
            Input::Hello(client) => self.hello(now, client),
            Input::Gone(client) => {
                self.clients.remove(&client);
                self.park_if_quiet(now);
                self.arrived_if_all(now);
            }
            // Told for the log; the lead time is the operator's, not the clients'.
            Input::Ready(_) => {}
            Input::Announce(announcement) => {
                if let State::Serving = self.state {
                    self.sequence += 1;
                    if !announcement.targets.is_empty() {
                        let frame = announcement.frame(self.sequence);
                        self.send_all(&frame);
                    }
                    let park_at = now + announcement.lead;
                    self.state = State::Announced(announcement, park_at);
                }
            }
            Input::Quiet => {
                if let State::Parking { quiet, .. } = &mut self.state {
                    *quiet = true;
                    self.park_if_quiet(now);
                }
            }
            Input::Closed => {
                if let State::Parked = self.state {
                    self.outputs.push_back(Output::Dump);
                }
            }
            // At its new address it is too late: clients may be there.
            Input::Failed | Input::Abandoned => match self.state {
                State::Announced(..) | State::Parking { .. } => self.cancel(),
                State::Resuming { moved: true } if input == Input::Failed => {}
                State::Parked | State::Resuming { moved: true } => {
                    self.state = State::Resuming { moved: false };
                    self.outputs.push_back(Output::Reopen(None));
                }
                _ => {}
            },
            Input::Thawed(listen) => {
                if let State::Parked = self.state {
                    self.state = State::Resuming { moved: true };
                    self.outputs.push_back(Output::Reopen(Some(listen)));
                }
            }
            Input::Reopened => match self.state {
                State::Resuming { moved: false } => self.cancel(),
                State::Resuming { moved: true } => {
                    let here = |client: &&mut Client| client.standing == Standing::Here;
                    let clients = self.clients.values_mut().filter(here);
                    clients.for_each(|client| client.standing = Standing::Missing);
                    let (interval, until) = (FIRST_KNOCK, now + ARRIVAL);
                    self.state = State::Arriving {
                        knock_at: now,
                        interval,
                        until,
                    };
                    self.handle_timeout(now);
                    self.arrived_if_all(now);
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

    fn hello(&mut self, now: Instant, client: u64) {
        let known = self.clients.entry(client).or_insert(Client {
            connected: now,
            standing: Standing::Stranger,
        });
        // Only the first counts; and one that was told to go has to.
        if known.standing != Standing::Stranger {
            return;
        }
        known.standing = Standing::Here;
        if self.elsewhere != AlternativeAddresses::default() {
            let frame = self.elsewhere.frame();
            self.outputs.push_back(Output::Send(client, frame));
        }
        let (announcement, lead, parking) = match &self.state {
            State::Announced(announcement, park_at) => {
                let lead = park_at.saturating_duration_since(now);
                (announcement, lead, false)
            }
            State::Parking { announcement, .. } => (announcement, Duration::ZERO, true),
            _ => return,
        };
        if !announcement.targets.is_empty() {
            let announcement = Announcement {
                lead,
                ..announcement.clone()
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
        if let State::Parking { quiet, .. } = &mut self.state
            && std::mem::take(quiet)
        {
            self.outputs.push_back(Output::Drain);
        }
    }

    /// A client is with the server again, and is told so.
    fn arrived(&mut self, now: Instant, client: u64, frame: Frame) {
        if let State::Arriving { .. } = self.state
            && let Some(known) = self.clients.get_mut(&client)
            && known.standing == Standing::Missing
        {
            known.standing = Standing::Here;
            self.outputs.push_back(Output::Send(client, frame));
            self.outputs.push_back(Output::OpenGate(client));
        }
        self.arrived_if_all(now);
    }

    /// Dismisses the strangers that were connected until then; whether there are any.
    fn dismiss(&mut self, until: Instant) -> bool {
        let mut any = false;
        for (id, client) in &mut self.clients {
            if client.standing == Standing::Stranger && client.connected <= until {
                client.standing = Standing::Dismissed;
                self.outputs.push_back(Output::Dismiss(*id));
                any = true;
            }
        }
        any
    }

    /// Parks, if nothing is in flight; but first those that cannot follow are told to go. Whoever connects
    /// while they are is only told.
    fn park_if_quiet(&mut self, now: Instant) {
        let State::Parking { chance, quiet, .. } = &mut self.state else {
            return;
        };
        if !*quiet {
            return;
        }
        let strangers = |client: &Client| client.standing == Standing::Stranger;
        if now < *chance && self.clients.values().any(strangers) {
            return;
        }
        let chance = *chance;
        if self.dismiss(chance) {
            if let State::Parking { quiet, .. } = &mut self.state {
                *quiet = false;
            }
            self.outputs.push_back(Output::Drain);
            return;
        }
        self.dismiss(now);
        self.state = State::Parked;
        self.outputs.push_back(Output::CloseSockets);
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Announced(announcement, park_at) if *park_at <= now => {
                let announced = !announcement.targets.is_empty();
                self.state = State::Parking {
                    announcement: announcement.clone(),
                    chance: now + HELLO_CHANCE,
                    quiet: false,
                };
                self.outputs.push_back(Output::CloseGates);
                if announced {
                    self.send_all(&Frame::Parked {
                        sequence: self.sequence,
                    });
                }
                if let Some(long_ago) = now.checked_sub(HELLO_CHANCE) {
                    self.dismiss(long_ago);
                }
                self.outputs.push_back(Output::Drain);
            }
            State::Parking { .. } => self.park_if_quiet(now),
            State::Arriving {
                knock_at, interval, ..
            } if *knock_at <= now => {
                let missing = self.clients.iter();
                let missing = missing.filter(|(_, client)| client.standing == Standing::Missing);
                let missing: Vec<_> = missing.map(|(id, _)| *id).collect();
                *knock_at = now + (*interval).max(EACH_KNOCK * missing.len() as u32);
                *interval *= 2;
                if !missing.is_empty() {
                    self.outputs.push_back(Output::Knock(missing));
                }
            }
            _ => {}
        }
        self.arrived_if_all(now);
    }

    /// When [`ServerMachine::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Announced(_, park_at) => Some(*park_at),
            State::Parking {
                chance,
                quiet: true,
                ..
            } => Some(*chance),
            State::Arriving {
                knock_at, until, ..
            } => Some(*knock_at.min(until)),
            _ => None,
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

    /// Whether a move can be announced.
    pub fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving)
    }

    /// Whether body writers are to be held: the server is about to be frozen, or is.
    pub fn is_parking(&self) -> bool {
        matches!(self.state, State::Parking { .. } | State::Parked)
    }

    /// Goes on at the old address.
    fn cancel(&mut self) {
        self.state = State::Serving;
        self.send_all(&Frame::Cancelled {
            sequence: self.sequence,
        });
        let followers = self.clients.iter().filter(|(_, client)| client.follows());
        let gates = followers.map(|(id, _)| Output::OpenGate(*id));
        self.outputs.extend(gates);
        self.outputs.push_back(Output::Done { moved: false });
    }

    /// Serves again once every client is here, or had its time.
    fn arrived_if_all(&mut self, now: Instant) {
        let State::Arriving { until, .. } = self.state else {
            return;
        };
        let missing = |client: &Client| client.standing == Standing::Missing;
        if now < until && self.clients.values().any(missing) {
            return;
        }
        self.state = State::Serving;
        for (id, client) in &mut self.clients {
            if client.standing == Standing::Missing {
                client.standing = Standing::Here;
                self.outputs.push_back(Output::OpenGate(*id));
            }
        }
        self.outputs.push_back(Output::Done { moved: true });
    }

    fn send_all(&mut self, frame: &Frame) {
        let followers = self.clients.iter().filter(|(_, client)| client.follows());
        let sent = followers.map(|(id, _)| Output::Send(*id, frame.clone()));
        self.outputs.extend(sent);
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Serving => "Serving",
            State::Announced(..) => "Announced",
            State::Parking { .. } => "Parking",
            State::Parked => "Parked",
            State::Resuming { moved: false } => "Resuming (old address)",
            State::Resuming { moved: true } => "Resuming (new address)",
            State::Arriving { .. } => "Arriving",
        }
    }
}
