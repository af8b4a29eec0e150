//! `mpq-serve handover`: a new process takes over from one that serves on this host, and no client notices.
//!
//! The new one, the `heir`, makes sure that it can serve, and has a socket ready in the old one's control directory.
//! Then it sends SIGUSR2. The old one, the `elder`, connects to it and gives what it listens with (`exchange`). When the
//! new one serves, it says so; only then the old one takes nobody in any more, and leaves when what is running is
//! complete. If anything fails before, or either ends, what the old one gave comes back to it by itself
//! ([`Server::hand_over`](mpq_core::server::Server::hand_over)).

pub(crate) mod elder;
mod exchange;
pub(crate) mod heir;

use self::heir::Predecessor;
use crate::args::HandoverOptions;
use crate::error::Error;
use crate::serve;

/// Takes over from a running server, and serves until it is told to leave.
///
/// # Errors
/// There is no such server, or it serves as before.
pub fn run(options: HandoverOptions) -> Result<(), Error> {
    let HandoverOptions { pid, drain, serve } = options;
    let predecessor = Predecessor::find(pid, serve.pid_file.as_deref(), drain)?;
    // All that goes wrong goes wrong before it has taken over.
    serve::run(serve, Some(predecessor)).map_err(|error| match error {
        Error::Died | Error::NoServer(_) | Error::NotTakenOver(_) => error,
        error => Error::NotTakenOver(error.to_string()),
    })
}
