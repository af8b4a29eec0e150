//! Windows against values worked out by hand from the formula, and against other code.

use noq::congestion::{ControllerFactory, NewRenoConfig};
use proptest::prelude::*;

use super::*;

/// Bytes; round, so that the arithmetic can be followed.
const MSS: u16 = 1000;

fn path(group: &Arc<Olia>) -> PathController {
    PathController::new(group.clone(), MSS, initial_window(MSS.into()))
}

/// A path in congestion avoidance: its window in bytes, its round-trip time in milliseconds, and the
/// bytes it carried since the last loss.
fn steady(group: &Arc<Olia>, window: f64, rtt: u64, since_loss: u64) -> PathController {
    let mut path = path(group);
    path.ssthresh = 0.0;
    *group.0.lock().unwrap().share(path.id) = Share {
        window,
        rtt: Some(rtt as f64 * 1e-3),
        since_loss,
        between_losses: 0,
    };
    path
}

fn share(path: &PathController) -> Share {
    path.with(|group| group.paths[&path.id])
}

/// What one acknowledgement of one packet would add.
fn growth(path: &PathController) -> f64 {
    path.with(|group| group.growth(path.id, MSS.into(), MSS.into()))
}

fn acknowledge(path: &mut PathController, sent: Instant, bytes: u64) {
    path.acknowledged(sent, bytes, false, None);
}

fn lose(path: &mut PathController, sent: Instant, now: Instant) {
    path.on_congestion_event(now, sent, false, false, MSS.into(), 0);
}

#[track_caller]
fn near(actual: f64, expected: f64) {
    let close = (actual - expected).abs() <= 1e-9 * expected.abs().max(1.0);
    assert!(close, "{actual} is not {expected}");
}

#[test]
fn a_path_alone_grows_as_newreno_does() {
    let group = Arc::default();
    let path = steady(&group, 10_000.0, 50, 0);
    // 1000·1000 · (10000/0.05²) / (10000/0.05)² = 1e6 · 4e6 / 4e10 = 100: a tenth of a packet for
    // each of the ten in a round trip.
    near(growth(&path), 100.0);
}

#[test]
fn equal_paths_share_the_growth_of_one() {
    let group = Arc::default();
    let paths = [(); 2].map(|()| steady(&group, 10_000.0, 100, 50_000));
    // Σ w/rtt = 2·1e5; 1e6 · (10000/0.1²) / (2e5)² = 1e6 · 1e6 / 4e10 = 25, and α = 0: both are the
    // largest. Ten acknowledgements each: 500 bytes a round trip together, where one has 1000.
    for path in &paths {
        near(growth(path), 25.0);
    }
}

#[test]
fn growth_moves_to_the_better_path() {
    let group = Arc::default();
    let slow = steady(&group, 20_000.0, 100, 100_000);
    let mut fast = steady(&group, 10_000.0, 50, 100_000);
    // Σ w/rtt = 2e5 + 2e5, squared 1.6e11. l/rtt²: 1e5/0.01 = 1e7 and 1e5/0.0025 = 4e7, so B is the
    // fast path, M the slow one, α = ±1/2.
    // slow: 1e6 · (20000/0.01 / 1.6e11 − 0.5/20000) = 12.5 − 25
    near(growth(&slow), -12.5);
    // fast: 1e6 · (10000/0.0025 / 1.6e11 + 0.5/10000) = 25 + 50
    near(growth(&fast), 75.0);

    // Carrying five times as much between losses, the slow path is the best too: 5e5/0.01 = 5e7.
    group.0.lock().unwrap().share(slow.id).between_losses = 500_000;
    near(growth(&slow), 12.5);
    near(growth(&fast), 25.0);

    // 1e5 bytes more make it 8e7 for the fast one. It is in slow start, so that only l changes.
    fast.ssthresh = f64::INFINITY;
    acknowledge(&mut fast, Instant::now(), 100_000);
    near(share(&fast).window, 110_000.0);
    // The fast path is now also the largest: C is empty. Σ w/rtt = 2e5 + 2.2e6 = 2.4e6.
    near(growth(&slow), 1e6 * 2e6 / 5.76e12);
}

