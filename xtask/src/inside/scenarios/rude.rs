//! A guest and a host that misbehave while I/O is in flight: one device may suffer, nothing else.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inside::guest::Plan;
use crate::inside::{checks, host, shell};
use crate::share::Reporter;

const LIMIT: Duration = Duration::from_secs(120);

pub fn test(report: &Reporter) -> Result<()> {
    let good = host::image("good", 64)?;
    let shrinking = host::image("shrinking", 64)?;
    // A file system too small for its image: writes to it run out of space.
    shell::sh(
        "mkdir -p /tmp/full && mount -t tmpfs -o size=4m full /tmp/full && truncate -s 64M /tmp/full/disk.img",
    )?;
    let drive = |id: &str, file: &str| {
        format!(
            "-drive file={file},if=none,id={id},format=raw,cache=writeback -device virtio-blk-pci,drive={id} "
        )
    };
    let options = drive("d0", &good) + &drive("d1", &shrinking) + &drive("d2", "/tmp/full/disk.img");
    let mut guest = Plan::new("rude").xenpvh(&options).boot()?;
    checks::pci(&mut guest, 3)?;

    report.step("the driver lets go of a disk with I/O in flight, and takes it back");
    for _ in 0..3 {
        let script = "dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null & \
                      d=$(basename $(readlink -f /sys/block/vda/device)); cd /sys/bus/virtio/drivers/virtio_blk; \
                      sleep 0.3; echo $d >unbind; wait; echo $d >bind; sleep 1; test -b /dev/vda";
        let (status, text) = guest.outcome(script, LIMIT)?;
        ensure!(status == 0, "the disk did not come back: {text}");
    }
    checks::disk(&mut guest, "vda", 4)?;

    report.step("an image file shrinks under the guest");
    File::options().write(true).open(&shrinking)?.set_len(1 << 20)?;
    let (status, _) = guest.outcome("dd if=/dev/vdb of=/dev/null bs=64k iflag=direct", LIMIT)?;
    ensure!(status != 0, "reading past the end of a shrunken image succeeded");
    guest.run("dd if=/dev/vdb of=/dev/null bs=64k count=8 iflag=direct")?;

    report.step("an image's file system fills up");
    let (status, _) = guest.outcome("dd if=/dev/zero of=/dev/vdc bs=1M count=16 oflag=direct", LIMIT)?;
    ensure!(status != 0, "writing more than the file system holds succeeded");

    report.step("the good disk never noticed");
    checks::disk(&mut guest, "vda", 4)?;
    guest.power_off()?;
    shell::sh("umount /tmp/full")?;
    fs::remove_file(&shrinking)?;
    Ok(())
}
