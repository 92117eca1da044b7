//! What split and packed rings have in common: where their parts lie, descriptors, indirect tables.
//!
//! Everything the driver wrote is read once, into private memory, and checked there.

use domain::Gpa;
use memory::{GuestMemory, View};
use pci::width::{low16, low32};

use crate::chain::{Chain, Segment};
use crate::queue::{FEATURE_RING_PACKED, Layout, MAX_INDIRECT, QueueError, QueueSize};
use crate::{packed, split};

pub(crate) const DESCRIPTOR_SIZE: usize = 16;

/// The chain goes on.
pub(crate) const FLAG_NEXT: u16 = 1;
/// The device writes; it reads otherwise.
pub(crate) const FLAG_WRITE: u16 = 2;
/// What is named is a table of descriptors.
pub(crate) const FLAG_INDIRECT: u16 = 4;

/// A descriptor, read.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) addr: Gpa,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    /// Where a split ring's chain goes on (`next`); which buffer it is in a packed ring (`id`).
    pub(crate) link: u16,
}

impl Descriptor {
    /// From the two little-endian halves that it is in memory, as a split ring has them (§2.7.5).
    pub(crate) fn split(addr: u64, rest: u64) -> Descriptor {
        let (flags, link) = (low16(rest >> 32), low16(rest >> 48));
        Descriptor { addr: Gpa(addr), len: low32(rest), flags, link }
    }

    /// The same as a packed ring has them (§2.8.13).
    pub(crate) fn packed(addr: u64, rest: u64) -> Descriptor {
        let (link, flags) = (low16(rest >> 32), low16(rest >> 48));
        Descriptor { addr: Gpa(addr), len: low32(rest), flags, link }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The two little-endian numbers that 16 bytes of the driver's are.
pub(crate) fn halves(bytes: [u8; DESCRIPTOR_SIZE]) -> (u64, u64) {
    const LOW: u128 = u64::MAX as u128;
    let both = u128::from_le_bytes(bytes);
    ((both & LOW) as u64, (both >> 64) as u64)
}

/// Where one part of a ring lies.
pub(crate) struct Area {
    pub(crate) name: &'static str,
    pub(crate) address: Gpa,
    pub(crate) len: usize,
    pub(crate) alignment: u64,
}

/// The parts of a ring of the format that `features` say.
fn areas(layout: &Layout, features: u64) -> [Area; 3] {
    if features & FEATURE_RING_PACKED != 0 { packed::areas(layout) } else { split::areas(layout) }
}

/// Whether a queue can be there at all: size, alignment, and all of it in RAM. Maps nothing.
///
/// # Errors
/// It cannot.
pub(crate) fn check_layout(memory: &GuestMemory, layout: &Layout, features: u64) -> Result<(), QueueError> {
    if features & FEATURE_RING_PACKED == 0 && QueueSize::new(layout.size.get()).is_none() {
        return Err(QueueError::Size { size: layout.size.get() });
    }
    for Area { name, address, len, alignment } in areas(layout, features) {
        if !address.0.is_multiple_of(alignment) {
            return Err(QueueError::Misaligned { area: name, address, alignment });
        }
        memory.check(address, len as u64)?;
    }
    Ok(())
}

/// The three parts of a ring, mapped.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) memory: GuestMemory,
    layout: Layout,
    features: u64,
    /// What `memory.generation()` was when the views were made.
    generation: u64,
    pub(crate) descriptors: View,
    /// What the driver writes: the available ring, or its wish for interrupts.
    pub(crate) driver: View,
    /// What we write: the used ring, or our wish for notifications.
    pub(crate) device: View,
}

impl Parts {
    /// # Errors
    /// The ring cannot be where `layout` says.
    pub(crate) fn new(memory: GuestMemory, layout: Layout, features: u64) -> Result<Parts, QueueError> {
        check_layout(&memory, &layout, features)?;
        let generation = memory.generation();
        let [descriptors, driver, device] = areas(&layout, features);
        let view = |area: Area| memory.view(area.address, area.len);
        let (descriptors, driver, device) = (view(descriptors)?, view(driver)?, view(device)?);
        Ok(Parts { memory, layout, features, generation, descriptors, driver, device })
    }

    pub(crate) fn size(&self) -> QueueSize {
        self.layout.size
    }

    /// Adds what `descriptor` names to the chain. Empty ones add nothing.
    ///
    /// # Errors
    /// It is readable and comes after a writable one, makes the chain too long, is not in RAM, or is where
    /// the ring is.
    pub(crate) fn add(&self, descriptor: &Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        let &Descriptor { addr, len, .. } = descriptor;
        let head = chain.head;
        let total = if descriptor.has(FLAG_WRITE) {
            &mut chain.writable_len
        } else if chain.segments.len() > chain.readable {
            return Err(QueueError::ReadableAfterWritable { head });
        } else {
            &mut chain.readable_len
        };
        *total = total.saturating_add(u64::from(len));
        let sum = chain.readable_len.saturating_add(chain.writable_len);
        if sum > u64::from(u32::MAX) {
            return Err(QueueError::Overflow { head, len: sum });
        }
        if len > 0 {
            self.memory.check(addr, u64::from(len))?;
            let end = addr.0.saturating_add(len.into());
            let meets = |part: &View| {
                let start = part.address().0;
                addr.0 < start.saturating_add(part.len() as u64) && start < end
            };
            if meets(&self.descriptors) || meets(&self.driver) || meets(&self.device) {
                return Err(QueueError::OverRing { head, address: addr });
            }
            chain.segments.push(Segment { addr, len });
            if !descriptor.has(FLAG_WRITE) {
                chain.readable = chain.segments.len();
            }
        }
        Ok(())
    }

    /// Maps everything again if the guest's memory map changed since.
    ///
    /// # Errors
    /// The ring is no longer in memory.
    pub(crate) fn refresh(&mut self) -> Result<(), QueueError> {
        if self.memory.generation() != self.generation {
            *self = Parts::new(self.memory.clone(), self.layout, self.features)?;
        }
        Ok(())
    }
}

/// The indirect table being read. Kept, so that steady state allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<u8>);

impl Table {
    /// Copies the table that `from`, of chain `head`, names. It has at least one descriptor and no more than
    /// an indirect table may have ([`MAX_INDIRECT`], or `size` if that is more).
    ///
    /// # Errors
    /// The table has a bad length or is not in RAM.
    pub(crate) fn read(
        &mut self,
        memory: &GuestMemory,
        from: &Descriptor,
        head: u16,
        size: u16,
    ) -> Result<&[[u8; DESCRIPTOR_SIZE]], QueueError> {
        let bytes = from.len as usize;
        let most = usize::from(MAX_INDIRECT.max(size)).wrapping_mul(DESCRIPTOR_SIZE);
        if bytes == 0 || bytes > most || !bytes.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(QueueError::IndirectLength { head, len: from.len });
        }
        memory.check(from.addr, bytes as u64)?;
        self.0.resize(bytes, 0);
        memory.read(from.addr, &mut self.0)?;
        Ok(self.0.as_chunks().0)
    }
}
