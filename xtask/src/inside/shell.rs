//! Runs dom0's programs, never for ever.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const POLL: Duration = Duration::from_millis(20);

/// What a program printed (both streams, in order) and how it ended.
pub struct Outcome {
    pub status: ExitStatus,
    pub text: String,
}

/// A file of its own for each command: xl leaves a daemon behind that would keep a pipe open.
fn output_file() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    PathBuf::from(format!("/tmp/output-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Waits for a child no longer than `limit`; it is killed then.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Runs a command to its end, whatever that is.
pub fn outcome(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let path = output_file();
    let file = File::create(&path)?;
    let name = format!("{command:?}").replace('"', "");
    eprintln!("+ {name}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let status = wait(&mut child, limit)?;
    let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    fs::remove_file(&path)?;
    eprint!("{text}");
    match status {
        Some(status) => Ok(Outcome { status, text }),
        None => bail!("{name} did not end within {} s; it printed:\n{text}", limit.as_secs()),
    }
}

/// Runs a command that must succeed, and returns what it printed.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let outcome = outcome(command, limit)?;
    let name = format!("{command:?}").replace('"', "");
    ensure!(outcome.status.success(), "{name} failed ({}):\n{}", outcome.status, outcome.text.trim());
    Ok(outcome.text)
}

/// Runs a line of shell that must succeed.
pub fn sh(script: &str) -> Result<String> {
    run(Command::new("sh").args(["-c", script]), Duration::from_secs(60))
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(start.elapsed() < limit, "{what}: nothing within {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
}
