//! What a device model costs dom0: memory, threads, descriptors, CPU time, context switches, system calls.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::inside::shell;

fn status(pid: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{path} has no {key}"))
}

pub fn resident_mb(pid: u32) -> Result<f64> {
    Ok(status(pid, "VmRSS")? as f64 * 1024.0 / 1e6)
}

pub fn threads(pid: u32) -> Result<f64> {
    Ok(status(pid, "Threads")? as f64)
}

pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What all threads of a process have used since they started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu_ms: f64,
    pub switches: f64,
}

impl Used {
    pub fn by(pid: u32) -> Result<Self> {
        let mut used = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end at any time; what it used is lost then, which its process cannot help either.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
            used.cpu_ms += numbers.next().unwrap_or(0.0) / 1e6;
            used.switches += numbers.nth(1).unwrap_or(0.0);
        }
        Ok(used)
    }

    pub fn since(self, earlier: Self) -> Self {
        Self { cpu_ms: self.cpu_ms - earlier.cpu_ms, switches: self.switches - earlier.switches }
    }
}

/// Counts a process' system calls with strace, until `finish`.
pub struct Calls {
    strace: Child,
}

const COUNTS: &str = "/tmp/strace";

impl Calls {
    pub fn start(pid: u32) -> Result<Self> {
        let strace = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o", COUNTS, "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting strace")?;
        let tracer = strace.id().to_string();
        let calls = Self { strace };
        shell::until("strace to attach", Duration::from_secs(20), || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let by_us = status
                .lines()
                .any(|line| line.strip_prefix("TracerPid:").is_some_and(|id| id.trim() == tracer));
            Ok(by_us.then_some(()))
        })?;
        Ok(calls)
    }

    pub fn finish(mut self) -> Result<f64> {
        shell::sh(&format!("kill -INT {}", self.strace.id()))?;
        shell::wait(&mut self.strace, Duration::from_secs(20))?;
        let text = fs::read_to_string(COUNTS)?;
        eprintln!("{text}");
        let total = text.lines().find(|line| line.trim_end().ends_with(" total"));
        let count = total.and_then(|line| line.split_whitespace().next()?.parse().ok());
        count.with_context(|| format!("strace counted nothing:\n{text}"))
    }
}
