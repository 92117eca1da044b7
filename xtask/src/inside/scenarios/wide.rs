//! Four vCPUs, and two queues in each device.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inside::guest::{Guest, Plan};
use crate::inside::{checks, host};
use crate::share::Reporter;

const ATTEMPTS: u32 = 3;

pub fn test(report: &Reporter) -> Result<()> {
    let image = host::image("wide", 128)?;
    host::tap("tap-wide", 2)?;
    let options = format!(
        "-drive file={image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0,num-queues=2 \
         -netdev tap,id=n0,ifname=tap-wide,script=no,downscript=no,queues=2 \
         -device virtio-net-pci,netdev=n0,mq=on,mac=00:16:3e:09:00:06"
    );
    report.step("creating a guest with 4 vCPUs");
    let mut guest = boot(report, &Plan::new("wide").vcpus(4).xenpvh(&options))?;
    checks::pci(&mut guest, 2)?;
    let facts =
        guest.run("nproc; ls /sys/block/vda/mq | wc -l; ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    ensure!(
        facts.split_whitespace().eq(["4", "2", "2"]),
        "vCPUs, disk queues and receive queues are {facts:?}"
    );
    checks::disk(&mut guest, "vda", 8)?;
    checks::address(&mut guest, "10.9.0.6")?;
    checks::ping(&mut guest, host::ADDRESS, 3)?;

    report.step("the disk read by all four vCPUs at once");
    let load = "for cpu in 0 1 2 3; do taskset $((1 << cpu)) dd if=/dev/vda of=/dev/null bs=64k count=32 \
                skip=$((cpu * 32)) iflag=direct 2>/dev/null & done; wait";
    guest.run_within(load, Duration::from_secs(240))?;
    let queues = checks::interrupts(&mut guest, 2)?;
    let busy = queues.iter().filter(|line| line.contains("-req.")).count();
    ensure!(busy == 2, "two disk queues should have had interrupts: {queues:?}");
    guest.power_off()
}

/// Interrupts between the vCPUs of a guest get lost in TCG now and then, most of all on a busy machine: the kernel
/// then waits for ever, with or without a device model. A guest that hangs like that gets another chance, one that
/// comes up has proved its devices.
fn boot(report: &Reporter, plan: &Plan) -> Result<Guest> {
    for attempt in 1..ATTEMPTS {
        match plan.clone().boot() {
            Ok(guest) => return Ok(guest),
            Err(error) => {
                report.step(format!("attempt {attempt} of {ATTEMPTS} to boot it failed: {error:#}"))
            }
        }
    }
    plan.clone().boot()
}
