//! Figures of several rounds, their medians, and the table that compares the candidates.

use std::collections::BTreeMap;

use serde::Serialize;

/// One thing that is measured.
pub struct Figure {
    pub key: &'static str,
    pub label: &'static str,
    pub higher_is_better: bool,
}

const fn more(key: &'static str, label: &'static str) -> Figure {
    Figure { key, label, higher_is_better: true }
}

const fn less(key: &'static str, label: &'static str) -> Figure {
    Figure { key, label, higher_is_better: false }
}

pub const FIGURES: [Figure; 17] = [
    less("start_ms", "start to `running`, ms"),
    less("rss_start_mb", "resident at start, MB"),
    less("rss_end_mb", "resident after load, MB"),
    less("threads", "threads"),
    more("randread_1_iops", "4 KiB random read, depth 1, IOPS"),
    more("randread_32_iops", "4 KiB random read, depth 32, IOPS"),
    more("randwrite_1_iops", "4 KiB random write, depth 1, IOPS"),
    more("randwrite_32_iops", "4 KiB random write, depth 32, IOPS"),
    more("seqread_mbps", "1 MiB sequential read, MB/s"),
    less("read_1_cpu_ms", "CPU per read, depth 1, ms"),
    less("read_32_cpu_ms", "CPU per read, depth 32, ms"),
    less("read_32_switches", "context switches per read, depth 32"),
    less("read_32_syscalls", "system calls per read, depth 32"),
    less("ping_ms", "ping round trip, ms"),
    more("tcp_to_dom0_mbit", "iperf3 guest to dom0, Mbit/s"),
    more("tcp_to_guest_mbit", "iperf3 dom0 to guest, Mbit/s"),
    less("idle_cpu_percent", "CPU of an idle guest, %"),
];

/// All values of all rounds: candidate, figure, one value per round.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub values: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    pub medians: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Results {
    pub fn add(&mut self, candidate: &str, figures: BTreeMap<&'static str, f64>) {
        for (key, value) in figures {
            let values = self.values.entry(candidate.into()).or_default().entry(key.into()).or_default();
            values.push(value);
            let middle = median(values);
            self.medians.entry(candidate.into()).or_default().insert(key.into(), middle);
        }
    }

    fn median(&self, candidate: &str, key: &str) -> Option<f64> {
        self.medians.get(candidate)?.get(key).copied()
    }

    /// One line per figure: each candidate's median, and how the first one does against the others.
    pub fn table(&self, candidates: &[&str]) -> Vec<String> {
        let Some((ours, others)) = candidates.split_first() else { return Vec::new() };
        let mut heading = format!("{:<36}", "median");
        for candidate in candidates {
            heading.push_str(&format!("{candidate:>10}"));
        }
        for other in others {
            heading.push_str(&format!("{:>12}", format!("vs {other}")));
        }
        let mut lines = vec![heading.clone(), "-".repeat(heading.len())];
        for figure in &FIGURES {
            let mut line = format!("{:<36}", figure.label);
            for candidate in candidates {
                line.push_str(&format!(
                    "{:>10}",
                    self.median(candidate, figure.key).map_or("-".into(), short)
                ));
            }
            let mine = self.median(ours, figure.key);
            for other in others {
                let text = match (mine, self.median(other, figure.key)) {
                    (Some(mine), Some(theirs)) => verdict(figure, mine, theirs),
                    _ => "-".into(),
                };
                line.push_str(&format!("{text:>12}"));
            }
            lines.push(line);
        }
        lines.push("vs: how many times better; below 1 (marked !) is worse".into());
        lines
    }
}

fn verdict(figure: &Figure, mine: f64, theirs: f64) -> String {
    let ratio = if figure.higher_is_better { mine / theirs } else { theirs / mine };
    match ratio {
        ratio if !ratio.is_finite() => "-".into(),
        ratio if ratio < 1.0 => format!("{ratio:.2}x !"),
        ratio => format!("{ratio:.1}x"),
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_above_one_when_we_are_better() {
        let mut results = Results::default();
        results.add("xenpvh", BTreeMap::from([("start_ms", 100.0), ("ping_ms", 4.0)]));
        results.add("qemu", BTreeMap::from([("start_ms", 2000.0), ("ping_ms", 2.0)]));
        let table = results.table(&["xenpvh", "qemu"]);
        assert!(table.iter().any(|line| line.starts_with("start to") && line.ends_with("20.0x")));
        assert!(table.iter().any(|line| line.starts_with("ping") && line.ends_with("0.50x !")));
    }
}
