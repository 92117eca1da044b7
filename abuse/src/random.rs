//! Misbehaviour by chance, the same again for the same seed.
//!
//! The one rule: no device is ever told to write to memory that is not this program's, or the guest would end
//! itself, which proves nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::catalogue::{self, World};
use crate::mapping::Memory;
use crate::pci::{BAR, COMMAND, CONFIG_LEN};
use crate::ring;
use crate::transport::{VECTOR, fill};
use crate::virtio::*;

/// Steps between two proofs that all devices can be used again.
const STEPS: u32 = 400;

/// Longest buffer; there are longer ones, of more than all RAM. Memory of this length behind an address of ours is
/// ours as well.
const MOST: u64 = 0x1_0000;

/// SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number of the sort that goes wrong.
    fn value(&mut self) -> u64 {
        let bit = 1 << self.below(64);
        let any = self.next();
        self.pick(&[0, 1, !0, bit, bit - 1, any, any & 0xff, any & 0xffff, 0xffff, 0x8000])
    }

    /// An address that is this program's or nobody's, and whose halves are so as well.
    fn address(&mut self, world: &World, device: &Device) -> u64 {
        let ours = device.memory.gpa(self.below(Memory::LEN - MOST));
        let bad = self.pick(&ring::nowhere(world, device));
        let low = bad & 0xffff_ffff;
        let harmless =
            low >= 0xf000_0000 || device.memory.gpa(0) <= low && low < device.memory.gpa(Memory::LEN);
        if harmless && self.below(4) == 0 { bad } else { ours & !self.pick(&[0, 1, 3, 15, 63, 4095]) }
    }
}

/// Goes on for so long; the number of steps. An error once a device is lost.
pub fn run(world: &World, length: Duration, seed: u64) -> Result<u64> {
    let (end, mut chance, mut steps) = (Instant::now() + length, Chance(seed), 0);
    while Instant::now() < end {
        for _ in 0..STEPS {
            step(world, &mut chance);
            steps += 1;
            if Instant::now() >= end {
                break;
            }
        }
        world.recover().with_context(|| format!("after {steps} steps"))?;
    }
    Ok(steps)
}

fn step(world: &World, chance: &mut Chance) {
    let device = &world.devices[chance.below(world.devices.len() as u64) as usize];
    match chance.below(64) {
        0..12 => bar_write(world, device, chance),
        12..18 => {
            let size = chance.pick(&[1, 2, 4, 8]);
            let offset = chance.below(device.bar().len() - 8);
            device.bar().read(offset, size);
        }
        18..24 => ecam(world, device, chance),
        24..40 => ring(world, device, chance),
        40..50 => {
            let (queue, value) = (chance.below(8), chance.value());
            device.data().notify(queue, value);
        }
        50..54 => {
            let status = chance.pick(&[0, ACKNOWLEDGE, 3, 11, RUNNING, RUNNING, FAILED, 0xff]);
            device.set(STATUS, status);
        }
        54..58 => {
            // However far it gets.
            let _ = device.restart_with(chance.next());
        }
        58..62 => fill(device),
        62 => device.function.restore(),
        _ => named(world, device, chance),
    }
}

/// A whole abuse of the catalogue, but on a device in whatever state.
fn named(world: &World, device: &Device, chance: &mut Chance) {
    // Those that wait for an answer would wait for long.
    world.devices.iter().for_each(|device| device.function.restore());
    let _ = device.restart();
    let fitting: Vec<_> =
        catalogue::all().filter(|abuse| abuse.is_for(device) && abuse.number != 39).collect();
    let abuse = fitting[chance.below(fitting.len() as u64) as usize];
    let _ = abuse.commit(world, device);
}

fn bar_write(world: &World, device: &Device, chance: &mut Chance) {
    let (table, table_len, _) = (0x8000, 0x8000, 0);
    let common = device.places.common.0;
    let offset =
        if chance.below(2) == 0 { common + chance.below(0x40) } else { chance.below(device.bar().len() - 8) };
    let addresses = common + QUEUE_DESCRIPTORS.0..common + QUEUE_USED.0 + 8;
    let size = chance.pick(&[1, 2, 4, 8]);
    let reaches = |range: &std::ops::Range<u64>| offset < range.end && offset + u64::from(size) > range.start;
    if reaches(&addresses) {
        let register = chance.pick(&[QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED]);
        device.set(register, chance.address(world, device));
    } else if reaches(&(table..table + table_len)) {
        // Any message is the guest's own affair, exceptions and the like excepted.
        let entry = table + chance.below(8) * 16;
        device.bar().write(entry, 8, chance.pick(&[0, 0xfee0_0000, 0xfee0_1000, !0]));
        device.bar().write(entry + 8, 4, VECTOR + chance.below(16) + (chance.below(2) << 10));
        device.bar().write(entry + 12, 4, chance.below(2));
    } else {
        device.bar().write(offset, size, chance.value());
    }
}

fn ecam(world: &World, device: &Device, chance: &mut Chance) {
    let size = chance.pick(&[1, 2, 4, 8]);
    let function = chance.pick(&[device.function.number, device.function.number, 0, chance.0 & 0x7ff]);
    let some = chance.below(CONFIG_LEN - 8);
    let offset = chance.pick(&[some, some & 0xff, BAR, BAR + 4, COMMAND, device.function.msix + 2]);
    let at = function * CONFIG_LEN + offset;
    world.ecam.read(at, size);
    let window = device.places.window + 16;
    let meets_window = offset < window + 4 && offset + u64::from(size) > window;
    if !meets_window {
        world.ecam.write(at, size, chance.value());
    }
}

fn ring(world: &World, device: &Device, chance: &mut Chance) {
    let queue = device.queue(chance.below(3));
    for _ in 0..chance.below(6) {
        let at = chance.below(16);
        let len = chance.pick(&[0, 1, 12, 16, 512, 4096, MOST, 0x7fff_ffff, 0xffff_ffff]);
        let flags = chance.pick(&[0, NEXT, WRITE, NEXT | WRITE, INDIRECT, 7, 0xffff, 0x80 | WRITE, 0x8080]);
        let next = chance.pick(&[0, 1, at as u16, at as u16 + 1, 0xffff]);
        let address = chance.address(world, device);
        queue.put(at, (address, len as u32, flags), next);
    }
    match chance.below(4) {
        0 => queue.set_available(queue.available().wrapping_add(chance.value() as u16)),
        1 => queue.set_used_event(chance.value() as u16),
        _ => queue.offer(chance.below(17) as u16),
    }
    queue.kick();
}
