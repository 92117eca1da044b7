//! What is measured of network devices.

use std::time::{Duration, Instant};

use proofs::{in_network, set_up};

use crate::Settings;
use crate::machine::Machine;
use crate::net::{Host, Load, Net};
use crate::outcome::Outcome;
use crate::table::{Better, CANDIDATES, Table};

const DEVICES: &str = "-netdev tap,id=n,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=n,addr=4,mac=00:16:3e:01:02:03,disable-legacy=on,romfile=";
/// Run before anything is measured.
const WARM_UP: Duration = Duration::from_millis(200);
const COUNTED: Duration = Duration::from_millis(300);
/// 45 packets of 1448 bytes: as much as fits into 64 KiB of IP.
const LARGE: usize = 54 + 45 * 1448;

struct Measured {
    outcome: Outcome,
    system_calls: Option<f64>,
}

/// Loads in a network of their own, where root can have taps; says in one line if that cannot be had.
pub fn measure(settings: &Settings, table: &mut Table) {
    let frames = [("64-byte frames", 64, 128), ("64 KiB GSO frames", LARGE, 12)];
    let mut loads = Vec::new();
    for (name, bytes, window) in frames {
        loads.push((format!("net: {name}, guest to host"), Load { receive: false, bytes, window: 256 }));
        loads.push((format!("net: {name}, host to guest"), Load { receive: true, bytes, window }));
    }
    loads.retain(|(name, _)| settings.wants(name));
    if loads.is_empty() {
        return;
    }
    in_network(|| {
        // QEMU's disk engine makes no difference here.
        let all: Vec<Vec<Measured>> = CANDIDATES[..2]
            .iter()
            .enumerate()
            .filter_map(|(candidate, name)| {
                let arguments: Vec<String> = DEVICES.split_whitespace().map(str::to_owned).collect();
                let mut machine = match candidate {
                    0 => Machine::ours(&arguments),
                    _ => Machine::qemu(settings.qemu.as_ref()?, &arguments),
                };
                eprintln!("measuring {name}");
                set_up("tap0");
                let host = Host::new("tap0").expect("a packet socket");
                let mut net = Net::new(&mut machine, 4);
                let run =
                    |(_, load): &(String, Load)| one(&mut net, &mut machine, &host, *load, settings.time);
                Some(loads.iter().map(run).collect())
            })
            .collect();
        for (index, (name, load)) in loads.iter().enumerate() {
            table.topic(name);
            let figures = |figure: &dyn Fn(&Measured) -> Option<f64>| -> Vec<_> {
                all.iter().map(|all| figure(&all[index])).collect()
            };
            let per_second = |it: &Measured| it.outcome.per_second();
            table.line("frames/s", Better::More, &figures(&|it| Some(per_second(it))));
            let bytes = |it: &Measured| it.outcome.bytes as f64 / it.outcome.time.as_secs_f64() / 1e6;
            table.line("MB/s", Better::More, &figures(&|it| Some(bytes(it))));
            table.line(
                "frames per CPU-second",
                Better::More,
                &figures(&|it| Some(1e9 / it.outcome.cpu_each())),
            );
            table.line("CPU ns/frame", Better::Less, &figures(&|it| Some(it.outcome.cpu_each())));
            table.line("system calls/frame", Better::Neither, &figures(&|it| it.system_calls));
            if load.bytes == LARGE {
                let share = 16384.0 / LARGE as f64;
                table.line(
                    "system calls/16 KiB",
                    Better::Neither,
                    &figures(&|it| Some(it.system_calls? * share)),
                );
            }
            table.line(
                "kicks/frame",
                Better::Neither,
                &figures(&|it| Some(it.outcome.each(it.outcome.kicks))),
            );
            let interrupts = |it: &Measured| Some(it.outcome.each(it.outcome.interrupts));
            table.line("interrupts/frame", Better::Neither, &figures(&interrupts));
        }
    });
}

fn one(net: &mut Net, machine: &mut Machine, host: &Host, load: Load, time: Duration) -> Measured {
    let mut part = |machine: &mut Machine, time| {
        let begin = Instant::now();
        net.run(machine, host, load, &mut |_| begin.elapsed() >= time)
    };
    part(machine, WARM_UP);
    let outcome = part(machine, time);
    let mut counter = machine.count_system_calls(COUNTED);
    let counted = net.run(machine, host, load, &mut |done| done.is_multiple_of(64) && counter.is_over());
    let calls = counter.result().map(|calls| calls as f64 / (counted.per_second() * COUNTED.as_secs_f64()));
    Measured { outcome, system_calls: calls }
}
