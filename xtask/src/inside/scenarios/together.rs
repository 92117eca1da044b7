//! Two guests at once, one of them the smallest that Debian's kernel runs in, talking to each other.

use anyhow::Result;

use crate::inside::guest::Plan;
use crate::inside::{checks, host};
use crate::share::Reporter;

pub fn test(report: &Reporter) -> Result<()> {
    let (one_image, small_image) = (host::image("one", 64)?, host::image("small", 64)?);
    host::tap("tap-one", 1)?;
    host::tap("tap-small", 1)?;
    let options = |image: &str, tap: &str, last: u32| {
        format!(
            "-drive file={image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0 \
             -netdev tap,id=n0,ifname={tap},script=no,downscript=no \
             -device virtio-net-pci,netdev=n0,mac=00:16:3e:09:00:0{last}"
        )
    };
    report.step("creating a guest with 512 MiB and one with 128 MiB");
    let mut one = Plan::new("one").xenpvh(&options(&one_image, "tap-one", 3)).create()?;
    let mut small = Plan::new("small").memory(128).xenpvh(&options(&small_image, "tap-small", 4)).create()?;
    one.wait_ready()?;
    small.wait_ready()?;
    for guest in [&mut one, &mut small] {
        report.step(format!("guest {}", guest.name()));
        checks::pci(guest, 2)?;
        checks::disk(guest, "vda", 4)?;
    }

    report.step("one guest pings the other");
    checks::address(&mut one, "10.9.0.3")?;
    checks::address(&mut small, "10.9.0.4")?;
    checks::ping(&mut small, "10.9.0.3", 5)?;
    checks::ping(&mut one, "10.9.0.4", 5)?;

    report.step("one goes, the other goes on");
    one.power_off()?;
    checks::ping(&mut small, host::ADDRESS, 3)?;
    checks::interrupts(&mut small, 2)?;
    small.power_off()
}
