//! What the tests that need privileges share.

use std::io::Write;
use std::path::PathBuf;

use tokio::sync::{Mutex, MutexGuard};

/// Lets one test at a time use the machine: two would measure each other. `None`, and a line that
/// says so, where `MPQ_LAB_PRIVILEGED` is not set; where it is, what cannot be done is a failure.
pub(crate) async fn privileged() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    if std::env::var_os("MPQ_LAB_PRIVILEGED").is_none() {
        // Not by eprintln!, which the test harness swallows.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: needs root; run `cargo lab test` as root"
        );
        return None;
    }
    Some(ALONE.lock().await)
}

/// The CRIU that `cargo lab test` has found or fetched.
#[allow(dead_code, reason = "not every test file moves a server")]
pub(crate) fn criu() -> PathBuf {
    mpq_lab::system::criu::find().expect("no CRIU that is new enough")
}
