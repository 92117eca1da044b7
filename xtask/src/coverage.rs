//! `coverage`: how many lines of the guest-facing crates are run by their tests, by tarpaulin, which traces the
//! tests as a debugger would and needs nothing of the compiler but line numbers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::progress::Progress;
use crate::{cargo, check, paths};

const PACKAGES: [&str; 3] = ["memory", "pci", "virtio"];
/// Of 100 lines, so many must have been run.
const LEAST: usize = 90;

/// What tarpaulin writes, as far as we read it.
#[derive(Deserialize)]
struct Report {
    files: Vec<Source>,
}

#[derive(Deserialize)]
struct Source {
    path: Vec<String>,
    content: String,
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    line: usize,
    stats: Stats,
}

#[derive(Deserialize)]
enum Stats {
    /// How often the line was run.
    Line(u64),
}

/// Lines with code, and those of them that were run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: usize,
    run: usize,
}

impl Lines {
    fn is_enough(self) -> bool {
        self.run * 100 >= self.all * LEAST && self.all > 0
    }

    fn percent(self) -> f64 {
        100.0 * self.run as f64 / self.all.max(1) as f64
    }
}

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.is_empty(), "coverage takes no arguments");
    passes(&Progress::new()).map(check::exit_code)
}

pub fn passes(progress: &Progress) -> Result<bool> {
    cargo::require("tarpaulin")?;
    progress.step(&format!("tracing the tests of {}", PACKAGES.join(", ")));
    let report = trace()?;
    let mut good = true;
    for package in PACKAGES {
        let sources = paths::workspace().join(package).join("src");
        let files: Vec<_> = report.files.iter().filter(|file| file.is_of(&sources)).collect();
        let sum = files.iter().map(|file| file.lines()).fold(Lines::default(), |sum, lines| Lines {
            all: sum.all + lines.all,
            run: sum.run + lines.run,
        });
        good &= sum.is_enough();
        let verdict = if sum.is_enough() { String::new() } else { format!(", FEWER than {LEAST} %") };
        let Lines { all, run } = sum;
        progress.step(&format!("{package}: {:.1} % of lines ({run} of {all}){verdict}", sum.percent()));
        for file in files {
            let missed = file.missed();
            if !missed.is_empty() {
                let path = file.path();
                let path = path.strip_prefix(&sources).unwrap_or(&path);
                println!("          {:.1} % {}: not {missed}", file.lines().percent(), path.display());
            }
        }
    }
    Ok(good)
}

/// Runs the tests under tarpaulin.
fn trace() -> Result<Report> {
    let folder = paths::target().join("coverage");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let log = folder.join("log");
    let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut tarpaulin = cargo::command();
    tarpaulin.args(["tarpaulin", "--engine", "ptrace", "--skip-clean", "--lib", "--tests"]);
    tarpaulin.args(["--timeout", "600", "--out", "json", "--output-dir"]).arg(&folder);
    tarpaulin.arg("--target-dir").arg(&folder);
    for package in PACKAGES {
        tarpaulin.args(["--packages", package, "--include-files", &format!("{package}/src/*")]);
    }
    tarpaulin.stdout(output.try_clone()?).stderr(output);
    ensure!(cargo::succeeds(&mut tarpaulin)?, "the tests cannot be traced, see {}", log.display());
    let report = folder.join("tarpaulin-report.json");
    let text = fs::read_to_string(&report).with_context(|| format!("reading {}", report.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", report.display()))
}

impl Source {
    fn path(&self) -> PathBuf {
        self.path.iter().collect()
    }

    /// Whether it is code of a crate, not a test: `x/tests.rs`, `tests/x.rs`, or what tests share.
    fn is_of(&self, sources: &Path) -> bool {
        let path = self.path();
        let Ok(inside) = path.strip_prefix(sources) else { return false };
        !inside.with_extension("").components().any(|part| {
            let part = part.as_os_str();
            part == "tests" || part == "testing"
        })
    }

    /// The lines before the tests that end a file.
    fn traces(&self) -> impl Iterator<Item = (usize, bool)> {
        let lines = self.content.lines().zip(self.content.lines().skip(1)).zip(1..);
        let mut tests = lines.filter(|((attribute, item), _)| {
            *attribute == "#[cfg(test)]" && item.starts_with("mod ") && item.ends_with('{')
        });
        let end = tests.next().map_or(usize::MAX, |(_, line)| line);
        let lines = self.traces.iter().map(|Trace { line, stats: Stats::Line(times) }| (*line, *times > 0));
        lines.filter(move |(line, _)| *line < end)
    }

    fn lines(&self) -> Lines {
        Lines { all: self.traces().count(), run: self.traces().filter(|(_, run)| *run).count() }
    }

    /// The numbers of the lines that were not run.
    fn missed(&self) -> String {
        let mut lines: Vec<_> = self.traces().filter(|(_, run)| !run).map(|(line, _)| line).collect();
        lines.sort_unstable();
        let runs = lines.chunk_by(|line, next| line + 1 == *next);
        let runs = runs.filter_map(|run| match run {
            [] => None,
            [line] => Some(line.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        });
        runs.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, content: &str, traces: &[(usize, u64)]) -> Source {
        let traces =
            traces.iter().map(|(line, times)| format!(r#"{{"line":{line},"stats":{{"Line":{times}}}}}"#));
        let traces = traces.collect::<Vec<_>>().join(",");
        let path = path.split('/').map(String::from).collect();
        Source {
            path,
            content: content.into(),
            traces: serde_json::from_str(&format!("[{traces}]")).unwrap(),
        }
    }

    #[test]
    fn tests_are_not_counted() {
        let file = source(
            "a/src/b.rs",
            "fn a() {\n1\n2\n}\n#[cfg(test)]\nmod tests {\n",
            &[(1, 2), (2, 0), (3, 0), (6, 0)],
        );
        assert_eq!(file.lines(), Lines { all: 3, run: 1 });
        assert_eq!(file.missed(), "2-3");
        let is_of = |path: &str| source(path, "", &[]).is_of(Path::new("a/src"));
        assert!(is_of("a/src/b.rs") && is_of("a/src/b/c.rs"));
        assert!(!is_of("a/src/tests.rs") && !is_of("a/src/b/tests.rs") && !is_of("a/src/tests/c.rs"));
        assert!(!is_of("a/src/testing.rs") && !is_of("b/src/b.rs"));
    }

    #[test]
    fn ninety_of_a_hundred() {
        assert!(Lines { all: 10, run: 9 }.is_enough() && !Lines { all: 1000, run: 899 }.is_enough());
        assert!(!Lines::default().is_enough());
    }
}
