//! The same guest on xenpvh, on QEMU's xenpvh and on the kernel's PV backends, in one boot.
//!
//! The candidates take turns within a round, so that whatever else the machine does meets them all, and the
//! medians of the rounds are compared.

mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::checks::{self, Direction};
use super::guest::{ByHand, Devices, Guest, Plan, SHORT, XENPVH};
use super::line::{self, Layout};
use super::process::{self, Calls, Used};
use super::{host, shell};
use crate::share::{Event, Reporter};
use table::Results;

const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";
const CANDIDATES: [&str; 3] = ["xenpvh", "qemu", "pv"];
const MEMORY_MIB: u32 = 768;
const TAP: &str = "tap-bench";
const MAC: &str = "00:16:3e:09:00:09";
const GUEST_ADDRESS: &str = "10.9.0.9";

/// Where the results go, on the share.
pub const RESULTS: &str = "bench.json";

/// What fio does: name, pattern, block size, depth.
const LOADS: [(&str, &str, &str, u32); 5] = [
    ("randread_1", "randread", "4k", 1),
    ("randread_32", "randread", "4k", 32),
    ("randwrite_1", "randwrite", "4k", 1),
    ("randwrite_32", "randwrite", "4k", 32),
    ("seqread", "read", "1M", 4),
];

type Figures = BTreeMap<&'static str, f64>;

/// Runs all rounds; a candidate that fails is told and the others go on. The number of failures.
pub fn run(report: &Reporter, share: &Path, rounds: u32, only: &[String]) -> Result<u32> {
    fs::write(
        "/tmp/bench.cpio",
        [fs::read("/boot/guest.cpio")?, fs::read("/boot/measuring.cpio")?].concat(),
    )?;
    let disk = host::ramdisk(128)?;
    // Written once, so that the ramdisk has its pages; and what the PV backends need.
    shell::sh(&format!(
        "dd if=/dev/zero of={disk} bs=1M count=128 2>/dev/null; modprobe -a xen-blkback xen-netback"
    ))?;
    let chosen: Vec<&str> = CANDIDATES
        .into_iter()
        .filter(|candidate| only.is_empty() || only.iter().any(|word| word == candidate))
        .collect();
    let (mut results, mut failures) = (Results::default(), 0);
    for round in 0..rounds {
        for turn in 0..chosen.len() {
            // Another candidate begins each round, so that none is always the first.
            let candidate = chosen[(turn + round as usize) % chosen.len()];
            report.step(format!("round {} of {rounds}: {candidate}", round + 1));
            match measure(report, candidate, &disk) {
                Ok(figures) => results.add(candidate, figures),
                Err(error) => {
                    failures += 1;
                    report.step(format!("{candidate} FAILED: {error:#}"));
                }
            }
            fs::write(share.join(RESULTS), serde_json::to_string_pretty(&results)?)?;
        }
        report.say(&Event::Show { lines: results.table(&chosen) });
    }
    Ok(failures)
}

fn measure(report: &Reporter, candidate: &str, disk: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut plan = Plan::new(&format!("bench-{candidate}")).memory(MEMORY_MIB);
    plan.initrd = "/tmp/bench.cpio".into();
    if candidate == "pv" {
        plan.extra = "pvdrivers".into();
        plan.devices = Devices::Pv(vec![
            format!("disk = ['phy:{disk},xvda,w']"),
            format!("vif = ['mac={MAC},bridge={}']", host::BRIDGE),
        ]);
    }
    let mut guest = plan.create()?;
    let mut device_model = match candidate {
        "pv" => None,
        _ => Some(start(candidate, &guest, disk, &mut figures)?),
    };
    let pid = device_model.as_ref().map(ByHand::id);
    guest.wait_ready()?;
    load(report, &mut guest, pid, if candidate == "pv" { "xvda" } else { "vda" }, &mut figures)?;
    network(report, &mut guest, &mut figures)?;
    if let Some(pid) = pid {
        figures.insert("rss_end_mb", process::resident_mb(pid)?);
        figures.insert("threads", process::threads(pid)?);
        let before = Used::by(pid)?;
        thread::sleep(Duration::from_secs(5));
        figures.insert("idle_cpu_percent", Used::by(pid)?.since(before).cpu_ms / 5000.0 * 100.0);
    }
    // QEMU stays when its domain goes, and the domain stays as long as QEMU has its memory.
    if let Some(device_model) = &mut device_model {
        device_model.kill()?;
    }
    guest.destroy()?;
    Ok(figures)
}

