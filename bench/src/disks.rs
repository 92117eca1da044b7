//! What is measured of block devices.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use proofs::driver::Place;
use tempfile::NamedTempFile;

use crate::Settings;
use crate::disk::{Disk, Load};
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::table::{Better, CANDIDATES, Table};

/// Size of the disk: enough that no cache of the CPU holds it.
const SIZE: u64 = 256 << 20;
/// Size of disks that are not to be used much.
const SMALL: u64 = 1 << 20;
const ACCESSES: u64 = 20_000;
/// Run before anything is measured.
const WARM_UP: Duration = Duration::from_millis(200);

fn image(directory: &Path, size: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(directory).expect("a file");
    let block: Vec<u8> = (0..1u32 << 20).map(|at| (at / 512 * 7 + at % 251) as u8).collect();
    for _ in 0..size >> 20 {
        file.write_all(&block).expect("the image");
    }
    // What is still to be written back would be in the way of what is measured.
    file.as_file().sync_all().expect("the image");
    file
}

fn load(name: &str, write: bool, bytes: u32, depth: u16) -> (String, Load) {
    let load = Load { write, bytes, depth, sequential: bytes > 4096 };
    (format!("block: {name}, depth {depth}"), load)
}

/// Starts the machine of a candidate, if there is such a one.
fn machine(settings: &Settings, candidate: usize, devices: &str) -> Option<Machine> {
    let line = if candidate == 2 {
        devices.replace("format=raw", "format=raw,aio=io_uring")
    } else {
        devices.into()
    };
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    match candidate {
        0 => Some(Machine::ours(&arguments)),
        _ => Some(Machine::qemu(settings.qemu.as_ref()?, &arguments)),
    }
}

/// Runs a load for a while after it has warmed up.
fn run(disk: &mut Disk, machine: &mut Machine, load: Load, time: Duration) -> Outcome {
    let mut part = |time| {
        let begin = Instant::now();
        disk.run(machine, load, &mut |_| begin.elapsed() >= time)
    };
    part(WARM_UP);
    part(time)
}

/// System calls for each request, counted in a run of its own.
fn system_calls(disk: &mut Disk, machine: &mut Machine, load: Load) -> Option<f64> {
    let time = Duration::from_millis(300);
    let mut counter = machine.count_system_calls(time);
    let outcome = disk.run(machine, load, &mut |done| done.is_multiple_of(64) && counter.is_over());
    let calls = counter.result()? as f64;
    Some(calls / (outcome.per_second() * time.as_secs_f64()))
}

struct Measured {
    outcome: Outcome,
    system_calls: Option<f64>,
}

/// CPU time and time of one access, in nanoseconds.
fn price(machine: &mut Machine, mut access: impl FnMut(&mut Machine)) -> [f64; 2] {
    for _ in 0..ACCESSES / 10 {
        access(machine);
    }
    let (cpu, begin) = (machine.cpu(), Instant::now());
    for _ in 0..ACCESSES {
        access(machine);
    }
    let each = |time: Duration| time.as_nanos() as f64 / ACCESSES as f64;
    let result = [each(machine.cpu() - cpu), each(begin.elapsed())];
    machine.interrupts();
    result
}

pub fn measure(settings: &Settings, table: &mut Table) {
    let mut loads = Vec::new();
    for (name, write) in [("4 KiB random read", false), ("4 KiB random write", true)] {
        loads.extend([1, 8, 32, 128].map(|depth| load(name, write, 4096, depth)));
    }
    loads.extend(
        [("1 MiB sequential read", false), ("1 MiB sequential write", true)]
            .map(|(name, write)| load(name, write, 1 << 20, 4)),
    );

    loads.retain(|(name, _)| settings.wants(name));
    if loads.is_empty() {
        return;
    }

    let mut prices = Vec::new();
    let mut results: Vec<Vec<Option<Measured>>> = Vec::new();
    for (candidate, name) in CANDIDATES.iter().enumerate() {
        eprintln!("measuring {name}");
        let image = image(&settings.directory, SIZE);
        let devices = format!(
            "-drive file={},if=none,id=d,format=raw,cache=writeback -device virtio-blk-pci,drive=d,addr=2,disable-legacy=on",
            image.path().display()
        );
        let Some(mut machine) = machine(settings, candidate, &devices) else { continue };
        let mut disk = Disk::new(&mut machine, 2, 1, SIZE, 0);
        let access = price(&mut machine, |machine| disk.look(machine));
        let kick = price(&mut machine, |machine| disk.kick(machine));
        prices.push([access, kick]);
        results.push(
            loads
                .iter()
                .map(|(_, load)| {
                    let outcome = run(&mut disk, &mut machine, *load, settings.time);
                    Some(Measured { outcome, system_calls: system_calls(&mut disk, &mut machine, *load) })
                })
                .collect(),
        );
    }

    table.topic("block: prices");
    for (name, figure) in [
        ("access that does nothing, CPU ns", [0, 0]),
        ("access that does nothing, ns", [0, 1]),
        ("kick without a request, CPU ns", [1, 0]),
        ("kick without a request, ns", [1, 1]),
    ] {
        let [kind, unit] = figure;
        let figures: Vec<_> = prices.iter().map(|prices: &[[f64; 2]; 2]| Some(prices[kind][unit])).collect();
        table.line(name, Better::Less, &figures);
    }
    for (index, (name, _)) in loads.iter().enumerate() {
        table.topic(name);
        let mut all: Vec<&mut Measured> = results.iter_mut().filter_map(|all| all[index].as_mut()).collect();
        lines(table, &mut all);
    }
}

