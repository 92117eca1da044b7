//! The runner: this program inside dom0.

mod bench;
mod by_person;
mod checks;
mod console;
mod guest;
mod host;
mod line;
mod process;
mod scenarios;
mod serve;
mod shell;
mod xenstore;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};

use crate::share::{self, Event, Plan, Reporter};
pub use bench::RESULTS;
pub use by_person::{create, script};
use scenarios::Scenario;

const SHARE: &str = "/share";

/// Runs the plan of this boot.
pub fn run() -> Result<ExitCode> {
    let share = Path::new(SHARE);
    let text =
        fs::read_to_string(share.join(share::PLAN)).context("reading the plan: this runs in dom0 only")?;
    let plan: Plan = serde_json::from_str(&text)?;
    let report = Reporter::new(share)?;
    host::set_up()?;
    report.say(&Event::Up { xen: xen_version(), kernel: read("/proc/sys/kernel/osrelease") });
    match plan {
        Plan::Serve => return serve::serve(share),
        Plan::Demo => run_all(&report, &[&scenarios::DEMO], 1, false),
        Plan::Scenarios { words, rounds, long } => {
            run_all(&report, &scenarios::matching(&words), rounds, long);
        }
        Plan::Bench { rounds, only } => match bench::run(&report, share, rounds, &only) {
            Ok(failed) => report.say(&Event::Done { passed: 0, failed }),
            Err(error) => {
                report.step(format!("FAILED: {error:#}"));
                report.say(&Event::Done { passed: 0, failed: 1 });
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether there are scenarios with such a name.
pub fn any(words: &[String]) -> bool {
    !scenarios::matching(words).is_empty()
}

/// With `long`, in the first round, those that have a long form are run in it.
fn run_all(report: &Reporter, scenarios: &[&Scenario], rounds: u32, long: bool) {
    let (mut passed, mut failed) = (0, 0);
    for round in 0..rounds {
        for scenario in scenarios {
            report.say(&Event::Begin { scenario: scenario.name.into() });
            let (start, wall) = (Instant::now(), SystemTime::now());
            let long = scenario.long.filter(|_| long && round == 0);
            let error = long.unwrap_or(scenario.run)(report).err().map(|error| format!("{error:#}"));
            if error.is_none() {
                passed += 1
            } else {
                failed += 1
            }
            report.say(&Event::End {
                scenario: scenario.name.into(),
                seconds: start.elapsed().as_secs_f64(),
                logs: if error.is_some() { logs_since(wall) } else { Vec::new() },
                error,
            });
        }
    }
    report.say(&Event::Done { passed, failed });
}

/// The logs, relative to the share, that a scenario wrote to.
fn logs_since(start: SystemTime) -> Vec<String> {
    let mut logs = Vec::new();
    for directory in [share::GUESTS, share::XL] {
        for entry in fs::read_dir(Path::new(SHARE).join(directory)).into_iter().flatten().flatten() {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            let empty = entry.metadata().is_ok_and(|metadata| metadata.len() == 0);
            if changed.is_ok_and(|changed| changed >= start) && !empty {
                logs.push(format!("{directory}/{}", entry.file_name().to_string_lossy()));
            }
        }
    }
    logs.sort();
    logs.push("runner.log".into());
    logs
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn xen_version() -> String {
    let part = |name: &str| read(&format!("/sys/hypervisor/version/{name}"));
    format!("{}.{}{}", part("major"), part("minor"), part("extra"))
}
