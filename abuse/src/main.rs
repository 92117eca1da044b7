//! A guest's program that drives its devices as badly as it can.
//!
//! Run as root in a guest of the box. It takes every virtio function from the kernel, maps the BARs and the
//! ECAM, has a small driver of its own, and misuses all of it: each abuse by name ([`catalogue`]), then at
//! random. After each one the devices must serve again: bad behaviour costs a reset and nothing else.

mod catalogue;
mod devices;
mod machine;
mod mapping;
mod pci;
mod random;
mod ring;
mod transport;
mod virtio;

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use catalogue::World;

const USAGE: &str = "\
usage: abuse once [WORD]            every abuse, or those whose name contains the word, on one device each
       abuse everywhere [WORD]      the same on every device that they are for
       abuse random SECONDS SEED    by chance
       abuse doorbells SECONDS      kicks at line rate
       abuse spin SECONDS           nothing, as fast as possible: what doorbells are compared with
       abuse recover                nothing, but sets right what an abuser that was killed has left
       abuse list                   the names";

/// Huge pages for the devices' memory, and some to spare.
const HUGE_PAGES: &str = "16";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("abuse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs(text.parse().with_context(|| format!("{text} is no number of seconds"))?))
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["list"] => {
            catalogue::all().for_each(|abuse| println!("{:>2} {}", abuse.number, abuse.name));
            Ok(())
        }
        ["spin", length] => {
            let end = Instant::now() + seconds(length)?;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            Ok(())
        }
        ["recover"] => world()?.recover(),
        ["once" | "everywhere"] => named(&world()?, arguments[0] == "once", ""),
        ["once" | "everywhere", word] => named(&world()?, arguments[0] == "once", word),
        ["random", length, seed] => {
            let seed = seed.parse().context("the seed is a number")?;
            let steps = random::run(&world()?, seconds(length)?, seed)?;
            println!("{steps} steps at random, seed {seed}");
            Ok(())
        }
        ["doorbells", length] => {
            let length = seconds(length)?;
            let kicks = doorbells(&world()?, length)?;
            println!("{} kicks/s", kicks / length.as_secs().max(1));
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn world() -> Result<World> {
    fs::write("/proc/sys/vm/nr_hugepages", HUGE_PAGES).context("asking for huge pages")?;
    World::new()
}

fn named(world: &World, once: bool, word: &str) -> Result<()> {
    world.recover()?;
    let mut failed = 0;
    for (turn, abuse) in catalogue::all().filter(|abuse| abuse.name.contains(word)).enumerate() {
        let fitting: Vec<_> = world.devices.iter().filter(|device| abuse.is_for(device)).collect();
        ensure!(!fitting.is_empty(), "no device is fit for: {}", abuse.name);
        // Another one each time.
        let chosen = if once { vec![fitting[turn % fitting.len()]] } else { fitting };
        for device in chosen {
            let outcome = abuse.carry_out(world, device);
            let verdict = match &outcome {
                Ok(time) => format!("ok {:>5} ms", time.as_millis()),
                Err(_) => "FAILED".to_string(),
            };
            println!("{verdict:12} {} {:>2} {}", device.name(), abuse.number, abuse.name);
            if let Err(error) = outcome {
                println!("    {error:#}");
                failed += 1;
            }
        }
    }
    world.recover()?;
    ensure!(failed == 0, "{failed} abuses were not taken well");
    Ok(())
}

/// Kicks all queues that there are, in turn, and nothing else.
fn doorbells(world: &World, length: Duration) -> Result<u64> {
    world.recover()?;
    let queues: Vec<_> = world
        .devices
        .iter()
        .flat_map(|device| (0..device.queues()).map(|index| device.queue(index)))
        .collect();
    let (end, mut kicks) = (Instant::now() + length, 0);
    while Instant::now() < end {
        queues.iter().for_each(|queue| queue.kick());
        kicks += queues.len() as u64;
    }
    world.recover()?;
    Ok(kicks)
}