/// The lines of one load.
fn lines(table: &mut Table, all: &mut [&mut Measured]) {
    let mut line = |name: &str, better, figure: &mut dyn FnMut(&mut Measured) -> Option<f64>| {
        let figures: Vec<_> = all.iter_mut().map(|it| figure(it)).collect();
        table.line(name, better, &figures);
    };
    line("requests/s", Better::More, &mut |it| Some(it.outcome.per_second()));
    line("requests per CPU-second", Better::More, &mut |it| Some(1e9 / it.outcome.cpu_each()));
    line("CPU ns/request", Better::Less, &mut |it| Some(it.outcome.cpu_each()));
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        line(&format!("latency {name}, us"), Better::Less, &mut |it| it.outcome.latencies.percentile(share));
    }
    line("system calls/request", Better::Neither, &mut |it| it.system_calls);
    line("kicks/request", Better::Neither, &mut |it| Some(it.outcome.each(it.outcome.kicks)));
    line("interrupts/request", Better::Neither, &mut |it| Some(it.outcome.each(it.outcome.interrupts)));
}

/// The slot and function of disk number `index`: all functions of slot 2, then those of 3 and so on.
fn place(index: u8) -> Place {
    Place { slot: 2 + index / 8, function: index % 8 }
}

/// How the cost grows with queues and with devices.
pub fn growth(settings: &Settings, table: &mut Table) {
    let load = Load { write: false, bytes: 4096, depth: 32, sequential: false };
    let large = image(&settings.directory, SIZE);
    let image = image(&settings.directory, SMALL);
    for queues in [1, 2, 4, 8] {
        let headline = format!("growth: {queues} queues, 4 KiB read, depth 32 each");
        if !settings.wants(&headline) {
            continue;
        }
        let devices = format!(
            "-drive file={},if=none,id=d,format=raw,cache=writeback \
             -device virtio-blk-pci,drive=d,addr=2,disable-legacy=on,num-queues={queues}",
            large.path().display()
        );
        table.topic(&headline);
        let outcomes: Vec<_> = (0..CANDIDATES.len())
            .filter_map(|candidate| {
                let mut machine = machine(settings, candidate, &devices)?;
                let mut disk = Disk::new(&mut machine, 2, queues, SIZE, 0);
                Some(run(&mut disk, &mut machine, load, settings.time))
            })
            .collect();
        let of = |figure: fn(&Outcome) -> f64| outcomes.iter().map(|it| Some(figure(it))).collect::<Vec<_>>();
        table.line("requests/s", Better::More, &of(Outcome::per_second));
        table.line("CPU ns/request", Better::Less, &of(Outcome::cpu_each));
    }
    let mut before = None;
    for count in [1, 8, 64] {
        let headline = format!("growth: {count} devices, one of them in use");
        if !settings.wants(&headline) {
            continue;
        }
        let mut devices = String::new();
        for index in 0..count {
            let Place { slot, function } = place(index);
            let (path, wide) = if index == 0 { (large.path(), "on") } else { (image.path(), "off") };
            let wide = if function == 0 { "on" } else { wide };
            devices += &format!(
                "-drive file={},if=none,id=d{index},format=raw,cache=writeback,file.locking=off \
                 -device virtio-blk-pci,drive=d{index},addr={slot}.{function},multifunction={wide},disable-legacy=on,num-queues=1 ",
                path.display()
            );
        }
        table.topic(&headline);
        let results: Vec<_> = (0..CANDIDATES.len())
            .filter_map(|candidate| {
                let start = if candidate == 0 { own_resident() } else { 0 };
                let mut machine = machine(settings, candidate, &devices)?;
                let mut disks: Vec<_> = (0..count)
                    .map(|index| {
                        let size = if index == 0 { SIZE } else { SMALL };
                        Disk::new(&mut machine, place(index), 1, size, index.into())
                    })
                    .collect();
                let outcome = run(&mut disks[0], &mut machine, load, settings.time);
                let resident = machine.resident().saturating_sub(start);
                Some((outcome, resident))
            })
            .collect();
        let of = |figure: &dyn Fn(&(Outcome, u64)) -> f64| {
            results.iter().map(|it| Some(figure(it))).collect::<Vec<_>>()
        };
        table.line("requests/s", Better::More, &of(&|it| it.0.per_second()));
        table.line("CPU ns/request", Better::Less, &of(&|it| it.0.cpu_each()));
        let resident: Vec<f64> = results.iter().map(|it| it.1 as f64).collect();
        match &before {
            None => before = Some(resident),
            // Of a few devices more, what the process had allocated and freed before is as much.
            Some(one) if count == 64 => {
                let each: Vec<_> = resident
                    .iter()
                    .zip(one)
                    .map(|(all, one)| Some((all - one) / f64::from(count - 1)))
                    .collect();
                table.line("KiB resident for each device more", Better::Less, &each);
            }
            Some(_) => {}
        }
    }
}

fn own_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}
