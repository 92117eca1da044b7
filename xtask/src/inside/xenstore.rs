//! The few xenstore questions the scenarios ask, through Xen's own tools.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::shell;

const LIMIT: Duration = Duration::from_secs(20);

/// The value at `path`, or `None` if there is no such node.
pub fn read(path: &str) -> Result<Option<String>> {
    let outcome = shell::outcome(Command::new("xenstore-read").arg(path), LIMIT)?;
    Ok(outcome.status.success().then(|| outcome.text.trim().to_string()))
}

/// The names below `path`; none if there is no such node.
pub fn list(path: &str) -> Result<Vec<String>> {
    let outcome = shell::outcome(Command::new("xenstore-list").arg(path), LIMIT)?;
    if !outcome.status.success() {
        return Ok(Vec::new());
    }
    Ok(outcome.text.lines().map(String::from).collect())
}
