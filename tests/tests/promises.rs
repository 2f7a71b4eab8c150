//! What the specification and the threat model say is held or shown by a test: the test exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::{place, runner};

/// The documents whose tables are held to the tree, by the headings of the column that names tests.
const DOCUMENTS: [&str; 2] = ["docs/SPECIFICATION.md", "docs/threat-model.md"];
const COLUMNS: [&str; 2] = ["held by", "shown by"];
/// A row that names nothing says why.
const OUT_OF_SCOPE: &str = "out of scope";

/// What the tree has that a document may name.
struct Tree {
    root: PathBuf,
    /// Folders and packages of the workspace.
    crates: BTreeSet<String>,
    /// What `make` can be asked for.
    targets: BTreeSet<String>,
    /// Functions that are run as tests.
    functions: BTreeSet<String>,
    /// Modules with tests in them, or below them, as `crate::module`.
    modules: BTreeSet<String>,
}

impl Tree {
    fn read() -> Result<Self> {
        let root = place::root().canonicalize()?;
        let makefile = fs::read_to_string(root.join("Makefile"))?;
        let targets = makefile.lines().filter_map(|line| line.split_once(": ")).map(|(target, _)| target.to_owned()).collect();
        let mut tree = Self { root, crates: BTreeSet::new(), targets, functions: BTreeSet::new(), modules: BTreeSet::new() };
        tree.functions.insert(runner::LAST.to_owned());
        for entry in fs::read_dir(&tree.root)? {
            let folder = entry?.path();
            let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
            let name = folder.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
            let package = manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default().trim_matches('"').to_owned();
            tree.crates.extend([name.clone(), package]);
            for part in ["src", "tests"] {
                let mut files = Vec::new();
                rust_files(&folder.join(part), &mut files);
                for file in files {
                    let path = file.strip_prefix(folder.join(part))?;
                    tree.take(&name, path, &fs::read_to_string(&file)?);
                }
            }
        }
        Ok(tree)
    }

    fn take(&mut self, name: &str, path: &Path, text: &str) {
        let found = test_functions(text);
        if found.is_empty() {
            return;
        }
        self.functions.extend(found);
        let mut module = name.to_owned();
        for part in path.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()) {
            // Tests in a file of their own are their module's.
            let part = part.strip_suffix("_tests").map_or(part.clone(), str::to_owned);
            if !["mod", "lib", "main", "tests"].contains(&part.as_str()) {
                module = format!("{module}::{part}");
                self.modules.insert(module.clone());
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.functions.contains(name)
            || self.crates.contains(name)
            || self.has_path(name)
            || self.has_module(name)
            || name.strip_prefix("make ").is_some_and(|target| self.targets.contains(target))
    }

    /// At the top, or in a crate.
    fn has_path(&self, name: &str) -> bool {
        let path = name.contains('/') && !name.starts_with('/') && !name.contains("..");
        path && (self.root.join(name).exists() || self.crates.iter().any(|folder| self.root.join(folder).join(name).exists()))
    }

    fn has_module(&self, name: &str) -> bool {
        self.modules.iter().any(|module| module == name || module.ends_with(&format!("::{name}")))
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Functions with a test's attribute above them, and those in a list for `tests::runner`.
fn test_functions(text: &str) -> Vec<String> {
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((before, after)) = line.split_once("fn ")
            && is_test
            && ["", "async ", "pub ", "pub async "].contains(&before)
        {
            found.push(identifier(after));
            is_test = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_test = false;
        }
    }
    let lists = text.split("tests![").skip(1).filter_map(|rest| rest.split_once(']'));
    found.extend(lists.flat_map(|(list, _)| list.split(',')).map(|name| identifier(name.trim())).filter(|name| !name.is_empty()));
    found
}

/// The rows of a document's tables that have a column of tests: line, and that column's text.
fn rows(text: &str) -> Vec<(usize, String)> {
    let mut rows = Vec::new();
    let mut counts = false;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(inner) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            counts = false;
            continue;
        };
        let last = inner.rsplit('|').next().unwrap_or_default().trim();
        if COLUMNS.contains(&last) {
            counts = true;
        } else if counts && !last.starts_with("---") {
            rows.push((number, last.to_owned()));
        }
    }
    rows
}

/// What stands in backticks.
fn names(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_test_that_a_document_names_exists() -> Result<()> {
    let tree = Tree::read()?;
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let rows = rows(&fs::read_to_string(tree.root.join(document))?);
        ensure!(rows.len() > 50, "only {} rows of {document} name tests: is it read right?", rows.len());
        for (line, cell) in rows {
            let names = names(&cell);
            if names.is_empty() && !cell.contains(OUT_OF_SCOPE) {
                wrong.push(format!("{document}:{line}: names no test, and does not say '{OUT_OF_SCOPE}': {cell}"));
            }
            wrong.extend(names.into_iter().filter(|name| !tree.has(name)).map(|name| format!("{document}:{line}: there is no {name}")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

/// The check above can fail.
#[test]
fn a_test_that_is_gone_is_missed() -> Result<()> {
    let tree = Tree::read()?;
    for name in [
        "a_test_that_nobody_wrote",
        "dependencies_point_both_ways",
        "image::nothing",
        "scripts/nothing",
        "make nothing",
        "nothing_of_the_tree",
        "/etc/passwd",
    ] {
        assert!(!tree.has(name), "{name}");
    }
    for name in [
        "dependencies_point_one_way",
        "key-broker",
        "image::unpack",
        "courier::cache",
        "e2e_encrypted",
        "scripts/setup",
        "make soak",
        runner::LAST,
    ] {
        assert!(tree.has(name), "{name}");
    }
    let text = "| promise | held by |\n|---|---|\n| x | `a`, `b` tests |\n\n| figure | reach for |\n|---|---|\n| y | 1.3 |\n";
    let rows = rows(text);
    assert_eq!(rows, [(3, "`a`, `b` tests".to_owned())]);
    assert_eq!(names(&rows[0].1), ["a", "b"]);
    let text = "#[test]\nfn one() {}\nfn two() {}\n#[tokio::test]\n// Why.\n#[cfg(x)]\nasync fn three() {}\nconst X: u8 = 0;\ntests![\n four,\n m::five ]";
    assert_eq!(test_functions(text), ["one", "three", "four", "m"]);
    Ok(())
}
