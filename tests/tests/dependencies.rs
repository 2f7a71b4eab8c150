//! What the workspace is made of: licences, crates that must not come in, the size of the lock, and who may depend on whom.
//!
//! The advisory database is not at hand where these tests run, so what is known to be wrong is listed here, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Permissive ones only: everything is linked statically into what we ship.
const LICENCES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates whose licence is not in the list or not in the metadata, what it is, and why that is fine.
const EXCEPTIONS: [(&str, &str); 2] = [
    ("pathrs", "MPL-2.0: copyleft for its own files only, which we link unchanged"),
    ("rust-criu", "MIT, in its file LICENSE; its metadata names the file only"),
];

/// Crates that must not be in the lock file, in any version or in some (a prefix of the version), and why.
const BANNED: [(&str, &str, &str); 14] = [
    ("openssl-sys", "", "a second TLS stack, in C"),
    ("aws-lc-sys", "", "a second TLS stack, in C"),
    ("native-tls", "", "a second TLS stack"),
    ("zbus", "", "a message bus has no place in a guest"),
    ("tokio-tar", "", "unmaintained; CVE-2025-62518 (TARmageddon): smuggled entries"),
    ("async-tar", "", "CVE-2025-62518 (TARmageddon): smuggled entries"),
    ("krata-tokio-tar", "", "unmaintained; CVE-2025-62518 (TARmageddon): smuggled entries"),
    ("serde_yaml", "", "unmaintained; deprecated by its author"),
    ("serde_yml", "", "RUSTSEC-2025-0068: unsound and unmaintained"),
    ("libyml", "", "RUSTSEC-2025-0067: unsound and unmaintained"),
    ("users", "", "RUSTSEC-2023-0040: unmaintained"),
    ("atty", "", "RUSTSEC-2021-0145: unsound"),
    ("time", "0.1.", "RUSTSEC-2020-0071: segmentation fault"),
    ("protobuf", "2.", "RUSTSEC-2024-0437: a crash by uncontrolled recursion"),
];

/// More than this and nobody can review what the guest is made of.
const MAX_CRATES: usize = 400;

/// Which of our crates each may use. Dependencies point one way; nothing on the host's side has the guest's agent in it.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("protocol", &[]),
    ("transport", &[]),
    ("policy", &["transport"]),
    ("image", &["transport"]),
    ("attestation", &["transport"]),
    ("guest-image", &[]),
    ("key-broker", &["attestation", "policy", "transport"]),
    ("runtime", &["protocol", "image", "transport"]),
    // `policy` for the initdata alone: it names the broker that the guest may be tunnelled to.
    ("containerd-shim-cloister-v2", &["runtime", "protocol", "policy", "transport"]),
    ("cloister-agent", &["protocol", "image", "attestation", "policy", "transport"]),
    ("cloister", &["runtime", "image", "attestation", "policy", "key-broker", "guest-image", "transport"]),
    // The benchmark boots a guest by itself, to measure the line to it without shim and containerd.
    ("tests", &["runtime", "protocol"]),
    ("vectors", &[]),
];

fn metadata() -> Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(tests::place::root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> Result<&Vec<Value>> {
    metadata["packages"].as_array().context("no packages in cargo's metadata")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met with the allowed licences: AND, OR, brackets, and the old `MIT/Apache-2.0`.
fn permitted(expression: &str) -> Result<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "\u{1}");
    let words: Vec<String> = spaced.split(' ').filter(|word| !word.is_empty()).map(|word| word.replace('\u{1}', " WITH ")).collect();
    let mut words = words.iter().map(String::as_str).peekable();
    let result = either(&mut words)?;
    ensure!(words.peek().is_none(), "'{expression}' goes on after its end");
    Ok(result)
}

type Words<'a, I> = std::iter::Peekable<I>;

fn either<'a, I: Iterator<Item = &'a str>>(words: &mut Words<'a, I>) -> Result<bool> {
    let mut result = both(words)?;
    while words.next_if_eq(&"OR").is_some() {
        result |= both(words)?;
    }
    Ok(result)
}

fn both<'a, I: Iterator<Item = &'a str>>(words: &mut Words<'a, I>) -> Result<bool> {
    let mut result = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words)?;
    }
    Ok(result)
}

