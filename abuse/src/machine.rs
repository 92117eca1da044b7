//! Abuse of what Xen makes of a guest's instructions, and of the memory under a device's feet.

use std::arch::asm;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::catalogue::{Abuse, any_device, writable_disk};
use crate::mapping::{Mapping, Way};
use crate::transport::fill;
use crate::virtio::*;

pub const ABUSES: &[Abuse] = &[
    any_device(35, "string instructions between BAR and RAM, up and down, in all widths", |_, device| {
        let (bar, memory, places) = (device.bar(), &device.memory, device.places);
        for size in [1, 2, 4, 8] {
            for way in [Way::Up, Way::Down] {
                for (start, len) in
                    [places.device, places.isr, (places.common.0, 0x40), (bar.len() - 0x100, 0x100)]
                {
                    let count = len.min(0x100) / u64::from(size);
                    bar.copy_to(start, memory, BUFFERS + 0xff0, size, count, way);
                }
                // Back only where no address of a ring can be met.
                for start in [places.device.0, places.isr.0, places.notify.0] {
                    memory.copy_to(BUFFERS + 0xff0, bar, start, size, 0x80 / u64::from(size), way);
                }
            }
        }
        device.restart()?;
        device.is_well()
    }),
    any_device(
        35,
        "string instructions over a page, over two structures, from the BAR to itself",
        |_, device| {
            let (bar, memory, places) = (device.bar(), &device.memory, device.places);
            for way in [Way::Up, Way::Down] {
                bar.copy_to(places.isr.0 - 0x20, memory, BUFFERS + 0xffd, 8, 8, way);
                bar.copy_to(places.isr.0 - 3, memory, BUFFERS, 4, 16, way);
                bar.copy_to(places.isr.0, memory, BUFFERS, 1, 0x1001, way);
                bar.copy_to(places.device.0, bar, places.isr.0, 4, 16, way);
            }
            device.is_well()
        },
    ),
    any_device(
        35,
        "vector and locked instructions, and accesses over the edges of structures",
        |_, device| {
            let (bar, places) = (device.bar(), device.places);
            for at in
                [places.isr.0 - 8, places.isr.0, places.device.0 - 8, places.device.0, places.device.0 + 1]
            {
                bar.vector(at);
            }
            bar.locked(places.common.0);
            bar.locked(places.isr.0 - 2);
            for edge in [places.isr.0, places.device.0, places.notify.0, places.common.0 + 0x3c] {
                for back in 1..8 {
                    bar.read(edge - back, 8);
                    bar.read(edge - back, 4);
                }
            }
            device.restart()?;
            device.is_well()
        },
    ),
    any_device(35, "accesses over the end of the BAR", |_, device| {
        let end = device.function.bar_gpa() + device.bar().len();
        let memory = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
        let around = Mapping::of(&memory, end - 0x1000, 0x2000).context("mapping what is behind the BAR")?;
        for back in 0..16 {
            around.read(0x1000 - back, 8);
            around.write(0x1000 - back, 8, 0);
        }
        around.vector(0xff8);
        device.is_well()
    }),
    any_device(35, "ports 0xcf8 to 0xcff in all widths, by string too", |_, device| {
        // SAFETY: lets this process touch the ports of PCI configuration, which is what it is here for.
        ensure!(unsafe { libc::ioperm(PORTS.into(), 8, 1) } == 0, "no access to ports");
        let buffer = [0xffu8; 64];
        for address in [0, 0x8000_0000, 0x80ff_fffc, 0xffff_ffff, 0x8000_0000 | device.function.number << 8] {
            out_long(PORTS, address as u32);
            for port in PORTS..PORTS + 8 {
                in_bytes(port);
            }
            in_string(PORTS + 4, buffer);
            // The vendor's number: nobody can write it.
            out_string(PORTS + 4, buffer);
        }
        for port in PORTS..PORTS + 4 {
            out_byte(port, 0xff);
        }
        out_long(PORTS, 0);
        device.function.restore();
        device.is_well()
    }),
    writable_disk(39, "memory goes back to Xen under I/O", |_, device| balloon(device)),
];

const PORTS: u16 = 0xcf8;

fn out_long(port: u16, value: u32) {
    // SAFETY: a port that `ioperm` has opened; memory is not touched. So for all of these.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) }
}

fn out_byte(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

/// Reads of one, two and four bytes, as many of them as end before the last port.
fn in_bytes(port: u16) {
    // SAFETY: as above; wider reads only where all their ports are open.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") _);
        if port < PORTS + 7 {
            asm!("in ax, dx", in("dx") port, out("ax") _);
        }
        if port < PORTS + 5 {
            asm!("in eax, dx", in("dx") port, out("eax") _);
        }
    }
}

