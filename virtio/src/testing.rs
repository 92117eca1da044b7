//! The guest's side of a queue, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use domain::Gpa;
use memory::{GuestMemory, Region};
use sim::SimDomain;

use crate::queue::{Interrupt, Layout, Queue, QueueSize, QueueState};

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
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let interrupt: Interrupt = Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
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

    /// The next used chain: its head, and bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.get(self.layout.used.0 + 2) == self.used {
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
