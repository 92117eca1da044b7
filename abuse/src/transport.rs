//! Abuse of configuration space and of the virtio registers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::catalogue::{Abuse, any_device};
use crate::pci::{BAR, BUS_MASTER, COMMAND, CONFIG_LEN, MEMORY};
use crate::virtio::*;

/// An address that no guest of the box has RAM at.
pub const HOLE: u64 = 0x9000_0000;
/// Bits of MSI-X message control.
pub const MSIX_ENABLE: u64 = 1 << 15;
pub const MSIX_MASK_ALL: u64 = 1 << 14;
/// An interrupt that the guest's kernel expects from nobody, and bears.
pub const VECTOR: u64 = 0x60;
const NO_VECTOR: u64 = 0xffff;
const ALL_ONES: u64 = 0xffff_ffff;
const SIZES: [u8; 4] = [1, 2, 4, 8];

pub const ABUSES: &[Abuse] = &[
    any_device(1, "a queue's size and addresses change while it runs", |_, device| {
        for index in 0..device.queues() {
            device.set(QUEUE_SELECT, index);
            for (register, value) in [
                (QUEUE_SIZE, 1),
                (QUEUE_SIZE, 0x8000),
                (QUEUE_DESCRIPTORS, !0),
                (QUEUE_AVAILABLE, HOLE),
                (QUEUE_USED, 0),
                (QUEUE_ENABLE, 0),
                (QUEUE_ENABLE, 1),
            ] {
                device.set(register, value);
            }
        }
        device.is_well()
    }),
    any_device(2, "registers of a queue that is not there", |_, device| {
        for index in [device.queues(), 0x3ff, 0x400, 0x7fff, 0xffff] {
            device.set(QUEUE_SELECT, index);
            ensure!(device.get(QUEUE_SIZE) == 0, "queue {index:#x} has a size");
            for register in
                [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_DESCRIPTORS, QUEUE_USED, QUEUE_RESET]
            {
                device.get(register);
                device.set(register, 1);
                device.set(register, !0);
            }
            device.queue(0).notify(index.min(0x3ff), index);
        }
        device.is_well()
    }),
    any_device(3, "vectors beyond the table, and one let go with interrupts due", |_, device| {
        device.function.set_msix(MSIX_ENABLE);
        for vector in [0x7ff, 0x800, 0xfffe, 0, NO_VECTOR] {
            device.set(CONFIG_VECTOR, vector);
            for index in 0..device.queues() {
                device.set(QUEUE_SELECT, index);
                device.set(QUEUE_VECTOR, vector);
                let now = device.get(QUEUE_VECTOR);
                ensure!(vector == 0 || now == NO_VECTOR, "vector {vector:#x} reads back as {now:#x}");
            }
            device.serves()?;
        }
        Ok(())
    }),
    any_device(3, "interrupts to nowhere", |_, device| {
        let (table, _, _) = device.function.msix_table();
        device.set(QUEUE_SELECT, device.data().index);
        device.set(QUEUE_VECTOR, 0);
        device.function.set_msix(MSIX_ENABLE);
        // The last is what Xen takes for an event channel in an interrupt's clothing.
        let messages =
            [(0, VECTOR), (!0, VECTOR), (0xfee0_0000, 0x760), (0xfee0_1000, 0), (0xff00_fee0_5000, 0)];
        for (address, data) in messages {
            device.bar().write(table, 8, address);
            device.bar().write(table + 8, 4, data);
            device.bar().write(table + 12, 4, 0);
            device.serves()?;
        }
        device.is_well()
    }),
    any_device(4, "the MSI-X table and its pending bits in all widths, and past their ends", |_, device| {
        let (table, len, pending) = device.function.msix_table();
        let bar = device.bar();
        for size in SIZES {
            for start in [table, table + len, pending] {
                for offset in (start - 8..start + 24).step_by(5).chain([bar.len() - 8]) {
                    bar.read(offset, size);
                    bar.write(offset, size, !0);
                }
            }
        }
        device.is_well()
    }),
    any_device(5, "device status in no order at all", |_, device| {
        for sequence in [
            &[DRIVER_OK][..],
            &[FEATURES_OK, RUNNING],
            &[ACKNOWLEDGE, DRIVER_OK | ACKNOWLEDGE, RUNNING, RUNNING],
            &[RUNNING, RUNNING & !DRIVER, ACKNOWLEDGE, RUNNING],
            &[RUNNING, FAILED, RUNNING],
            &[NEEDS_RESET, 0x30, 0xff, RUNNING],
        ] {
            device.reset()?;
            for status in sequence {
                device.set(STATUS, *status);
                device.data().kick();
            }
        }
        device.restart()?;
        for bits in [RUNNING, RUNNING, FEATURES_OK, DRIVER] {
            device.set(STATUS, bits);
        }
        device.is_well()
    }),
    any_device(5, "features after FEATURES_OK, and features that nobody offered", |_, device| {
        for select in [0, 1, 2, 3, !0] {
            device.set(DRIVER_FEATURE_SELECT, select);
            device.set(DRIVER_FEATURE, !0);
        }
        device.is_well()?;
        device.reset()?;
        device.set(STATUS, ACKNOWLEDGE | DRIVER);
        for select in [3, 1, 0] {
            device.set(DRIVER_FEATURE_SELECT, select);
            device.set(DRIVER_FEATURE, !0);
        }
        device.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        ensure!(device.get(STATUS) & FEATURES_OK == 0, "the device agrees to everything");
        device.set(STATUS, RUNNING);
        ensure!(device.get(STATUS) & DRIVER_OK == 0, "the device runs without features");
        Ok(())
    }),
    any_device(6, "resets with requests in flight", |_, device| {
        for round in 0..8 {
            fill(device);
            thread::sleep(Duration::from_millis(round));
            device.restart()?;
        }
        device.is_well()
    }),
    any_device(6, "resets by one vCPU while another starts and kicks", |_, device| {
        let end = Instant::now() + Duration::from_millis(500);
        thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() < end {
                    device.set(STATUS, 0);
                }
            });
            while Instant::now() < end {
                // The other one resets in the middle of it, so this need not get anywhere.
                let _ = device.restart();
                fill(device);
            }
        });
        Ok(())
    }),
    any_device(21, "queues are reset one by one with requests in flight", |_, device| {
        for _ in 0..4 {
            for index in (0..device.queues()).rev() {
                if index == device.data().index {
                    fill(device);
                }
                device.set(QUEUE_SELECT, index);
                device.set(QUEUE_RESET, 1);
                device.set(QUEUE_RESET, 1);
                until(Duration::from_secs(15), || device.get(QUEUE_RESET) == 0)?;
                device.set_up(index);
            }
        }
        device.is_well()
    }),
    any_device(7, "the window on the BAR: wrong bars, lengths, places", |_, device| {
        let (function, window) = (&device.function, device.places.window);
        for (bar, length) in [(0, 0), (0, 1), (0, 3), (0, 4), (0, 8), (0, 0xffff_ffff), (1, 4), (0xff, 4)] {
            function.config_write(window + 4, 1, bar);
            function.config_write(window + 12, 4, length);
            for offset in [1, 0x2000, device.bar().len() - 1, device.bar().len(), 0xffff_fffc, 0] {
                function.config_write(window + 8, 4, offset);
                function.config_read(window + 16, 4);
                if offset != 0 {
                    function.config_write(window + 16, 4, 0);
                }
            }
        }
        // Offset 1 and a length of 1 is a byte of the feature select register; nothing else may have been met.
        device.is_well()
    }),
    any_device(8, "the BAR moves over RAM, over others, to nowhere, by halves", |world, device| {
        let other = world.devices.iter().map(|other| other.function.bar_gpa()).max().unwrap_or(0);
        let ecam = world.ecam_at;
        for place in [0, 0x10_0000, other, ecam, HOLE, !0, 0xffff_ffff, 0xffff_ffff_0000_0000] {
            fill(device);
            device.function.config_write(BAR, 4, place & 0xffff_ffff);
            device.bar().read(0, 4);
            device.data().kick();
            device.function.config_write(BAR + 4, 4, place >> 32);
            device.bar().read(0, 4);
            device.function.restore();
            for _ in 0..2 {
                device.get(STATUS);
            }
        }
        device.restart()?;
        device.is_well()
    }),
    any_device(8, "memory decoding is switched off under I/O", |_, device| {
        let queue = device.data();
        let before = queue.used();
        queue.offer_chain(&request(device));
        queue.kick();
        device.function.config_write(COMMAND, 2, BUS_MASTER);
        ensure!(device.bar().read(0, 4) == ALL_ONES, "the BAR answers with decoding off");
        device.bar().write(0x14, 1, 0);
        queue.kick();
        device.function.restore();
        queue.wait(before)?;
        device.is_well()
    }),
    any_device(9, "bus mastering is off: nothing may be touched", |_, device| {
        let queue = device.data();
        let before = queue.used();
        device.function.config_write(COMMAND, 2, MEMORY);
        queue.offer_chain(&request(device));
        queue.kick();
        thread::sleep(Duration::from_millis(100));
        ensure!(queue.used() == before, "the device goes on without bus mastering");
        device.function.restore();
        queue.wait(before)?;
        device.is_well()
    }),
    any_device(9, "bus mastering goes on and off under load", |_, device| {
        for _ in 0..8 {
            fill(device);
            device.function.config_write(COMMAND, 2, MEMORY);
            device.function.config_write(COMMAND, 2, MEMORY | BUS_MASTER);
        }
        device.restart()?;
        device.is_well()
    }),
    any_device(10, "configuration space in odd widths and over its end", |world, device| {
        let base = device.function.number * CONFIG_LEN;
        let places = (0..0x48).chain(0xfb..0x103).chain(CONFIG_LEN - 8..CONFIG_LEN);
        for (offset, size) in places.zip(SIZES.into_iter().cycle()) {
            let value = world.ecam.read(base + offset, size);
            // What is read is written back, but not to the window on the BAR.
            if !(0x40..0x100).contains(&offset) {
                world.ecam.write(base + offset, size, value);
            }
        }
        device.function.restore();
        ensure!(world.ecam.read(base, 2) == VENDOR, "the ECAM shows another vendor");
        device.is_well()
    }),
    any_device(10, "functions that are not there", |world, device| {
        for number in [0x1f << 3, (0x1f << 3) | 7, 0x01 << 8, (0x07 << 8) | 0xff] {
            let base = number * CONFIG_LEN;
            for offset in [0, 0x10, 0xffc] {
                world.ecam.write(base + offset, 4, !0);
                ensure!(world.ecam.read(base + offset, 4) == ALL_ONES, "function {number:#x} answers");
            }
        }
        device.is_well()
    }),
    any_device(11, "queue sizes that cannot be", |_, device| {
        device.negotiate(0)?;
        device.set(QUEUE_SELECT, 0);
        let most = device.get(QUEUE_SIZE);
        for size in [0, 3, most + 1, most * 2, 0x8000, 0xffff] {
            device.set(QUEUE_SIZE, size);
            let now = device.get(QUEUE_SIZE);
            ensure!(now.is_power_of_two() && now <= most, "size {size} made it {now}");
        }
        Ok(())
    }),
    any_device(11, "rings that are misaligned, not in RAM, or wrap", |_, device| {
        let register = |which| [QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED][which];
        for which in 0..3 {
            let bad = [
                device.memory.gpa(1),
                HOLE,
                device.function.bar_gpa(),
                1 << 63,
                !0,
                !0xf,
                (1 << 63) | device.memory.gpa(0),
            ];
            for address in bad {
                device.negotiate(0)?;
                device.set(QUEUE_SELECT, 0);
                for (other, part) in device.queue(0).parts().into_iter().enumerate() {
                    device.set(register(other), part);
                }
                device.set(register(which), address);
                device.set(QUEUE_ENABLE, 1);
                device.set(STATUS, RUNNING);
                device.queue(0).kick();
                ensure!(device.needs_reset(), "a ring's part {which} at {address:#x} is taken");
            }
        }
        Ok(())
    }),
    any_device(23, "device configuration in all widths and past its end", |_, device| {
        let (start, len) = device.places.device;
        for size in SIZES {
            for offset in (0..0x50).chain([len - 8]) {
                let value = device.bar().read(start + offset, size);
                device.bar().write(start + offset, size, !value);
            }
        }
        device.restart()?;
        device.is_well()
    }),
    any_device(38, "a storm of kicks, for queues that are there and that are not", |_, device| {
        for round in 0..600 {
            device.data().notify(round % 1024, round * 0x1001);
        }
        device.is_well()
    }),
    any_device(38, "a storm of interrupts, masked and unmasked", |_, device| {
        let (table, len, pending) = device.function.msix_table();
        for entry in (table..table + len).step_by(16) {
            device.bar().write(entry, 8, 0xfee0_0000);
            device.bar().write(entry + 8, 4, VECTOR);
            device.bar().write(entry + 12, 4, 0);
        }
        device.set(CONFIG_VECTOR, 0);
        device.set(QUEUE_SELECT, device.data().index);
        device.set(QUEUE_VECTOR, 1);
        for round in 0..20 {
            device.function.set_msix(if round % 3 == 0 { MSIX_ENABLE | MSIX_MASK_ALL } else { MSIX_ENABLE });
            device.bar().write(table + 16 + 12, 4, round & 1);
            device.bar().read(pending, 8);
            device.serves()?;
        }
        device.is_well()
    }),
];

/// A request that the device can do something with.
pub fn request(device: &Device) -> Vec<Buffer> {
    match device.kind {
        Kind::Rng => vec![(device.buffer(0x1000), 0x4000, WRITE)],
        Kind::Blk => vec![
            device.disk_header(0, 0),
            (device.buffer(0x1000), 0x8000, WRITE),
            (device.buffer(0x100), 1, WRITE),
        ],
        Kind::Net => {
            device.memory.write_bytes(BUFFERS, &arp_request());
            vec![(device.buffer(0), arp_request().len() as u32, 0)]
        }
    }
}

/// As many requests as the ring takes; those of a network card for frames to arrive as well.
pub fn fill(device: &Device) {
    let (queue, chain) = (device.data(), request(device));
    let size = queue.size();
    for head in (0..=size - chain.len() as u64).step_by(chain.len()).take(32) {
        queue.chain_at(head, &chain);
        queue.offer(head as u16);
    }
    queue.kick();
    if device.kind == Kind::Net {
        let receive = device.queue(0);
        for head in 0..receive.size().min(64) {
            receive.put(head, (device.buffer(0x8_0000), 0x4_0000, WRITE), 0);
            receive.offer(head as u16);
        }
        receive.kick();
    }
}
