//! A guest with RAM on both sides of the 4 GiB line: I/O must go to and from the upper part.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::inside::guest::Plan;
use crate::inside::{checks, host};
use crate::share::Reporter;

const MEMORY_MIB: u32 = 5120;
const DATA_MIB: u64 = 64;

pub fn test(report: &Reporter) -> Result<()> {
    let image = host::image("large", 256)?;
    let options = format!("-drive file={image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0");
    report.step("creating a guest with 5 GiB");
    let mut guest = Plan::new("large").memory(MEMORY_MIB).xenpvh(&options).boot()?;
    checks::pci(&mut guest, 1)?;

    // Linux takes pages from the top zone first, and on such a guest "Normal" is what lies above 4 GiB.
    report.step("I/O to memory above 4 GiB");
    let before = free_pages_above(&mut guest)?;
    let sums = guest.run_within(
        &format!(
            "set -e
         dd if=/dev/urandom of=/tmp/data bs=1M count={DATA_MIB} 2>/dev/null
         dd if=/tmp/data of=/dev/vda bs=1M conv=fsync 2>/dev/null
         echo 3 >/proc/sys/vm/drop_caches
         md5sum </tmp/data
         head -c {bytes} /dev/vda | md5sum",
            bytes = DATA_MIB << 20
        ),
        Duration::from_secs(240),
    )?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "what was read is not what was written: {sums:?}");
    let used = (before.saturating_sub(free_pages_above(&mut guest)?) * 4096) >> 20;
    // The data is there once as a file and, mostly, once as page cache of the disk.
    ensure!(used >= DATA_MIB * 3 / 4, "only {used} MiB above 4 GiB were used, so this proved little");
    report.step(format!("{used} MiB above 4 GiB were in use"));
    guest.power_off()
}

fn free_pages_above(guest: &mut crate::inside::guest::Guest) -> Result<u64> {
    let text = guest.run("awk '/zone +Normal/{n=1} n && /pages free/{print $3; exit}' /proc/zoneinfo")?;
    text.trim().parse().context("the guest has no memory above 4 GiB")
}
