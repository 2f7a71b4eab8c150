//! How the demo speaks: chapters, facts, commands, and a table of times at the end.

use std::time::{Duration, Instant};

/// The narration, and the clock of its stages.
pub struct Story {
    chapters: u32,
    since: Instant,
    rows: Vec<(String, Duration)>,
}

impl Story {
    /// Starts the clock.
    pub fn begin() -> Self {
        Self { chapters: 0, since: Instant::now(), rows: Vec::new() }
    }

    /// A new chapter, and what it is about.
    pub fn chapter(&mut self, title: &str, about: &str) {
        self.chapters += 1;
        println!("\n{}. {title}\n   {about}\n", self.chapters);
        self.since = Instant::now();
    }

    /// Something that the reader should know.
    pub fn fact(&self, text: &str) {
        println!("   - {text}");
    }

    /// A command that is being run, as the reader would type it.
    pub fn command(&self, line: &str) {
        println!("   $ {line}");
    }

    /// What a program said.
    pub fn said(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("   | {line}");
        }
    }

    /// Ends a stage of the table at the top level.
    pub fn lap(&mut self, name: &str) {
        let time = self.since.elapsed();
        self.row(name, time);
        self.since = Instant::now();
    }

    /// Adds a row to the table.
    pub fn row(&mut self, name: &str, time: Duration) {
        self.rows.push((name.to_owned(), time));
    }

    /// Prints the table.
    pub fn table(&self) {
        println!("\nWhere the time went\n");
        for (name, time) in &self.rows {
            println!("   {:8.2} s  {name}", time.as_secs_f64());
        }
    }
}
