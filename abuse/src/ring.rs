//! Abuse of the rings: what a descriptor, an index or an address can say wrongly.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::catalogue::{Abuse, World, any_device, only, with};
use crate::transport::{HOLE, fill, request};
use crate::virtio::*;

/// Where an indirect table is, among the buffers.
const TABLE: u64 = 0x2000;

pub const ABUSES: &[Abuse] = &[
    any_device(12, "a descriptor that goes on with itself", |_, device| {
        breaks(device, |queue| queue.put(0, (device.buffer(0), 64, NEXT), 0))
    }),
    any_device(12, "a chain in a circle through the whole table", |_, device| {
        breaks(device, |queue| {
            let size = queue.size();
            for index in 0..size {
                queue.put(index, (device.buffer(0), 16, NEXT), ((index + 1) % size) as u16);
            }
        })
    }),
    any_device(12, "a circle of empty descriptors", |_, device| {
        breaks(device, |queue| {
            queue.put(0, (device.buffer(0), 0, NEXT), 1);
            queue.put(1, (device.buffer(0), 0, NEXT), 0);
        })
    }),
    any_device(12, "a chain that goes on beyond the table", |_, device| {
        for next in [0x100, 0x7fff, 0xffff] {
            breaks(device, |queue| queue.put(0, (device.buffer(0), 64, NEXT), next))?;
            device.restart()?;
        }
        Ok(())
    }),
    any_device(12, "indirect tables that are empty, cut off, huge or nowhere", |_, device| {
        for (at, len) in [
            (device.buffer(TABLE), 0),
            (device.buffer(TABLE), 15),
            (device.buffer(TABLE), 33),
            (device.buffer(TABLE), 0xffff_fff0),
            (HOLE, 32),
            (!0, 32),
            (!0xf, 32),
            (device.function.bar_gpa(), 32),
        ] {
            breaks(device, |queue| queue.put(0, (at, len, INDIRECT), 0))?;
            device.restart()?;
        }
        Ok(())
    }),
    any_device(12, "an indirect table in an indirect table, and one that goes on", |_, device| {
        breaks(device, |queue| {
            descriptor(&device.memory, BUFFERS + TABLE, (device.buffer(TABLE), 32, INDIRECT), 0);
            queue.put(0, (device.buffer(TABLE), 32, INDIRECT), 0);
        })?;
        device.restart()?;
        breaks(device, |queue| {
            descriptor(&device.memory, BUFFERS + TABLE, (device.buffer(0), 32, 0), 0);
            queue.put(0, (device.buffer(TABLE), 16, INDIRECT | NEXT), 1);
        })?;
        device.restart()?;
        breaks(device, |queue| {
            descriptor(&device.memory, BUFFERS + TABLE, (device.buffer(0), 32, NEXT), 9);
            queue.put(0, (device.buffer(TABLE), 32, INDIRECT), 0);
        })
    }),
    any_device(12, "what the device reads comes after what it writes", |_, device| {
        breaks(device, |queue| {
            queue.chain_at(0, &[(device.buffer(0), 64, WRITE), (device.buffer(0x100), 64, 0)])
        })
    }),
    any_device(13, "the index jumps ahead, and back", |_, device| {
        // On a ring that has been used and on a fresh one.
        for jump in [0x101, 0x400, 0x8000, 0xffff] {
            device.serves()?;
            for _ in 0..2 {
                breaks_without_offer(device, |queue| {
                    queue.set_available(queue.available().wrapping_add(jump))
                })?;
                device.restart()?;
            }
        }
        Ok(())
    }),
    any_device(13, "heads beyond the table", |_, device| {
        for head in [0x100, 0x8000, 0xffff] {
            breaks_without_offer(device, |queue| queue.offer(head))?;
            device.restart()?;
        }
        Ok(())
    }),
    any_device(14, "the same head twice", |_, device| {
        let queue = device.data();
        for _ in 0..8 {
            queue.offer_chain(&request(device));
        }
        queue.kick();
        // Those that are done with the first before they look at the second need not mind.
        if device.kind == Kind::Blk { device.is_broken() } else { Ok(()) }
    }),
    only(Kind::Net, 14, "the same buffer to receive twice", |_, device| {
        let queue = device.queue(0);
        // Too short for the answer, so that it takes the next one as well.
        queue.offer_chain(&[(device.buffer(0x1000), 30, WRITE)]);
        queue.offer(0);
        queue.kick();
        device.data().carry_out(&request(device))?;
        device.is_broken()
    }),
    any_device(15, "more requests than the ring has room for", |_, device| {
        for _ in 0..20 {
            fill(device);
        }
        Ok(())
    }),
    any_device(16, "lengths that add up to more than 32 bits", |_, device| {
        breaks(device, |queue| queue.chain_at(0, &[other_ram(device); 18]))
    }),
    any_device(16, "a request of almost 4 GiB", |_, device| {
        let queue = device.data();
        let before = queue.used();
        queue.offer_chain(&[other_ram(device); 17]);
        queue.kick();
        until(Duration::from_secs(15), || queue.used() != before || device.needs_reset())
    }),
    any_device(
        16,
        "buffers that wrap, or lie in no RAM: a hole, a BAR, the ECAM, a grant",
        |world, device| {
            for address in nowhere(world, device) {
                for flags in [0, WRITE] {
                    breaks(device, |queue| queue.put(0, (address, 64, flags), 0))?;
                    device.restart()?;
                }
            }
            Ok(())
        },
    ),
    any_device(17, "buffers over the ring that they are in", |_, device| {
        for part in device.data().parts() {
            for flags in [0, WRITE] {
                breaks(device, |queue| queue.put(0, (part, 64, flags), 0))?;
                device.restart()?;
            }
        }
        Ok(())
    }),
    any_device(17, "buffers over each other", |_, device| {
        let queue = device.data();
        let before = queue.used();
        let mut chain = request(device);
        let last = chain.pop();
        chain.extend([chain.last().copied().unwrap_or((device.buffer(0), 16, 0)); 60]);
        chain.extend(last);
        if device.kind == Kind::Rng {
            chain.iter_mut().for_each(|buffer| buffer.2 = WRITE);
        }
        queue.offer_chain(&chain);
        queue.kick();
        until(Duration::from_secs(15), || queue.used() != before || device.needs_reset())
    }),
    any_device(17, "two queues in one place", |_, device| {
        device.negotiate(0)?;
        for index in 0..device.queues() {
            device.set_up(index);
            device.set(QUEUE_ENABLE, 0);
        }
        device.negotiate(0)?;
        for index in 0..device.queues() {
            device.set(QUEUE_SELECT, index);
            let [descriptors, available, used] = device.queue(0).parts();
            device.set(QUEUE_DESCRIPTORS, descriptors);
            device.set(QUEUE_AVAILABLE, available);
            device.set(QUEUE_USED, used);
            device.set(QUEUE_ENABLE, 1);
        }
        device.set(STATUS, RUNNING);
        fill(device);
        Ok(())
    }),
    any_device(17, "descriptors, available and used ring in one place", |_, device| {
        device.negotiate(0)?;
        device.set(QUEUE_SELECT, 0);
        for register in [QUEUE_DESCRIPTORS, QUEUE_AVAILABLE, QUEUE_USED] {
            device.set(register, device.memory.gpa(0));
        }
        device.set(QUEUE_ENABLE, 1);
        device.set(STATUS, RUNNING);
        for index in 0..64 {
            device.memory.write(2, 2, index);
            device.queue(0).kick();
        }
        Ok(())
    }),
    any_device(19, "interrupts asked for at every index but the right one", |_, device| {
        for event in [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            device.data().set_used_event(event);
            device.serves()?;
        }
        device.is_well()
    }),
    with(IN_ORDER, 19, "answers in order", |_, device| {
        device.restart_with(IN_ORDER)?;
        device.is_well()?;
        fill(device);
        device.restart_with(IN_ORDER)?;
        device.is_well()
    }),
    any_device(20, "descriptors and index change while the device reads them", |_, device| {
        let (queue, stop) = (device.data(), AtomicBool::new(false));
        let end = Instant::now() + Duration::from_millis(400);
        let good = request(device);
        thread::scope(|scope| {
            scope.spawn(|| {
                let bad = [
                    (HOLE, 64, 0),
                    (device.buffer(0), 0xffff_ffff, WRITE),
                    (!0, 1, NEXT),
                    (device.buffer(TABLE), 48, INDIRECT),
                ];
                for turn in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    queue.put(turn % 4, bad[turn as usize % bad.len()], turn as u16);
                    queue.chain_at(0, &good);
                }
            });
            while Instant::now() < end {
                queue.offer(0);
                queue.kick();
                if device.needs_reset() && device.restart().is_err() {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        Ok(())
    }),
    any_device(21, "the ring's memory is scribbled over with requests in flight", |_, device| {
        fill(device);
        for offset in (0..0x8000).step_by(8) {
            device.memory.write(offset, 8, 0xa5a5_a5a5_a5a5_a5a5 ^ offset);
        }
        device.data().kick();
        Ok(())
    }),
    with(RING_PACKED, 18, "a packed ring: a good request", |_, device| {
        let packed = Packed::start(device)?;
        packed.offer(&request(device), 0);
        until(Duration::from_secs(15), || packed.is_used()).map_err(|error| error.context("a packed ring"))
    }),
    with(RING_PACKED, 18, "a packed ring: a chain without an end", |_, device| {
        for offset in [0, 1] {
            let packed = Packed::start(device)?;
            for index in offset..packed.size {
                packed.put(index, (device.buffer(0), 8, NEXT), 0, FIRST_LAP);
            }
            packed.put(0, (device.buffer(0), 8, NEXT), 0, FIRST_LAP);
            packed.queue.kick();
            device.is_broken()?;
        }
        Ok(())
    }),
    with(RING_PACKED, 18, "a packed ring: flags of another lap, of no lap, of all", |_, device| {
        for lap in [0, USED_FLAG, AVAIL_FLAG | USED_FLAG] {
            let packed = Packed::start(device)?;
            for index in 0..packed.size {
                packed.put(index, (device.buffer(0), 64, 0), index as u16, lap);
            }
            packed.queue.kick();
            device.get(STATUS);
        }
        Ok(())
    }),
    with(RING_PACKED, 18, "a packed ring: bad tables, buffers and ids", |world, device| {
        let mut bad: Vec<Buffer> = nowhere(world, device).into_iter().map(|at| (at, 64, WRITE)).collect();
        bad.extend([0, 15, 0xffff_fff0].map(|len| (device.buffer(TABLE), len, INDIRECT)));
        bad.push((device.buffer(TABLE), 32, INDIRECT | NEXT));
        for descriptor in bad {
            let packed = Packed::start(device)?;
            packed.put(0, descriptor, 0xffff, FIRST_LAP);
            packed.queue.kick();
            device.is_broken()?;
        }
        Ok(())
    }),
    any_device(
        18,
        "a packed ring: one id again and again, and the driver's event scribbled over",
        |_, device| {
            for event in [0, 0xffff_ffff, 0x0003_8000] {
                let packed = Packed::start(device)?;
                device.memory.write(packed.queue.base + 0x1000, 4, event);
                for index in 0..packed.size {
                    packed.put(index, (device.buffer(0), 64, 0), 7, FIRST_LAP);
                }
                packed.queue.kick();
                device.get(STATUS);
            }
            Ok(())
        },
    ),
];

/// Addresses of no RAM; with bit 63 set it would be a grant.
pub fn nowhere(world: &World, device: &Device) -> [u64; 8] {
    [
        HOLE,
        device.function.bar_gpa(),
        world.ecam_at,
        !0,
        !0x1f,
        1 << 63,
        1 << 63 | device.buffer(0),
        0xffff_ffff_f000,
    ]
}

/// 240 MiB of the guest's RAM, without the ring, to be read only: the guest needs them.
fn other_ram(device: &Device) -> Buffer {
    let half = 0x1000_0000;
    (if device.memory.gpa(0) < half { half } else { 0 }, 0x0f00_0000, 0)
}

/// The device must notice what is wrong with the chain at 0.
fn breaks(device: &Device, describe: impl FnOnce(Queue)) -> Result<()> {
    breaks_without_offer(device, |queue| {
        describe(queue);
        queue.offer(0);
    })
}

fn breaks_without_offer(device: &Device, abuse: impl FnOnce(Queue)) -> Result<()> {
    let queue = device.data();
    abuse(queue);
    queue.kick();
    device.is_broken().with_context(|| queue.describe())
}

/// The flags that say whose a descriptor is (virtio 1.3 §2.8.1).
const AVAIL_FLAG: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;
const FIRST_LAP: u16 = AVAIL_FLAG;

/// A packed ring on its first lap.
struct Packed<'a> {
    queue: Queue<'a>,
    size: u64,
}

impl<'a> Packed<'a> {
    /// Starts the device with packed rings.
    fn start(device: &'a Device) -> Result<Self> {
        device.restart_with(RING_PACKED)?;
        let queue = device.data();
        Ok(Self { queue, size: queue.size() })
    }

    fn put(&self, index: u64, (address, len, flags): Buffer, id: u16, lap: u16) {
        let (memory, at) = (&self.queue.device.memory, self.queue.base + index * 16);
        memory.write(at, 8, address);
        memory.write(at + 8, 4, len.into());
        memory.write(at + 12, 2, id.into());
        memory.write(at + 14, 2, (flags | lap).into());
    }

    fn offer(&self, chain: &[Buffer], id: u16) {
        // The first one last: the device may look at any time.
        for (index, (address, len, flags)) in chain.iter().enumerate().rev() {
            let next = if index + 1 < chain.len() { NEXT } else { 0 };
            self.put(index as u64, (*address, *len, flags | next), id, FIRST_LAP);
        }
        self.queue.kick();
    }

    fn is_used(&self) -> bool {
        let flags = self.queue.device.memory.read(self.queue.base + 14, 2) as u16;
        flags & AVAIL_FLAG != 0 && flags & USED_FLAG != 0
    }
}
