//! A decoder fuzz of every message, through the gate as the dispatcher calls it: whatever the bytes are, the answer is a status, and what is
//! let through is within its bounds. The same bytes on every run; `CLOISTER_FUZZ` makes it longer.

use super::*;

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

#[tokio::test]
async fn whatever_bytes_are_sent_the_answer_is_a_status() {
    let rounds = std::env::var("CLOISTER_FUZZ").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3000);
    let closed = Gate::with(Sandbox::for_test(Some("")));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for rule in &gate::RULES {
        for round in 0..rounds {
            let mut bytes = if round % 3 == 0 { (0..random.below(64)).map(|_| random.next() as u8).collect() } else { request(rule.rpc()) };
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
