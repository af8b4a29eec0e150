//! Waiting for a machine's next timeout.

use std::time::Instant;

/// Resolves when it is `due`; never, if nothing is.
pub(crate) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
