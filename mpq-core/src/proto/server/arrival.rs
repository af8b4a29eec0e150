//! How a server that has moved finds out that a client is with it again; no event tells of the first word.
//!
//! Only what was decrypted counts. A client speaks on the paths that it had before, if it redirects or
//! the server is where it was for it; and otherwise on one of the next paths that there can be, which there are
//! once the first packet on them is authenticated. Whether the client's address is valid is another matter.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::limits::PATHS;

/// What was received on a path of before a move since the sockets are open again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldPath {
    /// QUIC's path id.
    pub path: u32,
    /// Whether anything has come from the client's address there.
    pub has_come: bool,
    /// Whether packets were decrypted since the last answer, after the first.
    pub has_spoken: bool,
    /// Whether a forwarder has said that it forwards what is for there.
    pub is_forwarded: bool,
}

/// How a client has spoken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// On these paths, which are new.
    OnNew(Vec<u32>),
    /// On paths that it had before, at least one of which leads to where it did.
    WhereItWas,
    /// On paths that it had before and has redirected.
    Redirected,
}

/// The ids of the paths that a client can make next, of whose paths this is the newest.
pub(super) fn next_paths(newest: u32) -> RangeInclusive<u32> {
    newest.saturating_add(1)..=newest.saturating_add(PATHS)
}

/// How the client has spoken, if it has: on which `new` paths, or on what `old` ones, of which is `known` whether
/// they lead to where they did. What was received before the server was frozen, and looked at since, does not count:
/// that is done before anything comes to here.
pub(super) fn heard(
    new: Vec<u32>,
    old: &[OldPath],
    known: &BTreeMap<u32, bool>,
    redirects: bool,
) -> Option<Word> {
    if !new.is_empty() {
        return Some(Word::OnNew(new));
    }
    let spoke = old.iter().filter(|old| old.has_come && old.has_spoken);
    let leads_here = spoke.filter_map(|old| known.get(&old.path));
    match leads_here.max()? {
        true => Some(Word::WhereItWas),
        false => redirects.then_some(Word::Redirected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_came_after_the_move_count() {
        let old = |path, has_come, has_spoken| OldPath {
            path,
            has_come,
            has_spoken,
            is_forwarded: false,
        };
        let known = BTreeMap::from([(3, false), (5, true)]);
        for (new, old, redirects, word) in [
            (vec![], vec![], true, None),
            // Somebody sends what nobody can decrypt, or it is what noq had received before.
            (
                vec![],
                vec![old(3, true, false), old(5, true, false)],
                true,
                None,
            ),
            (
                vec![],
                vec![old(3, false, true), old(5, false, true)],
                true,
                None,
            ),
            // What it sent to where the server was cannot come to here, unless it is redirected.
            (vec![], vec![old(3, true, true)], false, None),
            (
                vec![],
                vec![old(3, true, true)],
                true,
                Some(Word::Redirected),
            ),
            (
                vec![],
                vec![old(5, true, true)],
                false,
                Some(Word::WhereItWas),
            ),
            (
                vec![],
                vec![old(3, true, true), old(5, true, true)],
                true,
                Some(Word::WhereItWas),
            ),
            (
                vec![7],
                vec![old(5, true, true)],
                false,
                Some(Word::OnNew(vec![7])),
            ),
            // It is no path of before.
            (vec![], vec![old(4, true, true)], true, None),
        ] {
            assert_eq!(
                heard(new, &old, &known, redirects),
                word,
                "{old:?} {redirects}"
            );
        }
    }

    #[test]
    fn the_next_paths_are_those_that_a_client_may_have() {
        assert_eq!(next_paths(5), 6..=5 + PATHS);
        assert!(next_paths(u32::MAX).count() <= 1);
    }
}