/// Starts a device model by hand on the paused guest, the same way for both, and lets the guest go.
fn start(candidate: &str, guest: &Guest, disk: &str, figures: &mut Figures) -> Result<ByHand> {
    host::tap(TAP, 1)?;
    // QEMU looks for a boot ROM for its network card, which a PVH guest has no use for.
    let rom = if candidate == "qemu" { ",romfile=" } else { "" };
    let devices = format!(
        "-drive file={disk},if=none,id=d0,format=raw,cache=writeback -device virtio-blk-pci,drive=d0 \
         -netdev tap,id=n0,ifname={TAP},script=no,downscript=no -device virtio-net-pci,netdev=n0,mac={MAC}{rom}"
    );
    let domid = guest.domid.to_string();
    let layout = Layout::documented(MEMORY_MIB);
    let arguments = line::arguments(&domid, guest.name(), 1, &layout, &devices);
    let program = if candidate == "qemu" {
        // QEMU leaves ACPI to the toolstack and stock xl does nothing: without our table it shows the guest nothing.
        let bare = line::arguments(&domid, guest.name(), 1, &layout, "-x-acpi-only");
        shell::run(Command::new(XENPVH).args(bare), SHORT).context("the ACPI hand-over for QEMU")?;
        QEMU
    } else {
        XENPVH
    };
    let log = format!("/share/xl/{}.log", guest.name());
    let begin = Instant::now();
    let mut device_model = ByHand::start(program, &arguments, Path::new(&log))?;
    device_model.wait_running(guest.domid)?;
    figures.insert("start_ms", begin.elapsed().as_secs_f64() * 1e3);
    figures.insert("rss_start_mb", process::resident_mb(device_model.id())?);
    guest.unpause()?;
    Ok(device_model)
}

/// One fio run: requests per second and the report.
fn fio(
    guest: &mut Guest,
    disk: &str,
    pattern: &str,
    size: &str,
    depth: u32,
    seconds: u32,
) -> Result<(Value, f64)> {
    let text = guest.run(&format!(
        "fio --name=load --filename=/dev/{disk} --rw={pattern} --bs={size} --iodepth={depth} --ioengine=libaio \
         --direct=1 --time_based --runtime={seconds} --randrepeat=0 --norandommap --output-format=json 2>/dev/null"
    ))?;
    let start = text.find('{').context("fio printed no report")?;
    let report: Value = serde_json::from_str(&text[start..]).context("reading fio's report")?;
    let side = if pattern.contains("write") { "write" } else { "read" };
    let job = report["jobs"][0][side].clone();
    let requests = job["total_ios"].as_f64().context("fio counted no requests")?;
    Ok((job, requests))
}

fn load(
    report: &Reporter,
    guest: &mut Guest,
    pid: Option<u32>,
    disk: &str,
    figures: &mut Figures,
) -> Result<()> {
    report.step("  disk");
    for (name, pattern, size, depth) in LOADS {
        let before = pid.map(Used::by).transpose()?;
        let (job, requests) = fio(guest, disk, pattern, size, depth, 5)?;
        let used = match (pid, before) {
            (Some(pid), Some(before)) => Some(Used::by(pid)?.since(before)),
            _ => None,
        };
        let iops = job["iops"].as_f64().context("fio reported no IOPS")?;
        let key = match name {
            "randread_1" => "randread_1_iops",
            "randread_32" => "randread_32_iops",
            "randwrite_1" => "randwrite_1_iops",
            "randwrite_32" => "randwrite_32_iops",
            _ => "seqread_mbps",
        };
        let value = if key == "seqread_mbps" { iops * 1.048_576 } else { iops };
        figures.insert(key, value);
        match (name, used) {
            ("randread_1", Some(used)) => {
                figures.insert("read_1_cpu_ms", used.cpu_ms / requests);
            }
            ("randread_32", Some(used)) => {
                figures.insert("read_32_cpu_ms", used.cpu_ms / requests);
                figures.insert("read_32_switches", used.switches / requests);
            }
            _ => {}
        }
    }
    if let Some(pid) = pid {
        report.step("  system calls");
        let calls = Calls::start(pid)?;
        let (_, requests) = fio(guest, disk, "randread", "4k", 32, 3)?;
        figures.insert("read_32_syscalls", calls.finish()? / requests);
    }
    Ok(())
}

fn network(report: &Reporter, guest: &mut Guest, figures: &mut Figures) -> Result<()> {
    report.step("  network");
    checks::address(guest, GUEST_ADDRESS)?;
    figures.insert("ping_ms", checks::ping(guest, host::ADDRESS, 10)?);
    figures.insert("tcp_to_dom0_mbit", checks::iperf(guest, Direction::ToHost, 5)?.mbit_per_second);
    figures.insert("tcp_to_guest_mbit", checks::iperf(guest, Direction::ToGuest, 5)?.mbit_per_second);
    Ok(())
}
