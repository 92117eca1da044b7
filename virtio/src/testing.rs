//! The guest's side of queues, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use domain::Gpa;
use memory::{GuestMemory, Region};
use sim::SimDomain;

use crate::queue::{FEATURE_RING_PACKED, Interrupt, Layout, Queue, QueueSize, QueueState};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Bytes of RAM of [`guest`], which starts at 0.
pub(crate) const RAM: u64 = 16 << 20;

/// A guest with RAM and nothing in it.
pub(crate) fn guest() -> (Arc<SimDomain>, GuestMemory) {
    let sim = SimDomain::new(1, &[(Gpa(0), RAM)]).unwrap();
    let memory = GuestMemory::new(sim.clone(), &[Region { start: Gpa(0), size: RAM }]).unwrap();
    (sim, memory)
}

/// The driver's end of a split ring.
pub(crate) struct Ring {
    pub(crate) sim: Arc<SimDomain>,
    pub(crate) layout: Layout,
    /// The available index, as the driver counts it.
    pub(crate) available: u16,
    /// The used index up to which the driver has looked.
    pub(crate) used: u16,
}

impl Ring {
    /// A ring of `size` entries, its three parts one after the other from `at`, a page each at least.
    pub(crate) fn new(sim: &Arc<SimDomain>, at: u64, size: u16) -> Ring {
        let page = |bytes: u64| bytes.next_multiple_of(4096);
        let available = at + page(u64::from(size) * 16);
        let used = available + page(u64::from(size) * 2 + 6);
        let layout = Layout {
            size: QueueSize::new(size).unwrap(),
            descriptors: Gpa(at),
            available: Gpa(available),
            used: Gpa(used),
        };
        Ring { sim: sim.clone(), layout, available: 0, used: 0 }
    }

    pub(crate) fn size(&self) -> u16 {
        self.layout.size.get()
    }

    /// A device's queue over this ring, and how often it interrupted.
    pub(crate) fn queue(&self, memory: &GuestMemory, features: u64) -> (Queue, Arc<AtomicUsize>) {
        let (interrupt, count) = counter();
        let state = QueueState { next_avail: self.available, next_used: self.used };
        (Queue::new(memory.clone(), self.layout, features, state, interrupt).unwrap(), count)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.sim.ram_write(Gpa(at), bytes);
    }

    fn get(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.sim.ram_read(Gpa(at), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Writes a descriptor in the table at `table`.
    pub(crate) fn descriptor_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut raw = Vec::from(addr.to_le_bytes());
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &raw);
    }

    /// Writes a descriptor of the ring.
    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.layout.descriptors.0, index, addr, len, flags, next);
    }

    /// Writes a chain of descriptors from `head` on, each (address, length, device-writable).
    pub(crate) fn chain(&self, head: u16, parts: &[(u64, u32, bool)]) {
        for (index, &(addr, len, writable)) in (head..).zip(parts) {
            let next = if usize::from(index - head) + 1 < parts.len() { NEXT } else { 0 };
            self.descriptor(index, addr, len, next | if writable { WRITE } else { 0 }, index + 1);
        }
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size());
        self.put(self.layout.available.0 + 4 + slot * 2, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    /// Writes the available index, right or wrong.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.put(self.layout.available.0 + 2, &index.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.put(self.layout.available.0, &flags.to_le_bytes());
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        self.put(self.layout.available.0 + 4 + u64::from(self.size()) * 2, &index.to_le_bytes());
    }

    pub(crate) fn available_event(&self) -> u16 {
        self.get(self.layout.used.0 + 4 + u64::from(self.size()) * 8)
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.get(self.layout.used.0)
    }

    /// The used index as the device shows it.
    pub(crate) fn used_index(&self) -> u16 {
        self.get(self.layout.used.0 + 2)
    }

    /// The next used chain: its head, and bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.size());
        let mut raw = [0; 8];
        self.sim.ram_read(Gpa(self.layout.used.0 + 4 + slot * 8), &mut raw[..4]);
        self.sim.ram_read(Gpa(self.layout.used.0 + 8 + slot * 8), &mut raw[4..]);
        self.used = self.used.wrapping_add(1);
        let raw = u64::from_le_bytes(raw);
        Some((raw as u32, (raw >> 32) as u32))
    }
}

