//! A guest whose root means ill, beside one that must not notice.
//!
//! The first runs `abuse`, which misuses its devices in every way that ever broke a device model, one by one
//! and at random; the second writes and verifies. What must not be seen: an error next door, a device model
//! that ends, spins, grows or fills its log, an image that is larger than it was.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::image::cpio::Archive;
use crate::inside::guest::{Guest, Plan, wait_process_gone};
use crate::inside::process::{self, Used};
use crate::inside::{checks, host, shell};
use crate::share::Reporter;

const DISK_MIB: u64 = 64;
/// The device model's memory may differ by so much from what it was at the start.
const GROWTH_MB: f64 = 1.5;
/// Of one CPU, by a device model whose guest has stopped.
const IDLE_PERCENT: f64 = 2.0;
/// What the neighbour keeps of its speed when the other kicks doorbells at line rate. Both device models share
/// dom0's one CPU, so half of it would be its share if kicks took the rest, and the figures of a few seconds
/// scatter.
const FAIR_SHARE: f64 = 0.4;
/// Lines of devices in the log a minute, with the one that says that some are left out; and lines at start.
const LOG_LINES: f64 = 21.0;
const LOG_START: f64 = 20.0;

const NAMED_LIMIT: Duration = Duration::from_secs(900);
const IDLE: Duration = Duration::from_secs(5);
/// How long the neighbour is measured each time, and how often, with and without kicks by turns.
const MEASURED: u32 = 8;
const TURNS: u32 = 2;
const ATTEMPTS: u32 = 3;

pub fn test(report: &Reporter) -> Result<()> {
    run(report, "once", 25)
}

/// An hour's worth.
pub fn soak(report: &Reporter) -> Result<()> {
    run(report, "everywhere", 3600)
}

fn run(report: &Reporter, named: &str, random_seconds: u32) -> Result<()> {
    let mut hostile = hostile()?;
    let mut neighbour = neighbour()?;
    hostile.wait_ready()?;
    neighbour.wait_ready()?;
    checks::disk(&mut hostile, "vda", 4)?;
    // What a guest does to its own kernel's interrupts is not to be told on the console.
    hostile.run("echo 0 >/proc/sys/kernel/printk")?;
    let before = Footprint::of(&hostile)?;
    report.step(format!("the device model before: {before}"));

    report.step("every abuse by name, beside writes and reads that are verified");
    let script = hostile.start(&format!("abuse {named}"))?;
    verify(&mut neighbour, 30)?;
    let (status, text) = hostile.finish(script, NAMED_LIMIT)?;
    let taken = text.lines().filter(|line| line.starts_with("ok ")).count();
    let failed: Vec<&str> = text.lines().filter(|line| !line.starts_with("ok ")).collect();
    ensure!(status == 0, "{taken} abuses were borne, but:\n{}", failed.join("\n"));
    before.compare(&hostile).context("after the abuses by name")?;

    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    report.step(format!("{taken} abuses were borne; {random_seconds} s at random, seed {seed}"));
    let script = hostile.start(&format!("abuse random {random_seconds} {seed}"))?;
    verify(&mut neighbour, random_seconds)?;
    let limit = Duration::from_secs(u64::from(random_seconds) + 240);
    let (status, text) = hostile.finish(script, limit)?;
    ensure!(status == 0, "at random, seed {seed}:\n{text}");
    report.step(format!("{}; the device model after: {}", text.trim(), before.compare(&hostile)?));

    neighbour_keeps_its_share(report, &mut hostile, &mut neighbour)?;

    report.step("the abuser is killed in the middle of it");
    hostile.run(&format!("abuse random 600 {seed} >/dev/null & sleep 5; kill -9 $!"))?;
    let used = Used::by(before.pid)?;
    thread::sleep(IDLE);
    let percent = Used::by(before.pid)?.since(used).cpu_ms / IDLE.as_millis() as f64 * 100.0;
    ensure!(percent < IDLE_PERCENT, "the device model of a guest that does nothing uses {percent:.1} % CPU");
    before.compare(&hostile)?;

    report.step(format!("idle at {percent:.2} % CPU; the kernel's own drivers take the devices back"));
    hostile.run_within(
        "abuse recover || exit 1; cd /sys/bus/pci/devices; for d in *; do grep -q 0x1af4 $d/vendor || continue; \
         echo $d >/sys/bus/pci/drivers/virtio-pci/bind || exit 1; done; sleep 2; test -b /dev/vda",
        Duration::from_secs(120),
    )?;
    checks::disk(&mut hostile, "vda", 4)?;
    for disk in ["hostile", "hostile-read-only", "neighbour"] {
        let len = fs::metadata(format!("/tmp/{disk}.img"))?.len();
        ensure!(len == DISK_MIB << 20, "the image of {disk} has become {len} bytes long");
    }
    before.log_is_short()?;

    report.step("the guest is destroyed in the middle of it");
    hostile.start(&format!("abuse random 600 {seed}"))?;
    thread::sleep(Duration::from_secs(5));
    hostile.destroy()?;
    wait_process_gone(before.pid)?;
    verify(&mut neighbour, 3)?;
    neighbour.power_off()
}

/// The first guest is busy with kicks and without, so that the machine the box runs on has the same to do. What else
/// that machine does can spoil a measurement, but not all of them.
fn neighbour_keeps_its_share(report: &Reporter, hostile: &mut Guest, neighbour: &mut Guest) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let (mut alone, mut kicked, mut kicks) = (0.0, 0.0, String::new());
        for _ in 0..TURNS {
            alone += beside(hostile, neighbour, "spin")?.0 / f64::from(TURNS);
            let (rate, said) = beside(hostile, neighbour, "doorbells")?;
            (kicked, kicks) = (kicked + rate / f64::from(TURNS), said);
        }
        let share = kicked / alone;
        report.step(format!(
            "the neighbour does {kicked:.0} requests/s beside {kicks} and {alone:.0} without: {:.0} %",
            share * 100.0
        ));
        if share >= FAIR_SHARE {
            return Ok(());
        }
    }
    bail!("kicks next door take more than a fair share")
}

