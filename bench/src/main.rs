//! What the device model costs by itself, natively and without Xen, beside QEMU's virtio devices.
//!
//! Both are driven by the same driver through shared memory. What tells it that a request is over is the ring, which
//! it watches; interrupts are asked for as Linux does, and counted. How a kick gets to the device model differs, and
//! neither is what Xen does: ours is woken by an eventfd for an access in a shared slot, QEMU by a line of text in a
//! pipe. So what an access costs that does nothing, and a kick for nothing, is measured first, and kicks are counted:
//! at some depth they are few. (The price cannot be taken off the cost of requests. It is that of waking CPUs that
//! sleep, and those of a busy device model do not.) The CPU time is that of the device model, the driver's not
//! included. Accesses by which the driver sets things up are not measured.

mod disk;
mod disks;
mod machine;
mod net;
mod nets;
mod outcome;
mod ram;
mod ring;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use proofs::Qemu;
use table::Table;

const USAGE: &str = "\
usage: bench-native [--seconds N] [--json FILE] [--directory DIRECTORY] [WORD…]

  --seconds N       how long each load runs (default 1)
  --json FILE       where to write the figures as well
  --directory DIR   where to make the disks (default: /dev/shm, or that for temporary files)
  WORD              only what has one of these words in its headline: block, net, growth, 'depth 32'…";

/// Where files are in memory, on Linux.
const SHARED_MEMORY: &str = "/dev/shm";

/// What was asked for.
pub struct Settings {
    /// How long each load runs.
    pub time: Duration,
    /// Where disks are made.
    pub directory: PathBuf,
    /// QEMU, if there is one.
    pub qemu: Option<Vec<String>>,
    json: Option<PathBuf>,
    words: Vec<String>,
}

impl Settings {
    /// Whether what has this headline is to be measured.
    pub fn wants(&self, headline: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| headline.contains(word.as_str()))
    }
}

fn settings() -> Result<Settings, String> {
    let mut settings = Settings {
        time: Duration::from_secs(1),
        directory: if Path::new(SHARED_MEMORY).is_dir() {
            SHARED_MEMORY.into()
        } else {
            std::env::temp_dir()
        },
        qemu: Qemu::find(),
        json: None,
        words: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--seconds" => {
                let seconds = value()?.parse().ok().filter(|seconds: &f64| (0.05..3600.0).contains(seconds));
                settings.time = Duration::from_secs_f64(seconds.ok_or("--seconds: 0.05 to 3600")?);
            }
            "--json" => settings.json = Some(value()?.into()),
            "--directory" => settings.directory = value()?.into(),
            option if option.starts_with('-') => return Err(format!("what is {argument}?\n{USAGE}")),
            _ => settings.words.push(argument),
        }
    }
    Ok(settings)
}

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let mut table = Table::default();
    disks::measure(&settings, &mut table);
    nets::measure(&settings, &mut table);
    disks::growth(&settings, &mut table);
    if let Some(path) = &settings.json {
        let text = format!("{:#}\n", table.into_json());
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