#[test]
fn what_moves_is_shared_within_the_sets() {
    let group = Arc::default();
    let largest = [(); 2].map(|()| steady(&group, 30_000.0, 100, 0));
    let best = [(); 2].map(|()| steady(&group, 10_000.0, 100, 90_000));
    let other = steady(&group, 20_000.0, 100, 0);
    // N = 5, |M| = |C| = 2: α = ∓1/10. Σ w/rtt = 1e6, so that the first term is w · 1e8/1e12.
    for path in &largest {
        near(growth(path), 1e6 * (3e4 * 1e-10 - 0.1 / 3e4));
    }
    for path in &best {
        near(growth(path), 1e6 * (1e4 * 1e-10 + 0.1 / 1e4));
    }
    near(growth(&other), 1e6 * 2e4 * 1e-10);
}

#[test]
fn fractions_of_a_byte_add_up_with_their_sign() {
    let group = Arc::default();
    let mut slow = steady(&group, 20_000.0, 100, 100_000);
    let _fast = steady(&group, 10_000.0, 50, 100_000);
    let sent = Instant::now();
    for _ in 0..1000 {
        acknowledge(&mut slow, sent, 1);
    }
    // −12.5 bytes a packet, as above; the formula itself changes little over 12 bytes.
    let lost = 20_000.0 - share(&slow).window;
    assert!((12.4..12.6).contains(&lost), "{lost}");
    assert_eq!(slow.window(), 19_987);
}

#[test]
fn a_loss_halves_and_one_recovery_reacts_once() {
    let group = Arc::default();
    let mut path = steady(&group, 20_000.0, 100, 7_000);
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    lose(&mut path, at(0), at(100));
    let after = Share {
        window: 10_000.0,
        rtt: Some(0.1),
        since_loss: 0,
        between_losses: 7_000,
    };
    assert_eq!(share(&path), after);
    assert_eq!(path.ssthresh, 10_000.0);

    // Lost, or acknowledged, but sent before the reaction.
    lose(&mut path, at(100), at(150));
    assert_eq!(share(&path), after);
    acknowledge(&mut path, at(100), 4_000);
    assert_eq!((path.window(), share(&path).since_loss), (10_000, 4_000));

    // One byte later recovery is over: 1e6 · 1/10000 for a packet.
    acknowledge(&mut path, at(101), 1_000);
    near(share(&path).window, 10_100.0);
    lose(&mut path, at(101), at(200));
    let Share {
        window,
        since_loss,
        between_losses,
        ..
    } = share(&path);
    near(window, 5_050.0);
    assert_eq!((since_loss, between_losses), (0, 5_000));
}

#[test]
fn persistent_congestion_starts_again_from_two_packets() {
    let group = Arc::default();
    let mut path = steady(&group, 20_000.0, 100, 0);
    let start = Instant::now();
    path.on_congestion_event(start, start, true, false, 5_000, 0);
    assert_eq!((path.window(), path.ssthresh), (2_000, 10_000.0));
    // Slow start up to half of what was.
    let later = start + Duration::from_millis(1);
    acknowledge(&mut path, later, 8_000);
    assert_eq!(path.window(), 10_000);
    acknowledge(&mut path, later, 1_000);
    assert_eq!(path.window(), 10_100);
}

#[test]
fn a_window_stays_at_two_packets() {
    let group = Arc::default();
    let mut path = steady(&group, 3_000.0, 100, 0);
    let start = Instant::now();
    lose(&mut path, start, start);
    assert_eq!(path.window(), 2_000);
    path.on_mtu_update(1_400);
    assert_eq!(path.window(), 2_800);

    // Largest window, and far from best: the formula would shrink it below. It is
    // 1e6 · 2800/5002800 · … − 1e6 · 0.5/2800 < −170 a packet.
    let _best = steady(&group, 2_500.0, 1, 1_000_000);
    let later = start + Duration::from_millis(1);
    acknowledge(&mut path, later, 1_000);
    assert_eq!(path.window(), 2_800);
}

#[test]
fn paths_count_from_their_first_sample_until_they_are_dropped() {
    let group = Arc::default();
    let first = steady(&group, 10_000.0, 100, 0);
    let mut second = path(&group);
    // Alone, as long as nothing is known of the second, whatever it has carried.
    acknowledge(&mut second, Instant::now(), 90_000);
    assert_eq!(second.window(), 100_000);
    near(growth(&first), 100.0);
    near(growth(&second), 0.0);

    // 100 ms: Σ w/rtt = 1.1e6; 1e6 · 1e6 / 1.21e12.
    second.acknowledged(Instant::now(), 0, true, Some(Duration::from_millis(100)));
    near(growth(&first), 1e12 / 1.21e12);
    // Once its path has moved, the copy takes the place of the original.
    let moved = second.clone_box();
    assert_eq!(moved.window(), 100_000);
    drop(second);
    near(growth(&first), 1e12 / 1.21e12);
    drop(moved);
    near(growth(&first), 100.0);
    assert_eq!(group.0.lock().unwrap().paths.len(), 1);
}

