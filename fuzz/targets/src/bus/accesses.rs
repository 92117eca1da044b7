//! What a guest does, in one step.

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use domain::{Access, Direction, Ioreq};
use pci::Bdf;

use super::drivers::{BUFFERS, Queue};
use super::{Bench, NET, RAM};
use crate::net_control;
use crate::ring::{Address, Descriptor, Ring};

/// A step. Those that follow the rules for a while are what gets the others anywhere.
#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    /// Anything that Xen could put into an ioreq slot.
    Ioreq {
        access: u8,
        read: bool,
        pointer: bool,
        down: bool,
        size: u8,
        count: u16,
        at: Place,
        data: u64,
    },
    /// Configuration space: of one of the functions, or of any.
    Config {
        slot: u8,
        register: u8,
        size: u8,
        read: bool,
        value: u32,
        ports: bool,
    },
    Ecam {
        at: u32,
        size: u8,
        read: bool,
        value: u64,
    },
    /// The BAR of one of the functions.
    Bar {
        slot: u8,
        at: u16,
        size: u8,
        read: bool,
        value: u64,
    },
    /// The registers at its start.
    Common {
        slot: u8,
        register: u8,
        value: u64,
    },
    QueueReset {
        slot: u8,
        queue: u8,
    },
    Status {
        slot: u8,
        value: u8,
    },
    Command {
        slot: u8,
        value: u8,
    },
    /// The window in configuration space.
    Window {
        slot: u8,
        at: u16,
        length: u8,
        read: bool,
        value: u32,
    },
    Place {
        slot: u8,
    },
    /// All that a driver does up to DRIVER_OK; the masks take features away.
    Start {
        slot: u8,
        without: u64,
        orders: [u8; 3],
        at: u8,
        skip: u8,
    },
    Kick {
        slot: u8,
        queue: u8,
    },
    Reset {
        slot: u8,
    },
    BusReset,
    Msix {
        slot: u8,
        vector: u8,
        data: u8,
        masked: bool,
        enable: bool,
    },
    Ram {
        at: u32,
        bytes: [u8; 8],
    },
    /// A part of a ring.
    Ring {
        ring: u8,
        at: u16,
        bytes: [u8; 4],
    },
    Describe {
        ring: u8,
        descriptor: Descriptor,
    },
    /// A well-formed chain of buffers, and the doorbell.
    Offer {
        ring: u8,
        head: u8,
        parts: Vec<(u16, u16, bool)>,
        kick: bool,
    },
    /// A block request that makes sense.
    Block {
        ring: u8,
        kind: u8,
        sector: u16,
        sectors: u8,
        kick: bool,
    },
    Index {
        ring: u8,
        index: u16,
    },
    /// A frame comes from the host.
    Frame {
        len: u16,
    },
    Punch(u16),
    Refill(u16),
    Invalidate,
    FailMap,
    FlushDirty,
    Wait,
}

/// Where an access goes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    Ecam(u32),
    Bar(u32),
    Port(u16),
    Ram(u32),
    Any(u64),
}

impl Place {
    fn get(self) -> u64 {
        match self {
            Place::Ecam(at) => 0xfc80_0000 + u64::from(at % (9 << 20)),
            Place::Bar(at) => super::FIRST_BAR + u64::from(at % (4 * super::BAR_SIZE as u32)),
            Place::Port(port) => port.into(),
            Place::Ram(at) => at.into(),
            Place::Any(at) => at,
        }
    }
}

fn direction(read: bool) -> Direction {
    if read { Direction::Read } else { Direction::Write }
}

fn size(size: u8) -> u8 {
    1 << (size % 4)
}

impl Bench {
    fn slot(&self, slot: u8) -> usize {
        usize::from(slot) % self.slots.len()
    }

    /// The ring meant, by its number in `rings`.
    fn ring(&self, ring: u8) -> Option<usize> {
        usize::from(ring).checked_rem(self.rings.len())
    }

    fn bdf(&self, slot: u8) -> Bdf {
        match self.slots.get(usize::from(slot) % 5) {
            Some(slot) => slot.place,
            None => Bdf::from_bits(slot.into()),
        }
    }

