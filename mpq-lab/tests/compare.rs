//! What `cargo lab bench` measures is complete and adds up; how fast anything is does not matter.

use common::{criu, privileged};
use mpq_lab::bench::compare::{BenchArm, Comparison, compare};

mod common;

/// Whole bodies, and positive figures; bodies of other content are an error of `compare` itself.
fn assert_sound(comparison: &Comparison, arms: &[BenchArm], ratios: usize) {
    let run: Vec<_> = comparison.runs.iter().map(|run| run.arm).collect();
    assert_eq!(run, arms);
    for run in &comparison.runs {
        assert!(run.seconds > 0.0 && run.client_cpu > 0.0, "{run:?}");
        assert!((0.0..=1.0).contains(&run.steal), "{run:?}");
        assert_eq!(run.frozen > 0.0, run.arm == BenchArm::Moved, "{run:?}");
    }
    assert_eq!(comparison.ratios.len(), ratios);
    for ratio in &comparison.ratios {
        assert!(ratio.min > 0.0 && ratio.max.is_finite(), "{ratio:?}");
        assert!(ratio.min <= ratio.median && ratio.median <= ratio.max);
    }
}

#[tokio::test]
async fn on_loopback_both_stacks_are_measured_round_by_round() {
    let comparison = compare(20_000_000, 0, 2, None).await.unwrap();
    let round = [BenchArm::Mpq, BenchArm::Quinn];
    assert_sound(&comparison, &[round, round].concat(), 3);
    assert!(comparison.runs.iter().all(|run| run.bytes == 20_000_000));
}

#[tokio::test]
async fn on_the_network_links_and_a_move_are_measured() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let comparison = compare(10_000_000, 30_000_000, 1, Some(&criu())).await;
    let comparison = comparison.unwrap();
    let links = [
        BenchArm::FirstLink,
        BenchArm::SecondLink,
        BenchArm::BothLinks,
        BenchArm::Moved,
    ];
    let arms = [&[BenchArm::Mpq, BenchArm::Quinn], &links[..]].concat();
    assert_sound(&comparison, &arms, 5);
}
