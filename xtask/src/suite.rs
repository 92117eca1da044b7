//! `demo`, `test` and `soak`: the scenarios, and before them what needs no Xen.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::iter;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::image::elf::LIBRARIES;
use crate::inside::{self, RESULTS};
use crate::machine::Shape;
use crate::packages;
use crate::paths;
use crate::prepare::Parts;
use crate::progress::Progress;
use crate::share::Plan;
use crate::watch::{self, Summary};
use crate::{cargo, check};

/// The variable that names QEMU to whatever compares with it: a program and its first arguments.
const QEMU: &str = "XENPVH_QEMU";
const DEMO_LIMIT: Duration = Duration::from_secs(15 * 60);
/// One round: three guests.
const BENCH_LIMIT: Duration = Duration::from_secs(20 * 60);
const TEST_LIMIT: Duration = Duration::from_secs(40 * 60);
/// What the long form of scenarios takes.
const LONG_LIMIT: Duration = Duration::from_secs(120 * 60);

fn shape(name: &str) -> Shape {
    Shape {
        name: name.into(),
        memory_mib: 8192,
        cpus: Shape::CPUS,
        with_peers: false,
        detached: false,
        shell: false,
    }
}

pub fn exit_code(summary: Summary) -> ExitCode {
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub fn demo() -> Result<ExitCode> {
    let progress = Progress::new();
    progress.step("real Xen and a PVH guest with virtio-pci devices by xenpvh, in an emulated machine");
    let parts = Parts::new(&progress, false)?;
    let shape = Shape { cpus: 2, ..shape("demo") };
    let summary = watch::carry_out(&parts, &shape, &Plan::Demo, &progress, DEMO_LIMIT)?;
    if summary.failed == 0 {
        println!("\nIt works: this is unmodified Xen, xl and Debian, with xenpvh as the only addition.");
    }
    Ok(exit_code(summary))
}

pub fn test(arguments: &[String]) -> Result<ExitCode> {
    let mut words = arguments.to_vec();
    let only_box = words.iter().any(|word| word == "--box");
    words.retain(|word| word != "--box");
    if let Some(option) = words.iter().find(|word| word.starts_with('-')) {
        bail!("test: no option {option}");
    }
    let progress = Progress::new();
    let mut total = Summary::default();
    if words.is_empty() && !only_box {
        total = check::quick(&progress)?;
    }
    let scenarios = in_box("test", &words, 1, false, &progress);
    total.passed += scenarios.passed;
    total.failed += scenarios.failed;
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(exit_code(total))
}

/// The device models against each other; the figures stay in `target/box/bench.json`.
pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    if let Some((_, rest)) = arguments.split_first().filter(|(first, _)| *first == "--native") {
        return native_bench(rest);
    }
    let (rounds, only) = rounds_and_words("bench", 3, arguments)?;
    let progress = Progress::new();
    // The PV backends alone need nothing of ours.
    let parts = Parts::new(&progress, only.as_slice() == ["pv"])?;
    let shape = Shape { cpus: 2, with_peers: true, ..shape("bench") };
    let plan = Plan::Bench { rounds, only };
    let summary = watch::carry_out(&parts, &shape, &plan, &progress, BENCH_LIMIT * rounds)?;
    let (from, to) = (parts.directory.join("runs/bench").join(RESULTS), parts.directory.join(RESULTS));
    fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    progress.step(&format!("all figures are in {}", to.display()));
    Ok(exit_code(summary))
}

/// What the devices cost without Xen, beside QEMU's; the figures stay in `target/bench-native.json`.
fn native_bench(arguments: &[String]) -> Result<ExitCode> {
    let progress = Progress::new();
    let directory = paths::box_directory();
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut command = cargo::command();
    command.args(["run", "--release", "--quiet", "--package", "bench", "--"]);
    command.arg("--json").arg(paths::target().join("bench-native.json"));
    // Disks in a file system as guests' images are, not in the memory that /tmp may be.
    command.arg("--directory").arg(&directory).args(arguments);
    // The QEMU that the box is made with, unless the user names one. Without any only ours is measured.
    if env::var_os(QEMU).is_none() {
        match packages::tree(&directory, &progress) {
            Ok(tree) => {
                let data = ["usr/share/qemu", "usr/share/seabios"].map(|data| tree.root.join(data));
                let qemu = tree.command("usr/bin/qemu-system-x86_64");
                let words = iter::once(qemu.get_program()).chain(qemu.get_args()).map(OsStr::to_string_lossy);
                let data = data.iter().flat_map(|data| ["-L".into(), data.to_string_lossy()]);
                command.env(QEMU, words.chain(data).collect::<Vec<_>>().join(" "));
                command.env("QEMU_MODULE_DIR", tree.root.join(LIBRARIES).join("qemu"));
            }
            Err(error) => progress.step(&format!("going on without QEMU: {error:#}")),
        }
    }
    progress.step("our devices and QEMU's, driven by the same driver without Xen");
    Ok(check::exit_code(cargo::succeeds(&mut command)?))
}

/// Scenarios again and again, and some for long: for what only shows after a while.
pub fn soak(arguments: &[String]) -> Result<ExitCode> {
    let (rounds, words) = rounds_and_words("soak", 10, arguments)?;
    let progress = Progress::new();
    let summary = in_box("soak", &words, rounds, true, &progress);
    println!("{} passed, {} failed", summary.passed, summary.failed);
    Ok(exit_code(summary))
}

/// Reads `[--rounds N] [WORD…]`.
fn rounds_and_words(command: &str, usual: u32, arguments: &[String]) -> Result<(u32, Vec<String>)> {
    let (mut rounds, mut words) = (usual, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let number = arguments.next().context("--rounds needs a number")?;
                rounds = number.parse().context("--rounds needs a number")?;
            }
            option if option.starts_with('-') => bail!("{command}: no option {option}"),
            word => words.push(word.to_string()),
        }
    }
    Ok((rounds, words))
}

/// Runs scenarios. A box that does not come up, or is lost, is a failure too.
fn in_box(name: &str, words: &[String], rounds: u32, long: bool, progress: &Progress) -> Summary {
    let result = if inside::any(words) {
        let plan = Plan::Scenarios { words: words.to_vec(), rounds, long };
        let limit = TEST_LIMIT * rounds + if long { LONG_LIMIT } else { Duration::ZERO };
        Parts::new(progress, false)
            .and_then(|parts| watch::carry_out(&parts, &shape(name), &plan, progress, limit))
    } else {
        Err(anyhow!("no scenario has a name with {}", words.join(" or ")))
    };
    result.unwrap_or_else(|error| {
        progress.step(&format!("FAILED: {error:#}"));
        Summary { passed: 0, failed: 1 }
    })
}