#[test]
fn slow_start_is_uncoupled_and_idle_paths_do_not_grow() {
    let group = Arc::default();
    let _other = steady(&group, 500_000.0, 10, 1_000_000);
    let mut path = path(&group);
    assert_eq!(path.window(), 10_000);
    acknowledge(&mut path, Instant::now(), 3_000);
    assert_eq!(path.window(), 13_000);
    path.acknowledged(Instant::now(), 3_000, true, None);
    assert_eq!((path.window(), share(&path).since_loss), (13_000, 6_000));
}

/// The formula once more, in plain vectors and without the sets' shortcuts.
struct Reference {
    w: Vec<f64>,
    rtt: Vec<f64>,
    l: Vec<[f64; 2]>,
}

impl Reference {
    fn acknowledge(&mut self, r: usize, bytes: f64) {
        self.l[r][0] += bytes;
        let n = self.w.len();
        let mut rates = 0.0;
        let (mut largest, mut best) = (f64::MIN, f64::MIN);
        for p in 0..n {
            rates += self.w[p] / self.rtt[p];
            largest = largest.max(self.w[p]);
            best = best.max(self.merit(p));
        }
        let m: Vec<usize> = (0..n).filter(|p| self.w[*p] == largest).collect();
        let b: Vec<usize> = (0..n).filter(|p| self.merit(*p) == best).collect();
        let c: Vec<usize> = b.into_iter().filter(|p| !m.contains(p)).collect();
        let mut alpha = 0.0;
        if c.contains(&r) {
            alpha = 1.0 / (n * c.len()) as f64;
        } else if !c.is_empty() && m.contains(&r) {
            alpha = -1.0 / (n * m.len()) as f64;
        }
        let bracket = self.w[r] / self.rtt[r].powi(2) / rates.powi(2) + alpha / self.w[r];
        self.w[r] += bytes * f64::from(MSS) * bracket;
        self.w[r] = self.w[r].max(2.0 * f64::from(MSS));
    }

    fn merit(&self, p: usize) -> f64 {
        self.l[p][0].max(self.l[p][1]) / (self.rtt[p] * self.rtt[p])
    }

    fn lose(&mut self, r: usize) {
        self.w[r] = (self.w[r] / 2.0).max(2.0 * f64::from(MSS));
        self.l[r] = [0.0, self.l[r][0]];
    }
}

/// Three hundred round trips in which each path has its window acknowledged, and loses every so often.
fn trace(rtts: &[u64], loss_every: &[u64]) {
    let group = Arc::default();
    let mut paths: Vec<_> = rtts
        .iter()
        .map(|rtt| steady(&group, 10_000.0, *rtt, 0))
        .collect();
    let mut reference = Reference {
        w: vec![10_000.0; rtts.len()],
        rtt: rtts.iter().map(|rtt| *rtt as f64 * 1e-3).collect(),
        l: vec![[0.0; 2]; rtts.len()],
    };
    let mut now = Instant::now();
    for round in 1..300 {
        for (r, path) in paths.iter_mut().enumerate() {
            for _ in 0..path.window() / u64::from(MSS) {
                now += Duration::from_micros(100);
                acknowledge(path, now, MSS.into());
                reference.acknowledge(r, MSS.into());
            }
            if round % loss_every[r] == 0 {
                lose(path, now, now);
                reference.lose(r);
            }
            near(share(path).window, reference.w[r]);
        }
    }
}

#[test]
fn traces_follow_the_formula() {
    trace(&[50], &[37]);
    trace(&[50, 50], &[37, 37]);
    trace(&[50, 50], &[37, 11]);
    trace(&[20, 100], &[37, 11]);
    trace(&[100, 20], &[37, 11]);
    trace(&[10, 40, 40, 200], &[13, 17, 59, 101]);
}

