//! QEMU's command line, read into a [`Config`].
//!
//! [`parse`] does everything that can be done without touching the system: nothing is opened, so
//! that a bad command line changes nothing. The tables in `options`, `drivers` and `properties` say
//! what there is; they drive parsing and help alike.

mod blockdevs;
mod build;
mod chardevs;
mod config;
mod device_config;
mod devices;
mod drivers;
mod drives;
mod help;
mod keyval;
mod machine;
mod netdevs;
mod number;
mod objects;
mod options;
mod properties;
mod slots;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::Path;

pub use config::*;
pub use device_config::*;
pub use options::{OPTION_GROUPS, OptionGroup};

use options::{Given, Name};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To serve a domain.
    Run(Box<Config>),
    /// To print this on standard output and exit with status 0.
    Print(String),
}

/// A command line that makes no sense. Displayed as QEMU would: `PROG: -opt value: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{program}: {message}")]
pub struct Error {
    /// File name of `argv[0]`.
    pub program: String,
    /// What is wrong, with the option as it was typed where it is about one. May have more lines
    /// with advice.
    pub message: String,
}

/// Reads `argv`, its first item being the program's own name.
///
/// # Errors
/// The first thing that is wrong. The caller prints it on standard error and exits with status 1.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Outcome, Error> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_default();
    let program = Path::new(&program)
        .file_name()
        .map_or_else(|| env!("CARGO_PKG_NAME").to_owned(), |name| name.to_string_lossy().into_owned());
    outcome(&program, argv).map_err(|message| Error { program, message })
}

/// Complains, as `-device` would, if there is no such driver.
///
/// # Errors
/// What QEMU says.
pub fn check_driver(name: &str) -> Result<(), String> {
    drivers::driver(name).map(|_| ())
}

fn outcome(program: &str, argv: impl Iterator<Item = OsString>) -> Result<Outcome, String> {
    let mut args = Vec::new();
    for arg in argv {
        match arg.into_string() {
            Ok(arg) => args.push(arg),
            Err(arg) => return Err(format!("{}: not valid UTF-8", arg.to_string_lossy())),
        }
    }
    let given = options::split(&args)?;
    match given.first().map(|given| given.option) {
        Some(Name::Help) => return Ok(Outcome::Print(help::usage(program))),
        Some(Name::Version) => return Ok(Outcome::Print(help::version())),
        _ => {}
    }
    for option in &given {
        let name = match option.option {
            Name::Machine => "machine",
            Name::Accel => "accel",
            Name::Device => "device",
            Name::Netdev => "netdev",
            Name::Net => "net",
            Name::Chardev => "chardev",
            Name::Object => "object",
            Name::Drive => "drive",
            Name::Blockdev => "blockdev",
            _ => continue,
        };
        if let Some(text) = about(option, help::asked(name, &option.value))? {
            return Ok(Outcome::Print(text));
        }
    }
    Ok(Outcome::Run(Box::new(build::config(program, &given)?)))
}

/// Says which option a complaint is about.
fn about<T>(given: &Given, result: Result<T, String>) -> Result<T, String> {
    result.map_err(|message| format!("{}: {message}", given.typed))
}