    pub(super) fn play(&mut self, step: Step) {
        match step {
            Step::Ioreq { access, read, pointer, down, size, count, at, data } => {
                let request = Ioreq {
                    access: match access % 8 {
                        0 | 1 => Access::Port,
                        2..=4 => Access::Memory,
                        5 => Access::Config,
                        6 => Access::Invalidate,
                        _ => Access::Other(access),
                    },
                    direction: direction(read),
                    address: at.get(),
                    data,
                    // A string instruction that resets a device takes its time.
                    count: u32::from(count) % 64,
                    size: 1 << (size % 6),
                    data_is_pointer: pointer,
                    downwards: down,
                };
                self.machine.handle(&request);
            }
            Step::Config { slot, register, size, read, value, ports } => {
                let (at, register, size) = (self.bdf(slot), register.into(), self::size(size).min(4));
                if ports {
                    let address = u64::from(at.bits()) << 32 | u64::from(register);
                    self.access(Access::Config, direction(read), address, size, value.into());
                } else {
                    let address = Bench::ecam(at, register);
                    self.access(Access::Memory, direction(read), address, size, value.into());
                }
            }
            Step::Ecam { at, size, read, value } => {
                let address = Place::Ecam(at).get();
                self.access(Access::Memory, direction(read), address, self::size(size), value);
            }
            Step::Bar { slot, at, size, read, value } => {
                let address = self.slots[self.slot(slot)].bar + u64::from(at);
                self.access(Access::Memory, direction(read), address, self::size(size), value);
            }
            Step::Common { slot, register, value } => {
                const FIELDS: [(u64, u8); 18] = [
                    (0x00, 4),
                    (0x04, 4),
                    (0x08, 4),
                    (0x0c, 4),
                    (0x10, 2),
                    (0x12, 2),
                    (0x14, 1),
                    (0x15, 1),
                    (0x16, 2),
                    (0x18, 2),
                    (0x1a, 2),
                    (0x1c, 2),
                    (0x1e, 2),
                    (0x20, 8),
                    (0x28, 8),
                    (0x30, 8),
                    (0x38, 2),
                    (0x3a, 2),
                ];
                let (offset, size) = FIELDS[usize::from(register) % FIELDS.len()];
                self.write(self.slots[self.slot(slot)].bar + offset, size, value);
            }
            Step::QueueReset { slot, queue } => {
                let bar = self.slots[self.slot(slot)].bar;
                self.write(bar + 0x16, 2, u64::from(queue) % 4);
                self.write(bar + 0x3a, 2, 1);
            }
            Step::Status { slot, value } => {
                self.write(self.slots[self.slot(slot)].bar + 0x14, 1, value.into())
            }
            Step::Command { slot, value } => {
                self.write(Bench::ecam(self.bdf(slot), 4), 2, value.into());
            }
            Step::Window { slot, at, length, read, value } => self.window(slot, at, length, read, value),
            Step::Place { slot } => self.place(self.slot(slot)),
            Step::Start { slot, without, orders, at, skip } => {
                let slot = self.slot(slot);
                self.start(slot, !without, &orders, u64::from(at) * 16, skip);
            }
            Step::Kick { slot, queue } => self.kick(self.slot(slot), queue.into()),
            Step::Reset { slot } => {
                let slot = self.slot(slot);
                self.write(self.slots[slot].bar + 0x14, 1, 0);
                assert!(matches!(self.status(slot), 0 | 0xff), "a reset that takes time");
            }
            Step::BusReset => self.bus.reset(),
            Step::Msix { slot, vector, data, masked, enable } => {
                self.msix(slot, vector, data, masked, enable)
            }
            Step::Ram { at, bytes } => self.guest.put(u64::from(at) % RAM, &bytes),
            Step::Ring { ring, at, bytes } => {
                if let Some(ring) = self.ring(ring) {
                    let base = self.rings[ring].ring.layout.descriptors.0;
                    self.guest.put(base + u64::from(at) % crate::ring::SPAN, &bytes);
                }
            }
            Step::Describe { ring, descriptor: d } => {
                if let Some(ring) = self.ring(ring) {
                    let Ring { layout, .. } = self.rings[ring].ring;
                    let index = u16::from(d.index) % layout.size.get();
                    // The rings themselves are a place like any other.
                    let address = match d.address {
                        Address::Table(at) if at & 0x8000 != 0 => {
                            layout.descriptors.0 + u64::from(at & 0xfff)
                        }
                        other => other.get(),
                    };
                    let d = Descriptor { address: Address::Any(address), ..d };
                    d.write(&self.guest, layout.descriptors.0, index, d.next % 65);
                }
            }
            Step::Offer { ring, head, mut parts, kick } => {
                let part = |(at, len, writable)| (BUFFERS + u64::from(at) * 16, u32::from(len), writable);
                parts.sort_by_key(|part| part.2);
                let parts: Vec<_> = parts.into_iter().map(part).filter(|part| part.1 > 0).collect();
                self.offer(ring, head.into(), &parts, kick);
            }
            Step::Block { ring, kind, sector, sectors, kick } => {
                let kind = [0u32, 1, 4, 8, 11, 13][usize::from(kind) % 6];
                let header = BUFFERS + u64::from(ring) * 64;
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&kind.to_le_bytes());
                bytes[8..10].copy_from_slice(&sector.to_le_bytes());
                bytes[16..18].copy_from_slice(&sector.to_le_bytes());
                bytes[24] = sectors;
                self.guest.put(header, &bytes);
                let len = u32::from(sectors) * 512;
                let data = match kind {
                    11 | 13 => (header + 16, 16, false),
                    kind => (BUFFERS + 0x1_0000, len, kind != 1),
                };
                let mut parts = vec![(header, 16, false), data, (header + 48, 1, true)];
                parts.retain(|part| part.1 > 0);
                self.offer(ring, sector % 64, &parts, kick);
            }
            Step::Index { ring, index } => {
                if let Some(ring) = self.ring(ring) {
                    let Bench { guest, rings, .. } = self;
                    rings[ring].ring.show(guest, index);
                }
            }
            Step::Frame { len } => {
                net_control::send(&self.peers[0], &vec![0; usize::from(len).max(12)]);
            }
            Step::Punch(page) => self.guest.punch(page.into()),
            Step::Refill(page) => self.guest.refill(page.into()),
            Step::Invalidate => {
                self.access(Access::Invalidate, Direction::Write, 0, 4, u64::MAX);
            }
            Step::FailMap => self.guest.sim.fail_next_map(),
            Step::FlushDirty => self.guest.memory.flush_dirty().expect("frames that are RAM"),
            Step::Wait => self.settle(),
        }
    }

    fn offer(&mut self, ring: u8, head: u16, parts: &[(u64, u32, bool)], kick: bool) {
        let Some(index) = self.ring(ring) else { return };
        let Bench { guest, rings, .. } = self;
        let Queue { ring, packed, slot, queue } = &mut rings[index];
        let head = head % ring.size();
        let parts = &parts[..parts.len().min(ring.size().into())];
        if let Some(packed) = packed {
            packed.offer(guest, head, parts, 0);
        } else {
            ring.chain(guest, head, parts);
            ring.offer(guest, head);
        }
        let (slot, queue) = (*slot, *queue);
        if kick {
            self.kick(slot, queue);
        }
    }

    fn window(&self, slot: u8, at: u16, length: u8, read: bool, value: u32) {
        let place = self.bdf(slot);
        // The one capability of virtio's type 5, found as a driver finds it.
        let mut offset = self.bus.config_read(place, 0x34, 1) as u16;
        for _ in 0..48 {
            if offset < 0x40 {
                return;
            }
            let word = self.bus.config_read(place, offset & !3, 4);
            if word & 0xff == 9 && word >> 24 == 5 {
                break;
            }
            offset = (word >> 8 & 0xff) as u16;
        }
        let write = |at: u16, value: u32| {
            self.write(Bench::ecam(place, offset.saturating_add(at)), 4, value.into());
        };
        write(8, at.into());
        write(12, length.into());
        match read {
            true => drop(self.read(Bench::ecam(place, offset.saturating_add(16)), 4)),
            false => write(16, value),
        }
    }

    fn msix(&self, slot: u8, vector: u8, data: u8, masked: bool, enable: bool) {
        let slot = &self.slots[self.slot(slot)];
        let entry = slot.bar + 0x8000 + u64::from(vector % 8) * 16;
        self.write(entry, 8, 0xfee0_0000);
        self.write(entry + 8, 8, u64::from(data) | u64::from(masked) << 32);
        // The capability comes last, so its place depends on the others only.
        let mut offset = self.bus.config_read(slot.place, 0x34, 1) as u16;
        for _ in 0..48 {
            let word = self.bus.config_read(slot.place, offset & !3, 4);
            if offset < 0x40 || word & 0xff == 0x11 {
                break;
            }
            offset = (word >> 8 & 0xff) as u16;
        }
        self.write(Bench::ecam(slot.place, offset + 2), 2, if enable { 0x8000 } else { 0 });
    }

    /// Gives the workers a moment to do what they were asked for.
    pub(super) fn settle(&mut self) {
        let end = Instant::now() + Duration::from_micros(300);
        let mut rest = Vec::new();
        let Bench { guest, rings, peers, .. } = self;
        loop {
            for Queue { ring, .. } in rings.iter_mut() {
                while ring.take_used(guest).is_some_and(|_| ring.used != ring.available) {}
            }
            let waits = |queue: &Queue| {
                queue.slot != NET && queue.packed.is_none() && queue.ring.used != queue.ring.available
            };
            if !rings.iter().any(waits) || Instant::now() > end {
                break;
            }
            std::thread::yield_now();
        }
        while net_control::sent(&peers[0], &mut rest) {}
    }
}
