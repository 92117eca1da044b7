//! `deny`: what may come in with the crates that we use; `deny.toml` says what.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::{cargo, check};

/// The workspace, and the fuzz targets, which are one of their own.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];

pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let advisories = match arguments {
        [] => false,
        [option] if option == "--advisories" => true,
        _ => bail!("deny: only --advisories"),
    };
    passes(&Progress::new(), advisories).map(check::exit_code)
}

/// Known flaws are looked for only with `advisories`: their database is fetched from the network.
pub fn passes(progress: &Progress, advisories: bool) -> Result<bool> {
    cargo::require("deny")?;
    let mut good = true;
    for manifest in MANIFESTS {
        progress.step(&format!("licences, bans and sources of {manifest}"));
        let mut deny = cargo::command();
        // Warnings are of rules that the other manifest needs.
        deny.args(["deny", "--log-level", "error", "--config", "deny.toml", "--manifest-path", manifest]);
        deny.args(["check", "licenses", "bans", "sources"]).args(advisories.then_some("advisories"));
        good &= cargo::succeeds(&mut deny)?;
    }
    Ok(good)
}
