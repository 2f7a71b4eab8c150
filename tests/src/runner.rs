//! The main of an end-to-end test file: builds the test bed once, runs its tests on a few threads, ends the bed whatever happened, looks
//! for left-overs, and reports in the form of libtest.
//!
//! Takes a name to filter by, `--exact`, `--list` and `--test-threads`, as libtest does. There is no way to skip a test but by its name.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::bed::{Bed, Setup};

/// What the tests of a file share.
pub trait TestBed: Sync {
    /// Ends it; an error where anything is left.
    fn end(self) -> Result<()>;
}

impl TestBed for Bed {
    fn end(self) -> Result<()> {
        self.end()
    }
}

/// One test.
pub type Test<B = Bed> = (&'static str, fn(&B) -> Result<()>);

/// The test that every file ends with.
pub const LAST: &str = "nothing_is_left_behind";

/// Writes the list of a file's tests with the functions' names.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&_) -> anyhow::Result<()>)),*] };
}

struct Arguments {
    filter: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

/// Runs a file's tests. `threads` is the most that run side by side: one where they change what they share.
pub fn main(setup: &Setup<'_>, threads: usize, tests: &[Test]) -> ExitCode {
    main_with(|| Bed::start(setup), threads, tests)
}

/// The same in a bed that is started in another way.
pub fn main_with<B: TestBed>(start: impl FnOnce() -> Result<B>, threads: usize, tests: &[Test<B>]) -> ExitCode {
    match run(start, threads, tests) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => cannot_start(&error, tests.len()),
    }
}

/// Reports that none of a file's tests could run.
pub fn cannot_start(error: &anyhow::Error, tests: usize) -> ExitCode {
    // One failure at least, so that nobody who counts takes a bed that did not start for a file without tests.
    println!("error: {error:#}");
    println!("test result: FAILED. 0 passed; {} failed; 0 ignored; 0 measured; 0 filtered out", tests.max(1));
    ExitCode::FAILURE
}

fn run<B: TestBed>(start: impl FnOnce() -> Result<B>, threads: usize, tests: &[Test<B>]) -> Result<bool> {
    let arguments = parse(std::env::args().skip(1), threads)?;
    let wanted: Vec<&Test<B>> = tests.iter().filter(|(name, _)| arguments.wants(name)).collect();
    if arguments.list {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return Ok(true);
    }
    println!("\nrunning {} tests", wanted.len());
    if wanted.is_empty() {
        return Ok(report(0, &[], tests.len()));
    }
    let bed = start()?;
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.min(wanted.len()) {
            scope.spawn(|| {
                while let Some((name, test)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(|| test(&bed))).unwrap_or_else(|_| Err(anyhow!("panicked, see above")));
                    let seconds = started.elapsed().as_secs_f32();
                    println!("test {name} ... {} ({seconds:.1} s)", if result.is_ok() { "ok" } else { "FAILED" });
                    if let (Err(error), Ok(mut failures)) = (result, failures.lock()) {
                        failures.push((*name, error));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let passed = wanted.len() - failures.len();
    let mut passed = passed;
    // Ending the bed is a test of its own: it fails where a sandbox, a mount or a process is left.
    match bed.end() {
        Ok(()) => {
            println!("test {LAST} ... ok");
            passed += 1;
        }
        Err(error) => failures.push((LAST, error)),
    }
    for (name, error) in &failures {
        println!("\n---- {name} ----\n{error:#}");
    }
    Ok(report(passed, &failures, tests.len() - wanted.len()))
}

fn report(passed: usize, failures: &[(&str, anyhow::Error)], filtered: usize) -> bool {
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out\n", failures.len());
    failures.is_empty()
}

fn parse(mut given: impl Iterator<Item = String>, threads: usize) -> Result<Arguments> {
    let wish = std::env::var("RUST_TEST_THREADS").ok().and_then(|text| text.parse().ok());
    let mut arguments = Arguments { filter: Vec::new(), exact: false, list: false, threads: threads.min(wish.unwrap_or(threads)) };
    while let Some(argument) = given.next() {
        match argument.split_once('=').map_or((argument.as_str(), None), |(name, value)| (name, Some(value.to_owned()))) {
            ("--exact", None) => arguments.exact = true,
            ("--list", None) => arguments.list = true,
            // What libtest takes and means nothing here.
            ("--nocapture" | "--no-capture" | "--quiet" | "-q" | "--show-output", None) => {}
            ("--format" | "--color", value) => drop(value.or_else(|| given.next())),
            ("--test-threads", value) => {
                let text = value.or_else(|| given.next()).unwrap_or_default();
                arguments.threads = threads.min(text.parse().map_err(|_| anyhow!("--test-threads {text:?}: expected a number"))?).max(1);
            }
            (name, _) if name.starts_with('-') => bail!("unknown option {name}: known are a name, --exact, --list, --test-threads"),
            _ => arguments.filter.push(argument),
        }
    }
    Ok(arguments)
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|filter| if self.exact { name == filter } else { name.contains(filter.as_str()) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<Arguments> {
        parse(text.split_whitespace().map(str::to_owned), 2)
    }

    #[test]
    fn filters_and_threads_are_those_of_libtest() {
        let arguments = parsed("plain --test-threads=1").unwrap();
        assert!(arguments.wants("a_plain_image") && !arguments.wants("tty"));
        assert_eq!(arguments.threads, 1);
        assert!(!parsed("plain --exact").unwrap().wants("a_plain_image"));
        assert_eq!(parsed("--test-threads 64").unwrap().threads, 2);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(parsed("--ignored").is_err());
        assert!(parsed("--test-threads=many").is_err());
    }
}
