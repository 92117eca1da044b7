//! `check`: all the rules that a machine can check without Xen.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::progress::Progress;
use crate::watch::Summary;
use crate::{cargo, coverage, deny, sanitize, suite};

/// Those that need nothing but Rust, each one command.
const QUICK: [(&str, &[&str]); 3] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]),
    ("unit tests", &["test", "--workspace", "--quiet"]),
];

/// Those that take longer or need another tool.
const THOROUGH: [(&str, Check); 3] = [
    ("deny", |progress| deny::passes(progress, false)),
    ("coverage", coverage::passes),
    ("sanitize", sanitize::passes),
];

/// Whether all is well.
type Check = fn(&Progress) -> Result<bool>;

/// All of them; one that fails, or cannot be run, does not keep the others from being run.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.is_empty(), "check takes no arguments");
    let progress = Progress::new();
    let mut total = quick(&progress)?;
    for (name, check) in THOROUGH {
        let result = check(&progress);
        let why = result.as_ref().err().map_or(String::new(), |error| format!(": {error:#}"));
        count(&mut total, result.unwrap_or(false), &progress, &format!("{name}: FAILED{why}"));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(suite::exit_code(total))
}

pub fn quick(progress: &Progress) -> Result<Summary> {
    let mut total = Summary::default();
    for (name, command) in QUICK {
        progress.step(name);
        let good = cargo::succeeds(cargo::command().args(command))?;
        let failed = format!("{name}: FAILED, see above; again with: cargo {}", command.join(" "));
        count(&mut total, good, progress, &failed);
    }
    Ok(total)
}

fn count(total: &mut Summary, good: bool, progress: &Progress, failed: &str) {
    if good {
        total.passed += 1;
    } else {
        total.failed += 1;
        progress.step(failed);
    }
}

/// The exit code of one check run alone.
pub fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
