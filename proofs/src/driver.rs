//! The least driver: finds a function's structures by its capabilities, and makes rings.
//!
//! It waits by looking, and only for what is to happen; it never takes an answer for granted.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::subject::Subject;
use crate::{ECAM, MMIO, MMIO_HIGH};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long to look for what should not happen.
const GRACE: Duration = Duration::from_millis(30);
/// And how long where one of the two does it.
const LONG_GRACE: Duration = Duration::from_millis(800);

/// Registers of the common configuration (virtio 1.3 §4.1.4.3): offset and width.
pub type Register = (u64, u8);
pub const DEVICE_FEATURE_SELECT: Register = (0x00, 4);
pub const DEVICE_FEATURE: Register = (0x04, 4);
pub const DRIVER_FEATURE_SELECT: Register = (0x08, 4);
pub const DRIVER_FEATURE: Register = (0x0c, 4);
pub const CONFIG_VECTOR: Register = (0x10, 2);
pub const NUM_QUEUES: Register = (0x12, 2);
pub const STATUS: Register = (0x14, 1);
pub const GENERATION: Register = (0x15, 1);
pub const QUEUE_SELECT: Register = (0x16, 2);
pub const QUEUE_SIZE: Register = (0x18, 2);
pub const QUEUE_VECTOR: Register = (0x1a, 2);
pub const QUEUE_ENABLE: Register = (0x1c, 2);
pub const QUEUE_NOTIFY_OFF: Register = (0x1e, 2);
pub const QUEUE_DESC: Register = (0x20, 8);
pub const QUEUE_DRIVER: Register = (0x28, 8);
pub const QUEUE_DEVICE: Register = (0x30, 8);
pub const QUEUE_RESET: Register = (0x3a, 2);

pub const ACKNOWLEDGE: u64 = 1;
pub const DRIVER: u64 = 2;
pub const DRIVER_OK: u64 = 4;
pub const FEATURES_OK: u64 = 8;
pub const NEEDS_RESET: u64 = 64;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
pub const RING_RESET: u64 = 1 << 40;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;
/// In a packed ring: whose the descriptor is (virtio 1.3 §2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Where a function is on bus 0. A number alone is function 0 of that slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub slot: u8,
    pub function: u8,
}

impl From<u8> for Place {
    fn from(slot: u8) -> Place {
        Place { slot, function: 0 }
    }
}

impl Place {
    /// As in a requester id: the five bits of the slot, and the three of the function.
    fn bits(self) -> u64 {
        u64::from(self.slot << 3 | self.function)
    }
}

/// A virtio function whose BARs have addresses.
#[derive(Clone, Debug, Default)]
pub struct Function {
    pub place: Place,
    pub common: u64,
    pub isr: u64,
    pub device: u64,
    pub notify: u64,
    pub multiplier: u64,
    pub table: u64,
    pub pending: u64,
    /// Offset of the capability.
    pub msix: u16,
}

/// Reads configuration space.
pub fn config(subject: &mut dyn Subject, place: impl Into<Place>, register: u16, size: u8) -> u64 {
    subject.read(ECAM + (place.into().bits() << 12) + u64::from(register), size)
}

/// Writes configuration space.
pub fn set_config(subject: &mut dyn Subject, place: impl Into<Place>, register: u16, size: u8, value: u64) {
    subject.write(ECAM + (place.into().bits() << 12) + u64::from(register), size, value);
}

/// The capabilities of a function: offset and id.
pub fn capabilities(subject: &mut dyn Subject, place: impl Into<Place>) -> Vec<(u16, u8)> {
    let place = place.into();
    let mut found = Vec::new();
    let mut at = config(subject, place, 0x34, 1) as u16;
    while at != 0 {
        assert!(found.len() < 48, "the list of capabilities has no end");
        found.push((at, config(subject, place, at, 1) as u8));
        at = config(subject, place, at + 1, 1) as u16;
    }
    found
}

/// A BAR: index, size, and its low four bits.
pub fn bars(subject: &mut dyn Subject, place: impl Into<Place>) -> Vec<(u8, u64, u8)> {
    let place = place.into();
    let mut found = Vec::new();
    let mut index = 0;
    while index < 6 {
        let register = 0x10 + u16::from(index) * 4;
        let flags = config(subject, place, register, 4) as u8 & 0xf;
        let wide = flags & 6 == 4;
        let mut mask = !0;
        set_config(subject, place, register, 4, 0xffff_ffff);
        mask &= config(subject, place, register, 4) | 0xffff_ffff_0000_0000;
        if wide {
            set_config(subject, place, register + 4, 4, 0xffff_ffff);
            mask &= config(subject, place, register + 4, 4) << 32 | 0xffff_ffff;
        }
        if mask & 0xffff_ffff != 0 {
            found.push((index, (!(mask & !0xf)).wrapping_add(1), flags));
        }
        index += if wide { 2 } else { 1 };
    }
    found
}

