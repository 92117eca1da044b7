//! `cargo xtask`: the box that boots real Xen inside QEMU, and what is run in it.
//!
//! The same program runs on both sides: outside it fetches, builds, boots and reports; inside dom0
//! (`xtask inside`) it runs the scenarios.
#![forbid(unsafe_code)]

mod cargo;
mod check;
mod coverage;
mod debug;
mod deny;
mod fuzz;
mod image;
mod inside;
mod machine;
mod packages;
mod paths;
mod prepare;
mod progress;
mod sanitize;
mod share;
mod suite;
mod watch;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo                      boots Xen in a box and shows a guest with xenpvh at work
  test [--box] [WORD…]      formatting, clippy, unit tests, then the scenarios on real Xen;
                            with words only the scenarios whose name contains one; --box: only scenarios
  check                     all that needs no Xen: formatting, clippy, unit tests, then the next three
  deny [--advisories]       licences, sources and versions of the crates we use (needs cargo-deny);
                            known flaws in them too, where their database can be fetched
  coverage                  lines of pci, virtio and memory that their tests run (needs cargo-tarpaulin)
  sanitize                  tests of the crates with unsafe code under address sanitizer
  bench [--rounds N] [NAME…] xenpvh against QEMU's xenpvh and the kernel's PV backends
  bench --native [OPTION…]  the devices alone, without Xen, against QEMU's (--seconds N, --directory DIR,
                            and words of headlines: block, net, growth, 'depth 32'…)
  soak [--rounds N] [WORD…] scenarios again and again (default 10 times); the hostile guest for an hour once
  fuzz [--seconds N] [TARGET…] the fuzz targets one by one, each for so long (default 60; needs cargo-fuzz)
  box [OPTION…] [-- SCRIPT] a shell in dom0, or one shell script
      --keep                boots a box that stays; later `box -- SCRIPT` run in it at once
      --stop                ends that box
      --peers               with QEMU's xenpvh in dom0's /usr/libexec
      --memory MIB          memory of the box (default 8192)
      --cpus N              its CPUs (default 5): one for dom0, one for each vCPU of a guest

Everything is kept in target/box: packages, images, and under runs/ the logs of each run.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    match command.as_str() {
        "demo" => suite::demo(),
        "test" => suite::test(rest),
        "check" => check::run(rest),
        "deny" => deny::run(rest),
        "coverage" => coverage::run(rest),
        "sanitize" => sanitize::run(rest),
        "bench" => suite::bench(rest),
        "soak" => suite::soak(rest),
        "fuzz" => fuzz::run(rest),
        "box" => debug::run(rest),
        "inside" => inside::run(),
        "guest" => inside::create(rest),
        "sh" => inside::script(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("no command {command}\n{USAGE}"),
    }
}
