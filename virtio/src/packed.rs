//! The packed ring (virtio 1.3 §2.8), device side.
//!
//! There is one ring of descriptors. The driver writes chains into it, one after the other; we overwrite
//! them with used descriptors, in the order in which chains come back. A chain is known by its buffer id,
//! and takes up as many slots on our way through the ring as it had descriptors.

use std::sync::atomic::{Ordering, fence};

use memory::GuestMemory;

use crate::chain::Chain;
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, Layout, QueueError, QueueSize, QueueState};
use crate::ring::{
    Area, DESCRIPTOR_SIZE, Descriptor, FLAG_INDIRECT, FLAG_NEXT, FLAG_WRITE, Parts, Table, halves,
};

/// Descriptor flag: available, if it is as the driver's wrap counter and `USED` is not (§2.8.1).
const AVAIL: u16 = 1 << 7;
/// Descriptor flag: used, if this and `AVAIL` are as our wrap counter.
const USED: u16 = 1 << 15;

/// Size of an event suppression structure (§2.8.14): a place and flags, of 16 bits each.
const EVENT_SIZE: usize = 4;
/// In the flags of event suppression: tell of everything.
const EVENT_ENABLE: u32 = 0;
/// Tell of nothing.
const EVENT_DISABLE: u32 = 1;
/// Tell when the descriptor at this place is done; needs EVENT_IDX.
const EVENT_DESC: u32 = 2;
/// The bits of the flags that are not reserved.
const EVENT_FLAGS: u32 = 3;

/// In a place written as 16 bits: the wrap counter.
const WRAP: u16 = 1 << 15;

/// The parts of a packed ring: sizes and alignments of virtio 1.3 §2.8.10.1.
pub(crate) fn areas(layout: &Layout) -> [Area; 3] {
    // At most 32768 descriptors.
    let bytes = usize::from(layout.size.get()).wrapping_mul(DESCRIPTOR_SIZE);
    [
        Area { name: "descriptor ring", address: layout.descriptors, len: bytes, alignment: 16 },
        Area { name: "driver event suppression", address: layout.available, len: EVENT_SIZE, alignment: 4 },
        Area { name: "device event suppression", address: layout.used, len: EVENT_SIZE, alignment: 4 },
    ]
}

/// A slot of the ring, and the wrap counter of who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    /// From the form that it has in [`QueueState`]; `None` if the ring has no such slot.
    fn from_bits(bits: u16, size: u16) -> Option<Place> {
        let place = Place { index: bits & !WRAP, wrap: bits & WRAP != 0 };
        (place.index < size).then_some(place)
    }

    /// The index, and the wrap counter in bit 15: as in event suppression (§2.8.14).
    fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// `slots` further, which is at most `size`. The sum is at most 2 * 32768 - 1.
    fn forward(self, slots: u16, size: u16) -> Place {
        let index = self.index.wrapping_add(slots);
        match index.checked_sub(size) {
            Some(index) => Place { index, wrap: !self.wrap },
            None => Place { index, ..self },
        }
    }

    /// `slots` back, which is at most `size`.
    fn back(self, slots: u16, size: u16) -> Place {
        match self.index.checked_sub(slots) {
            Some(index) => Place { index, ..self },
            None => Place { index: self.index.wrapping_add(size).wrapping_sub(slots), wrap: !self.wrap },
        }
    }

    /// Whether flags found here are those of a descriptor that the driver made available (§2.8.1). All
    /// others are of earlier rounds, or make no sense: then nothing is available.
    fn is_available(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }

    /// Offset of the descriptor's address in the ring.
    fn address(self) -> usize {
        usize::from(self.index).wrapping_mul(DESCRIPTOR_SIZE)
    }

    /// Offset of the rest of the descriptor: length, buffer id and flags, which are read and written as one.
    fn rest(self) -> usize {
        self.address().wrapping_add(8)
    }
}

/// The flags in the half of a descriptor at [`Place::rest`].
fn flags(rest: u64) -> u16 {
    (rest >> 48) as u16
}

/// Whether `event` is among the last `slots` slots before `now`, so that who asked to hear of it hears
/// (§2.8.10). One with the other wrap counter is a round behind, or so far ahead that it does not matter.
fn passed(event: u16, now: Place, slots: u16, size: u16) -> bool {
    let (event, wrap) = (u32::from(event & !WRAP), event & WRAP != 0);
    let round = if wrap == now.wrap { 0 } else { u32::from(size) };
    let behind = u32::from(now.index).saturating_add(round).saturating_sub(event);
    (1..=u32::from(slots)).contains(&behind)
}

