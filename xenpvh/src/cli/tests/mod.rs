//! Whole command lines.

mod bad;
mod good;
mod help;

use std::ffi::OsString;

use super::*;

/// What `line`, split at spaces and with the program's name put before it, comes to.
fn parse_line(line: &str) -> Result<Outcome, Error> {
    parse(std::iter::once("/usr/bin/xenpvh").chain(line.split_whitespace()).map(OsString::from))
}

fn config(line: &str) -> Config {
    match parse_line(line) {
        Ok(Outcome::Run(config)) => *config,
        Ok(Outcome::Print(text)) => panic!("{line}: printed {text}"),
        Err(error) => panic!("{line}: {error}"),
    }
}

fn printed(line: &str) -> String {
    match parse_line(line) {
        Ok(Outcome::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

fn complaint(line: &str) -> String {
    match parse_line(line) {
        Err(error) => error.to_string(),
        Ok(outcome) => panic!("{line}: {outcome:?}"),
    }
}
