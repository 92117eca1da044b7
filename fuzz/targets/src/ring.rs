//! The driver's end of rings, which can be used right and wrong.

use std::sync::atomic::{Ordering, fence};

use arbitrary::Arbitrary;
use domain::Gpa;
use virtio::{Layout, QueueSize};

use crate::guest::Guest;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Bytes that a ring of up to 64 entries takes here.
pub const SPAN: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

/// A descriptor as a fuzzer thinks of it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Descriptor {
    pub index: u8,
    pub address: Address,
    pub len: Len,
    pub flags: u8,
    pub next: u16,
}

impl Descriptor {
    /// Writes it as one of a split ring, mostly with flags that there are.
    pub fn write(&self, guest: &Guest, table: u64, index: u16, next: u16) {
        let flags = u16::from(self.flags);
        let flags = if flags < 0xf0 { flags & (NEXT | WRITE | INDIRECT) } else { flags << 8 | flags };
        Ring::describe(guest, table, index, self.address.get(), self.len.get(), flags, next);
    }
}

/// Addresses, the interesting ones being likely.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// Anywhere in the first 16 MiB.
    Near([u8; 3]),
    /// A multiple of 16 in the first MiB: where tables may be.
    Table(u16),
    /// Anywhere.
    Any(u64),
}

impl Address {
    pub fn get(self) -> u64 {
        match self {
            Address::Near([a, b, c]) => u32::from_le_bytes([a, b, c, 0]).into(),
            Address::Table(at) => u64::from(at) * 16,
            Address::Any(at) => at,
        }
    }
}

/// Lengths, the interesting ones being likely.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Len {
    Short(u8),
    /// So many entries of an indirect table.
    Entries(u8),
    Long(u16),
    Any(u32),
}

impl Len {
    pub fn get(self) -> u32 {
        match self {
            Len::Short(len) => len.into(),
            Len::Entries(count) => u32::from(count) * 16,
            Len::Long(len) => len.into(),
            Len::Any(len) => len,
        }
    }
}

/// A split ring and how far the driver has got.
#[derive(Clone, Debug)]
pub struct Ring {
    pub layout: Layout,
    pub available: u16,
    pub used: u16,
}

impl Ring {
    /// A ring of 2^`order` entries, at most 64, in the [`SPAN`] bytes at `at`.
    pub fn new(at: u64, order: u8) -> Ring {
        let size = QueueSize::new(1 << order.min(6)).expect("a power of two");
        let layout =
            Layout { size, descriptors: Gpa(at), available: Gpa(at + AVAILABLE), used: Gpa(at + USED) };
        Ring { layout, available: 0, used: 0 }
    }

    pub fn size(&self) -> u16 {
        self.layout.size.get()
    }

    /// Writes a descriptor of the table at `table`.
    pub fn describe(guest: &Guest, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let raw =
            u128::from(address) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        guest.put(table.wrapping_add(u64::from(index) * 16), &raw.to_le_bytes());
    }

    /// Writes a chain of the ring from descriptor `head` on, each part an address, a length and whether the
    /// device writes it.
    pub fn chain(&self, guest: &Guest, head: u16, parts: &[(u64, u32, bool)]) {
        let size = self.size();
        for (nth, &(address, len, writable)) in (0u16..).zip(parts) {
            let more = usize::from(nth) + 1 < parts.len();
            let flags = if more { NEXT } else { 0 } | if writable { WRITE } else { 0 };
            let index = head.wrapping_add(nth) % size;
            Ring::describe(guest, self.layout.descriptors.0, index, address, len, flags, (index + 1) % size);
        }
    }

    /// Makes a chain available.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = u64::from(self.available % self.size());
        guest.put(self.layout.available.0 + 4 + slot * 2, &head.to_le_bytes());
        self.show(guest, self.available.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn show(&mut self, guest: &Guest, index: u16) {
        self.available = index;
        guest.put(self.layout.available.0 + 2, &index.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// The next used element: a head and a length.
    pub fn take_used(&mut self, guest: &Guest) -> Option<(u32, u32)> {
        let index = u16::from_le_bytes(guest.get(self.layout.used.0 + 2)?);
        if index == self.used {
            return None;
        }
        let at = self.layout.used.0 + 4 + u64::from(self.used % self.size()) * 8;
        let (head, len) = (guest.get(at)?, guest.get(at + 4)?);
        self.used = self.used.wrapping_add(1);
        Some((u32::from_le_bytes(head), u32::from_le_bytes(len)))
    }
}

/// A packed ring and where the driver writes next.
#[derive(Clone, Debug)]
pub struct PackedRing {
    pub layout: Layout,
    pub next: u16,
    pub wrap: bool,
}

impl PackedRing {
    const AVAILABLE: u16 = 1 << 7;
    const USED: u16 = 1 << 15;

    /// A ring of `size` entries, 1 to 64, in the [`SPAN`] bytes at `at`.
    pub fn new(at: u64, size: u16) -> PackedRing {
        let layout = Layout {
            size: QueueSize::packed(size).expect("a size"),
            descriptors: Gpa(at),
            available: Gpa(at + AVAILABLE),
            used: Gpa(at + USED),
        };
        PackedRing { layout, next: 0, wrap: true }
    }

    /// Writes a descriptor; `rest` is its flags and buffer id.
    pub fn describe(guest: &Guest, table: u64, index: u16, address: u64, len: u32, rest: (u16, u16)) {
        let (flags, id) = rest;
        Ring::describe(guest, table, index, address, len, id, flags);
    }

    /// Makes a chain available, its first descriptor last.
    pub fn offer(&mut self, guest: &Guest, id: u16, parts: &[(u64, u32, bool)], more_flags: u16) {
        let size = self.layout.size.get();
        let mut written = Vec::new();
        for (nth, &(address, len, writable)) in parts.iter().enumerate() {
            let place = if self.wrap { PackedRing::AVAILABLE } else { PackedRing::USED };
            let next = if nth + 1 < parts.len() { NEXT } else { 0 };
            let flags = place | next | more_flags | if writable { WRITE } else { 0 };
            written.push((self.next % size, address, len, flags));
            self.next = self.next.wrapping_add(1);
            if self.next >= size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
        for (index, address, len, flags) in written.into_iter().rev() {
            fence(Ordering::SeqCst);
            PackedRing::describe(guest, self.layout.descriptors.0, index, address, len, (flags, id));
        }
    }
}
