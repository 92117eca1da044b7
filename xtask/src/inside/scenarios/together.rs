//! Two guests at once: four vCPUs with two queues per device next to the smallest one, talking to each other.

use anyhow::{Result, ensure};

use crate::inside::guest::Plan;
use crate::inside::{checks, host};
use crate::share::Reporter;

pub fn test(report: &Reporter) -> Result<()> {
    let (wide_image, small_image) = (host::image("wide", 128)?, host::image("small", 64)?);
    host::tap("tap-wide", 2)?;
    host::tap("tap-small", 1)?;
    let wide_options = format!(
        "-drive file={wide_image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0,num-queues=2 \
         -netdev tap,id=n0,ifname=tap-wide,script=no,downscript=no,queues=2 \
         -device virtio-net-pci,netdev=n0,mq=on,mac=00:16:3e:09:00:03"
    );
    let small_options = format!(
        "-drive file={small_image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0 \
         -netdev tap,id=n0,ifname=tap-small,script=no,downscript=no \
         -device virtio-net-pci,netdev=n0,mac=00:16:3e:09:00:04"
    );
    report.step("creating a guest with 4 vCPUs and one with 128 MiB");
    let mut wide = Plan::new("wide").vcpus(4).xenpvh(&wide_options).create()?;
    let mut small = Plan::new("small").memory(128).xenpvh(&small_options).create()?;
    wide.wait_ready()?;
    small.wait_ready()?;

    report.step("4 vCPUs, two queues");
    checks::pci(&mut wide, 2)?;
    let facts =
        wide.run("nproc; ls /sys/block/vda/mq | wc -l; ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    ensure!(
        facts.split_whitespace().eq(["4", "2", "2"]),
        "vCPUs, disk queues and receive queues are {facts:?}"
    );
    checks::disk(&mut wide, "vda", 16)?;
    report.step("128 MiB");
    checks::pci(&mut small, 2)?;
    checks::disk(&mut small, "vda", 4)?;

    report.step("one guest pings the other");
    checks::address(&mut wide, "10.9.0.3")?;
    checks::address(&mut small, "10.9.0.4")?;
    checks::ping(&mut small, "10.9.0.3", 5)?;
    checks::ping(&mut wide, "10.9.0.4", 5)?;

    report.step("both disks at once, from all four vCPUs");
    let load = "for cpu in 0 1 2 3; do taskset $((1 << cpu)) dd if=/dev/vda of=/dev/null bs=64k count=64 \
                skip=$((cpu * 64)) iflag=direct 2>/dev/null & done; wait";
    let running = wide.start(load)?;
    small.run("dd if=/dev/vda of=/dev/null bs=64k count=128 iflag=direct 2>/dev/null")?;
    let (status, text) = wide.finish(running, std::time::Duration::from_secs(120))?;
    ensure!(status == 0, "reading from four vCPUs failed: {text}");
    let queues = checks::interrupts(&mut wide, 2)?;
    let busy = queues.iter().filter(|line| line.contains("-req.")).count();
    ensure!(busy == 2, "two disk queues should have had interrupts: {queues:?}");

    report.step("one goes, the other goes on");
    wide.power_off()?;
    checks::ping(&mut small, host::ADDRESS, 3)?;
    small.power_off()
}