/// noq makes round-trip estimates only inside a connection: here is one from the first
/// acknowledgement of a handshake.
pub(in crate::congestion) async fn estimate() -> RttEstimator {
    #[derive(Debug)]
    struct Spy(
        Box<dyn Controller>,
        tokio::sync::mpsc::UnboundedSender<RttEstimator>,
    );
    struct SpyFactory(tokio::sync::mpsc::UnboundedSender<RttEstimator>);
    impl ControllerFactory for SpyFactory {
        fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
            let inner = Arc::new(NewRenoConfig::default()).build(now, mtu);
            Box::new(Spy(inner, self.0.clone()))
        }
    }
    impl Controller for Spy {
        fn on_ack(&mut self, _: Instant, _: Instant, _: u64, _: u64, _: bool, rtt: &RttEstimator) {
            let _ = self.1.send(*rtt);
        }
        fn on_congestion_event(
            &mut self,
            _: Instant,
            _: Instant,
            _: bool,
            _: bool,
            _: u64,
            _: u64,
        ) {
        }
        fn on_mtu_update(&mut self, _: u16) {}
        fn window(&self) -> u64 {
            self.0.window()
        }
        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(Spy(self.0.clone_box(), self.1.clone()))
        }
        fn initial_window(&self) -> u64 {
            self.0.initial_window()
        }
        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    let identity = crate::tls::Identity::self_signed(&["localhost".to_owned()]).unwrap();
    let crypto = crate::tls::server_config(&identity).unwrap();
    let config = noq::ServerConfig::with_crypto(Arc::new(crypto));
    let server = noq::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let client = noq::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let (sender, mut estimates) = tokio::sync::mpsc::unbounded_channel();
    let mut transport = noq::TransportConfig::default();
    transport.congestion_controller_factory(Arc::new(SpyFactory(sender)));
    let crypto = crate::tls::client_config(&crate::tls::Trust::Insecure).unwrap();
    let mut config = noq::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let remote = server.local_addr().unwrap();
    let connecting = client.connect_with(config, remote, "localhost").unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (_connected, _accepted) = tokio::join!(connecting, accepting);
    estimates.recv().await.unwrap()
}

#[tokio::test]
async fn a_path_alone_follows_noqs_newreno_through_slow_start_and_losses() {
    let rtt = estimate().await;
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let olia = Arc::new(Olia::default()).begin(MSS, None);
    let mut newreno = NewRenoConfig::default();
    newreno.initial_window(olia.initial_window());
    let mut both = [olia, Arc::new(newreno).build(start, MSS)];
    let mut largest = 0;
    for round in 1..=200 {
        let packets = both[1].window() / u64::from(MSS);
        for path in &mut both {
            for packet in 0..packets {
                // Some in each round when there is nothing to send.
                let app_limited = packet % 16 == 3;
                path.on_ack(at(round), at(round), MSS.into(), packet, app_limited, &rtt);
            }
            path.on_end_acks(at(round), 0, false, None);
            if [5, 90, 150].contains(&round) {
                path.on_congestion_event(at(round), at(round), false, false, 1, 0);
            }
        }
        let [olia, newreno] = [&both[0], &both[1]].map(|path| path.window());
        let apart = olia.abs_diff(newreno);
        // NewReno grows by whole packets, and takes a part of one along through a loss.
        assert!(
            apart <= 2 * u64::from(MSS),
            "round {round}: {olia} and {newreno}"
        );
        largest = largest.max(newreno);
    }
    assert!(largest > 200_000, "slow start has done {largest}");
}

#[tokio::test]
async fn the_first_estimate_is_no_sample() {
    let rtt = estimate().await;
    let group = Arc::default();
    let mut path = path(&group);
    let now = Instant::now();
    path.on_ack(now, now, 1000, 0, false, &rtt);
    assert_eq!(share(&path).rtt, None);
    path.on_end_acks(now, 0, false, Some(0));
    path.on_ack(now, now, 1000, 1, false, &rtt);
    assert_eq!(share(&path).rtt, Some(rtt.get().as_secs_f64()));
}

