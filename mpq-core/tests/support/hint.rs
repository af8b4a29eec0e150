//! What the machines of clients are told.

use mpq_core::proto::client::{Handshake, Input};
use mpq_core::proto::probe::{Echo, Hint, KnockKey};

/// It is not too early for paths.
pub(crate) fn confirmed() -> Input {
    Input::Handshake(Handshake {
        confirmed: true,
        issued: true,
        granted: true,
    })
}

/// The answer of a probe, or a knock.
pub(crate) fn hint(knock: bool) -> Hint {
    match knock {
        true => Hint::Knock(echo()),
        false => Hint::Answer,
    }
}

/// What the knock is to be returned.
pub(crate) fn echo() -> Echo {
    Echo::of(&KnockKey::new(&[1; 32]).knock(&[2; 9])).expect("it is a knock")
}
