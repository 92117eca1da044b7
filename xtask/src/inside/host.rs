//! What dom0 lends its guests: a bridge with taps, disk images, a ramdisk.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::shell;

pub const BRIDGE: &str = "xenbr0";
pub const ADDRESS: &str = "10.9.0.1";

/// Sets up, once per boot, what scenarios take for granted.
pub fn set_up() -> Result<()> {
    shell::sh(&format!(
        "ip link add {BRIDGE} type bridge && ip addr add {ADDRESS}/24 dev {BRIDGE} && ip link set {BRIDGE} up"
    ))?;
    // The scripts that connect PV devices want these.
    shell::sh("mkdir -p /var/run/xen-hotplug /run/xen-hotplug && modprobe -a loop brd")?;
    Ok(())
}

/// Makes a tap that is a port of the bridge; an old one of that name goes first.
pub fn tap(name: &str, queues: u32) -> Result<()> {
    let flags = if queues > 1 { "multi_queue" } else { "" };
    shell::sh(&format!(
        "ip link del {name} 2>/dev/null; ip tuntap add dev {name} mode tap {flags} && \
         ip link set {name} master {BRIDGE} up"
    ))?;
    Ok(())
}

/// A sparse raw image below `/tmp`, which is a tmpfs.
pub fn image(name: &str, mib: u64) -> Result<String> {
    let path = format!("/tmp/{name}.img");
    let file = fs::File::create(&path).with_context(|| format!("creating {path}"))?;
    file.set_len(mib << 20)?;
    Ok(path)
}

/// A block device with real direct I/O: a ramdisk of this kernel.
pub fn ramdisk(mib: u64) -> Result<String> {
    shell::sh(&format!("rmmod brd 2>/dev/null; modprobe brd rd_nr=2 rd_size={}", mib << 10))?;
    shell::until("/dev/ram0", Duration::from_secs(10), || {
        Ok(fs::exists("/dev/ram0")?.then(|| "/dev/ram0".to_string()))
    })
}