#[derive(Debug, Clone)]
enum Step {
    Ack {
        path: usize,
        bytes: u16,
        app_limited: bool,
        rtt: Option<u64>,
    },
    Loss {
        path: usize,
        persistent: bool,
    },
    Mtu {
        path: usize,
        mtu: u16,
    },
    Join,
    Leave {
        path: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let rtt = prop_oneof![Just(None), (0..10_000_000_u64).prop_map(Some)];
    prop_oneof![
        20 => (any::<usize>(), 1..1500_u16, any::<bool>(), rtt).prop_map(
            |(path, bytes, app_limited, rtt)| Step::Ack { path, bytes, app_limited, rtt }
        ),
        5 => (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(path, persistent)| Step::Loss { path, persistent }),
        1 => (any::<usize>(), 1200..9000_u16).prop_map(|(path, mtu)| Step::Mtu { path, mtu }),
        1 => Just(Step::Join),
        1 => any::<usize>().prop_map(|path| Step::Leave { path }),
    ]
}

/// Paths by window in bytes, round-trip time in seconds and bytes carried since the last loss.
fn group_of(paths: &[(u32, f64, u32)]) -> Group {
    let mut group = Group::default();
    for (window, rtt, since_loss) in paths {
        group.join(Share {
            window: f64::from(*window),
            rtt: Some(*rtt),
            since_loss: u64::from(*since_loss),
            between_losses: 0,
        });
    }
    group
}

/// By how much the rates of all paths together, w/rtt, rise in a second: each has its window
/// acknowledged once in a round trip. Bytes/s².
fn acceleration(group: &Group) -> f64 {
    let of = |(id, share): (&u64, &Share)| {
        let rtt = share.rtt.unwrap();
        group.growth(*id, share.window, MSS.into()) / (rtt * rtt)
    };
    group.paths.iter().map(of).sum()
}

/// NewReno's: one packet a round trip. Bytes/s².
fn newreno(rtt: f64) -> f64 {
    f64::from(MSS) / (rtt * rtt)
}

fn window() -> std::ops::Range<u32> {
    2 * u32::from(MSS)..1 << 30
}

proptest! {
    #[test]
    fn windows_stay_sound(steps in prop::collection::vec(step(), 1..400)) {
        let group = Arc::default();
        let mut paths = vec![path(&group)];
        let mut now = Instant::now();
        for step in steps {
            now += Duration::from_millis(1);
            let count = paths.len();
            match step {
                Step::Ack { path, bytes, app_limited, rtt } => {
                    let rtt = rtt.map(Duration::from_micros);
                    paths[path % count].acknowledged(now, bytes.into(), app_limited, rtt);
                }
                Step::Loss { path, persistent } => {
                    let path = &mut paths[path % count];
                    path.on_congestion_event(now, now, persistent, false, 1200, 0);
                }
                Step::Mtu { path, mtu } => paths[path % count].on_mtu_update(mtu),
                Step::Join if count < 8 => paths.push(path(&group)),
                Step::Leave { path } if count > 1 => drop(paths.remove(path % count)),
                Step::Join | Step::Leave { .. } => {}
            }
            prop_assert_eq!(group.0.lock().unwrap().paths.len(), paths.len());
            for path in &paths {
                let exact = share(path).window;
                prop_assert!(exact.is_finite() && exact < 1e9, "{exact}");
                prop_assert!(path.window() >= 2 * path.mss);
            }
        }
    }

    /// The aim of OLIA: no more than the best of its paths would take with NewReno. What α moves
    /// between paths of equal round-trip times sums up to nothing.
    #[test]
    fn equal_round_trips_grow_no_faster_than_one_newreno(
        rtt in 0.001..2.0_f64,
        paths in prop::collection::vec((window(), any::<u32>()), 1..8),
    ) {
        let paths: Vec<_> = paths.into_iter().map(|(window, l)| (window, rtt, l)).collect();
        let sum = acceleration(&group_of(&paths));
        prop_assert!(sum <= newreno(rtt) * (1.0 + 1e-9), "{sum}");
    }

    /// Where they differ, growth moved to a path of shorter round trips counts for more there: at most
    /// 1/N of NewReno's on top. Without it, the bound is NewReno's on the path of the shortest.
    #[test]
    fn unequal_round_trips_grow_no_faster_than_the_best_newreno(
        paths in prop::collection::vec((window(), 0.001..2.0_f64, any::<u32>()), 1..8),
    ) {
        let mut group = group_of(&paths);
        let shortest = paths.iter().map(|path| path.1).fold(f64::MAX, f64::min);
        let sum = acceleration(&group);
        let moved = 1.0 + 1.0 / paths.len() as f64;
        prop_assert!(sum <= newreno(shortest) * moved * (1.0 + 1e-9), "{sum}");

        // All equally good, but for the largest, which is the best: C is empty.
        let largest = paths.iter().map(|path| path.0).max().unwrap();
        for share in group.paths.values_mut() {
            share.since_loss = u64::from(share.window == f64::from(largest));
        }
        let sum = acceleration(&group);
        prop_assert!(sum <= newreno(shortest) * (1.0 + 1e-9), "{sum}");
    }
}