/// A packed ring that runs.
#[derive(Debug)]
pub(crate) struct Packed {
    parts: Parts,
    event_idx: bool,
    indirect: bool,
    next_avail: Place,
    next_used: Place,
    /// The used descriptor that the driver will find first, once it is shown: it looks nowhere else.
    first_used: Option<u64>,
    /// Where that goes: up to here the driver can see what was used.
    published: Place,
    /// Slots from there to `next_used`.
    unpublished: u16,
    /// Whether event suppression asks for silence.
    silent: bool,
    /// How many slots the chain takes up, for each buffer id; 0 for those that we do not hold.
    held: Box<[u16]>,
    held_count: u16,
    held_slots: u16,
    /// The buffer id of the chain that ends at each slot: ours, the driver's may change.
    taken: Box<[u16]>,
    table: Table,
}

impl Packed {
    pub(crate) fn new(
        memory: GuestMemory,
        layout: Layout,
        features: u64,
        state: QueueState,
    ) -> Result<Packed, QueueError> {
        let size = layout.size.get();
        let place = |bits| Place::from_bits(bits, size).ok_or(QueueError::State { bits, size });
        let (next_avail, next_used) = (place(state.next_avail)?, place(state.next_used)?);
        let mut ring = Packed {
            parts: Parts::new(memory, layout, features)?,
            event_idx: features & FEATURE_EVENT_IDX != 0,
            indirect: features & FEATURE_INDIRECT != 0,
            next_avail,
            next_used,
            first_used: None,
            published: next_used,
            unpublished: 0,
            silent: false,
            held: vec![0; size.into()].into(),
            held_count: 0,
            held_slots: 0,
            taken: vec![0; size.into()].into(),
            table: Table::default(),
        };
        // A driver may start us over a ring where an earlier device asked for silence.
        ring.wish(EVENT_ENABLE, 0)?;
        Ok(ring)
    }

    pub(crate) fn size(&self) -> QueueSize {
        self.parts.size()
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.held_count
    }

    pub(crate) fn state(&self) -> QueueState {
        QueueState { next_avail: self.next_avail.bits(), next_used: self.next_used.bits() }
    }

