//! What a guest must be able to do with its devices. Each check says what it found, for `demo` to show.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::{Guest, SHORT};
use super::{host, shell};

/// The host bridge that xenpvh gives a guest, as lspci shows it.
const HOST_BRIDGE: &str = "00:00.0 0600: 1b36:0008";
const VIRTIO_VENDOR: &str = "1af4:";

/// The guest's PCI functions: the host bridge at 00:00.0 and so many virtio functions, each with its driver.
pub fn pci(guest: &mut Guest, virtio: usize) -> Result<String> {
    let list = guest.run("lspci -n")?;
    let bridge = list.lines().next().unwrap_or_default();
    ensure!(
        bridge.starts_with(HOST_BRIDGE),
        "no host bridge 1b36:0008 at 00:00.0 in the guest, but:\n{list}"
    );
    let count = list.lines().filter(|line| line.contains(VIRTIO_VENDOR)).count();
    ensure!(count == virtio, "{virtio} virtio functions expected in the guest, found {count}:\n{list}");
    guest.run("lspci -nn")
}

/// A random file written to a fresh ext4 comes back the same after a remount.
pub fn disk(guest: &mut Guest, disk: &str, mib: u32) -> Result<String> {
    let sums = guest.run_within(
        &format!(
            "set -e
             mkfs.ext4 -q -F /dev/{disk}
             mount -t ext4 /dev/{disk} /mnt
             dd if=/dev/urandom of=/tmp/data bs=1M count={mib} 2>/dev/null
             cp /tmp/data /mnt/data
             md5sum </tmp/data
             umount /mnt
             mount -t ext4 /dev/{disk} /mnt
             echo 3 >/proc/sys/vm/drop_caches
             md5sum </mnt/data
             umount /mnt
             rm /tmp/data"
        ),
        Duration::from_secs(240),
    )?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "{disk}: what was read is not what was written: {sums:?}");
    Ok(format!(
        "ext4 made, {mib} MiB written, remounted, read back: md5 {}",
        sums[0].trim_end_matches([' ', '-'])
    ))
}

/// Gives the guest's interface an address.
pub fn address(guest: &mut Guest, address: &str) -> Result<()> {
    guest.run(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"))?;
    Ok(())
}

/// Pings another address of the bridge; the answer is the mean round trip in milliseconds.
pub fn ping(guest: &mut Guest, to: &str, count: u32) -> Result<f64> {
    let text = guest.run(&format!("ping -c 1 -W 10 {to} >/dev/null; ping -c {count} -W 10 {to}"))?;
    ensure!(text.contains(" 0% packet loss"), "packets to {to} were lost:\n{text}");
    let mean = text
        .lines()
        .find_map(|line| line.split_once("min/avg/max")?.1.split('/').nth(1)?.trim().parse().ok());
    mean.with_context(|| format!("ping printed no times:\n{text}"))
}

#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    ToHost,
    ToGuest,
}

/// A file of random bytes over TCP arrives as it was sent.
pub fn transfer(guest: &mut Guest, direction: Direction, mib: u32) -> Result<String> {
    let (here, there) = ("/tmp/transfer", "/tmp/transfer");
    let make = format!("dd if=/dev/urandom of=/tmp/transfer bs=1M count={mib} 2>/dev/null");
    let host = host::ADDRESS;
    // The listener is always dom0, so that it is surely there when the guest connects.
    let sending = direction == Direction::ToGuest;
    if sending {
        shell::sh(&make)?;
    } else {
        guest.run(&make)?;
    }
    let address = format!("TCP-LISTEN:5001,bind={host},reuseaddr");
    let mut listener = Command::new("socat")
        .args(if sending {
            ["-u".to_string(), format!("OPEN:{here}"), address]
        } else {
            ["-u".to_string(), address, format!("CREATE:{here}")]
        })
        .stdin(Stdio::null())
        .spawn()
        .context("starting socat")?;
    shell::until("the listener", SHORT, || {
        Ok(fs::read_to_string("/proc/net/tcp")?.contains(":1389 00000000:0000 0A").then_some(()))
    })?;
    let script = if sending {
        format!("nc {host} 5001 >{there} </dev/null; md5sum <{there}; rm {there}")
    } else {
        format!("nc {host} 5001 <{there}; md5sum <{there}; rm {there}")
    };
    let in_guest = guest.run_within(&script, Duration::from_secs(240));
    let status = shell::wait(&mut listener, SHORT)?;
    let in_guest = in_guest?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "dom0's end of the TCP transfer failed: {status:?}"
    );
    let in_dom0 = shell::sh(&format!("md5sum <{here}; rm {here}"))?;
    ensure!(
        in_guest.trim() == in_dom0.trim(),
        "TCP changed the data: {in_guest} in the guest, {in_dom0} in dom0"
    );
    Ok(format!("{mib} MiB, md5 {} at both ends", in_dom0.trim().trim_end_matches([' ', '-'])))
}

/// TCP throughput by iperf3 in Mbit/s.
pub fn iperf(guest: &mut Guest, direction: Direction, seconds: u32) -> Result<Throughput> {
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-B", host::ADDRESS])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting iperf3")?;
    shell::until("iperf3 in dom0", SHORT, || {
        Ok(fs::read_to_string("/proc/net/tcp")?.contains(":1451 00000000:0000 0A").then_some(()))
    })?;
    let reverse = if direction == Direction::ToGuest { "-R" } else { "" };
    let script = format!("iperf3 -c {} -t {seconds} {reverse} -J", host::ADDRESS);
    let text = guest.run_within(&script, Duration::from_secs(u64::from(seconds) + 120));
    shell::wait(&mut server, Duration::from_secs(20))?;
    let report: serde_json::Value = serde_json::from_str(&text?).context("iperf3's report")?;
    let received = &report["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3 reported no {name}"));
    Ok(Throughput { mbit_per_second: number("bits_per_second")? / 1e6, megabytes: number("bytes")? / 1e6 })
}

pub struct Throughput {
    pub mbit_per_second: f64,
    pub megabytes: f64,
}

/// The guest's MSI-X interrupts by virtio queue: every device must have had some.
pub fn interrupts(guest: &mut Guest, devices: usize) -> Result<Vec<String>> {
    let text = guest.run("grep virtio /proc/interrupts")?;
    let mut seen = std::collections::BTreeSet::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let counts = words.iter().skip(1).map_while(|word| word.parse::<u64>().ok()).sum::<u64>();
        let name = words.last().copied().unwrap_or_default();
        ensure!(line.contains("PCI-MSIX"), "an interrupt of {name} is no MSI-X: {line}");
        if counts > 0 {
            seen.insert(name.split('-').next().unwrap_or(name).to_string());
            lines.push(format!("{name}: {counts}"));
        }
    }
    ensure!(
        seen.len() >= devices,
        "{devices} devices should have had MSI-X interrupts, these had: {seen:?}\n{text}"
    );
    Ok(lines)
}

/// Random bytes come from the host's generator.
pub fn random(guest: &mut Guest) -> Result<String> {
    let bytes = guest.run(
        "grep -q virtio_rng /sys/class/misc/hw_random/rng_available && head -c 16 /dev/hwrng | xxd -p",
    )?;
    ensure!(bytes.trim().len() == 32, "the guest's hwrng gave {bytes:?}");
    Ok(bytes.trim().to_string())
}
