//! Every target on its corpus, and on mutations of it that are the same every time.

#[path = "../../../mpq-core/tests/support/mutate.rs"]
mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mpq_fuzz::{TARGETS, Target};
use mutate::mutated;

/// Mutations of each target's corpus; those of whole schedules take longer.
const MUTATIONS: usize = 20_000;
const SCHEDULES: usize = 2_000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn run(name: &str, target: Target, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        eprintln!("{name} fails on {bytes:?}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_target_bears_its_corpus_and_what_is_like_it() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        corpus.iter().for_each(|bytes| run(name, target, bytes));
        let mut rng = fastrand::Rng::with_seed(1);
        let mutations = if name == "schedules" {
            SCHEDULES
        } else {
            MUTATIONS
        };
        for _ in 0..mutations {
            run(name, target, &mutated(&mut rng, &corpus));
        }
    }
}
