//! The split ring (virtio 1.3 §2.7), device side.

use std::sync::atomic::{Ordering, fence};

use memory::GuestMemory;

use crate::chain::Chain;
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, Layout, QueueError, QueueSize, QueueState};
use crate::ring::{Area, DESCRIPTOR_SIZE, Descriptor, FLAG_INDIRECT, FLAG_NEXT, Parts, Table, halves};

const USED_SIZE: usize = 8;
/// Offset of the index in the available and the used ring; the flags precede it.
const RING_INDEX: usize = 2;
/// Offset of the first element in the available and the used ring.
const RING_ELEMENTS: usize = 4;

/// In the available ring's flags: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: we want no notifications.
const NO_NOTIFY: u16 = 1;

/// The parts of a split ring: sizes and alignments of virtio 1.3 §2.7, the event fields included.
pub(crate) fn areas(layout: &Layout) -> [Area; 3] {
    let size = usize::from(layout.size.get());
    // At most 32768 entries of 16 bytes: these cannot overflow.
    let elements = |bytes: usize| size.wrapping_mul(bytes);
    [
        Area {
            name: "descriptor table",
            address: layout.descriptors,
            len: elements(DESCRIPTOR_SIZE),
            alignment: 16,
        },
        Area {
            name: "available ring",
            address: layout.available,
            len: elements(2).wrapping_add(RING_ELEMENTS + 2),
            alignment: 2,
        },
        Area {
            name: "used ring",
            address: layout.used,
            len: elements(USED_SIZE).wrapping_add(RING_ELEMENTS + 2),
            alignment: 4,
        },
    ]
}

/// A split ring that runs.
#[derive(Debug)]
pub(crate) struct Split {
    parts: Parts,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    /// The driver's index as read last: up to there nothing need be read again.
    avail_seen: u16,
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
    /// Whether the used ring's flags ask for silence (without EVENT_IDX).
    silent: bool,
    /// One bit a descriptor: it heads a chain that we hold.
    held: Box<[u64]>,
    held_count: u16,
    /// The head taken at each available index: the driver may have overwritten its own copy.
    taken: Box<[u16]>,
    table: Table,
}

impl Split {
    pub(crate) fn new(
        memory: GuestMemory,
        layout: Layout,
        features: u64,
        state: QueueState,
    ) -> Result<Split, QueueError> {
        let size = usize::from(layout.size.get());
        let mut ring = Split {
            parts: Parts::new(memory, layout, features)?,
            event_idx: features & FEATURE_EVENT_IDX != 0,
            indirect: features & FEATURE_INDIRECT != 0,
            next_avail: state.next_avail,
            avail_seen: state.next_avail,
            next_used: state.next_used,
            published: state.next_used,
            silent: false,
            held: vec![0; size.div_ceil(64)].into(),
            held_count: 0,
            taken: vec![0; size].into(),
            table: Table::default(),
        };
        // A driver may start us over a ring where an earlier device asked for silence.
        ring.write_used_flags(0)?;
        Ok(ring)
    }

    pub(crate) fn size(&self) -> QueueSize {
        self.parts.size()
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.held_count
    }

    pub(crate) fn state(&self) -> QueueState {
        QueueState { next_avail: self.next_avail, next_used: self.next_used }
    }

    pub(crate) fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.clear();
        self.parts.refresh()?;
        if self.next_avail == self.avail_seen && !self.look()? {
            return Ok(false);
        }
        let size = self.parts.size().get();
        let slot = usize::from(self.parts.size().slot(self.next_avail));
        let head = self.parts.driver.read_u16(RING_ELEMENTS.wrapping_add(slot.wrapping_mul(2)))?;
        if head >= size {
            return Err(QueueError::HeadOutOfRange { head, size });
        }
        if self.is_held(head) {
            return Err(QueueError::SameHeadTwice { head });
        }
        self.walk(head, chain)?;
        self.set_held(head, true);
        if let Some(taken) = self.taken.get_mut(slot) {
            *taken = head;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    pub(crate) fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        if !self.is_held(head) {
            return Err(QueueError::NotInFlight { head });
        }
        self.parts.refresh()?;
        let slot = usize::from(self.parts.size().slot(self.next_used));
        let offset = RING_ELEMENTS.wrapping_add(slot.wrapping_mul(USED_SIZE));
        self.parts.device.write_u32(offset, u32::from(head))?;
        self.parts.device.write_u32(offset.wrapping_add(4), written)?;
        self.set_held(head, false);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was pushed. True if the driver wants an interrupt.
    pub(crate) fn flush(&mut self) -> Result<bool, QueueError> {
        let old = self.published;
        let new = self.next_used;
        if old == new {
            return Ok(false);
        }
        self.parts.refresh()?;
        self.parts.device.store_u16_release(RING_INDEX, new)?;
        self.published = new;
        // The driver writes its wish, then reads our index; we write the index, then read its wish.
        // Either sees the other's write only if both orders hold (virtio 1.3 §2.7.10).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let offset = RING_ELEMENTS.wrapping_add(usize::from(self.parts.size().get()).wrapping_mul(2));
            Ok(passed(self.parts.driver.read_u16(offset)?, old, new))
        } else {
            Ok(self.parts.driver.read_u16(0)? & NO_INTERRUPT == 0)
        }
    }

