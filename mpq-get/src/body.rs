//! The body, by one request or by several at once.
//!
//! In a round trip a stream carries no more than its flow-control window (RFC 9000 §4.1), which is small
//! here (see `mpq_core::endpoint`): 2 MiB are 840 Mbit/s at 20 ms. Once the paths carry most of it,
//! the parts that follow are asked for while what is before them still comes. Each fits into the window,
//! which so holds all of it however early it comes, and they are read one after the other, as one body:
//!
//! ```text
//! first answer ─────────────┤ left here
//!                           ├ part ┤ part ┤ part ┤ as many at once as --segments allows
//! ```
//!
//! What the server has sent of the first answer beyond that, a window at the most, is lost. An answer that
//! is no such part of the same version ends it all: the rest is asked for anew, as a whole.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::quic::OpenStreams;
use mpq_core::client::{PathInfo, PathState};
use mpq_core::endpoint::STREAM_WINDOW;

use crate::ask::{Asked, Failure, Requests, answer};
use crate::resume::{Answer, Held};

/// Bytes of a stream that may come before any was read.
const WINDOW: u64 = STREAM_WINDOW as u64;
/// Bytes of a part: what is left of a window by the head of the answer and by frames. One byte more, and
/// the end of each part would have to be waited for for a round trip.
const PART: u64 = WINDOW - (64 << 10);
/// How much of a window the paths carry in their least round-trip time when one request is too little. A queue
/// on one of them needs the rest: with that, the window would be full and the other paths idle.
const MOST_OF_IT: f64 = 0.6;
/// Two in a row tell a rate from what comes at once after a loss or a move.
const SAMPLE: Duration = Duration::from_millis(100);
/// For the round-trip time of paths that were opened while their server was frozen to become what it is.
const SETTLING: Duration = Duration::from_secs(1);

/// What is left of a body.
pub(crate) struct Body<S: OpenStreams<Bytes>> {
    /// What is read; nothing between two of them. One that is left is dropped, which stops it: h3-quinn 0.0.10
    /// panics in `stop_sending` while a read waits, <https://github.com/hyperium/h3/issues/330>.
    asked: Option<Asked<S>>,
    /// Offset at which it ends.
    end: u64,
    /// What follows, in order.
    parts: VecDeque<Part<S>>,
    /// What the parts are of.
    held: Held,
    /// Requests at a time.
    most: usize,
    demand: Demand,
    refused: bool,
}

struct Part<S: OpenStreams<Bytes>> {
    bytes: Range<u64>,
    asked: Asked<S>,
}

impl<S: OpenStreams<Bytes>> Body<S> {
    /// What `asked` is answered with, up to the offset `end` where that is known; by no more than `most`
    /// requests at a time.
    pub(crate) fn new(asked: Asked<S>, end: Option<u64>, held: Held, most: usize) -> Self {
        let divisible = end.is_some() && end == held.length && held.version.is_ok();
        Self {
            asked: Some(asked),
            end: end.unwrap_or(u64::MAX),
            parts: VecDeque::new(),
            held,
            most: if divisible { most } else { 1 },
            demand: Demand::new(Instant::now()),
            refused: false,
        }
    }

    /// The bytes that follow `position`; none at the end, or where a part was
    /// [refused](Body::was_refused).
    pub(crate) async fn next(
        &mut self,
        position: u64,
        requests: &mut Requests<'_, S>,
        paths: impl Fn() -> Vec<PathInfo>,
    ) -> Result<Option<Bytes>, Failure> {
        if self.most > 1 {
            self.ask(position, requests, paths).await?;
        }
        let mut left = self.left(position);
        if left == 0 {
            if !self.turn().await? {
                return Ok(None);
            }
            left = self.left(position);
        }
        let Some(asked) = &mut self.asked else {
            return Ok(None);
        };
        let data = asked.recv_data().await?;
        Ok(data.map(|mut data| {
            let length = usize::try_from(left).unwrap_or(usize::MAX);
            data.copy_to_bytes(data.remaining().min(length))
        }))
    }

    /// Whether the server has not sent a part that it was asked for.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }

    /// Bytes until the next part.
    fn left(&self, position: u64) -> u64 {
        let next = self.parts.front();
        next.map_or(u64::MAX, |part| part.bytes.start - position)
    }