/// An interrupt, and how often it happened.
fn counter() -> (Interrupt, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let interrupt = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    (Box::new(interrupt), count)
}

/// Descriptor flags of packed rings.
pub(crate) const AVAIL: u16 = 1 << 7;
pub(crate) const USED: u16 = 1 << 15;
/// Flags of event suppression.
pub(crate) const ENABLE: u16 = 0;
pub(crate) const DISABLE: u16 = 1;
pub(crate) const DESC: u16 = 2;

/// The driver's end of a packed ring.
pub(crate) struct PackedRing {
    pub(crate) sim: Arc<SimDomain>,
    pub(crate) layout: Layout,
    /// Where the next descriptor goes, and the driver's wrap counter.
    pub(crate) available: (u16, bool),
    /// Where the next used descriptor comes, and the device's wrap counter as the driver knows it.
    pub(crate) used: (u16, bool),
    /// Descriptors of each buffer, by its id.
    pub(crate) slots: Vec<u16>,
}

impl PackedRing {
    /// A ring of `size` descriptors from `at` on, with the event suppression of both sides behind it.
    pub(crate) fn new(sim: &Arc<SimDomain>, at: u64, size: u16) -> PackedRing {
        let driver = at + (u64::from(size) * 16).next_multiple_of(4096);
        let layout = Layout {
            size: QueueSize::packed(size).unwrap(),
            descriptors: Gpa(at),
            available: Gpa(driver),
            used: Gpa(driver + 4),
        };
        let start = (0, true);
        PackedRing { sim: sim.clone(), layout, available: start, used: start, slots: vec![0; size.into()] }
    }

    pub(crate) fn size(&self) -> u16 {
        self.layout.size.get()
    }

    /// A device's queue over this ring, and how often it interrupted.
    pub(crate) fn queue(&self, memory: &GuestMemory, features: u64) -> (Queue, Arc<AtomicUsize>) {
        let (interrupt, count) = counter();
        let bits = |(index, wrap)| index | u16::from(wrap) << 15;
        let state = QueueState { next_avail: bits(self.available), next_used: bits(self.used) };
        let features = features | FEATURE_RING_PACKED;
        (Queue::new(memory.clone(), self.layout, features, state, interrupt).unwrap(), count)
    }