impl Function {
    /// Gives the BARs of the function that is there addresses and finds what is in them.
    pub fn find(subject: &mut dyn Subject, place: impl Into<Place>) -> Function {
        let place = place.into();
        let mut places = [0; 6];
        let mut low = MMIO + (place.bits() << 17);
        let mut high = MMIO_HIGH + (place.bits() << 21);
        for (index, size, flags) in bars(subject, place) {
            let register = 0x10 + u16::from(index) * 4;
            let next = if flags & 6 == 4 { &mut high } else { &mut low };
            let at = next.next_multiple_of(size);
            *next = at + size;
            set_config(subject, place, register, 4, at & 0xffff_ffff);
            if flags & 6 == 4 {
                set_config(subject, place, register + 4, 4, at >> 32);
            }
            places[usize::from(index)] = at;
        }
        set_config(subject, place, 4, 2, 6);
        let mut function = Function { place, ..Function::default() };
        for (at, id) in capabilities(subject, place) {
            if id == 0x11 {
                function.msix = at;
                let address = |word: u64| places[word as usize & 7] + (word & !7);
                function.table = address(config(subject, place, at + 4, 4));
                function.pending = address(config(subject, place, at + 8, 4));
            } else if id == 0x09 {
                let kind = config(subject, place, at + 3, 1);
                let bar = config(subject, place, at + 4, 1) as u8;
                let offset = config(subject, place, at + 8, 4);
                let address = places[usize::from(bar % 6)] + offset;
                match kind {
                    1 => function.common = address,
                    2 => {
                        function.notify = address;
                        function.multiplier = config(subject, place, at + 16, 4);
                    }
                    3 => function.isr = address,
                    4 => function.device = address,
                    _ => {}
                }
            }
        }
        function
    }

    pub fn get(&self, subject: &mut dyn Subject, register: Register) -> u64 {
        subject.read(self.common + register.0, register.1)
    }

    pub fn set(&self, subject: &mut dyn Subject, register: Register, value: u64) {
        subject.write(self.common + register.0, register.1, value);
    }

    /// What the device offers, words 0 to 3.
    pub fn offered(&self, subject: &mut dyn Subject) -> u128 {
        (0..4).fold(0, |all, word| {
            self.set(subject, DEVICE_FEATURE_SELECT, word);
            all | u128::from(self.get(subject, DEVICE_FEATURE)) << (word * 32)
        })
    }

    /// Accepts these features.
    pub fn accept(&self, subject: &mut dyn Subject, features: u64) {
        for word in 0..2 {
            self.set(subject, DRIVER_FEATURE_SELECT, word);
            self.set(subject, DRIVER_FEATURE, features >> (word * 32) & 0xffff_ffff);
        }
    }

