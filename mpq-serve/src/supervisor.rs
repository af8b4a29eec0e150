//! What the supervisor of services is told, where there is one that listens (systemd's `Type=notify`), and the sockets
//! that it passes on (its socket activation).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};

use mpq_core::printable;
use sd_notify::NotifyState;
use socket2::{Socket, Type};

use crate::checkpoint::namespace;
use crate::error::Error;

/// The server can be reached here.
pub(crate) fn ready(listens: &[SocketAddr]) {
    tell(&[NotifyState::Ready, serving(listens, "").status()]);
}

/// It reads its certificate again, until that is [`read`](reloaded).
pub(crate) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    if let Ok(now) = now {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// It has read its certificate again, or why it has not.
pub(crate) fn reloaded(listens: &[SocketAddr], result: &Result<(), Error>) {
    let state = match result {
        Ok(()) => serving(listens, ""),
        Err(error) => serving(
            listens,
            &format!("the certificate stays as it was: {error}"),
        ),
    };
    tell(&[NotifyState::Ready, state.status()]);
}

/// This process serves here instead of the one before.
pub(crate) fn taken_over(listens: &[SocketAddr]) {
    let id = namespace::own_id().unsigned_abs();
    let state = serving(listens, "");
    tell(&[NotifyState::MainPid(id), NotifyState::Ready, state.status()]);
}

/// It has announced a move.
pub(crate) fn moving(targets: &[SocketAddr]) {
    tell(&[NotifyState::Status(&format!("Moving to {targets:?}"))]);
}

/// It can be reached again after a move, as this process, which may be the supervisor's of another host.
pub(crate) fn moved(listen: SocketAddr) {
    taken_over(&[listen]);
}

/// It goes on here.
pub(crate) fn stays(listen: SocketAddr, why: &Error) {
    tell(&[serving(&[listen], &format!("not moved: {why}")).status()]);
}

/// It takes nobody in any more.
pub(crate) fn leaving() {
    let state =
        NotifyState::Status("Leaving when what is running is complete, or at the end of --grace");
    tell(&[NotifyState::Stopping, state]);
}

/// What `systemctl status` shows.
struct Status(String);

impl Status {
    fn status(&self) -> NotifyState<'_> {
        NotifyState::Status(&self.0)
    }
}

fn serving(listens: &[SocketAddr], but: &str) -> Status {
    let listens: Vec<_> = listens.iter().map(SocketAddr::to_string).collect();
    let (listens, but) = (listens.join(", "), printable(but));
    let comma = if but.is_empty() { "" } else { "; " };
    Status(format!("Serving at {listens}{comma}{but}"))
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the supervisor hears nothing: {error}");
    }
}

/// What the supervisor listens with, for this process.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) quic: Vec<UdpSocket>,
    /// No more than those for QUIC.
    pub(crate) tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Takes what was passed on to this process (sd_listen_fds(3)). To be called once, before anything else is opened.
    ///
    /// # Errors
    /// The server has no use for them; why.
    pub(crate) fn take(uses_tcp: bool) -> Result<Self, Error> {
        let refused = |why: &str| Error::Start(format!("sockets of the supervisor: {why}"));
        let passed_on = sd_notify::listen_fds().map_err(|error| refused(&error.to_string()))?;
        let mut sockets = Self::default();
        for descriptor in passed_on {
            // SAFETY: it is open, for this process (`LISTEN_PID`), and nothing of this process is yet that could own it.
            #[expect(unsafe_code, reason = "descriptors are passed on as numbers")]
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
            let is_internet = socket.local_addr().is_ok_and(|it| it.as_socket().is_some());
            let kind = socket.r#type().ok().filter(|_| is_internet);
            if kind == Some(Type::DGRAM) {
                sockets.quic.push(socket.into());
            } else if kind == Some(Type::STREAM) && uses_tcp {
                sockets.tcp.push(socket.into());
            } else if kind == Some(Type::STREAM) {
                return Err(refused("one is for TCP (ListenStream), which needs --tcp"));
            } else {
                return Err(refused("one is for neither UDP nor TCP"));
            }
        }
        match sockets.tcp.len() > sockets.quic.len() {
            true => Err(refused(
                "there are more for TCP (ListenStream) than for UDP (ListenDatagram)",
            )),
            false => Ok(sockets),
        }
    }
}
