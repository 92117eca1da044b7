//! A virtqueue as devices see it: chains come out of [`Queue::pop`] and go back through [`Queue::push`].
//!
//! The ring format is behind it (`split.rs`, `packed.rs`); nothing above depends on it.

use std::fmt;

use domain::Gpa;
use memory::{GuestMemory, MemoryError};

pub use crate::chain::{Chain, ChainError, Reader, Writer};
use crate::order::Order;
use crate::packed::Packed;
use crate::split::Split;

/// Feature bit: a descriptor may refer to a table of descriptors (virtio 1.3 §6, VIRTIO_F_INDIRECT_DESC).
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// Feature bit: both sides say at which index they want to hear (VIRTIO_F_EVENT_IDX).
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: the interface of virtio 1.0 and later (VIRTIO_F_VERSION_1).
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// Feature bit: addresses may need translation (VIRTIO_F_ACCESS_PLATFORM). There is no IOMMU, so they stay
/// guest-physical.
pub const FEATURE_ACCESS_PLATFORM: u64 = 1 << 33;
/// Feature bit: queues are packed rings (virtio 1.3 §2.8, VIRTIO_F_RING_PACKED).
pub const FEATURE_RING_PACKED: u64 = 1 << 34;
/// Feature bit: chains come back in the order in which they were made available (VIRTIO_F_IN_ORDER).
pub const FEATURE_IN_ORDER: u64 = 1 << 35;
/// Feature bit: notifications say how far the driver has got (VIRTIO_F_NOTIFICATION_DATA).
pub const FEATURE_NOTIFICATION_DATA: u64 = 1 << 38;
/// Feature bit: a queue can be reset alone (virtio 1.3 §2.6.1, VIRTIO_F_RING_RESET).
pub const FEATURE_RING_RESET: u64 = 1 << 40;

/// The longest chain accepted in an indirect table, unless the queue is longer still. A driver should
/// keep to the queue's size (virtio 1.3 §2.7.5.3.1), but real ones go beyond it on short queues, and
/// other device models allow this many.
pub const MAX_INDIRECT: u16 = 1024;

/// Most entries of a queue.
const MAX_SIZE: u16 = 1 << 15;

/// Number of entries of a queue, 1 to 32768 (virtio 1.3 §2.7, §2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// `entries` as the size of any queue: a power of two. `None` if it is not.
    pub const fn new(entries: u16) -> Option<QueueSize> {
        if entries.is_power_of_two() { Some(QueueSize(entries)) } else { None }
    }

    /// `entries` as the size of a packed ring, which need not be a power of two (virtio 1.3 §2.8.10.1).
    pub const fn packed(entries: u16) -> Option<QueueSize> {
        if matches!(entries, 1..=MAX_SIZE) { Some(QueueSize(entries)) } else { None }
    }

    /// Number of entries.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The entry in which the index `index` of a split ring, which counts on and wraps at 2^16, falls.
    pub(crate) const fn slot(self, index: u16) -> u16 {
        // Not zero, so this cannot underflow.
        index & self.0.wrapping_sub(1)
    }
}

/// Where the driver put a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of entries.
    pub size: QueueSize,
    /// The descriptors, aligned to 16.
    pub descriptors: Gpa,
    /// The driver area: the available ring, aligned to 2, or a packed ring's wish for interrupts, aligned to 4.
    pub available: Gpa,
    /// The device area, aligned to 4: the used ring, or a packed ring's wish for notifications.
    pub used: Gpa,
}

/// How far a queue has got: enough to go on with it elsewhere, once nothing is in flight.
///
/// With a packed ring both are places in the ring, with the wrap counter in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Index of the next chain to take.
    pub next_avail: u16,
    /// Index of the next used element to write.
    pub next_used: u16,
}

impl QueueState {
    /// Where queues start, of the kind that `features` say (virtio 1.3 §2.8.1: wrap counters start at 1).
    pub const fn initial(features: u64) -> QueueState {
        let start = if features & FEATURE_RING_PACKED != 0 { 1 << 15 } else { 0 };
        QueueState { next_avail: start, next_used: start }
    }
}