    /// Resets the device and negotiates, up to FEATURES_OK. Features that are not offered are left out.
    /// Returns the others.
    pub fn negotiate(&self, subject: &mut dyn Subject, features: u64) -> u64 {
        self.set(subject, STATUS, 0);
        assert_eq!(self.get(subject, STATUS), 0);
        self.set(subject, STATUS, ACKNOWLEDGE);
        self.set(subject, STATUS, ACKNOWLEDGE | DRIVER);
        let offered = self.offered(subject) as u64;
        self.accept(subject, features & offered);
        self.set(subject, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.get(subject, STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        features & offered
    }

    pub fn drive(&self, subject: &mut dyn Subject) {
        self.set(subject, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn kick(&self, subject: &mut dyn Subject, queue: u16) {
        self.set(subject, QUEUE_SELECT, queue.into());
        let offset = self.get(subject, QUEUE_NOTIFY_OFF) * self.multiplier;
        subject.write(self.notify + offset, 2, queue.into());
    }

    /// The ISR status, once it says something if it is `expected` to. Interrupts come after what they tell of.
    #[track_caller]
    pub fn isr(&self, subject: &mut dyn Subject, expected: bool) -> u64 {
        let mut isr = 0;
        let mut look = || {
            isr |= subject.read(self.isr, 1);
            isr != 0
        };
        match expected {
            true => until(look),
            false => drop(soon(&mut look)),
        }
        isr
    }

    /// Turns MSI-X on, and has vector n send `0x41 + n` to mailbox n.
    pub fn enable_msix(&self, subject: &mut dyn Subject, vectors: u64) {
        for vector in 0..vectors {
            let entry = self.table + vector * 16;
            let mailbox = subject.mailbox(vector);
            subject.write(entry, 4, mailbox);
            subject.write(entry + 4, 4, 0);
            subject.write(entry + 8, 4, 0x41 + vector);
            subject.write(entry + 12, 4, 0);
        }
        set_config(subject, self.place, self.msix + 2, 2, 0x8000);
    }
}

/// A buffer of a chain: address, length, whether the device writes it.
pub type Part = (u64, u32, bool);

/// A descriptor: address, length, flags, number of the next.
pub type Raw = (u64, u32, u16, u16);

/// The driver's end of a ring, split or packed, the parts of which are 64 KiB from each other.
pub struct Ring {
    pub queue: u16,
    pub size: u16,
    pub at: u64,
    /// How many chains were made available.
    pub available: u16,
    /// How many came back.
    pub used: u16,
    packed: Option<Packed>,
}

/// What the driver of a packed ring keeps (virtio 1.3 §2.8).
struct Packed {
    /// What would be the table of descriptors if the ring were split; from it chains go to the ring.
    table: BTreeMap<u16, Raw>,
    /// Number of descriptors of each chain that is out, by its id.
    out: BTreeMap<u16, u16>,
    next_available: Position,
    next_used: Position,
}

/// A slot of the ring, and the wrap counter there.
#[derive(Clone, Copy)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    const FIRST: Position = Position { slot: 0, wrap: true };

    fn advance(&mut self, by: u16, size: u16) {
        self.slot += by;
        if self.slot >= size {
            self.slot -= size;
            self.wrap = !self.wrap;
        }
    }
}

impl Ring {
    /// Makes a ring of the kind that `features` say and enables the queue.
    pub fn new(
        subject: &mut dyn Subject,
        function: &Function,
        features: u64,
        queue: u16,
        size: u16,
        at: u64,
    ) -> Ring {
        let packed = (features & PACKED != 0).then(|| Packed {
            table: BTreeMap::new(),
            out: BTreeMap::new(),
            next_available: Position::FIRST,
            next_used: Position::FIRST,
        });
        let ring = Ring { queue, size, at, available: 0, used: 0, packed };
        subject.ram_write(at, &vec![0; 0x3_0000]);
        function.set(subject, QUEUE_SELECT, queue.into());
        function.set(subject, QUEUE_SIZE, size.into());
        function.set(subject, QUEUE_DESC, at);
        function.set(subject, QUEUE_DRIVER, ring.driver_area());
        function.set(subject, QUEUE_DEVICE, ring.device_area());
        function.set(subject, QUEUE_ENABLE, 1);
        assert_eq!(function.get(subject, QUEUE_ENABLE), 1);
        ring
    }

    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    pub fn driver_area(&self) -> u64 {
        self.at + 0x1_0000
    }

    pub fn device_area(&self) -> u64 {
        self.at + 0x2_0000
    }

    /// Writes one descriptor.
    pub fn descriptor(&mut self, subject: &mut dyn Subject, index: u16, raw: Raw) {
        match &mut self.packed {
            Some(packed) => drop(packed.table.insert(index, raw)),
            None => subject.ram_write(self.at + u64::from(index) * 16, &descriptor(raw)),
        }
    }

    /// Writes a chain in descriptors from `head` on.
    pub fn chain(&mut self, subject: &mut dyn Subject, head: u16, parts: &[Part]) {
        for (index, raw) in (head..).zip(linked(parts, head)) {
            self.descriptor(subject, index, raw);
        }
    }

    /// The bytes of an indirect table for this kind of ring.
    pub fn table(&self, parts: &[Part]) -> Vec<u8> {
        let split = self.packed.is_none();
        let raw = linked(parts, 0).into_iter();
        raw.flat_map(|raw| if split { descriptor(raw) } else { packed_descriptor(raw, 0, raw.2 & WRITE) })
            .collect()
    }

    /// Makes chain `head` available, and tells nobody.
    pub fn offer(&mut self, subject: &mut dyn Subject, head: u16) {
        match &mut self.packed {
            Some(packed) => packed.offer(subject, self.at, self.size, head),
            None => {
                let slot = self.driver_area() + 4 + u64::from(self.available % self.size) * 2;
                subject.ram_write(slot, &head.to_le_bytes());
                let available = self.available.wrapping_add(1);
                subject.ram_write(self.driver_area() + 2, &available.to_le_bytes());
            }
        }
        self.available = self.available.wrapping_add(1);
    }

    /// The next chain that came back: head and length.
    pub fn take(&mut self, subject: &mut dyn Subject) -> Option<(u32, u32)> {
        let found = match &mut self.packed {
            Some(packed) => packed.take(subject, self.at, self.size)?,
            None => {
                if word(subject, self.device_area() + 2) == self.used {
                    return None;
                }
                let mut element = [0; 8];
                let slot = self.device_area() + 4 + u64::from(self.used % self.size) * 8;
                subject.ram_read(slot, &mut element);
                let [a, b, c, d, e, f, g, h] = element;
                (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
            }
        };
        self.used = self.used.wrapping_add(1);
        Some(found)
    }

    /// The next used element, or none if the device gives up first.
    #[track_caller]
    pub fn wait(&mut self, subject: &mut dyn Subject, function: &Function) -> Option<(u32, u32)> {
        let mut found = None;
        until(|| {
            found = self.take(subject);
            found.is_some() || function.get(subject, STATUS) & NEEDS_RESET != 0
        });
        found.or_else(|| self.take(subject))
    }
}

impl Packed {
    /// Puts the chain in the ring; its first descriptor's flags go last (§2.8.21).
    fn offer(&mut self, subject: &mut dyn Subject, ring: u64, size: u16, head: u16) {
        let first = self.next_available;
        let (mut count, mut index) = (0, head);
        let mut first_flags = 0;
        loop {
            let raw = self.table[&index];
            let whose = if self.next_available.wrap { AVAILABLE } else { USED };
            let flags = raw.2 | whose;
            let slot = ring + u64::from(self.next_available.slot) * 16;
            let written = packed_descriptor(raw, head, flags);
            if count == 0 {
                first_flags = flags;
                subject.ram_write(slot, &written[..14]);
            } else {
                subject.ram_write(slot, &written);
            }
            count += 1;
            self.next_available.advance(1, size);
            if raw.2 & NEXT == 0 {
                break;
            }
            index = raw.3;
        }
        self.out.insert(head, count);
        subject.ram_write(ring + u64::from(first.slot) * 16 + 14, &first_flags.to_le_bytes());
    }

    fn take(&mut self, subject: &mut dyn Subject, ring: u64, size: u16) -> Option<(u32, u32)> {
        let Position { slot, wrap } = self.next_used;
        let at = ring + u64::from(slot) * 16;
        let flags = word(subject, at + 14);
        if (flags & AVAILABLE != 0, flags & USED != 0) != (wrap, wrap) {
            return None;
        }
        let mut len = [0; 4];
        subject.ram_read(at + 8, &mut len);
        let id = word(subject, at + 12);
        let count = self.out.remove(&id).expect("a chain that is out");
        self.next_used.advance(count, size);
        Some((id.into(), u32::from_le_bytes(len)))
    }
}

/// A descriptor of a packed ring or table.
fn packed_descriptor((address, len, _, _): Raw, id: u16, flags: u16) -> [u8; 16] {
    descriptor((address, len, id, flags))
}

pub fn word(subject: &mut dyn Subject, address: u64) -> u16 {
    let mut bytes = [0; 2];
    subject.ram_read(address, &mut bytes);
    u16::from_le_bytes(bytes)
}

pub fn descriptor((address, len, flags, next): Raw) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}

/// Descriptors of a chain, the first of which is number `first`.
pub fn linked(parts: &[Part], first: u16) -> Vec<Raw> {
    let last = parts.len() - 1;
    let raw = parts.iter().zip(first..).enumerate();
    raw.map(|(index, (&(address, len, writable), number))| {
        let more = if index < last { NEXT } else { 0 };
        (address, len, more | if writable { WRITE } else { 0 }, if index < last { number + 1 } else { 0 })
    })
    .collect()
}

/// Waits until something is so.
#[track_caller]
pub fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "nothing happens");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Whether something is so, or comes to be soon: for what is not to be.
pub fn soon(mut done: impl FnMut() -> bool) -> bool {
    within(GRACE, &mut done)
}

/// [`soon`], where one of the machines is to do it and has to be given time, however busy this computer is.
pub fn sooner_or_later(mut done: impl FnMut() -> bool) -> bool {
    within(LONG_GRACE, &mut done)
}

fn within(limit: Duration, done: &mut dyn FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if done() {
            return true;
        }
        thread::sleep(Duration::from_micros(500));
    }
    done()
}
