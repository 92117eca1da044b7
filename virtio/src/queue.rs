//! A virtqueue as devices see it: chains come out of [`Queue::pop`] and go back through [`Queue::push`].
//!
//! The ring format is behind it (`split.rs`); nothing here or above depends on it.

use std::fmt;

use domain::Gpa;
use memory::{GuestMemory, MemoryError};

pub use crate::chain::{Chain, ChainError, Reader, Writer};
use crate::split::Split;

/// Feature bit: a descriptor may refer to a table of descriptors (virtio 1.3 §6, VIRTIO_F_INDIRECT_DESC).
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// Feature bit: both sides say at which index they want to hear (VIRTIO_F_EVENT_IDX).
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// Feature bit: the interface of virtio 1.0 and later (VIRTIO_F_VERSION_1).
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// The longest chain accepted in an indirect table, unless the queue is longer still. A driver should
/// keep to the queue's size (virtio 1.3 §2.7.5.3.1), but real ones go beyond it on short queues, and
/// other device models allow this many.
pub const MAX_INDIRECT: u16 = 1024;

/// Number of entries of a split ring: a power of two, 1 to 32768 (virtio 1.3 §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// `entries` as a queue size, or `None` if it cannot be one.
    pub const fn new(entries: u16) -> Option<QueueSize> {
        if entries.is_power_of_two() { Some(QueueSize(entries)) } else { None }
    }

    /// Number of entries.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The entry in which the ring index `index`, which counts on and wraps at 2^16, falls.
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
    /// The descriptor table, aligned to 16.
    pub descriptors: Gpa,
    /// The available ring (the "driver area"), aligned to 2.
    pub available: Gpa,
    /// The used ring (the "device area"), aligned to 4.
    pub used: Gpa,
}

/// How far a queue has got: enough to go on with it elsewhere, once nothing is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Index of the next chain to take.
    pub next_avail: u16,
    /// Index of the next used element to write.
    pub next_used: u16,
}

/// How the driver broke a queue: one variant for each limit.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
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
    /// A chain was made available again before it was used.
    #[error("chain {head} made available twice")]
    SameHeadTwice {
        /// Its first descriptor.
        head: u16,
    },
    /// A device gave back a chain that it does not have.
    #[error("chain {head} used without being available")]
    NotInFlight {
        /// Its first descriptor.
        head: u16,
    },
    /// A chain has more descriptors than there are: it loops.
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
    /// An indirect descriptor that goes on (virtio 1.3 §2.7.5.3.1).
    #[error("chain {head} goes on after an indirect descriptor")]
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
    /// A ring or a buffer is not in the guest's RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A chain does not hold what the device must find or put there.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Called when the driver wants to hear that there are used chains.
pub type Interrupt = Box<dyn Fn() + Send>;

/// A queue that runs.
pub struct Queue {
    ring: Split,
    interrupt: Interrupt,
    /// Chains that `pop` still gives out before it says that there are none.
    budget: u32,
}

impl Queue {
    /// Starts a queue at `state`, under the negotiated `features`.
    ///
    /// # Errors
    /// A ring is misaligned or not in RAM.
    pub fn new(
        memory: GuestMemory,
        layout: Layout,
        features: u64,
        state: QueueState,
        interrupt: Interrupt,
    ) -> Result<Queue, QueueError> {
        Ok(Queue { ring: Split::new(memory, layout, features, state)?, interrupt, budget: u32::MAX })
    }

    /// Takes the next chain into `chain`. False if there is none, or if this queue has had its share
    /// for now (the worker loop sees to it that the rest is not forgotten).
    ///
    /// # Errors
    /// The driver broke the ring; the queue cannot go on.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.budget == 0 || !self.ring.pop(chain)? {
            return Ok(false);
        }
        self.budget = self.budget.saturating_sub(1);
        Ok(true)
    }

    /// Gives chain `head` back, `written` bytes of it written. The driver sees it after [`Queue::flush`].
    /// Chains need not come back in the order in which they were taken.
    ///
    /// # Errors
    /// The chain is not in flight, or the ring has left the guest's memory.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.ring.push(head, written)
    }

    /// Shows the driver all that was pushed, and interrupts it if it wants that.
    ///
    /// # Errors
    /// The ring has left the guest's memory.
    pub fn flush(&mut self) -> Result<(), QueueError> {
        if self.ring.flush()? {
            (self.interrupt)();
        }
        Ok(())
    }

    /// Asks the driver not to notify us of new chains. Only a hint.
    ///
    /// # Errors
    /// The ring has left the guest's memory.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        self.ring.disable_notification()
    }

    /// Asks the driver to notify us of the next chain. True if there is one already: do not sleep.
    ///
    /// # Errors
    /// The driver broke the ring.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        self.ring.enable_notification()
    }

    /// Gives back the `chains` taken last, as if they had not been taken; none of them may have been
    /// pushed. Returns how many it gave back: it stops at one that was pushed.
    pub fn rewind(&mut self, chains: u16) -> u16 {
        self.ring.rewind(chains)
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.ring.size().get()
    }

    /// Chains taken and not given back.
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// How far the queue has got.
    pub fn state(&self) -> QueueState {
        self.ring.state()
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
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