/// A guest with one device of each kind and a disk with packed rings, and with the program that abuses them.
fn hostile() -> Result<Guest> {
    let mut archive = Archive::new(fs::read("/boot/guest.cpio")?);
    archive.file("usr/bin/abuse", true, &fs::read("/usr/bin/abuse")?)?;
    fs::write("/tmp/hostile.cpio", archive.finish()?)?;
    let (disk, read_only) = (host::image("hostile", DISK_MIB)?, host::image("hostile-read-only", DISK_MIB)?);
    // Not on the bridge: what it sends may be anything, and is for nobody but the device model.
    host::tap("tap-hostile", 1)?;
    shell::sh("ip link set tap-hostile nomaster && ip addr add 10.66.0.1/24 dev tap-hostile")?;
    let mut plan = Plan::new("hostile").vcpus(2).xenpvh(&format!(
        "-drive file={disk},if=none,id=d0,format=raw,cache=writeback -device virtio-blk-pci,drive=d0 \
         -drive file={read_only},if=none,id=d1,format=raw,readonly=on \
         -device virtio-blk-pci,drive=d1,packed=on,in_order=on \
         -netdev tap,id=n0,ifname=tap-hostile,script=no,downscript=no \
         -device virtio-net-pci,netdev=n0,mac=02:00:00:66:00:02 \
         -object rng-random,id=r0,filename=/dev/urandom -device virtio-rng-pci,rng=r0"
    ));
    plan.initrd = "/tmp/hostile.cpio".into();
    // Lets root map the ECAM and what is behind a BAR.
    plan.extra = "iomem=relaxed".into();
    plan.create()
}

fn neighbour() -> Result<Guest> {
    fs::write(
        "/tmp/neighbour.cpio",
        [fs::read("/boot/guest.cpio")?, fs::read("/boot/measuring.cpio")?].concat(),
    )?;
    let disk = host::image("neighbour", DISK_MIB)?;
    let mut plan = Plan::new("neighbour").xenpvh(&format!(
        "-drive file={disk},if=none,id=d0,format=raw,cache=writeback -device virtio-blk-pci,drive=d0"
    ));
    plan.initrd = "/tmp/neighbour.cpio".into();
    plan.create()
}

/// Random writes, each read back and compared soon after; the requests per second.
fn verify(neighbour: &mut Guest, seconds: u32) -> Result<f64> {
    let script = format!(
        "fio --name=verify --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 \
         --verify=crc32c --verify_fatal=1 --verify_backlog=32 --time_based --runtime={seconds} \
         --output-format=json 2>/dev/null"
    );
    let limit = Duration::from_secs(u64::from(seconds) + 180);
    let text = neighbour.run_within(&script, limit).context("the neighbour noticed")?;
    let report: Value = serde_json::from_str(&text[text.find('{').context("fio printed no report")?..])?;
    let job = &report["jobs"][0];
    ensure!(job["error"] == 0, "fio next door saw an error: {}", job["error"]);
    let rate = |side: &str| job[side]["iops"].as_f64().with_context(|| format!("fio counted no {side}s"));
    Ok(rate("read")? + rate("write")?)
}

/// The neighbour's speed while the other guest is busy with `what`, and what that one says of it.
fn beside(hostile: &mut Guest, neighbour: &mut Guest, what: &str) -> Result<(f64, String)> {
    let script = hostile.start(&format!("abuse {what} {}", MEASURED + 12))?;
    // Until it has begun.
    thread::sleep(Duration::from_secs(4));
    let rate = verify(neighbour, MEASURED)?;
    let (status, text) = hostile.finish(script, Duration::from_secs(120))?;
    ensure!(status == 0, "abuse {what}: {text}");
    Ok((rate, text.trim().to_string()))
}

/// What a device model holds.
struct Footprint {
    pid: u32,
    since: Instant,
    resident_mb: f64,
    threads: f64,
    descriptors: usize,
}

impl Footprint {
    fn of(guest: &Guest) -> Result<Self> {
        let pid = guest.device_model()?;
        Ok(Self {
            pid,
            since: Instant::now(),
            resident_mb: process::resident_mb(pid)?,
            threads: process::threads(pid)?,
            descriptors: process::descriptors(pid)?,
        })
    }

    /// An error if it is not the same process, or holds more.
    fn compare(&self, guest: &Guest) -> Result<Self> {
        let now = Self::of(guest)?;
        ensure!(now.pid == self.pid, "there is another device model");
        let same = now.resident_mb <= self.resident_mb + GROWTH_MB
            && now.threads <= self.threads
            && now.descriptors <= self.descriptors;
        ensure!(same, "the device model has grown: {self}; now: {now}");
        Ok(now)
    }

    fn log_is_short(&self) -> Result<()> {
        let log = Path::new("/share/xl/qemu-dm-hostile.log");
        let lines = fs::read_to_string(log)?.lines().count() as f64;
        let minutes = self.since.elapsed().as_secs_f64() / 60.0;
        let most = LOG_START + LOG_LINES * (minutes + 1.0);
        ensure!(lines <= most, "{lines} lines in the log within {minutes:.1} minutes");
        Ok(())
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resident_mb, threads, descriptors, .. } = self;
        write!(f, "{resident_mb:.1} MB resident, {threads} threads, {descriptors} descriptors")
    }
}
