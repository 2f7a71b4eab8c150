//! Where the time of a container's creation goes.

use std::time::Instant;

/// Names and microseconds of consecutive steps.
pub struct Stages {
    since: Instant,
    ended: Vec<(&'static str, u64)>,
}

impl Default for Stages {
    fn default() -> Self {
        Self { since: Instant::now(), ended: Vec::new() }
    }
}

impl Stages {
    /// The step since the last end is over, and was `name`.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.add(name, now - self.since);
        self.since = now;
    }

    /// A step that ran beside others, with its own time.
    pub fn add(&mut self, name: &'static str, time: std::time::Duration) {
        self.ended.push((name, u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
    }

    /// What has passed since the last end belongs to steps that were added.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// All steps.
    pub fn list(&self) -> &[(&'static str, u64)] {
        &self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_other() {
        let mut stages = Stages::default();
        stages.end("one");
        stages.add("beside", std::time::Duration::from_micros(7));
        stages.end("two");
        let names: Vec<_> = stages.list().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["one", "beside", "two"]);
        assert_eq!(stages.list()[1].1, 7);
    }
}
