//! Running cargo, and those of its commands that are installed apart.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;

/// The cargo that runs us, in the workspace.
pub fn command() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    cargo
}

/// Lets a stable compiler take unstable options: there is no other way to a sanitizer.
pub fn unstable(cargo: &mut Command) -> &mut Command {
    cargo.env("RUSTC_BOOTSTRAP", "1")
}

/// Runs it to its end, what it prints being the user's to see. Whether it went well.
pub fn succeeds(cargo: &mut Command) -> Result<bool> {
    Ok(cargo.status().context("running cargo")?.success())
}

/// Says how to get `cargo NAME` where it is missing.
pub fn require(name: &str) -> Result<()> {
    let there = command().args([name, "--version"]).output().is_ok_and(|output| output.status.success());
    if !there {
        bail!("cargo-{name} is missing; get it with: cargo install --locked cargo-{name}");
    }
    Ok(())
}