    pub(crate) fn disable_notification(&mut self) -> Result<(), QueueError> {
        // With EVENT_IDX the event index stays behind, and the driver is silent until it comes round.
        if !self.event_idx && !self.silent {
            self.parts.refresh()?;
            self.write_used_flags(NO_NOTIFY)?;
            self.silent = true;
        }
        Ok(())
    }

    pub(crate) fn has_more(&mut self) -> Result<bool, QueueError> {
        self.parts.refresh()?;
        self.look()
    }

    pub(crate) fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.parts.refresh()?;
        if self.event_idx {
            let entries = usize::from(self.parts.size().get()).wrapping_mul(USED_SIZE);
            self.parts.device.write_u16(RING_ELEMENTS.wrapping_add(entries), self.next_avail)?;
        } else if self.silent {
            self.write_used_flags(0)?;
            self.silent = false;
        }
        // As in `flush`, the other way round.
        fence(Ordering::SeqCst);
        self.look()
    }

    pub(crate) fn rewind(&mut self, chains: u16) -> u16 {
        for done in 0..chains {
            let index = self.next_avail.wrapping_sub(1);
            let head = self.taken.get(usize::from(self.parts.size().slot(index))).copied();
            match head {
                Some(head) if self.is_held(head) => self.set_held(head, false),
                _ => return done,
            }
            self.next_avail = index;
        }
        chains
    }

    /// Reads the driver's index. True if there are chains to take.
    fn look(&mut self) -> Result<bool, QueueError> {
        let seen = self.parts.driver.load_u16_acquire(RING_INDEX)?;
        let size = self.parts.size().get();
        if seen.wrapping_sub(self.next_avail) > size {
            return Err(QueueError::IndexJump { from: self.next_avail, to: seen, size });
        }
        self.avail_seen = seen;
        Ok(seen != self.next_avail)
    }

    fn write_used_flags(&mut self, flags: u16) -> Result<(), QueueError> {
        Ok(self.parts.device.write_u16(0, flags)?)
    }

    fn is_held(&self, head: u16) -> bool {
        let word = self.held.get(usize::from(head / 64)).copied().unwrap_or_default();
        word >> (head % 64) & 1 != 0
    }

    fn set_held(&mut self, head: u16, held: bool) {
        if let Some(word) = self.held.get_mut(usize::from(head / 64)) {
            let bit = 1 << (head % 64);
            if held {
                *word |= bit;
                self.held_count = self.held_count.saturating_add(1);
            } else {
                *word &= !bit;
                self.held_count = self.held_count.saturating_sub(1);
            }
        }
    }

    /// Reads the chain at `head`, all of it, each descriptor once.
    fn walk(&mut self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        chain.head = head;
        let size = self.parts.size().get();
        let mut next = head;
        // Each descriptor can be in the chain once.
        for _ in 0..size {
            let offset = usize::from(next).wrapping_mul(DESCRIPTOR_SIZE);
            let descriptor = Descriptor::split(
                self.parts.descriptors.read_u64(offset)?,
                self.parts.descriptors.read_u64(offset.wrapping_add(8))?,
            );
            if descriptor.has(FLAG_INDIRECT) {
                if !self.indirect {
                    return Err(QueueError::IndirectRefused { head });
                }
                if descriptor.has(FLAG_NEXT) {
                    return Err(QueueError::IndirectWithNext { head });
                }
                return self.walk_table(descriptor, chain);
            }
            self.parts.add(&descriptor, chain)?;
            if !descriptor.has(FLAG_NEXT) {
                return Ok(());
            }
            next = descriptor.link;
            if next >= size {
                return Err(QueueError::NextOutOfRange { head, next, size });
            }
        }
        Err(QueueError::TooLong { head, limit: size })
    }

    /// Reads the chain in the indirect table that `from` names.
    fn walk_table(&mut self, from: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
        let head = chain.head;
        let table = self.table.read(&self.parts.memory, &from, head, self.parts.size().get())?;
        // As many as a table can have fit.
        let entries = u16::try_from(table.len()).unwrap_or(u16::MAX);
        let mut next = 0u16;
        for _ in 0..entries {
            let Some(raw) = table.get(usize::from(next)) else {
                return Err(QueueError::NextOutOfRange { head, next, size: entries });
            };
            let (addr, rest) = halves(*raw);
            let descriptor = Descriptor::split(addr, rest);
            if descriptor.has(FLAG_INDIRECT) {
                return Err(QueueError::IndirectInIndirect { head });
            }
            self.parts.add(&descriptor, chain)?;
            if !descriptor.has(FLAG_NEXT) {
                return Ok(());
            }
            next = descriptor.link;
        }
        // The last one went on, to somewhere we have been.
        match next < entries {
            true => Err(QueueError::TooLong { head, limit: entries }),
            false => Err(QueueError::NextOutOfRange { head, next, size: entries }),
        }
    }
}

/// Whether going from index `old` to `new` passes `event`, so that who asked to hear at `event` hears
/// (virtio 1.3 §2.7.7.2, `vring_need_event`). All wrap at 2^16.
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