fn in_string(port: u16, mut buffer: [u8; 64]) {
    // SAFETY: as above; writes the 64 bytes of `buffer`.
    unsafe {
        asm!("rep insd", in("dx") port, inout("rcx") 16 => _, inout("rdi") buffer.as_mut_ptr() => _);
        asm!("rep insb", in("dx") port, inout("rcx") 64 => _, inout("rdi") buffer.as_mut_ptr() => _);
    }
}

fn out_string(port: u16, buffer: [u8; 64]) {
    // SAFETY: as above; reads the 64 bytes of `buffer`.
    unsafe {
        asm!("rep outsd", in("dx") port, inout("rcx") 1 => _, inout("rsi") buffer.as_ptr() => _);
        asm!("rep outsb", in("dx") port, inout("rcx") 2 => _, inout("rsi") buffer.as_ptr() => _);
    }
}

const BALLOON: &str = "/sys/devices/system/xen_memory/xen_memory0";
/// How much the guest gives back, and how much of it this program has had before, so that it knows addresses.
const GIVEN: usize = 128 << 20;
const KNOWN: usize = 96 << 20;
/// How many of the known pages are tried.
const TRIED: usize = 64;

fn memory_now() -> Result<u64> {
    let text = fs::read_to_string(format!("{BALLOON}/info/current_kb"))?;
    Ok(text.trim().parse()?)
}

fn set_memory(kib: u64) -> Result<()> {
    fs::write(format!("{BALLOON}/target_kb"), kib.to_string())?;
    until(Duration::from_secs(60), || memory_now().is_ok_and(|now| now.abs_diff(kib) < 1024))
        .with_context(|| format!("the balloon does not get to {kib} KiB"))
}

fn balloon(device: &Device) -> Result<()> {
    let all = memory_now()?;
    let pages = Mapping::anonymous(KNOWN, false)?.gpas()?;
    let done = AtomicBool::new(false);
    // Requests are in flight all the time that pages go.
    let shrunk = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let before = device.data().used();
                fill(device);
                let _ = until(Duration::from_millis(200), || device.data().used() != before);
            }
        });
        let shrunk = set_memory(all - (GIVEN as u64 >> 10));
        done.store(true, Ordering::Relaxed);
        shrunk
    });
    let found = shrunk.and_then(|()| holes(device, &pages));
    let outcome = found.and_then(|holes| rings_in(device, &holes));
    set_memory(all)?;
    outcome
}

/// Those of the pages that are not there any more: to write them to the disk is an error.
fn holes(device: &Device, pages: &[u64]) -> Result<Vec<u64>> {
    let mut holes = Vec::new();
    device.restart()?;
    for page in pages.iter().step_by(pages.len() / TRIED) {
        if device.needs_reset() {
            device.restart()?;
        }
        // A page that is there belongs to the guest's kernel by now: the device may read it, never write it.
        let sector = 64;
        match device.disk(OUT, sector, &[(*page, 4096, 0)]) {
            Ok(0) => {}
            Ok(_) => holes.push(*page),
            Err(_) if device.needs_reset() => holes.push(*page),
            Err(error) => return Err(error.context("a request with a page that may be gone")),
        }
    }
    println!("    {} of {TRIED} pages are gone", holes.len());
    Ok(holes)
}

const OUT: u32 = 1;

/// Rings, tables and buffers on pages that are gone.
fn rings_in(device: &Device, holes: &[u64]) -> Result<()> {
    let Some(&hole) = holes.first() else { return Ok(()) };
    for register in [QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED] {
        device.negotiate(0)?;
        device.set(QUEUE_SELECT, 0);
        let parts = device.queue(0).parts();
        device.set(QUEUE_DESCRIPTORS, parts[0]);
        device.set(QUEUE_AVAILABLE, parts[1]);
        device.set(QUEUE_USED, parts[2]);
        device.set(register, hole);
        device.set(QUEUE_ENABLE, 1);
        device.set(STATUS, RUNNING);
        device.queue(0).offer(0);
        device.queue(0).kick();
        device.is_broken().context("a ring on a page that is gone")?;
    }
    for flags in [0, WRITE, INDIRECT] {
        device.restart()?;
        let before = device.data().used();
        device.data().offer_chain(&[(hole, 4096, flags)]);
        device.data().kick();
        until(Duration::from_secs(15), || device.data().used() != before || device.needs_reset())
            .context("a buffer on a page that is gone")?;
    }
    Ok(())
}
