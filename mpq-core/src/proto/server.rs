//! The server's machine: announces a move, parks, and goes on where it wakes.
//!
//! It knows its clients by numbers. Whoever drives it freezes the process at [`Output::Dump`] and
//! says what became of it: [`Input::Thawed`] at another address, or [`Input::Failed`] where it was.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::frame::{EncodeError, Frame};

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A client speaks the protocol.
    Hello(u64),
    /// A client's connection is over.
    Gone(u64),
    /// A client looks out for the new address.
    Ready(u64),
    /// The operator wants a move.
    Announce(Announcement),
    /// Nothing is in flight any more, or it was waited for long enough.
    Quiet,
    /// The sockets are closed.
    Closed,
    /// There is no move: the server woke where it was.
    Failed,
    /// Whoever wanted the move wants it no more.
    Abandoned,
    /// The server woke at another address.
    Thawed(SocketAddr),
    /// The sockets are open again.
    Reopened,
    /// A client has a validated path to the present address.
    Established(u64),
}

/// A move that the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Where the server will be. If that is nowhere, it goes without a word.
    pub targets: Vec<SocketAddr>,
    /// Time between the announcement and parking.
    pub lead: Duration,
    /// How long the server expects to be silent.
    pub outage: Duration,
}

/// Where else a server may be found; its clients are told with their HELLO.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlternativeAddresses {
    /// Alternative addresses.
    pub pool: Vec<SocketAddr>,
    /// A DNS name that leads to it.
    pub name: Option<String>,
}

impl Announcement {
    /// Whether clients can be told of it.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn check(&self) -> Result<(), EncodeError> {
        match self.targets.is_empty() {
            true => Ok(()),
            false => self.frame(0).encode(&mut Vec::new()),
        }
    }

    fn frame(&self, sequence: u64) -> Frame {
        Frame::Migration {
            sequence,
            targets: self.targets.clone(),
            outage: self.outage,
            lead: self.lead,
        }
    }
}

impl AlternativeAddresses {
    /// Whether clients can be told of them.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn check(&self) -> Result<(), EncodeError> {
        self.frame().encode(&mut Vec::new())
    }

    fn frame(&self) -> Frame {
        Frame::Addresses {
            pool: self.pool.clone(),
            name: self.name.clone(),
        }
    }
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this to a client.
    Send(u64, Frame),
    /// Hold all body writers.
    CloseGates,
    /// Release the body writers of a client.
    OpenGate(u64),
    /// Wait until nothing is in flight, then say [`Input::Quiet`].
    Drain,
    /// Close the sockets, then say [`Input::Closed`].
    CloseSockets,
    /// Freeze the process.
    Dump,
    /// Open the sockets at this address, or at the old one, then say [`Input::Reopened`].
    Reopen(Option<SocketAddr>),
    /// Knock at every address that these clients were known at.
    Knock(Vec<u64>),
    /// The move is over: the server is elsewhere, or stays where it was. Gates that are still
    /// closed, of connections that do not speak the protocol, are to be opened.
    Done {
        /// Whether it moved.
        moved: bool,
    },
}

