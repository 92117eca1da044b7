//! The documented line, started by hand on a paused domain; then the process is killed under the running guest.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inside::guest::{self, ByHand, Plan, SHORT};
use crate::inside::line::{self, Layout};
use crate::inside::{checks, host, shell};
use crate::share::Reporter;

const MEMORY_MIB: u32 = 512;

pub fn test(report: &Reporter) -> Result<()> {
    let image = host::image("by-hand", 64)?;
    host::tap("tap-hand", 1)?;
    report.step("xl create -p, the documented line, xl unpause");
    let mut guest = Plan::new("hand").memory(MEMORY_MIB).create()?;
    let devices = format!(
        "-device virtio-net-pci,id=nic0,netdev=net0,mac=00:16:3e:09:00:05 \
         -netdev type=tap,id=net0,ifname=tap-hand,br={},script=no,downscript=no \
         -drive file={image},if=none,id=d0,format=raw -device virtio-blk-pci,drive=d0",
        host::BRIDGE
    );
    let domid = guest.domid.to_string();
    let layout = Layout::documented(MEMORY_MIB);
    let arguments = line::arguments(&domid, guest.name(), 1, &layout, &devices);
    let mut device_model = ByHand::start(guest::XENPVH, &arguments, Path::new("/share/xl/by-hand.log"))?;
    device_model.wait_running(guest.domid)?;
    for socket in ["libxl", "libxenstat"] {
        let answer = shell::sh(&format!(
            "printf '{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"query-status\"}}' | \
             socat -t 2 - UNIX:/var/run/xen/qmp-{socket}-{domid}"
        ))?;
        ensure!(answer.contains("\"QMP\"") && answer.contains("\"running\""), "QMP answered {answer}");
    }
    guest.unpause()?;
    guest.wait_ready()?;
    checks::pci(&mut guest, 2)?;
    let ecam = guest.run("dmesg | grep -i ecam")?;
    ensure!(ecam.contains("0xc000000000-0xc00fffffff"), "the ECAM is not where the line puts it:\n{ecam}");
    checks::disk(&mut guest, "vda", 8)?;
    checks::address(&mut guest, "10.9.0.5")?;
    checks::ping(&mut guest, host::ADDRESS, 3)?;

    report.step("a second device model for the same domain is refused");
    let second = shell::outcome(Command::new(guest::XENPVH).args(&arguments), SHORT)?;
    ensure!(second.status.code() == Some(1), "the second one ended with {}: {}", second.status, second.text);
    checks::ping(&mut guest, host::ADDRESS, 1)?;

    report.step("SIGKILL under load: the guest's vCPU waits, the host goes on");
    let load =
        guest.start("dd if=/dev/vda of=/dev/null bs=4k iflag=direct; dd if=/dev/vda of=/dev/null bs=4k")?;
    std::thread::sleep(Duration::from_secs(1));
    device_model.kill()?;
    let silent = guest.finish(load, Duration::from_secs(5)).is_err();
    ensure!(silent, "the guest finished its I/O without a device model");
    shell::run(Command::new("xl").arg("list"), SHORT)?;

    report.step("xl destroy leaves nothing behind");
    let path = format!("/local/domain/{domid}");
    guest.destroy()?;
    ensure!(crate::inside::xenstore::list(&path)?.is_empty(), "{path} is still in xenstore");
    Ok(())
}
