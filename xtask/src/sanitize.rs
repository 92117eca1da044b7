//! `sanitize`: tests of the crates that have `unsafe` code, and of those that lean on it most, under address
//! sanitizer.
//!
//! Not under thread sanitizer: it has to see what the standard library does, too, which takes one that was built
//! for it. With the usual one it takes every mutex that was waited for, and every join, for a race. Not under Miri:
//! it knows none of the system calls (`mmap`, `memfd_create`, `eventfd`) that these crates are about.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::progress::Progress;
use crate::{cargo, check, paths};

const PACKAGES: [&str; 6] = ["domain", "memory", "xen", "sim", "backend", "virtio"];
/// With a target of its own, the flags do not reach build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    ensure!(arguments.is_empty(), "sanitize takes no arguments");
    passes(&Progress::new()).map(check::exit_code)
}

pub fn passes(progress: &Progress) -> Result<bool> {
    progress.step(&format!("address sanitizer over {}", PACKAGES.join(", ")));
    let mut test = cargo::command();
    cargo::unstable(&mut test).env("RUSTFLAGS", "-Zsanitizer=address");
    test.args(["test", "--quiet", "--lib", "--tests", "--target", TARGET, "--target-dir"]);
    test.arg(paths::target().join("sanitize"));
    test.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    cargo::succeeds(&mut test)
}
