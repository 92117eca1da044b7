//! `fuzz`: the targets of `fuzz/`, one after the other, each for a while.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::{cargo, paths};

/// Seconds for each target unless told.
const SECONDS: u32 = 60;
/// Seconds that one input may take; more is a hang.
const PATIENCE: u32 = 20;
/// MiB that a target may take. Address sanitizer keeps a quarter of a GiB of what was freed.
const MEMORY: u32 = 1536;

/// What libFuzzer said of one target.
struct Outcome {
    executions: u64,
    new_inputs: u64,
    /// The file with the input on which it crashed, hung or grew.
    artifact: Option<String>,
}

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let targets = targets()?;
    let (mut seconds, mut wanted) = (SECONDS, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                let number = arguments.next().context("--seconds needs a number")?;
                seconds = number.parse().context("--seconds needs a number")?;
            }
            option if option.starts_with('-') => bail!("fuzz: no option {option}"),
            name if targets.iter().any(|target| target == name) => wanted.push(name.to_string()),
            name => bail!("fuzz: no target {name}; there are {}", targets.join(", ")),
        }
    }
    if wanted.is_empty() {
        wanted = targets;
    }
    let progress = Progress::new();
    build(&progress)?;
    let mut crashed = 0;
    for target in &wanted {
        let Outcome { executions, new_inputs, artifact } = fuzz(target, seconds)?;
        crashed += usize::from(artifact.is_some());
        let crash = artifact.map_or("no crash".to_string(), |path| format!("CRASH: {path}"));
        progress.step(&format!("{target}: {executions} executions, {new_inputs} new inputs, {crash}"));
    }
    if crashed > 0 {
        println!("{crashed} of {} targets crashed; the last lines are in {}", wanted.len(), logs().display());
        println!("again with: RUSTC_BOOTSTRAP=1 cargo fuzz run -s address TARGET FILE");
    }
    Ok(if crashed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn folder() -> std::path::PathBuf {
    paths::workspace().join("fuzz")
}

fn logs() -> std::path::PathBuf {
    paths::target().join("fuzz")
}

/// The targets there are, by name.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let name = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_string());
    let mut names: Vec<_> = entries.filter_map(|entry| name(entry.ok()?)).collect();
    names.sort();
    Ok(names)
}

/// A `cargo fuzz` command, which uses a sanitizer.
fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = cargo::command();
    cargo::unstable(&mut cargo).args(["fuzz", command]);
    cargo
}

fn build(progress: &Progress) -> Result<()> {
    cargo::require("fuzz")?;
    progress.step("building all targets");
    fs::create_dir_all(logs()).with_context(|| format!("making {}", logs().display()))?;
    let mut build = cargo_fuzz("build");
    build.args(["-s", "address", "--target-dir"]).arg(logs());
    if !cargo::succeeds(&mut build)? {
        bail!("the targets cannot be built, see above");
    }
    Ok(())
}

fn fuzz(target: &str, seconds: u32) -> Result<Outcome> {
    // New inputs go to the first folder; the seeds are only read.
    let corpus = folder().join("corpus").join(target);
    let seeds = folder().join("seeds").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
    let log = logs().join(format!("{target}.log"));
    let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = cargo_fuzz("run");
    command.args(["-s", "address", "--target-dir"]).arg(logs()).arg(target).args([&corpus, &seeds]).arg("--");
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={PATIENCE}"),
        format!("-rss_limit_mb={MEMORY}"),
        "-print_final_stats=1".to_string(),
    ]);
    let status = command.stdout(output.try_clone()?).stderr(output).status().context("running cargo fuzz")?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let mut outcome = read(&text);
    if !status.success() && outcome.artifact.is_none() {
        outcome.artifact = Some(format!("none, see {}", log.display()));
    }
    outcome.artifact = outcome.artifact.map(|path| shorten(&path));
    Ok(outcome)
}

/// A path as it is seen from the workspace.
fn shorten(path: &str) -> String {
    let inside = Path::new(path).strip_prefix(paths::workspace());
    inside.map_or(path.to_string(), |inside| inside.display().to_string())
}

/// Reads what libFuzzer prints at the end, or when it crashes.
fn read(log: &str) -> Outcome {
    let number = |name: &str| {
        let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok()).unwrap_or(0)
    };
    let artifact = log.lines().find_map(|line| line.split_once("Test unit written to "));
    Outcome {
        executions: number("stat::number_of_executed_units"),
        new_inputs: number("stat::new_units_added"),
        artifact: artifact.map(|(_, path)| path.trim().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes() {
        let good = "#3723\tDONE   cov: 3916\nstat::number_of_executed_units: 3723\n\
                    stat::average_exec_per_sec:     80\nstat::new_units_added:          457\n";
        let outcome = read(good);
        assert_eq!((outcome.executions, outcome.new_inputs, outcome.artifact), (3723, 457, None));
        let bad = "artifact_prefix='/a/'; Test unit written to /a/crash-1\nstat::new_units_added: 2\n";
        let outcome = read(bad);
        assert_eq!((outcome.executions, outcome.new_inputs), (0, 2));
        assert_eq!(outcome.artifact.as_deref(), Some("/a/crash-1"));
    }

    #[test]
    fn every_target_has_seeds() {
        for target in targets().unwrap() {
            assert!(folder().join("seeds").join(&target).is_dir(), "{target}");
        }
    }
}
