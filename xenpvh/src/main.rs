//! `xenpvh`: the Xen PVH machine's device model, with QEMU's command line.

use std::process::ExitCode;

use xenpvh::cli::{self, Outcome};
use xenpvh::run;

fn main() -> ExitCode {
    let config = match cli::parse(std::env::args_os()) {
        Ok(Outcome::Run(config)) => config,
        Ok(Outcome::Print(text)) => {
            println!("{}", text.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match run::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
