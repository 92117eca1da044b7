//! Guests for whoever debugs in `cargo xtask box`: the runner's own tools, as commands in dom0.

use std::mem;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::console::Console;
use super::guest::{self, Plan};
use super::xenstore;

const LIMIT: Duration = Duration::from_secs(600);

pub const USAGE: &str = "in dom0:\n  xtask guest NAME [OPTIONS OF XENPVH…]   creates a guest and waits until it is up\n  \
    xtask sh NAME SCRIPT                    runs a script in it";

/// Creates a guest that stays.
pub fn create(arguments: &[String]) -> Result<ExitCode> {
    let Some((name, options)) = arguments.split_first() else { bail!("{USAGE}") };
    let guest = Plan::new(name).xenpvh(&options.join(" ")).boot()?;
    println!("guest {name} is domain {}", guest.domid);
    // Letting go of it in the ordinary way would destroy the domain.
    mem::forget(guest);
    Ok(ExitCode::SUCCESS)
}

/// Runs a script in a guest that is up.
pub fn script(arguments: &[String]) -> Result<ExitCode> {
    let Some((name, script)) = arguments.split_first() else { bail!("{USAGE}") };
    let Some(domid) = guest::domid(name)? else { bail!("there is no guest {name}") };
    let Some(tty) = xenstore::read(&format!("/local/domain/{domid}/console/tty"))? else {
        bail!("{name} has no console")
    };
    let mut console = Console::open(&tty)?;
    let number = console.start(&script.join(" "))?;
    let (status, text) = console.finish(number, LIMIT)?;
    println!("{text}");
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
