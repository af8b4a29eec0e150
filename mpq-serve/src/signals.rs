//! What the operator tells a running server by signals.

use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{self, SignalKind};

use crate::error::Error;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// SIGTERM, SIGINT.
    Leave,
    /// SIGUSR1.
    Move,
    /// SIGHUP.
    Reload,
    /// SIGUSR2.
    HandOver,
}

/// The signals that are heard instead of what they would do to a process.
pub(crate) struct Signals(Vec<(unix::Signal, Wish)>);

impl Signals {
    /// Hears them from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new() -> Result<Self, Error> {
        let wishes = [
            (SignalKind::terminate(), Wish::Leave),
            (SignalKind::interrupt(), Wish::Leave),
            (SignalKind::user_defined1(), Wish::Move),
            (SignalKind::hangup(), Wish::Reload),
            (SignalKind::user_defined2(), Wish::HandOver),
        ];
        let heard = wishes.map(|(kind, wish)| Ok((unix::signal(kind)?, wish)));
        let heard: Result<_, std::io::Error> = heard.into_iter().collect();
        heard
            .map(Self)
            .map_err(|error| Error::Start(error.to_string()))
    }

    /// What is asked for next.
    pub(crate) async fn next(&mut self) -> Wish {
        poll_fn(|cx| {
            let came = self.0.iter_mut().find_map(|(signal, wish)| {
                matches!(signal.poll_recv(cx), Poll::Ready(Some(()))).then_some(*wish)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Resolves when the server is to leave.
    pub(crate) async fn leave(&mut self) {
        while self.next().await != Wish::Leave {}
    }
}
