//! Whether and when to try again, by curl's rules: the wait doubles from one second on, and a server
//! that says `Retry-After` is obeyed.
//!
//! Unlike curl's, our attempts build on each other. So those count that brought the download no
//! further than it had been, in a row: one that did begins the count and the waits anew.

use std::time::{Duration, SystemTime};

use crate::error::Error;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(60);
/// Who asks to wait for longer is not waited for, unless somebody has said how long attempts may be made.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How often and how long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts after one that has failed.
    pub limit: u32,
    /// No attempt begins later than this after the start.
    pub max_time: Option<Duration>,
    /// Whether to try again also where nobody has listened from the start.
    pub connrefused: bool,
}

/// The attempts of one download.
#[derive(Debug)]
pub struct Schedule {
    policy: Policy,
    /// Attempts in a row that brought nothing.
    vain: u32,
    /// Body bytes that there have been at the most.
    furthest: u64,
}

impl Schedule {
    /// Before the first attempt.
    pub fn new(policy: Policy) -> Schedule {
        Schedule {
            policy,
            vain: 0,
            furthest: 0,
        }
    }

    /// How long to wait after an attempt that has ended with `error`, `elapsed` since the start and
    /// with `bytes` of the body there, and the next one's number; none if there is to be none.
    pub fn next(
        &mut self,
        error: &Error,
        bytes: u64,
        elapsed: Duration,
    ) -> Option<(Duration, u32)> {
        if bytes > self.furthest {
            self.furthest = bytes;
            self.vain = 0;
        }
        let begun = self.furthest > 0;
        let passes = match error {
            // It was there before.
            Error::Interface { .. } => begun,
            // So it was; a server that is started anew is there soon.
            Error::Refused(_) => begun || self.policy.connrefused,
            _ => is_transient(error),
        };
        if !passes || self.vain >= self.policy.limit {
            return None;
        }
        let wait = match error {
            Error::Status {
                retry_after: Some(wait),
                ..
            } if !wait.is_zero() => *wait,
            _ => backoff(self.vain),
        };
        let begins = elapsed.saturating_add(wait);
        let too_late = match self.policy.max_time {
            Some(limit) => begins > limit,
            None => wait > LONGEST_WAIT,
        };
        if too_late {
            return None;
        }
        self.vain += 1;
        Some((wait, self.vain))
    }
}

/// Before the next attempt, after `vain` others.
fn backoff(vain: u32) -> Duration {
    let doubled = 2u32.saturating_pow(vain);
    FIRST_WAIT.saturating_mul(doubled).min(LAST_WAIT)
}

/// Whether what failed may work later, without anything being changed here.
pub fn is_transient(error: &Error) -> bool {
    match error {
        // A name that does not exist is misspelt; servers of names that do not answer recover.
        Error::Host { source, .. } => source.kind() != std::io::ErrorKind::NotFound,
        Error::Status { status, .. } => {
            matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
        }
        Error::Unreachable { .. }
        | Error::NoInterface(_)
        | Error::Timeout(_)
        | Error::Idle
        | Error::Slow { .. }
        | Error::Migration(_)
        | Error::Quic(_)
        | Error::Reset(_)
        | Error::Short { .. } => true,
        Error::Scheme(_)
        | Error::Usage(_)
        | Error::Url { .. }
        | Error::Write { .. }
        | Error::Part { .. }
        | Error::NoName(_)
        | Error::Terminal
        | Error::CannotStartOver(_)
        | Error::Refused(_)
        | Error::Tls { .. }
        | Error::Interface { .. }
        | Error::Certificate { .. }
        | Error::CaFile(_)
        | Error::Checksum { .. }
        | Error::Http3(_)
        | Error::Misunderstood(_)
        | Error::QuicProtocol(_)
        | Error::NotHttp3 { .. }
        | Error::MaxTime(_)
        | Error::Signal(_) => false,
    }
}

