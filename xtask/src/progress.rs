//! What the person at the shell sees while the box works: one line per step, with the time since the start.

use std::time::{Duration, Instant};

pub struct Progress {
    start: Instant,
}

impl Progress {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn step(&self, text: &str) {
        println!("{:6.1} s  {text}", self.elapsed().as_secs_f64());
    }
}
