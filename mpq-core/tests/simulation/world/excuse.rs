//! Why a connection may be lost.

use std::fmt;

/// What a client's strategy cannot help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excuse {
    /// Somebody on the path answers in the server's name.
    Misled,
    /// Somebody who is not the server answers where it may be.
    Decoy,
    /// It may be with the copy of the server that was left running.
    Copy,
    /// Nobody told it where the server goes.
    Uninformed,
    /// Its HELLO had not arrived when the server parked, or it has none to say.
    Stranger,
    /// `proactive`: it has left a server that stays.
    LeftAStayingServer,
    /// `symmetric`: no knock came through while the server waited.
    Unknocked,
    /// `paper`: its interfaces are others, and it looks for the server only where that said that it would be.
    CutOff,
    /// It has no path id left: the server never heard of the paths that it began, and grants no others.
    NoIds,
    /// No path is left that both ends have: one has given up the others.
    Pathless,
    /// The server did not hear of it for a minute.
    Silent,
    /// It was forwarded before it could say HELLO, and does not know where the server is that moves again.
    Forwarded,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Misled => "misled",
            Self::Decoy => "a decoy",
            Self::Copy => "a copy of the server",
            Self::Uninformed => "not told",
            Self::Stranger => "no HELLO",
            Self::LeftAStayingServer => "left a server that stays",
            Self::Unknocked => "no knock",
            Self::CutOff => "other interfaces",
            Self::NoIds => "no path ids",
            Self::Pathless => "no path left",
            Self::Silent => "silent",
            Self::Forwarded => "forwarded",
        })
    }
}
