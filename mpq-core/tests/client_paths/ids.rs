//! How many paths the client's machine opens: their ids are used once, and kept for moves.

use mpq_core::proto::client::{Config, Output, Refusal};

use crate::rig::{Rig, SECOND, open};

/// How many of them take a path id.
pub(crate) fn opened(outputs: &[Output]) -> u32 {
    let opens = |output: &&Output| matches!(output, Output::Open { .. });
    outputs.iter().filter(opens).count() as u32
}

#[test]
fn dead_interfaces_use_up_no_path_ids() {
    let mut rig = Rig::new();
    let mut outputs = rig.locals(0..18);
    outputs.extend(rig.run(60 * SECOND, &[20, 20]));
    assert_eq!(opened(&outputs), 0, "{outputs:?}");
    rig.park();
    assert!(rig.answer(0, 2).contains(&open(0, 2)));
    assert!(rig.answer(1, 2).contains(&open(1, 2)));
}

#[test]
fn an_interface_that_comes_and_goes_leaves_the_path_ids_for_a_move() {
    let mut rig = Rig::new();
    let mut outputs = Vec::new();
    for _ in 0..32 {
        outputs.extend(rig.locals([0, 1, 2]));
        // It works just long enough to be answered.
        outputs.extend(rig.answer(2, 1));
        outputs.extend(rig.locals([0, 1]));
        outputs.extend(rig.run(SECOND, &[20, 20]));
    }
    rig.park();
    outputs.extend(rig.answer(0, 2));
    outputs.extend(rig.answer(1, 2));
    assert!(outputs.contains(&open(0, 2)) && outputs.contains(&open(1, 2)));
    let ids = Config::default().path_ids;
    // Two were there at first.
    assert!(2 + opened(&outputs) <= ids, "{outputs:?}");
    assert!(opened(&outputs) > 8, "it is tried for as long as it can be");
}

#[test]
fn as_many_paths_are_opened_as_can_move() {
    let mut rig = Rig::new();
    rig.locals(0..18);
    let opened: u32 = (2..18).map(|host| opened(&rig.answer(host, 1))).sum();
    assert_eq!(2 + opened, Config::default().path_ids / 2);
}

#[test]
fn who_has_no_way_to_the_server_left_uses_the_ids_that_are_kept_for_a_move() {
    let mut rig = Rig::new();
    for _ in 0..32 {
        rig.locals([0, 1, 2]);
        rig.answer(2, 1);
        rig.locals([0, 1]);
        rig.run(SECOND, &[20, 20]);
    }
    // Both are gone, and none of the server's paths leads here.
    rig.locals([3]);
    assert!(rig.answer(3, 1).contains(&open(3, 1)));
}

#[test]
fn a_path_that_is_being_closed_is_not_to_move() {
    let mut rig = Rig::new();
    let outputs = rig.locals((0..18).filter(|host| *host != 1));
    assert!(outputs.contains(&Output::Close { path: 1 }), "{outputs:?}");
    let opened: u32 = (2..18).map(|host| opened(&rig.answer(host, 1))).sum();
    assert_eq!(1 + opened, (Config::default().path_ids - 1) / 2);
    // Those that got none wait.
    assert!(rig.client.next_timeout().unwrap() > rig.now);
}

#[test]
fn the_id_of_a_path_that_the_server_knows_comes_back() {
    let mut rig = Rig::new();
    for path in 2..34 {
        rig.locals([0, 1, 2]);
        assert!(rig.answer(2, 1).contains(&open(2, 1)), "{path}");
        rig.open(path, 2, 1);
        assert!(rig.locals([0, 1]).contains(&Output::Close { path }));
        rig.gone(path);
        rig.run(SECOND, &[20, 20]);
    }
}

#[test]
fn openings_that_nobody_answers_leave_the_path_ids_for_a_move() {
    let mut rig = Rig::new();
    rig.locals([0, 1, 2]);
    let mut outputs = Vec::new();
    for _ in 0..32 {
        outputs.extend(rig.answer(2, 1));
        outputs.extend(rig.refused(2, 1, Refusal::NoAnswer));
        outputs.extend(rig.run(2 * SECOND, &[20, 20]));
    }
    // With both that are there, and two for a move.
    let spare = Config::default().path_ids - 4;
    assert!((8..=spare).contains(&opened(&outputs)), "{outputs:?}");
}
