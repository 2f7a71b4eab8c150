//! Part of `make bench`: what the verification of recorded evidence costs a broker, and how much of that is signature arithmetic. One thread; each
//! figure is the best of several rounds, since whatever else runs on the machine only adds.

use std::{hint::black_box, time::Instant};

const ROUNDS: u32 = 20;
const TIMES: u32 = 10;

/// Seconds that `what` takes.
fn seconds<T>(mut what: impl FnMut() -> T) -> f64 {
    let round = || {
        let began = Instant::now();
        for _ in 0..TIMES {
            black_box(what());
        }
        began.elapsed().as_secs_f64() / f64::from(TIMES)
    };
    std::iter::repeat_with(round).take(ROUNDS as usize).fold(f64::INFINITY, f64::min)
}

/// Prints a line: the whole verification, and how much of it the `signatures` are, each of which takes as long as `one`.
pub(crate) fn print<T, U>(evidence: &str, whole: impl FnMut() -> T, signatures: u32, kind: &str, one: impl FnMut() -> U) {
    let (whole, one) = (seconds(whole), seconds(one));
    let share = 100.0 * one * f64::from(signatures) / whole;
    eprintln!("{evidence}: verified in {:.0} µs, {share:.0} % of it {signatures} × {kind} of {:.0} µs", whole * 1e6, one * 1e6);
}

/// Prints what is done once for many handshakes.
pub(crate) fn print_once<T>(what: &str, whole: impl FnMut() -> T) {
    eprintln!("{what}: {:.0} µs", seconds(whole) * 1e6);
}

/// Says that there is nothing to measure with.
pub(crate) fn absent(evidence: &str) {
    eprintln!("{evidence}: no µs to tell, the recorded evidence is not there");
}