fn one<'a, I: Iterator<Item = &'a str>>(words: &mut Words<'a, I>) -> Result<bool> {
    match words.next() {
        Some("(") => {
            let result = either(words)?;
            ensure!(words.next() == Some(")"), "a bracket is not closed");
            Ok(result)
        }
        Some(word @ ("AND" | "OR" | ")")) => bail!("'{word}' where a licence should be"),
        Some(licence) => Ok(LICENCES.contains(&licence)),
        None => bail!("an empty expression"),
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() -> Result<()> {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception OR LGPL-2.1", true),
        ("MIT AND (Apache-2.0 AND AGPL-3.0)", false),
    ] {
        assert_eq!(permitted(expression)?, expected, "{expression}");
    }
    for broken in ["", "MIT OR", "(MIT", "MIT ISC", "AND"] {
        assert!(permitted(broken).is_err(), "'{broken}' was read");
    }
    Ok(())
}

#[test]
fn every_crate_has_a_licence_that_we_may_ship() -> Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for package in packages(&metadata)? {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if EXCEPTIONS.iter().any(|(exception, _)| *exception == name) {
            continue;
        }
        if !permitted(licence).with_context(|| format!("licence of {name}"))? {
            wrong.push(format!("{name}: {licence}"));
        }
    }
    assert!(wrong.is_empty(), "not permitted: {wrong:?}");
    Ok(())
}

#[test]
fn no_crate_that_is_known_to_be_wrong_is_in_the_lock_file() -> Result<()> {
    let lock = std::fs::read_to_string(tests::place::root().join("Cargo.lock"))?;
    let mut wrong = Vec::new();
    let mut count = 0;
    for package in lock.split("[[package]]").skip(1) {
        count += 1;
        let field = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_start_matches(" = ").trim_matches('"').to_owned())
        };
        let (name, version) =
            (field("name").context("a package without a name")?, field("version").context("a package without a version")?);
        let hits = BANNED.iter().filter(|(banned, versions, _)| *banned == name && version.starts_with(versions));
        wrong.extend(hits.map(|(_, _, reason)| format!("{name} {version}: {reason}")));
    }
    assert!(wrong.is_empty(), "{wrong:?}; `cargo tree -i CRATE` says who brings it");
    assert!(count > 50, "only {count} packages in the lock file: is it read right?");
    assert!(count <= MAX_CRATES, "{count} packages in the lock file, {MAX_CRATES} are the most; `cargo tree -d` says which come twice");
    Ok(())
}

/// A version of libcontainer before these has races on masked paths and procfs: CVE-2025-62161, CVE-2025-62596 (fixed in 0.5.7).
#[test]
fn libcontainer_is_past_the_races_on_masked_paths() -> Result<()> {
    let lock = std::fs::read_to_string(tests::place::root().join("Cargo.lock"))?;
    let versions = lock.split("[[package]]").filter(|package| package.contains("\nname = \"libcontainer\"\n"));
    let versions: Vec<&str> = versions.filter_map(|package| package.split("version = \"").nth(1)?.split('"').next()).collect();
    ensure!(versions.len() == 1, "libcontainer: {versions:?}");
    let numbers: Vec<u32> = versions[0].split('.').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers >= vec![0, 5, 7], "libcontainer {} is older than 0.5.7", versions[0]);
    Ok(())
}

#[test]
fn dependencies_point_one_way() -> Result<()> {
    let metadata = metadata()?;
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut wrong = Vec::new();
    let mut members = BTreeSet::new();
    for package in packages(&metadata)?.iter().filter(|package| package["source"].is_null()) {
        let name = text(package, "name");
        members.insert(name);
        let allowed = may_use.get(name).with_context(|| format!("{name} is new: add it to MAY_USE"))?;
        let dependencies = package["dependencies"].as_array().context("no dependencies in cargo's metadata")?;
        // What a test uses beside the code is not linked into the product.
        let linked = dependencies.iter().filter(|dependency| dependency["path"].is_string() && dependency["kind"].is_null());
        wrong.extend(
            linked
                .map(|dependency| text(dependency, "name"))
                .filter(|used| !allowed.contains(used))
                .map(|used| format!("{name} uses {used}")),
        );
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(members.len(), may_use.len(), "MAY_USE names crates that are gone");
    Ok(())
}

/// What judges evidence is no small thing, and has no place in what is judged.
#[test]
fn the_agent_verifies_nobodys_evidence() -> Result<()> {
    let tree = |package: &str| -> Result<String> {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--offline",
                "-e",
                "normal",
                "--prefix",
                "none",
                "--target",
                "x86_64-unknown-linux-gnu",
                "-p",
                package,
            ])
            .current_dir(tests::place::root())
            .output()?;
        ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let (agent, command) = (tree("cloister-agent")?, tree("cloister")?);
    for verifier in ["dcap-qvl", "x509-cert"] {
        let line = format!("{verifier} v");
        assert!(!agent.contains(&line), "the agent has {verifier} in it");
        assert!(command.contains(&line), "{verifier} is gone: does this test still look for the right thing?");
    }
    Ok(())
}
