//! `docs/shim-contract.md`: every id of the checklist is answered, and the tests that answer exist (for the other documents: `promises`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Settings whose names look like a test's.
const OTHERS: [&str; 2] = ["runtime_config_path", "runtime_pull_image"];
/// The ids of the checklist of what callers expect of a shim: a letter, and the last number of each.
const CONTRACT: [(&str, u32); 12] =
    [("N", 4), ("B", 17), ("I", 3), ("D", 8), ("T", 6), ("E", 6), ("O", 6), ("P", 5), ("X", 5), ("R", 9), ("U", 7), ("T1b", 0)];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document() -> String {
    fs::read_to_string(top().join("docs/shim-contract.md")).unwrap()
}

/// The names of all functions of the workspace.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
            names.extend(text.split("fn ").skip(1).filter_map(name));
        }
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(top()).unwrap().map(|entry| entry.unwrap().path()) {
        // The crates: what is built and fetched is elsewhere.
        if entry.join("Cargo.toml").exists() {
            for sources in ["src", "tests", "fuzz_targets"].map(|name| entry.join(name)) {
                if sources.is_dir() {
                    functions(&sources, &mut names);
                }
            }
        }
    }
    let mut missing = Vec::new();
    let text = document();
    let quoted = text.split('`').skip(1).step_by(2);
    for word in quoted.filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')) {
        let found = match word.strip_prefix("e2e_") {
            Some(_) => top().join("tests/tests").join(format!("{word}.rs")).exists(),
            // Fewer words are modules and settings.
            None => word.matches('_').count() < 2 || OTHERS.contains(&word) || names.contains(word),
        };
        if !found {
            missing.push(word.to_owned());
        }
    }
    assert!(missing.is_empty(), "no such test: {}", missing.join(", "));
}

#[test]
fn every_id_of_the_shim_contract_is_answered() {
    let text = document();
    let mut answered = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let ids = line.split('|').nth(1).unwrap_or_default().trim().to_owned();
        match ids.split_once(" to ") {
            Some((first, last)) => {
                let number = |id: &str| id[1..].parse::<u32>().unwrap();
                answered.extend((number(first)..=number(last)).map(|n| format!("{}{n}", &first[..1])));
            }
            None => answered.extend(ids.split(", ").map(str::to_owned)),
        }
    }
    for (letter, last) in CONTRACT {
        let ids = if last == 0 { vec![letter.to_owned()] } else { (1..=last).map(|n| format!("{letter}{n}")).collect() };
        for id in ids {
            assert!(answered.contains(&id), "{id} is not in docs/shim-contract.md");
        }
    }
}
