//! What the supervisor of services is told, where there is one that listens (systemd's `Type=notify`).

use sd_notify::NotifyState;

/// The server can be reached.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It reads its certificate again, until it is [`ready`].
pub(crate) fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    if let Ok(now) = now {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// It takes nobody in any more.
pub(crate) fn leaving() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the supervisor hears nothing: {error}");
    }
}
