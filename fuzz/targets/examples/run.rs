//! Runs one target on files, without libFuzzer: `cargo run -p targets --example run TARGET FILE…`.

use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some((_, run)) = targets::ALL.iter().find(|(target, _)| *target == name) else {
        let names: Vec<_> = targets::ALL.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: run TARGET FILE…, where TARGET is one of {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    for path in arguments {
        match fs::read(&path) {
            Ok(data) => run(&data),
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