    /// Writes a descriptor, right or wrong.
    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let at = self.layout.descriptors.0 + u64::from(index) * 16;
        self.sim.ram_write(Gpa(at), &addr.to_le_bytes());
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.sim.ram_write(Gpa(at + 8), &rest.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// What is in the ring at `index`: length, id and flags.
    pub(crate) fn read(&self, index: u16) -> (u32, u16, u16) {
        let mut rest = [0; 8];
        self.sim.ram_read(Gpa(self.layout.descriptors.0 + u64::from(index) * 16 + 8), &mut rest);
        let rest = u64::from_le_bytes(rest);
        (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
    }

    /// The flags of a descriptor made available at a place.
    pub(crate) fn flags((_, wrap): (u16, bool)) -> u16 {
        if wrap { AVAIL } else { USED }
    }

    pub(crate) fn next(&self, (index, wrap): (u16, bool), slots: u16) -> (u16, bool) {
        let index = index + slots;
        if index < self.size() { (index, wrap) } else { (index - self.size(), !wrap) }
    }

    /// Makes a buffer available that consists of (address, length, flags): the first descriptor comes last.
    pub(crate) fn offer_raw(&mut self, id: u16, parts: &[(u64, u32, u16)]) {
        let mut places = Vec::new();
        for _ in parts {
            places.push(self.available);
            self.available = self.next(self.available, 1);
        }
        for (nth, (&place, &(addr, len, flags))) in places.iter().zip(parts).enumerate().rev() {
            let next = NEXT * u16::from(nth + 1 < parts.len());
            // Only the last one's id counts.
            let id = if next == 0 { id } else { 0xdead };
            self.descriptor(place.0, addr, len, id, flags | next | PackedRing::flags(place));
        }
        if let Some(slots) = self.slots.get_mut(usize::from(id)) {
            *slots = parts.len() as u16;
        }
    }

    /// Makes a buffer available of parts as in [`Ring::chain`].
    pub(crate) fn offer(&mut self, id: u16, parts: &[(u64, u32, bool)]) {
        let parts: Vec<_> =
            parts.iter().map(|&(addr, len, write)| (addr, len, WRITE * u16::from(write))).collect();
        self.offer_raw(id, &parts);
    }

    /// The next used buffer: its id, and bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let (len, id, flags) = self.read(self.used.0);
        let wrap = self.used.1;
        if (flags & AVAIL != 0, flags & USED != 0) != (wrap, wrap) {
            return None;
        }
        self.used = self.next(self.used, self.slots[usize::from(id)]);
        assert_eq!(flags & WRITE != 0, len > 0, "the length is valid if there is one");
        Some((id, len))
    }

    /// Says what interrupts are wanted.
    pub(crate) fn set_event(&self, flags: u16, (index, wrap): (u16, bool)) {
        let event = u32::from(index | u16::from(wrap) << 15) | u32::from(flags) << 16;
        self.sim.ram_write(self.layout.available, &event.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// What notifications the device wants: flags and place.
    pub(crate) fn event(&self) -> (u16, (u16, bool)) {
        let mut raw = [0; 4];
        self.sim.ram_read(self.layout.used, &mut raw);
        let raw = u32::from_le_bytes(raw);
        ((raw >> 16) as u16, (raw as u16 & 0x7fff, raw & 0x8000 != 0))
    }
}

/// A driver that does not care what kind of ring it has. Buffers have numbers, of four descriptors at most.
pub(crate) enum AnyRing {
    Split(Ring),
    Packed(PackedRing),
}

impl AnyRing {
    pub(crate) fn new(sim: &Arc<SimDomain>, at: u64, size: u16, features: u64) -> AnyRing {
        if features & FEATURE_RING_PACKED != 0 {
            AnyRing::Packed(PackedRing::new(sim, at, size))
        } else {
            AnyRing::Split(Ring::new(sim, at, size))
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        match self {
            AnyRing::Split(ring) => ring.layout,
            AnyRing::Packed(ring) => ring.layout,
        }
    }

    pub(crate) fn queue(&self, memory: &GuestMemory, features: u64) -> (Queue, Arc<AtomicUsize>) {
        match self {
            AnyRing::Split(ring) => ring.queue(memory, features),
            AnyRing::Packed(ring) => ring.queue(memory, features),
        }
    }

    /// Makes buffer `number` available.
    pub(crate) fn offer(&mut self, number: u16, parts: &[(u64, u32, bool)]) {
        assert!(parts.len() <= 4);
        match self {
            AnyRing::Split(ring) => {
                ring.chain(number * 4, parts);
                ring.offer(number * 4);
            }
            AnyRing::Packed(ring) => ring.offer(number, parts),
        }
    }

    /// The number of a buffer, from what the device calls it.
    pub(crate) fn number(&self, head: u16) -> u16 {
        match self {
            AnyRing::Split(_) => head / 4,
            AnyRing::Packed(_) => head,
        }
    }

    /// The next used buffer: its number, and bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        match self {
            AnyRing::Split(ring) => ring.take_used().map(|(head, len)| (head as u16 / 4, len)),
            AnyRing::Packed(ring) => ring.take_used(),
        }
    }

    /// Asks for an interrupt with the next used buffer, and no other (EVENT_IDX).
    pub(crate) fn want_next(&self) {
        match self {
            AnyRing::Split(ring) => ring.set_used_event(ring.used),
            AnyRing::Packed(ring) => ring.set_event(DESC, ring.used),
        }
        fence(Ordering::SeqCst);
    }
}