    pub(crate) fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.clear();
        self.parts.refresh()?;
        let first = self.parts.descriptors.load_u64_acquire(self.next_avail.rest())?;
        if !self.next_avail.is_available(flags(first)) {
            return Ok(false);
        }
        let slots = self.walk(first, chain)?;
        let size = self.size().get();
        let id = chain.head;
        let held = self.held.get_mut(usize::from(id)).ok_or(QueueError::IdOutOfRange { id, size })?;
        if *held != 0 {
            return Err(QueueError::SameHeadTwice { head: id });
        }
        *held = slots;
        self.held_count = self.held_count.saturating_add(1);
        self.held_slots = self.held_slots.saturating_add(slots);
        self.next_avail = self.next_avail.forward(slots, size);
        if let Some(taken) = self.taken.get_mut(self.last_taken()) {
            *taken = id;
        }
        Ok(true)
    }

    pub(crate) fn push(&mut self, id: u16, written: u32) -> Result<(), QueueError> {
        let slots = self.let_go(id).ok_or(QueueError::NotInFlight { head: id })?;
        self.parts.refresh()?;
        let mut flags = if self.next_used.wrap { AVAIL | USED } else { 0 };
        if written > 0 {
            // The length is valid (§2.8.4).
            flags |= FLAG_WRITE;
        }
        let used = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
        if self.first_used.is_none() {
            self.first_used = Some(used);
        } else {
            self.parts.descriptors.write_u64(self.next_used.rest(), used)?;
        }
        self.next_used = self.next_used.forward(slots, self.size().get());
        self.unpublished = self.unpublished.saturating_add(slots);
        Ok(())
    }

    /// Publishes what was pushed. True if the driver wants an interrupt.
    pub(crate) fn flush(&mut self) -> Result<bool, QueueError> {
        let Some(first) = self.first_used else { return Ok(false) };
        self.parts.refresh()?;
        self.parts.descriptors.store_u64_release(self.published.rest(), first)?;
        let slots = self.unpublished;
        self.first_used = None;
        self.unpublished = 0;
        self.published = self.next_used;
        // The driver writes its wish, then looks for used descriptors; we write those, then read its wish.
        // Either sees the other's write only if both orders hold (virtio 1.3 §2.8.22).
        fence(Ordering::SeqCst);
        let wish = self.parts.driver.read_u32(0)?;
        Ok(match wish >> 16 & EVENT_FLAGS {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                passed((wish & 0xffff) as u16, self.next_used, slots, self.size().get())
            }
            // The reserved value, and one that was not negotiated: too many are better than none.
            _ => true,
        })
    }

    pub(crate) fn disable_notification(&mut self) -> Result<(), QueueError> {
        if !self.silent {
            self.parts.refresh()?;
            self.wish(EVENT_DISABLE, 0)?;
            self.silent = true;
        }
        Ok(())
    }

    pub(crate) fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.parts.refresh()?;
        if self.event_idx {
            self.wish(EVENT_DESC, self.next_avail.bits())?;
        } else if self.silent {
            self.wish(EVENT_ENABLE, 0)?;
        }
        self.silent = false;
        // As in `flush`, the other way round.
        fence(Ordering::SeqCst);
        self.look()
    }

    pub(crate) fn has_more(&mut self) -> Result<bool, QueueError> {
        self.parts.refresh()?;
        self.look()
    }

    /// Whether the next descriptor is available.
    fn look(&self) -> Result<bool, QueueError> {
        let rest = self.parts.descriptors.load_u64_acquire(self.next_avail.rest())?;
        Ok(self.next_avail.is_available(flags(rest)))
    }

    pub(crate) fn rewind(&mut self, chains: u16) -> u16 {
        for done in 0..chains {
            let id = self.taken.get(self.last_taken()).copied();
            // What was used since lies before the chains that can be given back, so they are still there.
            let Some(slots) = id.and_then(|id| self.let_go(id)) else { return done };
            self.next_avail = self.next_avail.back(slots, self.size().get());
        }
        chains
    }

    /// The slot before `next_avail`, where the chain taken last ends.
    fn last_taken(&self) -> usize {
        self.next_avail.back(1, self.size().get()).index.into()
    }

    /// Takes chain `id` off the books. How many slots it has, or `None` if we do not hold it.
    fn let_go(&mut self, id: u16) -> Option<u16> {
        let slots = self.held.get_mut(usize::from(id)).map(std::mem::take).filter(|slots| *slots > 0)?;
        self.held_count = self.held_count.saturating_sub(1);
        self.held_slots = self.held_slots.saturating_sub(slots);
        Some(slots)
    }

    /// Says what notifications we want, in one access.
    fn wish(&mut self, flags: u32, place: u16) -> Result<(), QueueError> {
        Ok(self.parts.device.write_u32(0, flags << 16 | u32::from(place))?)
    }

    /// Reads the chain at `next_avail`, all of it, each descriptor once; `rest` is the half of its first one
    /// that was read already. How many slots it takes up.
    fn walk(&mut self, mut rest: u64, chain: &mut Chain) -> Result<u16, QueueError> {
        let size = self.size().get();
        let head = self.next_avail.index;
        chain.head = head;
        // The driver has not got back the others, so what it writes there is none of its business, and
        // where the chain meets them it has no end.
        let free = size.saturating_sub(self.held_slots).saturating_sub(self.unpublished);
        if free == 0 {
            return Err(QueueError::Overfull { size });
        }
        let mut place = self.next_avail;
        for slot in 1..=free {
            let address = self.parts.descriptors.read_u64(place.address())?;
            let descriptor = Descriptor::packed(address, rest);
            if descriptor.has(FLAG_INDIRECT) {
                if !self.indirect {
                    return Err(QueueError::IndirectRefused { head });
                }
                // Nor may it be part of a chain (§2.8.19).
                if descriptor.has(FLAG_NEXT) || slot > 1 {
                    return Err(QueueError::IndirectWithNext { head });
                }
                self.walk_table(&descriptor, chain)?;
            } else {
                self.parts.add(&descriptor, chain)?;
            }
            if !descriptor.has(FLAG_NEXT) {
                // Only the last one's id counts (§2.8.6).
                chain.head = descriptor.link;
                return Ok(slot);
            }
            if slot == free {
                break;
            }
            place = place.forward(1, size);
            rest = self.parts.descriptors.read_u64(place.rest())?;
            // A chain is there whole before its first descriptor is (§2.8.6).
            if !place.is_available(flags(rest)) {
                return Err(QueueError::NotAvailable { head, index: place.index });
            }
        }
        Err(QueueError::TooLong { head, limit: free })
    }

    /// Reads the indirect table that `from` names. All of it belongs to the chain, and no flag but `WRITE`
    /// means anything in it (§2.8.7).
    fn walk_table(&mut self, from: &Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        let memory = &self.parts.memory;
        for raw in self.table.read(memory, from, chain.head, self.parts.size().get())? {
            let (addr, rest) = halves(*raw);
            self.parts.add(&Descriptor::packed(addr, rest), chain)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