/// How the driver broke a queue: one variant for each limit.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A split ring's size is not a power of two.
    #[error("a split ring of {size} entries")]
    Size {
        /// Entries in the queue.
        size: u16,
    },
    /// A queue cannot be where it is said to have got to.
    #[error("place {bits:#x} in a packed ring of {size}")]
    State {
        /// The place, its wrap counter in bit 15.
        bits: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// The rings are not aligned as virtio 1.3 §2.7 asks.
    #[error("the {area} at {address} is not aligned to {alignment}")]
    Misaligned {
        /// Which of the three.
        area: &'static str,
        /// Where the driver put it.
        address: Gpa,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// The available index is more than the queue's size ahead of us, or went back.
    #[error("available index jumped from {from} to {to} in a queue of {size}")]
    IndexJump {
        /// Next index to take.
        from: u16,
        /// Index found.
        to: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// The available ring names a descriptor that does not exist.
    #[error("chain starts at descriptor {head} of {size}")]
    HeadOutOfRange {
        /// Descriptor named.
        head: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A packed ring's descriptor has a buffer id that is too large (virtio 1.3 §2.8.22: ids are below the
    /// queue's size).
    #[error("buffer id {id} in a queue of {size}")]
    IdOutOfRange {
        /// The buffer id.
        id: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// A chain was made available again before it was used.
    #[error("chain {head} made available twice")]
    SameHeadTwice {
        /// What [`Chain::head`] says: its first descriptor, or its buffer id.
        head: u16,
    },
    /// A device gave back a chain that it does not have.
    #[error("chain {head} used without being available")]
    NotInFlight {
        /// What [`Chain::head`] says.
        head: u16,
    },
    /// A descriptor of a packed ring was made available that the driver has not got back from us.
    #[error("more descriptors made available than the queue's {size}")]
    Overfull {
        /// Entries in the queue.
        size: u16,
    },
    /// A packed ring's chain goes on at a descriptor that is not available (virtio 1.3 §2.8.6).
    #[error("chain {head} goes on at descriptor {index}, which is not available")]
    NotAvailable {
        /// Its first descriptor.
        head: u16,
        /// The descriptor that is not available.
        index: u16,
    },
    /// A chain has more descriptors than there are for it: it loops, or has no end.
    #[error("chain {head} loops or is longer than {limit} descriptors")]
    TooLong {
        /// Its first descriptor.
        head: u16,
        /// Most descriptors it can have.
        limit: u16,
    },
    /// A descriptor goes on at one that does not exist.
    #[error("chain {head} goes on at descriptor {next} of {size}")]
    NextOutOfRange {
        /// First descriptor of the chain.
        head: u16,
        /// Descriptor named.
        next: u16,
        /// Entries in the table it is in.
        size: u16,
    },
    /// An indirect descriptor, without the feature having been accepted.
    #[error("chain {head} is indirect, which was not negotiated")]
    IndirectRefused {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect descriptor in an indirect table (virtio 1.3 §2.7.5.3.1).
    #[error("chain {head} has an indirect table within an indirect table")]
    IndirectInIndirect {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect descriptor that goes on (virtio 1.3 §2.7.5.3.1), or any in a packed ring's chain (§2.8.19).
    #[error("chain {head} has an indirect descriptor before others")]
    IndirectWithNext {
        /// First descriptor of the chain.
        head: u16,
    },
    /// An indirect table that is empty, not a whole number of descriptors, or too long.
    #[error("chain {head} has an indirect table of {len} bytes")]
    IndirectLength {
        /// First descriptor of the chain.
        head: u16,
        /// Length in bytes.
        len: u32,
    },
    /// A device-readable descriptor after a device-writable one (virtio 1.3 §2.7.4.2).
    #[error("chain {head} has a readable descriptor after a writable one")]
    ReadableAfterWritable {
        /// First descriptor of the chain.
        head: u16,
    },
    /// The lengths of a chain add up to 2^32 or more (virtio 1.3 §2.7.5.2).
    #[error("chain {head} is {len} bytes long")]
    Overflow {
        /// First descriptor of the chain.
        head: u16,
        /// Its length in bytes.
        len: u64,
    },
    /// A buffer lies over the ring that it is in: what the device does to one it would do to the other.
    #[error("chain {head} has a buffer at {address}, over the ring itself")]
    OverRing {
        /// First descriptor of the chain.
        head: u16,
        /// Where the buffer starts.
        address: Gpa,
    },
    /// A ring or a buffer is not in the guest's RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A chain does not hold what the device must find or put there.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Called when the driver wants to hear that there are used chains.
pub type Interrupt = Box<dyn Fn() + Send>;

#[derive(Debug)]
enum Ring {
    Split(Split),
    Packed(Packed),
}

/// Calls a method that both kinds of ring have.
macro_rules! ring {
    ($queue:expr, $method:ident($($argument:expr),*)) => {
        match &$queue.ring {
            Ring::Split(ring) => ring.$method($($argument),*),
            Ring::Packed(ring) => ring.$method($($argument),*),
        }
    };
    (mut $queue:expr, $method:ident($($argument:expr),*)) => {
        match &mut $queue.ring {
            Ring::Split(ring) => ring.$method($($argument),*),
            Ring::Packed(ring) => ring.$method($($argument),*),
        }
    };
}

/// A queue that runs.
pub struct Queue {
    ring: Ring,
    /// With IN_ORDER: what came back out of turn.
    order: Option<Order>,
    interrupt: Interrupt,
    /// Chains that `pop` still gives out before it says that there are none.
    budget: u32,
}

impl Queue {
    /// Starts a queue at `state`, under the negotiated `features`.
    ///
    /// # Errors
    /// A ring is misaligned or not in RAM, or has no such size or place.
    pub fn new(
        memory: GuestMemory,
        layout: Layout,
        features: u64,
        state: QueueState,
        interrupt: Interrupt,
    ) -> Result<Queue, QueueError> {
        let ring = if features & FEATURE_RING_PACKED != 0 {
            Ring::Packed(Packed::new(memory, layout, features, state)?)
        } else {
            Ring::Split(Split::new(memory, layout, features, state)?)
        };
        let order = (features & FEATURE_IN_ORDER != 0).then(|| Order::new(layout.size.get()));
        Ok(Queue { ring, order, interrupt, budget: u32::MAX })
    }

    /// Takes the next chain into `chain`. False if there is none, or if this queue has had its share
    /// for now (the worker loop sees to it that the rest is not forgotten).
    ///
    /// # Errors
    /// The driver broke the ring; the queue cannot go on.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.budget == 0 || !ring!(mut self, pop(chain))? {
            return Ok(false);
        }
        if let Some(order) = &mut self.order {
            order.take(chain.head());
        }
        self.budget = self.budget.saturating_sub(1);
        Ok(true)
    }

    /// Gives chain `head` back, `written` bytes of it written. The driver sees it after [`Queue::flush`].
    /// Chains need not come back in the order in which they were taken: if the driver wants that, they
    /// are held back here.
    ///
    /// # Errors
    /// The chain is not in flight, or the ring has left the guest's memory.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let Some(order) = &mut self.order else { return ring!(mut self, push(head, written)) };
        order.finish(head, written)?;
        while let Some((head, written)) = order.next_done() {
            ring!(mut self, push(head, written))?;
        }
        Ok(())
    }

    /// Shows the driver all that was pushed, and interrupts it if it wants that.
    ///
    /// # Errors
    /// The ring has left the guest's memory.
    pub fn flush(&mut self) -> Result<(), QueueError> {
        if ring!(mut self, flush())? {
            (self.interrupt)();
        }
        Ok(())
    }

    /// Asks the driver not to notify us of new chains. Only a hint.
    ///
    /// # Errors
    /// The ring has left the guest's memory.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        ring!(mut self, disable_notification())
    }

    /// Whether there is a chain to take. For who looks at the ring instead of waiting to be notified.
    ///
    /// # Errors
    /// The driver broke the ring.
    pub(crate) fn has_more(&mut self) -> Result<bool, QueueError> {
        ring!(mut self, has_more())
    }

    /// Asks the driver to notify us of the next chain. True if there is one already: do not sleep.
    ///
    /// # Errors
    /// The driver broke the ring.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        ring!(mut self, enable_notification())
    }

    /// Gives back the `chains` taken last, as if they had not been taken; none of them may have been
    /// pushed. Returns how many it gave back: it stops at one that was pushed.
    pub fn rewind(&mut self, chains: u16) -> u16 {
        let Some(order) = &mut self.order else { return ring!(mut self, rewind(chains)) };
        for done in 0..chains {
            if !order.untake() || ring!(mut self, rewind(1)) == 0 {
                return done;
            }
        }
        chains
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        ring!(self, size()).get()
    }

    /// Chains taken and not given back.
    pub fn in_flight(&self) -> u16 {
        let waiting = self.order.as_ref().map_or(0, Order::waiting);
        ring!(self, in_flight()).saturating_sub(waiting)
    }

    /// How far the queue has got.
    pub fn state(&self) -> QueueState {
        ring!(self, state())
    }

    /// Lets `pop` give out `chains` chains more and no others.
    pub(crate) fn grant(&mut self, chains: u32) {
        self.budget = chains;
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("ring", &self.ring)
            .field("order", &self.order)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
