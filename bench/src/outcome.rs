//! What came of a run.

use std::time::Duration;

/// Latencies seen, kept one by one.
#[derive(Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    #[inline]
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency.as_nanos() as u32);
    }

    /// The latency in microseconds that this share of the requests kept below.
    pub fn percentile(&mut self, share: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        let index = ((last as f64) * share) as usize;
        let (_, found, _) = self.0.select_nth_unstable(index);
        Some(f64::from(*found) / 1000.0)
    }
}

pub struct Outcome {
    /// Requests or frames.
    pub done: u64,
    pub bytes: u64,
    pub time: Duration,
    /// CPU time of the device model.
    pub cpu: Duration,
    pub kicks: u64,
    pub interrupts: u64,
    pub latencies: Latencies,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.done as f64 / self.time.as_secs_f64()
    }

    /// Nanoseconds of CPU for each.
    pub fn cpu_each(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.done as f64
    }

    pub fn each(&self, count: u64) -> f64 {
        count as f64 / self.done as f64
    }
}