    /// Asks for as many parts as there may be, if there shall be any.
    async fn ask(
        &mut self,
        position: u64,
        requests: &mut Requests<'_, S>,
        paths: impl Fn() -> Vec<PathInfo>,
    ) -> Result<(), Failure> {
        let (Some(length), Ok(version)) = (self.held.length, &self.held.version) else {
            return Ok(());
        };
        // The first answer has all of the rest.
        let first = self.end == length && self.parts.is_empty();
        if first && !self.demand.exceeds_a_window(Instant::now(), paths) {
            return Ok(());
        }
        while self.parts.len() + 1 < self.most {
            // A window of what is read now may be on its way already.
            let at_once = self.end.min(position + WINDOW);
            let start = self.parts.back().map_or(at_once, |part| part.bytes.end);
            if start == length {
                break;
            }
            let end = length.min(start + PART);
            let range = format!("{start}-{}", end - 1);
            let asked = requests.send(Some((range.as_str(), version)));
            let asked = if start == position {
                // All of what is read is there; the server may allow no other before it is over.
                self.asked = None;
                asked.await?
            } else {
                // The server may allow fewer at a time.
                tokio::select! {
                    biased;
                    asked = asked => asked?,
                    () = ready(()) => break,
                }
            };
            let bytes = start..end;
            self.parts.push_back(Part { bytes, asked });
        }
        Ok(())
    }

    /// Goes on with the next part, or drops all of them.
    async fn turn(&mut self) -> Result<bool, Failure> {
        let Some(mut part) = self.parts.pop_front() else {
            return Ok(false);
        };
        self.asked = None;
        let before = Held {
            bytes: part.bytes.start,
            ..self.held.clone()
        };
        let answer = match answer::<S>(&mut part.asked).await {
            Ok(head) => before.judge(head.status(), head.headers()).ok(),
            Err(lost @ Failure::Stream(StreamError::ConnectionError { .. })) => return Err(lost),
            Err(_) => None,
        };
        let fits = matches!(answer, Some(Answer::Rest { end, .. }) if end == part.bytes.end);
        if fits {
            self.asked = Some(part.asked);
            self.end = part.bytes.end;
        } else {
            self.parts.clear();
            self.refused = true;
        }
        Ok(fits)
    }
}

/// How much the paths carry in a round trip.
struct Demand {
    since: Instant,
    /// UDP payload by then, bytes.
    received: u64,
    /// Of the last sample, bytes in a second.
    rate: f64,
    /// The least smoothed round-trip time of each path so far: without a queue.
    rtts: BTreeMap<u32, Duration>,
    /// When those of new paths can be trusted.
    settled: Instant,
}

