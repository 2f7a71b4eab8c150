//! A target over its kept corpus and over mutations of it, for the tests of the crates that are fuzzed. No part of the library.

use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{fs, path::Path};

/// Mutations of each target's corpus.
const MUTATIONS: u32 = 400;

/// Everything kept for a target; what is kept stays readable as files.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 3, "{}: the corpus is gone", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What to do to an input.
#[derive(Debug, Clone)]
enum Change {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    use prop::sample::Index;
    prop_oneof![
        (any::<Index>(), 1u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        any::<Index>().prop_map(Change::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

fn apply(mut input: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes.iter().cloned() {
        if input.is_empty() {
            break;
        }
        match change {
            Change::Flip(at, bits) => {
                let at = at.index(input.len());
                input[at] ^= bits;
            }
            Change::Cut(at) => input.truncate(at.index(input.len())),
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(input.len()), to.index(input.len()));
                let piece = input[from.min(to)..from.max(to)].to_vec();
                input.splice(to..to, piece);
            }
            Change::Insert(at, bytes) => {
                let at = at.index(input.len());
                input.splice(at..at, bytes);
            }
        }
    }
    input
}

/// Runs a target over its corpus, and over mutations of it: the same ones each time, or a change would be blamed for another's fault.
pub fn replay(name: &str, target: fn(&[u8])) {
    let corpus = corpus(name);
    corpus.iter().for_each(|input| target(input));
    let config = Config { cases: MUTATIONS, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let mutated = (prop::sample::select(corpus), prop::collection::vec(change(), 1..6));
    runner
        .run(&mutated, |(input, changes)| {
            target(&apply(input, &changes));
            Ok(())
        })
        .unwrap();
}
