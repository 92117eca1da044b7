//! `cargo xtask box`: dom0 for whoever debugs, as a shell, for one script, or kept running for many.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::machine::{self, Shape};
use crate::paths;
use crate::prepare::{self, Parts};
use crate::progress::Progress;
use crate::share::{self, Plan, Tail};
use crate::watch;

const POLL: Duration = Duration::from_millis(50);
const KEPT: &str = "kept";

#[derive(Default)]
struct Options {
    keep: bool,
    stop: bool,
    peers: bool,
    memory_mib: Option<u32>,
    cpus: Option<u32>,
    script: Option<String>,
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--keep" => options.keep = true,
            "--stop" => options.stop = true,
            "--peers" => options.peers = true,
            "--memory" => options.memory_mib = Some(number(argument, arguments.next())?),
            "--cpus" => options.cpus = Some(number(argument, arguments.next())?),
            "--" => {
                let words: Vec<&str> = arguments.by_ref().map(String::as_str).collect();
                options.script = Some(words.join(" "));
            }
            other => bail!("box: no option {other}; a script for dom0 comes after --"),
        }
    }
    Ok(options)
}

fn number(option: &str, value: Option<&String>) -> Result<u32> {
    let value = value.with_context(|| format!("{option} needs a number"))?;
    value.parse().with_context(|| format!("{option} needs a number, not {value}"))
}

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = parse(arguments)?;
    let progress = Progress::new();
    let kept = paths::box_directory().join("runs").join(KEPT);
    let alive = running(&kept);
    if options.stop {
        return stop(alive, &progress);
    }
    match (&options.script, alive) {
        (Some(script), Some(_)) if !options.keep => {
            for program in prepare::programs(&progress, true)? {
                machine::put_program(&kept, &program)?;
            }
            return follow(&kept, script, || match running(&kept) {
                Some(_) => Ok(()),
                None => bail!("the kept box went down; its logs are in {}", kept.display()),
            });
        }
        (_, Some(id)) if options.keep => {
            bail!("a kept box is running already (process {id}); --stop ends it")
        }
        _ => {}
    }
    let shape = Shape {
        name: if options.keep { KEPT } else { "box" }.to_string(),
        memory_mib: options.memory_mib.unwrap_or(8192),
        cpus: options.cpus.unwrap_or(Shape::CPUS),
        with_peers: options.peers,
        detached: options.keep,
        shell: options.script.is_none() && !options.keep,
    };
    let parts = Parts::new(&progress, true)?;
    if shape.shell {
        progress.step("booting Xen and dom0 in QEMU");
        parts.boot(&shape, &Plan::Serve)?.wait()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (mut machine, _) = watch::boot(&parts, &shape, &Plan::Serve, &progress)?;
    let directory = machine.directory.clone();
    let code = match &options.script {
        Some(script) => follow(&directory, script, || machine.check())?,
        None => ExitCode::SUCCESS,
    };
    if options.keep {
        machine.leave();
        progress.step(
            "the box stays up: `cargo xtask box -- SCRIPT` runs in it, `cargo xtask box --stop` ends it",
        );
    }
    progress.step(&format!("logs are in {}", directory.display()));
    Ok(code)
}

/// Hands a script to dom0, prints what it prints, returns its exit status.
fn follow(directory: &Path, script: &str, mut check: impl FnMut() -> Result<()>) -> Result<ExitCode> {
    let commands = directory.join(share::COMMANDS);
    let name = std::process::id().to_string();
    let file = |extension: &str| commands.join(&name).with_extension(extension);
    share::write_whole(&file("sh"), script.as_bytes())?;
    let mut output = Tail::new(file("out"));
    loop {
        // The status comes after the last output, so it is read first.
        let status = fs::read_to_string(file("status")).ok();
        io::stdout().write_all(&output.bytes()?)?;
        io::stdout().flush()?;
        if let Some(status) = status {
            let status: u8 = status.trim().parse().unwrap_or(u8::MAX);
            return Ok(ExitCode::from(status));
        }
        check()?;
        thread::sleep(POLL);
    }
}

/// The process of the kept box, if it lives.
fn running(directory: &Path) -> Option<u32> {
    let id: u32 = fs::read_to_string(directory.join("qemu.pid")).ok()?.trim().parse().ok()?;
    let arguments = fs::read(PathBuf::from(format!("/proc/{id}/cmdline"))).ok()?;
    let share = format!("path={}", directory.display());
    String::from_utf8_lossy(&arguments).contains(&share).then_some(id)
}

fn stop(alive: Option<u32>, progress: &Progress) -> Result<ExitCode> {
    match alive {
        Some(id) => {
            Command::new("kill").arg(id.to_string()).status().context("running kill")?;
            progress.step("the kept box is off");
        }
        None => progress.step("no kept box is running"),
    }
    Ok(ExitCode::SUCCESS)
}