impl Demand {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            received: 0,
            rate: 0.0,
            rtts: BTreeMap::new(),
            settled: now,
        }
    }

    /// Whether that is more than one stream can be relied on for, as far as is known now.
    fn exceeds_a_window(&mut self, now: Instant, paths: impl Fn() -> Vec<PathInfo>) -> bool {
        let time = now.duration_since(self.since);
        if time < SAMPLE {
            return false;
        }
        let mut paths = paths();
        let received: u64 = paths.iter().map(|path| path.received).sum();
        let rate = received.saturating_sub(self.received) as f64 / time.as_secs_f64();
        let lasting = rate.min(self.rate);
        (self.since, self.received, self.rate) = (now, received, rate);

        paths.retain(|path| path.state == PathState::Validated);
        let first = self.rtts.is_empty();
        if !first && paths.iter().any(|path| !self.rtts.contains_key(&path.id)) {
            self.settled = now + SETTLING;
        }
        let rtts = paths.iter().map(|path| {
            let least = self.rtts.entry(path.id).or_insert(path.rtt);
            *least = path.rtt.min(*least);
            *least
        });
        // A client measures it where it has something to send; elsewhere it may be an old one.
        let rtt = rtts.min().unwrap_or_default();
        now >= self.settled && lasting * rtt.as_secs_f64() > MOST_OF_IT * WINDOW as f64
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use h3::error::Code;
    use mpq_core::client::{Client, ClientConfig};
    use mpq_core::server::{Server, ServerConfig};
    use mpq_core::tls::{Identity, Trust};
    use mpq_serve::http::{Site, respond};
    use mpq_serve::random::Random;
    use url::Url;

    use super::*;
    use crate::connection::Connection;
    use crate::quic::Quic;

    /// By quinn.
    type Streams = <Quic as Connection>::Streams;

    const RTT: Duration = Duration::from_millis(20);
    /// What a window is in a round trip, bytes in a second.
    const FULL: u64 = 50 * WINDOW;
    /// Some parts and a bit.
    const SIZE: u64 = 5 * PART + 12_345;

    fn path(id: u32, received: u64, rtt: Duration) -> PathInfo {
        PathInfo {
            id,
            interface: "eth0".to_owned(),
            local: "10.0.0.1".parse().unwrap(),
            remote: "10.1.0.2:443".parse().unwrap(),
            state: PathState::Validated,
            rtt,
            received,
            sent: 0,
            lost: 0,
        }
    }

    #[test]
    fn a_window_is_exceeded_by_a_rate_and_not_by_a_queue() {
        let start = Instant::now();
        let exceeded = |rate: u64, rtt: &dyn Fn(u64) -> Duration| {
            let mut demand = Demand::new(start);
            (1..=20).any(|tenth| {
                let half = tenth * rate / 20;
                let paths = || vec![path(0, half, RTT), path(1, half, rtt(tenth))];
                let now = start + Duration::from_millis(100 * tenth);
                demand.exceeds_a_window(now, paths)
            })
        };
        assert!(exceeded(FULL * 7 / 8, &|_| RTT));
        // With a queue on one of them, it would be full.
        assert!(exceeded(FULL * 2 / 3, &|_| RTT));
        assert!(!exceeded(FULL / 2, &|_| RTT));
        // A queue fills: the time grows, but the window needs no more.
        let queue = |tenth| if tenth < 3 { RTT } else { 3 * RTT };
        assert!(!exceeded(FULL / 2, &queue));
        // Nobody knows how old the time of the other path is.
        assert!(!exceeded(FULL / 2, &|_| 2 * RTT));
    }

    #[test]
    fn the_time_of_a_path_to_a_frozen_server_is_not_taken_for_its_length() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let exceeded: Vec<_> = (1..=30)
            .filter(|tenth| {
                let received = tenth * FULL / 20;
                let paths = || match tenth {
                    ..10 => vec![path(0, received, RTT)],
                    10..15 => vec![path(1, received, 10 * RTT)],
                    _ => vec![path(1, received, RTT)],
                };
                demand.exceeds_a_window(start + Duration::from_millis(100 * tenth), paths)
            })
            .collect();
        assert_eq!(exceeded, [0; 0]);
    }

    #[test]
    fn a_burst_is_no_rate() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        let mut exceeds = |ms, received| {
            let now = start + Duration::from_millis(ms);
            demand.exceeds_a_window(now, || vec![path(0, received, RTT)])
        };
        assert!(!exceeds(99, 5 * WINDOW), "not a sample yet");
        assert!(!exceeds(100, 5 * WINDOW / 2), "half of the window's rate");
        assert!(!exceeds(200, 15 * WINDOW / 2), "its rate, for one sample");
        assert!(!exceeds(300, 10 * WINDOW), "half of it again");
        assert!(!exceeds(350, 15 * WINDOW));
        assert!(!exceeds(400, 15 * WINDOW), "its rate again");
        assert!(exceeds(500, 20 * WINDOW), "and still");
    }

    /// A server whose first answer is of the first seed, and the others of the second.
    async fn serve(seeds: [u64; 2]) -> SocketAddr {
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(listen, &identity, ServerConfig::default()).unwrap();
        let address = server.listen();
        let [mut site, next] = seeds.map(|seed| {
            Arc::new(Site {
                random: Random::new(SIZE, seed),
                root: None,
                limit_rate: None,
            })
        });
        tokio::spawn(async move {
            let mut session = server.accept().await.unwrap().await.unwrap();
            while let Ok(Some(request)) = session.h3.accept().await {
                let gate = session.gate.clone();
                let site = std::mem::replace(&mut site, next.clone());
                tokio::spawn(async move {
                    let (request, mut stream) = request.resolve_request().await.unwrap();
                    respond(&site, &gate, &request, &mut stream).await
                });
            }
        });
        address
    }

    async fn connect<C: Connection>(remote: SocketAddr) -> (C, Url) {
        let config = ClientConfig {
            trust: Trust::Insecure,
            ..ClientConfig::default()
        };
        let client = C::connect(config, remote, "localhost").await.unwrap();
        (client, "https://localhost/random".parse().unwrap())
    }

    /// Reads by so many requests at a time, as if the paths had no end. Returns what came, the number of
    /// requests, and whether a part was refused.
    async fn read<C: Connection>(remote: SocketAddr, most: usize) -> (Vec<u8>, u64, bool) {
        let (client, url) = connect::<C>(remote).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut asked = requests.send(None).await.unwrap();
        let head = answer::<C::Streams>(&mut asked).await.unwrap();
        let held = Held::start(head.headers());
        let mut body = Body::new(asked, Some(SIZE), held, most);
        body.demand.since -= SAMPLE;
        body.demand.rate = f64::INFINITY;
        let mut got = Vec::new();
        let endless = || vec![path(0, u64::MAX, RTT)];
        while let Some(chunk) = body
            .next(got.len() as u64, &mut requests, endless)
            .await
            .unwrap()
        {
            got.extend_from_slice(&chunk);
        }
        (got, count.get(), body.was_refused())
    }

    fn content(seed: u64) -> Vec<u8> {
        let mut content = vec![0; SIZE as usize];
        Random::new(SIZE, seed).fill(0, &mut content);
        content
    }

    #[tokio::test]
    async fn parts_make_the_body() {
        let whole = content(1);
        for most in [1, 2, 8] {
            let by_noq = read::<Client>(serve([1, 1]).await, most).await;
            let by_quinn = read::<Quic>(serve([1, 1]).await, most).await;
            for (got, requests, refused) in [by_noq, by_quinn] {
                assert!(got == whole, "{} bytes by {most}", got.len());
                // The first goes on for a window after the second.
                let parts = (SIZE - WINDOW).div_ceil(PART);
                let expected = if most == 1 { 1 } else { 1 + parts };
                assert_eq!(requests, expected, "{most} at a time");
                assert!(!refused);
            }
        }
    }

    #[tokio::test]
    async fn a_part_of_another_version_is_not_taken() {
        let whole = content(1);
        let (got, _, refused) = read::<Client>(serve([1, 2]).await, 3).await;
        assert!(refused);
        assert_eq!(got.len() as u64, WINDOW);
        assert!(got == whole[..got.len()]);
    }

    /// Asks for everything, and looks once for the answer, which cannot be there yet.
    async fn wait(requests: &mut Requests<'_, Streams>) -> Asked<Streams> {
        let mut asked = requests.send(None).await.unwrap();
        tokio::select! {
            biased;
            _ = asked.recv_response() => unreachable!("nobody else has run"),
            () = ready(()) => asked,
        }
    }

    #[tokio::test]
    async fn what_is_waited_for_can_be_left() {
        let (client, url) = connect::<Quic>(serve([1, 1]).await).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut first = requests.send(None).await.unwrap();
        let head = answer::<Streams>(&mut first).await.unwrap();
        let held = Held::start(head.headers());

        let mut body = Body::new(wait(&mut requests).await, Some(SIZE), held, 2);
        body.demand.since -= SAMPLE;
        body.demand.rate = f64::INFINITY;
        let endless = || vec![path(0, u64::MAX, RTT)];
        body.ask(0, &mut requests, endless).await.unwrap();
        assert!(body.turn().await.unwrap());
    }

    /// When it can, [`Body`] may stop with a code of HTTP/3 what it leaves.
    #[tokio::test]
    #[should_panic(expected = "on a `None` value")]
    async fn h3_quinn_cannot_stop_what_is_waited_for() {
        let (client, url) = connect::<Quic>(serve([1, 1]).await).await;
        let count = Cell::new(0);
        let mut requests = Requests::new(client.requests(), &url, &count);
        let mut asked = wait(&mut requests).await;
        asked.stop_sending(Code::H3_REQUEST_CANCELLED);
    }
}
