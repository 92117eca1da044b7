//! The whole path once, with one guest: unmodified `xl create`, two disks, a network, random numbers, shutdown.
//! `demo` shows what this finds.

use anyhow::Result;

use crate::inside::checks::{self, Direction};
use crate::inside::guest::Plan;
use crate::inside::host;
use crate::share::{Event, Reporter};

const GUEST_ADDRESS: &str = "10.9.0.2";
const TRANSFER_MIB: u32 = 2;

pub fn test(report: &Reporter) -> Result<()> {
    run(report, &Plan::new("first"), &mut |_, _| {})
}

/// The same with the kernel file exactly as Debian ships it, showing each finding.
pub fn demo(report: &Reporter) -> Result<()> {
    let mut plan = Plan::new("demo");
    plan.kernel = "/boot/vmlinuz".into();
    let mut table = Vec::new();
    run(report, &plan, &mut |what, found| {
        let lines: Vec<String> = found.lines().map(String::from).collect();
        table.push(format!("{what:<34} {}", lines.last().cloned().unwrap_or_default()));
        report.say(&Event::Show { lines });
    })?;
    let rule = "-".repeat(72);
    report.say(&Event::Show { lines: [vec![rule.clone()], table, vec![rule]].concat() });
    Ok(())
}

fn run(report: &Reporter, plan: &Plan, found: &mut dyn FnMut(&str, &str)) -> Result<()> {
    let image = host::image("first", 256)?;
    let ramdisk = host::ramdisk(128)?;
    host::tap("tap-first", 1)?;
    let options = format!(
        "-drive file={image},if=none,id=d0,format=raw,cache=writeback -device virtio-blk-pci,drive=d0 \
         -drive file={ramdisk},if=none,id=d1,format=raw,cache=none -device virtio-blk-pci,drive=d1 \
         -netdev tap,id=n0,ifname=tap-first,script=no,downscript=no \
         -device virtio-net-pci,netdev=n0,mac=00:16:3e:09:00:02 \
         -object rng-random,id=r0,filename=/dev/urandom -device virtio-rng-pci,rng=r0"
    );
    let plan = plan.clone().xenpvh(&options);
    report.say(&Event::Show {
        lines: plan.configuration().lines().map(|line| format!("    {line}")).collect(),
    });
    report.step(format!("xl create {}.cfg", plan.name));
    let mut guest = plan.create()?;
    report.step(format!("domain {} created, its kernel boots", guest.domid));
    guest.wait_ready()?;

    report.step("the guest's PCI functions");
    let list = checks::pci(&mut guest, 4)?;
    let count = list.lines().count();
    found("PCI functions", &format!("{list}\n{count} found: host bridge, 2 disks, network, random numbers"));

    report.step("disk vda: raw file, cache=writeback");
    found("disk on a file, cache=writeback", &checks::disk(&mut guest, "vda", 16)?);
    report.step("disk vdb: block device, cache=none");
    found("disk on a block device, cache=none", &checks::disk(&mut guest, "vdb", 16)?);

    report.step("network: ping");
    checks::address(&mut guest, GUEST_ADDRESS)?;
    let mean = checks::ping(&mut guest, host::ADDRESS, 5)?;
    found("ping guest to dom0", &format!("5 of 5 answered, {mean:.1} ms on average"));
    report.step("network: TCP to dom0");
    found("TCP guest to dom0", &checks::transfer(&mut guest, Direction::ToHost, TRANSFER_MIB)?);
    report.step("network: TCP from dom0");
    found("TCP dom0 to guest", &checks::transfer(&mut guest, Direction::ToGuest, TRANSFER_MIB)?);
    for (what, direction) in
        [("iperf3 guest to dom0", Direction::ToHost), ("iperf3 dom0 to guest", Direction::ToGuest)]
    {
        report.step(format!("network: {what}"));
        let through = checks::iperf(&mut guest, direction, 3)?;
        let text = format!("{:.0} MB in 3 s, {:.0} Mbit/s", through.megabytes, through.mbit_per_second);
        found(what, &text);
    }

    report.step("random numbers from the host");
    found("16 random bytes", &checks::random(&mut guest)?);
    report.step("interrupts");
    let interrupts = checks::interrupts(&mut guest, 4)?;
    found("MSI-X interrupts", &format!("{}\nseen on {} queues", interrupts.join("\n"), interrupts.len()));

    report.step("poweroff in the guest");
    guest.power_off()?;
    found("clean shutdown", "domain gone, device model ended");
    Ok(())
}
