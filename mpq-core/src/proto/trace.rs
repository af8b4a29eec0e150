//! The log of both machines: a line for each transition, at level `info`, with what caused it.

use std::fmt;

/// Logs the step of a machine from one state to another, if it was one. Of the cause, only what it
/// is called is told: what it holds may be secret, as a token is, or long.
pub(crate) fn transition(machine: &str, before: &str, after: &str, cause: &dyn fmt::Debug) {
    if before != after {
        tracing::info!("{machine}: {before} → {after} by {}", name(cause));
    }
}

/// The names at the beginning of a value's debug output: its variant, and that of what is inside.
fn name(cause: &dyn fmt::Debug) -> String {
    let text = format!("{cause:?}");
    let end = text.find(|c: char| !c.is_alphabetic() && c != '(');
    let names = text[..end.unwrap_or(text.len())].split('(');
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::proto::{Frame, client, server};

    #[test]
    fn a_cause_is_named_but_not_shown() {
        let parked = client::Input::Frame(Frame::Parked { sequence: 7 });
        assert_eq!(name(&parked), "Frame Parked");
        assert_eq!(name(&client::Input::Figures(vec![])), "Figures");
        assert_eq!(name(&client::Input::Locals(vec![])), "Locals");
        let [before, listen] = [1, 2].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let thawed = server::Input::Thawed { listen, before };
        assert_eq!(name(&thawed), "Thawed");
        assert_eq!(name(&format_args!("time")), "time");
    }
}
