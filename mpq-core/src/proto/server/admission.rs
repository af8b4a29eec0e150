//! Who may begin a handshake.
//!
//! One that does not go on is remembered until it is given up, and whoever sends in the name of others can begin as
//! many as there are datagrams. So only a few are begun with clients whose address is not validated. Who comes beyond
//! is asked to prove it first (Retry, RFC 9000 §8.1.2), for which nothing has to be remembered. And of those that have
//! proved it, so many have handshakes at a time as there is memory for.

/// How many handshakes there may be at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// With clients whose address is not validated.
    pub unvalidated: usize,
    /// With all clients.
    pub all: usize,
}

/// What becomes of a client that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its handshake begins, and counts until it is [over](Admission::over).
    Begin,
    /// It has to prove its address.
    Retry,
    /// It gets no answer, and will try again.
    Ignore,
}

/// The handshakes of a server.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    unvalidated: usize,
    all: usize,
}

impl Admission {
    /// Without any.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            unvalidated: 0,
            all: 0,
        }
    }

    /// A client comes, whose address is validated or not.
    pub fn ask(&mut self, is_validated: bool) -> Verdict {
        if self.all >= self.limits.all {
            return Verdict::Ignore;
        }
        if !is_validated && self.unvalidated >= self.limits.unvalidated {
            return Verdict::Retry;
        }
        self.all += 1;
        self.unvalidated += usize::from(!is_validated);
        Verdict::Begin
    }

    /// The handshake of such a client is complete, or has failed.
    pub fn over(&mut self, was_validated: bool) {
        self.all -= 1;
        self.unvalidated -= usize::from(!was_validated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        unvalidated: 2,
        all: 3,
    };

    #[test]
    fn many_at_once_have_to_prove_their_addresses() {
        let mut admission = Admission::new(LIMITS);
        let asked = [false, false, false, true, true, false]
            .map(|is_validated| admission.ask(is_validated));
        let begin = Verdict::Begin;
        assert_eq!(
            asked,
            [
                begin,
                begin,
                Verdict::Retry,
                begin,
                Verdict::Ignore,
                Verdict::Ignore
            ]
        );
    }

    #[test]
    fn what_is_over_makes_room_for_another() {
        let mut admission = Admission::new(LIMITS);
        for is_validated in [false, false, true] {
            assert_eq!(admission.ask(is_validated), Verdict::Begin);
        }
        admission.over(true);
        assert_eq!(admission.ask(false), Verdict::Retry);
        admission.over(false);
        assert_eq!(admission.ask(false), Verdict::Begin);
        assert_eq!(admission.ask(true), Verdict::Begin);
        assert_eq!(admission.ask(true), Verdict::Ignore);
    }

    #[test]
    fn without_any_room_for_them_all_have_to_prove_their_addresses() {
        let mut admission = Admission::new(Limits {
            unvalidated: 0,
            ..LIMITS
        });
        assert_eq!(admission.ask(false), Verdict::Retry);
        assert_eq!(admission.ask(true), Verdict::Begin);
    }
}