/// Between the knocks after a thaw; doubled each time.
const FIRST_KNOCK: Duration = Duration::from_millis(50);
/// They are no closer than so long for each client that is knocked at: many clients are not knocked at
/// all at once, and each has time to answer.
const EACH_KNOCK: Duration = Duration::from_millis(1);
/// How long clients may take to arrive before the server stops waiting for them.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The machine of one server.
#[derive(Debug, Default)]
pub struct ServerMachine {
    elsewhere: AlternativeAddresses,
    state: State,
    /// Clients that speak the protocol, and whether they are on the present address.
    clients: BTreeMap<u64, bool>,
    sequence: u64,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Serving,
    Announced(Announcement, Instant),
    Parking(Announcement),
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
            Input::Hello(client) => {
                self.clients.insert(client, true);
                if self.elsewhere != AlternativeAddresses::default() {
                    let frame = self.elsewhere.frame();
                    self.outputs.push_back(Output::Send(client, frame));
                }
                let (announcement, lead) = match &self.state {
                    State::Announced(announcement, park_at) => {
                        (announcement, park_at.saturating_duration_since(now))
                    }
                    State::Parking(announcement) => (announcement, Duration::ZERO),
                    _ => return,
                };
                if announcement.targets.is_empty() {
                    return;
                }
                let announcement = Announcement {
                    lead,
                    ..announcement.clone()
                };
                let frame = announcement.frame(self.sequence);
                self.outputs.push_back(Output::Send(client, frame));
                if let State::Parking(_) = self.state {
                    let sequence = self.sequence;
                    let frame = Frame::Parked { sequence };
                    self.outputs.push_back(Output::Send(client, frame));
                }
            }
            Input::Gone(client) => {
                self.clients.remove(&client);
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
                if let State::Parking(_) = self.state {
                    self.state = State::Parked;
                    self.outputs.push_back(Output::CloseSockets);
                }
            }
            Input::Closed => {
                if let State::Parked = self.state {
                    self.outputs.push_back(Output::Dump);
                }
            }
            // At its new address it is too late: clients may be there.
            Input::Failed | Input::Abandoned => match self.state {
                State::Announced(..) | State::Parking(_) => self.cancel(),
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
                    self.clients
                        .values_mut()
                        .for_each(|arrived| *arrived = false);
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
                if let State::Arriving { .. } = self.state
                    && let Some(arrived @ false) = self.clients.get_mut(&client)
                {
                    *arrived = true;
                    let frame = Frame::Arrived {
                        sequence: self.sequence,
                    };
                    self.outputs.push_back(Output::Send(client, frame));
                    self.outputs.push_back(Output::OpenGate(client));
                }
                self.arrived_if_all(now);
            }
        }
    }

    /// What is due at `now` is done.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Announced(announcement, park_at) if *park_at <= now => {
                let announced = !announcement.targets.is_empty();
                self.state = State::Parking(announcement.clone());
                self.outputs.push_back(Output::CloseGates);
                if announced {
                    self.send_all(&Frame::Parked {
                        sequence: self.sequence,
                    });
                }
                self.outputs.push_back(Output::Drain);
            }
            State::Arriving {
                knock_at, interval, ..
            } if *knock_at <= now => {
                let missing = self.clients.iter().filter(|(_, arrived)| !**arrived);
                let missing: Vec<_> = missing.map(|(client, _)| *client).collect();
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
        matches!(self.state, State::Parking(_) | State::Parked)
    }

    /// Goes on at the old address.
    fn cancel(&mut self) {
        self.state = State::Serving;
        self.send_all(&Frame::Cancelled {
            sequence: self.sequence,
        });
        let clients: Vec<_> = self.clients.keys().copied().collect();
        self.outputs
            .extend(clients.into_iter().map(Output::OpenGate));
        self.outputs.push_back(Output::Done { moved: false });
    }

    /// Serves again once every client is here, or had its time.
    fn arrived_if_all(&mut self, now: Instant) {
        let State::Arriving { until, .. } = self.state else {
            return;
        };
        if now < until && self.clients.values().any(|arrived| !arrived) {
            return;
        }
        self.state = State::Serving;
        for (client, arrived) in &mut self.clients {
            if !*arrived {
                self.outputs.push_back(Output::OpenGate(*client));
            }
            *arrived = true;
        }
        self.outputs.push_back(Output::Done { moved: true });
    }

    fn send_all(&mut self, frame: &Frame) {
        for client in self.clients.keys() {
            self.outputs.push_back(Output::Send(*client, frame.clone()));
        }
    }

    /// The name of the state, for tables and logs.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Serving => "Serving",
            State::Announced(..) => "Announced",
            State::Parking(_) => "Parking",
            State::Parked => "Parked",
            State::Resuming { moved: false } => "Resuming (old address)",
            State::Resuming { moved: true } => "Resuming (new address)",
            State::Arriving { .. } => "Arriving",
        }
    }
}