/// How long a `Retry-After` field asks to wait from `now` on (RFC 9110 §10.2.3): a number of
/// seconds, or a date.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use http::StatusCode;

    use super::*;

    fn schedule(limit: u32, max_time: Option<u64>) -> Schedule {
        let max_time = max_time.map(Duration::from_secs);
        Schedule::new(Policy {
            limit,
            max_time,
            connrefused: false,
        })
    }

    fn status(code: u16, retry_after: Option<u64>) -> Error {
        Error::Status {
            status: StatusCode::from_u16(code).unwrap(),
            location: None,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    /// The wait in seconds and the attempt's number.
    fn next(schedule: &mut Schedule, error: &Error, bytes: u64, at: u64) -> Option<(u64, u32)> {
        let next = schedule.next(error, bytes, Duration::from_secs(at));
        next.map(|(wait, attempt)| (wait.as_secs(), attempt))
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut schedule = schedule(9, None);
        let waits = std::iter::from_fn(|| next(&mut schedule, &Error::Idle, 0, 0));
        assert_eq!(
            waits.map(|(wait, _)| wait).collect::<Vec<_>>(),
            [1, 2, 4, 8, 16, 32, 60, 60, 60]
        );
        assert_eq!(backoff(u32::MAX), LAST_WAIT);
    }

    #[test]
    fn attempts_in_vain_are_counted() {
        let mut schedule = schedule(2, None);
        let mut after = |bytes| next(&mut schedule, &Error::Idle, bytes, 0);
        assert_eq!(after(0), Some((1, 1)));
        assert_eq!(after(0), Some((2, 2)));
        assert_eq!(after(10), Some((1, 1)), "it went on");
        assert_eq!(after(10), Some((2, 2)));
        assert_eq!(after(5), None, "started over, and not as far as before");
        assert_eq!(
            next(&mut self::schedule(0, None), &Error::Idle, 10, 0),
            None
        );
    }

    #[test]
    fn no_attempt_begins_after_the_last_moment() {
        let mut limited = schedule(9, Some(10));
        assert_eq!(next(&mut limited, &Error::Idle, 0, 9), Some((1, 1)));
        assert_eq!(next(&mut limited, &Error::Idle, 0, 9), None);
        let busy = |wait| status(503, Some(wait));
        assert_eq!(next(&mut schedule(9, Some(10)), &busy(11), 0, 0), None);
        let far = busy(u64::MAX);
        assert_eq!(next(&mut schedule(9, Some(10)), &far, 0, 1), None);
    }

    #[test]
    fn the_server_says_how_long() {
        let mut schedule = schedule(9, None);
        let mut after = |error| next(&mut schedule, &error, 0, 0);
        assert_eq!(after(status(503, Some(120))), Some((120, 1)));
        assert_eq!(after(status(429, None)), Some((2, 2)));
        assert_eq!(after(status(503, Some(0))), Some((4, 3)));
        assert_eq!(after(status(404, Some(5))), None);
    }

    #[test]
    fn who_refuses_is_asked_again_if_it_was_there_before() {
        let refused = Error::Refused("127.0.0.1:1".parse().unwrap());
        let mut schedule = schedule(9, None);
        assert_eq!(next(&mut schedule, &refused, 0, 0), None);
        assert_eq!(next(&mut schedule, &refused, 1, 0), Some((1, 1)));
        assert_eq!(next(&mut schedule, &refused, 1, 0), Some((2, 2)));
        let mut patient = self::schedule(9, None);
        patient.policy.connrefused = true;
        assert_eq!(next(&mut patient, &refused, 0, 0), Some((1, 1)));
    }

    #[test]
    fn nobody_is_waited_for_for_days() {
        let busy = |wait| status(503, Some(wait));
        assert_eq!(next(&mut schedule(9, None), &busy(601), 0, 0), None);
        let told = next(&mut schedule(9, Some(86_400)), &busy(3_600), 0, 0);
        assert_eq!(told, Some((3_600, 1)));
    }

    #[test]
    fn some_errors_pass() {
        let host = |kind: ErrorKind| Error::Host {
            host: "host".to_owned(),
            source: kind.into(),
        };
        let remote = "127.0.0.1:1".parse().unwrap();
        let text = || "x".to_owned();
        for error in [
            host(ErrorKind::TimedOut),
            Error::Timeout(remote),
            Error::Migration(text()),
            Error::Reset(text()),
            Error::Quic(text()),
        ] {
            assert!(is_transient(&error), "{error}");
        }
        for code in [408, 429, 500, 502, 503, 504] {
            assert!(is_transient(&status(code, None)), "{code}");
        }
        for error in [
            host(ErrorKind::NotFound),
            Error::Usage(text()),
            Error::Http3(text()),
            Error::Misunderstood(text()),
            Error::QuicProtocol(text()),
            Error::Signal(2),
            Error::CaFile(text()),
        ] {
            assert!(!is_transient(&error), "{error}");
        }
        for code in [301, 400, 403, 404, 412, 416, 501, 505] {
            assert!(!is_transient(&status(code, None)), "{code}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
