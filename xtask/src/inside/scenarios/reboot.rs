//! A guest that reboots gets the same devices again: by itself, and by `xl reboot`.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::inside::guest::{self, Plan, SHORT};
use crate::inside::{checks, host, shell};
use crate::share::Reporter;

const LIMIT: Duration = Duration::from_secs(180);

pub fn test(report: &Reporter) -> Result<()> {
    let image = host::image("reboot", 32)?;
    let options = format!(
        "-drive file={image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0,serial=same-again"
    );
    let mut guest = Plan::new("reboot").memory(256).xenpvh(&options).restarts().boot()?;
    checks::pci(&mut guest, 1)?;
    guest.run("echo written before the reboot | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null")?;

    for (how, in_guest) in [("reboot in the guest", true), ("xl reboot", false)] {
        report.step(how);
        let device_model = guest.device_model()?;
        if in_guest {
            guest.start("reboot -f")?;
        } else {
            shell::run(Command::new("xl").args(["reboot", guest.name()]), SHORT)?;
        }
        guest.wait_rebooted(LIMIT)?;
        guest::wait_process_gone(device_model)?;
        checks::pci(&mut guest, 1)?;
        let text = guest.run("head -c 28 /dev/vda; cat /sys/block/vda/serial")?;
        anyhow::ensure!(
            text.contains("written before the reboot") && text.contains("same-again"),
            "after {how} the disk holds {text:?}"
        );
    }
    report.step("xl shutdown");
    shell::run(Command::new("xl").args(["shutdown", guest.name()]), SHORT)?;
    guest.wait_gone(LIMIT)
}
