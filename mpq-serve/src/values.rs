//! What several commands take for an option.

use std::net::SocketAddr;

use mpq_core::proto::policy::acceptable;

/// The id of a process.
pub(crate) fn pid() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(1..)
}

/// An address that clients can be sent to.
///
/// # Errors
/// What is wrong with the text, or that it is the address of no single host.
pub(crate) fn target(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "expected ADDR:PORT, as in 192.0.2.1:4433 or [2001:db8::1]:4433")?;
    if !acceptable(address.ip(), address) {
        let needed = "one host's address, and port 443 or one from 1024 on";
        return Err(format!("clients do not go there: needed is {needed}"));
    }
    Ok(address)
}
