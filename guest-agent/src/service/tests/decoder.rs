//! A decoder fuzz of every message, through the gate as the dispatcher calls it, and of the JSON in them: whatever the bytes are, the answer is
//! a status, and what is let through is within its bounds. The same bytes on every run; `CLOISTER_FUZZ` makes it longer. What must be true
//! of a message that is taken stands in `fuzz/src/line.rs`.

use super::{mutations, *};
use crate::containers::host_spec::{HostSpec, SpecError, parse_process, parse_resources};
use serde_json::json;
use std::fs;

/// xorshift64* (Vigna 2016): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    /// One change of the kind that decoders have fallen over.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        match self.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, [0, 0x7f, 0x80, 0xff][self.below(4)]),
            // A length of ten bytes, or of 4 GiB.
            3 => drop(bytes.splice(at..at, [0xff; 9].into_iter().chain([1]))),
            4 => drop(bytes.splice(at..at, [0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])),
            _ => bytes.extend_from_within(at..),
        }
        bytes.truncate(1 << 16);
    }
}

fn rounds() -> usize {
    std::env::var("CLOISTER_FUZZ").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3000)
}

/// Messages with every field set, of the kept corpus: the byte before each says of which RPC, and here each goes to all of them.
fn corpus() -> Vec<Vec<u8>> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/request");
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap().split_off(1)).collect()
}

#[tokio::test]
async fn whatever_bytes_are_sent_the_answer_is_a_status() {
    let (rounds, corpus) = (rounds(), corpus());
    let closed = Gate::with(Sandbox::for_test(Some("")));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for rule in &gate::RULES {
        for round in 0..rounds {
            let mut bytes = match round % 3 {
                0 => (0..random.below(64)).map(|_| random.next() as u8).collect(),
                1 => corpus[random.below(corpus.len())].clone(),
                _ => request(rule.rpc()),
            };
            for _ in 0..=random.below(4) {
                random.spoil(&mut bytes);
            }
            if let Err(failure) = closed.admit(rule, &bytes).await {
                refused += 1;
                let status = failure.into_status();
                assert!(!status.message().contains('\n') && status.message().len() <= 4096, "{}", status.message());
            }
        }
    }
    assert!(refused > rounds, "of {} spoilt requests only {refused} were refused", rounds * gate::RULES.len());
}

/// Nesting and repetition are bounded by the decoder, sizes by the transport's frame (4 MiB) and the bounds.
#[tokio::test]
async fn a_list_of_a_million_entries_is_refused_by_its_bound() {
    let mut sandbox = api::CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() };
    sandbox.routes = vec![api::Route::default(); 1_000_000];
    let gate = Gate::default();
    let rule = &gate::RULES[0];
    let failure = gate.admit(rule, &sandbox.write_to_bytes().unwrap()).await.unwrap_err();
    assert!(failure.into_status().message().contains("routes"), "by its bound");
    sandbox.routes.clear();
    assert!(gate.admit(rule, &sandbox.write_to_bytes().unwrap()).await.is_ok(), "and the attempt is still to be had");
}

/// The JSON in the messages is decoded behind the gate: spec, process and limits, and all that is made of a spec that is taken.
#[test]
fn whatever_json_is_sent_it_is_a_spec_or_a_line() {
    let open = policy::Policy::from_initdata(None).unwrap();
    let spec = mutations::valid();
    let seeds = [spec.to_string(), spec["process"].to_string(), spec["linux"]["resources"].to_string()];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut taken = 0;
    for round in 0..rounds() {
        let mut bytes = seeds[round % seeds.len()].clone().into_bytes();
        for _ in 0..random.below(3) {
            random.spoil(&mut bytes);
        }
        let refusals = [HostSpec::parse(&bytes).err(), parse_process(&bytes).err(), parse_resources(&bytes).err()];
        for error in refusals.into_iter().flatten() {
            let status = Failure::from(crate::containers::ContainerError::from(error)).into_status();
            assert!(!status.message().contains('\n') && status.message().len() <= 4096, "{}", status.message());
        }
        if let Ok(spec) = serde_json::from_slice(&bytes) {
            taken += usize::from(mutations::decide(&open, &spec, &mutations::image(), policy::Stdio::default()).is_ok());
        }
    }
    assert!(taken > 100, "only {taken} specs were taken: is anything behind the parser reached?");
}

/// Depth and length that a stack or a list would not hold.
#[test]
fn json_that_is_deep_or_long_is_refused() {
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    assert!(matches!(HostSpec::parse(deep.as_bytes()), Err(SpecError::Json(_))));
    let nested = format!("{{\"ociVersion\":\"1\",\"annotations\":{}1{}}}", "{\"a\":".repeat(1 << 18), "}".repeat(1 << 18));
    assert!(matches!(HostSpec::parse(nested.as_bytes()), Err(SpecError::Json(_))));
    for (parent, key) in [("/process", "env"), ("/process", "args"), ("", "mounts"), ("/linux", "maskedPaths")] {
        let entry = if key == "mounts" { json!({"destination": "/t", "type": "tmpfs"}) } else { json!("A=b") };
        let mut spec = mutations::valid();
        spec.pointer_mut(parent).unwrap()[key] = vec![entry; 100_000].into();
        assert!(HostSpec::parse(spec.to_string().as_bytes()).unwrap_err().to_string().contains("at most 16384 entries"), "{key}");
    }
}
