//! Boots a box with a plan and shows what it reports until it is done.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::machine::{Machine, Shape};
use crate::prepare::Parts;
use crate::progress::Progress;
use crate::share::{self, Event, Plan, Tail};

const POLL: Duration = Duration::from_millis(50);

/// Xen and dom0 take 20 to 30 s; more than this and they will not come.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How a plan went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub passed: u32,
    pub failed: u32,
}

/// Boots, waits for dom0, and returns the running machine.
pub fn boot(parts: &Parts, shape: &Shape, plan: &Plan, progress: &Progress) -> Result<(Machine, Tail)> {
    let mut machine = parts.boot(shape, plan)?;
    progress.step("booting Xen and dom0 in QEMU");
    let mut events = Tail::new(machine.directory.join(share::EVENTS));
    let limit = progress.elapsed() + BOOT_LIMIT;
    loop {
        // One line at a time would be lost if more came with it, so the tail is handed on with what it holds.
        if let Some(Event::Up { xen, kernel }) = next(&mut events)? {
            progress.step(&format!("Xen {xen} and dom0 Linux {kernel} are up"));
            return Ok((machine, events));
        }
        machine.check()?;
        if progress.elapsed() > limit {
            bail!("dom0 did not come up within {} s\n{}", BOOT_LIMIT.as_secs(), machine.evidence());
        }
        thread::sleep(POLL);
    }
}

fn next(events: &mut Tail) -> Result<Option<Event>> {
    Ok(events.line()?.and_then(|line| serde_json::from_str(&line).ok()))
}

/// Boots and carries out a plan within `limit`, printing its progress.
pub fn carry_out(
    parts: &Parts,
    shape: &Shape,
    plan: &Plan,
    progress: &Progress,
    limit: Duration,
) -> Result<Summary> {
    let (mut machine, mut events) = boot(parts, shape, plan, progress)?;
    let deadline = progress.elapsed() + limit;
    let mut current = String::new();
    loop {
        while let Some(event) = next(&mut events)? {
            match event {
                Event::Up { .. } => {}
                Event::Begin { scenario } => {
                    progress.step(&format!("{scenario} …"));
                    current = scenario;
                }
                Event::Step { text } => progress.step(&format!("  {text}")),
                Event::Show { lines } => lines.iter().for_each(|line| println!("            {line}")),
                Event::End { scenario, seconds, error: None, .. } => {
                    progress.step(&format!("{scenario}: passed in {seconds:.1} s"));
                }
                Event::End { scenario, seconds, error: Some(error), logs } => {
                    progress.step(&format!("{scenario}: FAILED after {seconds:.1} s"));
                    explain(&machine, &error, &logs);
                }
                Event::Done { passed, failed } => {
                    progress.step(&format!("logs are in {}", machine.directory.display()));
                    return Ok(Summary { passed, failed });
                }
            }
        }
        machine.check()?;
        if machine.directory.join("runner.failed").exists() {
            bail!("the runner in dom0 failed\n{}", machine.evidence());
        }
        if progress.elapsed() > deadline {
            bail!("{current} is still not done after {} s\n{}", limit.as_secs(), machine.evidence());
        }
        thread::sleep(POLL);
    }
}

/// Prints an error and the last lines of the logs that tell about it.
fn explain(machine: &Machine, error: &str, logs: &[String]) {
    println!("    {}", error.replace('\n', "\n    "));
    for log in logs {
        let path = machine.directory.join(log);
        println!("  last lines of {}:\n{}", path.display(), share::last_lines(&path, 10));
    }
}
