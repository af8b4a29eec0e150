//! What a schedule does to the system. The same type serves the seeded sweep, proptest and the
//! fuzzer: it is read from any bytes.

use arbitrary::{Arbitrary, Unstructured};

use crate::fair;

const MAX_STEPS: usize = 24;
/// Before a step, milliseconds.
const MAX_PAUSE: u16 = 3_000;

/// A whole schedule.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    /// Of the network's dice.
    pub(crate) seed: u64,
    /// Of the first client.
    pub(crate) strategy: u8,
    /// Whether that is bound to keep its connection.
    pub(crate) fair: bool,
    /// Whether somebody answers probes at the third host who is not the server.
    pub(crate) decoy: bool,
    pub(crate) steps: Vec<Step>,
}

/// Some time passes, and then something is done.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) struct Step {
    /// Milliseconds.
    pub(crate) after: u16,
    pub(crate) op: Op,
}

/// What is done. Indices are taken modulo what there is.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) enum Op {
    /// A client connects.
    Connect { strategy: u8, hold_back: bool },
    /// A client goes, and may not say so.
    Disconnect { client: u8, silently: bool },
    /// A client's interfaces are these from now on, one bit each.
    Locals { client: u8, mask: u8 },
    /// One of them goes and comes again, so many times modulo 20, every so many milliseconds.
    Flap {
        client: u8,
        local: u8,
        times: u8,
        ms: u8,
    },
    /// An interface swallows everything for a while, milliseconds modulo 10 s.
    Link { local: u8, ms: u16 },
    /// The operator wants a move.
    Move(Move),
    /// The same, so that moves are more frequent than the rest.
    AnotherMove(Move),
    /// The operator changes his mind.
    Cancel,
    /// Somebody answers who is not asked, and knows the tokens: he is on the path.
    Forge { client: u8, from: u8, knock: bool },
    /// An old announcement comes again.
    Replay { client: u8 },
    /// Nothing gets through for a while, milliseconds modulo 3 s.
    Blackout { ms: u16 },
    /// Nothing gets through between an interface and a host, milliseconds modulo 5 s.
    Partition { local: u8, host: u8, ms: u16 },
    /// From now on only those reach a client whom it has sent something.
    Firewall { client: u8 },
}

#[derive(Debug, Clone, Arbitrary)]
pub(crate) struct Move {
    /// Where it goes, of the good hosts.
    pub(crate) to: u8,
    /// Hosts that are announced as well, one bit each.
    pub(crate) others: u8,
    /// Whether the clients are told.
    pub(crate) announced: bool,
    /// Milliseconds.
    pub(crate) lead: u8,
    /// Milliseconds, modulo 10 s.
    pub(crate) outage: u16,
    /// The freeze fails if this is below 64; the less it is, the later the new address is there.
    pub(crate) luck: u8,
    /// The old process goes on, too, if this is below [`NO_COPY`]; from [`FORWARDED`] on, a forwarder stays there.
    pub(crate) ghost: u8,
}

pub(crate) const NO_COPY: u8 = 16;
pub(crate) const FORWARDED: u8 = 192;

impl Schedule {
    /// Any bytes make a schedule.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut bytes = Unstructured::new(bytes);
        Self::read(&mut bytes).expect("missing bytes count as zeros")
    }

    fn read(bytes: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let mut schedule = Self {
            seed: bytes.arbitrary()?,
            strategy: bytes.arbitrary()?,
            // Two of five.
            fair: bytes.arbitrary::<u8>()? % 5 < 2,
            decoy: bytes.arbitrary()?,
            steps: Vec::new(),
        };
        while !bytes.is_empty() && schedule.steps.len() < MAX_STEPS {
            let mut step: Step = bytes.arbitrary()?;
            step.after %= MAX_PAUSE;
            schedule.steps.push(step);
        }
        if schedule.fair {
            fair::adapt(&mut schedule);
        }
        Ok(schedule)
    }

    /// The schedule of a seed.
    pub(crate) fn from_seed(seed: u64) -> Self {
        // Neighbours are to have nothing in common.
        let mut dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = 12 + dice.below(300);
        let bytes: Vec<_> = (0..length).map(|_| dice.below(256) as u8).collect();
        Self::from_bytes(&bytes)
    }
}

/// A number generator (xorshift), the same on every machine.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed | 1);
        (0..8).for_each(|_| {
            dice.below(1);
        });
        dice
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
