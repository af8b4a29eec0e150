//! The clients of a server, and how each of them stands with it.

use std::collections::BTreeMap;
use std::time::Instant;

/// All clients, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Clients(BTreeMap<u64, Client>);

#[derive(Debug)]
struct Client {
    connected: Instant,
    standing: Standing,
    /// It has not said that it can follow, and does all the same, since it is forwarded.
    is_kept: bool,
}

/// How a client stands with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has not said that it can follow.
    Stranger,
    /// It was told to connect anew.
    Dismissed,
    /// It follows, and is on the present address.
    Here,
    /// It follows, and has not arrived.
    Missing,
}

impl Clients {
    /// One connects.
    pub(super) fn connected(&mut self, now: Instant, client: u64) {
        self.0.entry(client).or_insert(Client {
            connected: now,
            standing: Standing::Stranger,
            is_kept: false,
        });
    }

    /// One says that it can follow; whether that is news. Only the first time counts; and one that was told
    /// to go has to.
    pub(super) fn follow(&mut self, now: Instant, client: u64) -> bool {
        self.connected(now, client);
        let was_kept = self
            .0
            .get_mut(&client)
            .is_some_and(|client| std::mem::take(&mut client.is_kept));
        was_kept || self.change(client, Standing::Stranger, Standing::Here)
    }

    /// One is gone; whether it was missing.
    pub(super) fn gone(&mut self, client: u64) -> bool {
        let gone = self.0.remove(&client);
        gone.is_some_and(|client| client.standing == Standing::Missing)
    }

    /// Those that can follow, and hear of moves.
    pub(super) fn followers(&self) -> impl Iterator<Item = u64> {
        let follows = |client: &Client| {
            matches!(client.standing, Standing::Here | Standing::Missing) && !client.is_kept
        };
        let all = self.0.iter();
        all.filter(move |(_, client)| follows(client))
            .map(|(id, _)| *id)
    }

    /// Whether any may still say that it can follow.
    pub(super) fn has_strangers(&self) -> bool {
        self.standing(Standing::Stranger).next().is_some()
    }

    /// Whether this one hears of moves.
    pub(super) fn hears(&self, client: u64) -> bool {
        self.0.get(&client).is_some_and(|client| !client.is_kept)
    }

    /// Keeps strangers, which somebody will forward, until there are as many of them; who they are.
    pub(super) fn keep(&mut self, most: usize) -> Vec<u64> {
        let kept = self.0.values().filter(|client| client.is_kept).count();
        let strangers = self.standing(Standing::Stranger);
        let strangers = strangers
            .take(most.saturating_sub(kept))
            .collect::<Vec<_>>();
        for id in &strangers {
            if let Some(client) = self.0.get_mut(id) {
                (client.standing, client.is_kept) = (Standing::Here, true);
            }
        }
        strangers
    }

    /// The move is over: those that were kept are strangers as before.
    pub(super) fn end_keeping(&mut self) {
        for client in self.0.values_mut().filter(|client| client.is_kept) {
            (client.standing, client.is_kept) = (Standing::Stranger, false);
        }
    }

    /// Dismisses the strangers that were connected until then; who they are.
    pub(super) fn dismiss(&mut self, until: Instant) -> Vec<u64> {
        let mut dismissed = Vec::new();
        for (id, client) in &mut self.0 {
            if client.standing == Standing::Stranger && client.connected <= until {
                client.standing = Standing::Dismissed;
                dismissed.push(*id);
            }
        }
        dismissed
    }

    /// The server is at another address: all that follow are missing.
    pub(super) fn leave(&mut self) {
        let clients = self.0.values_mut();
        let here = clients.filter(|client| client.standing == Standing::Here);
        here.for_each(|client| client.standing = Standing::Missing);
    }

    /// One is with the server again; whether it was missing.
    pub(super) fn arrive(&mut self, client: u64) -> bool {
        self.change(client, Standing::Missing, Standing::Here)
    }

    /// Those that have not arrived.
    pub(super) fn missing(&self) -> impl Iterator<Item = u64> {
        self.standing(Standing::Missing)
    }

    /// Of these, those that can be knocked at.
    pub(super) fn missing_followers(&self) -> impl Iterator<Item = u64> {
        self.missing().filter(|client| self.hears(*client))
    }

    /// They are waited for no longer; who they are.
    pub(super) fn give_up_missing(&mut self) -> Vec<u64> {
        let missing: Vec<_> = self.missing().collect();
        for client in &missing {
            self.arrive(*client);
        }
        missing
    }

    fn standing(&self, standing: Standing) -> impl Iterator<Item = u64> {
        let all = self.0.iter();
        all.filter(move |(_, client)| client.standing == standing)
            .map(|(id, _)| *id)
    }

    fn change(&mut self, client: u64, from: Standing, to: Standing) -> bool {
        let known = self.0.get_mut(&client);
        let Some(known) = known.filter(|client| client.standing == from) else {
            return false;
        };
        known.standing = to;
        true
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the time of a test begins now")]
mod tests {
    use super::*;

    #[test]
    fn who_is_gone_is_nobody_any_more() {
        let now = Instant::now();
        let mut clients = Clients::default();
        clients.connected(now, 1);
        assert!(clients.follow(now, 2) && clients.follow(now, 3));
        clients.leave();
        assert!(clients.has_strangers());
        for client in [1, 2] {
            clients.gone(client);
        }
        assert!(!clients.has_strangers() && !clients.arrive(2));
        assert!(!clients.gone(2), "it was gone before");
        assert_eq!(clients.followers().collect::<Vec<_>>(), [3]);
        assert_eq!(clients.missing().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn who_is_kept_is_missed_and_not_told() {
        let now = Instant::now();
        let mut clients = Clients::default();
        clients.connected(now, 1);
        clients.connected(now, 2);
        clients.follow(now, 3);
        assert_eq!(clients.keep(2), [1, 2]);
        clients.connected(now, 4);
        assert!(clients.keep(2).is_empty(), "nobody would forward it");
        assert_eq!(clients.dismiss(now), [4]);
        clients.gone(4);
        assert!(!clients.has_strangers());
        clients.leave();
        assert_eq!(clients.missing().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(clients.missing_followers().collect::<Vec<_>>(), [3]);
        assert_eq!(clients.followers().collect::<Vec<_>>(), [3]);
        assert!(clients.arrive(1));
        assert!(clients.follow(now, 2), "it can, after all");
        assert_eq!(clients.missing_followers().collect::<Vec<_>>(), [2, 3]);
        clients.end_keeping();
        assert!(clients.has_strangers());
        assert_eq!(clients.dismiss(now), [1]);
    }
}
