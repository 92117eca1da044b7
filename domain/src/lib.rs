//! The seam between the device model and whatever runs the guest.
//!
//! Everything above this crate sees a guest as a [`Domain`]: some vCPUs whose accesses arrive as
//! [`Ioreq`]s, frames of memory that can be mapped, and a way to send it an interrupt. Two crates
//! implement it: `xen` for a real domain and `sim` for tests. Nothing above knows which it has.
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]
#![deny(clippy::undocumented_unsafe_blocks)]

mod address;
mod frames;
mod ioreq;
mod patience;

use std::io;
use std::sync::Arc;

pub use address::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};
pub use frames::Frames;
pub use ioreq::{Access, Direction, Ioreq, IoreqPage, RAW_IOREQ_SIZE, SLOTS_PER_PAGE, Slot};
pub use patience::{Patience, longest_look};

/// A message-signalled interrupt: one 32-bit store that the guest's APIC understands
/// (Intel SDM vol. 3, "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address of the store; Xen decodes bits 19:12 (destination) and 2 (destination mode).
    pub address: u64,
    /// Data of the store; bits 7:0 are the vector, which is never 0 on a PVH guest.
    pub data: u32,
}

/// A run of guest frames, for dirty reporting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First frame of the run.
    pub first: Gfn,
    /// Number of frames, at least 1.
    pub count: u32,
}

/// Why a domain is asked to shut down (xen/include/public/sched.h, `SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Power off.
    PowerOff = 0,
    /// Restart.
    Reboot = 1,
    /// Report a crash.
    Crash = 3,
}

/// A guest as the device model sees it.
pub trait Domain: Send + Sync {
    /// Number of vCPUs the guest may ever have, 1 to [`SLOTS_PER_PAGE`].
    fn vcpus(&self) -> u32;

    /// The channel by which each vCPU's accesses arrive, in vCPU order. Can be taken once: a second
    /// call returns an empty vector.
    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>>;

    /// Maps `count` guest frames from `first` into this process, readable and writable.
    ///
    /// Frames that the guest does not have are left out and marked as missing in the result.
    ///
    /// # Errors
    /// The mapping as a whole failed: no address space, no permission, or no such domain.
    fn map(&self, first: Gfn, count: usize) -> io::Result<Frames>;

    /// Delivers one message-signalled interrupt.
    ///
    /// # Errors
    /// The message names no vCPU or a delivery mode that cannot be delivered.
    fn inject_msi(&self, msi: Msi) -> io::Result<()>;

    /// Tells whoever is copying the guest's memory away that these frames were written.
    ///
    /// # Errors
    /// The domain is gone.
    fn mark_dirty(&self, extents: &[Extent]) -> io::Result<()>;

    /// Asks for the domain to be shut down.
    ///
    /// # Errors
    /// The domain is gone.
    fn shutdown(&self, reason: Shutdown) -> io::Result<()>;
}

/// The way one vCPU's accesses arrive. Owned by the thread that serves that vCPU.
pub trait IoreqChannel: Send {
    /// The vCPU's slot in the shared page.
    fn slot(&self) -> &Slot;

    /// Sleeps until something may have happened to the slot. Returns false when no more accesses
    /// will come and the thread should end. Spurious returns are allowed: look at the slot.
    ///
    /// # Errors
    /// The event device failed; nothing more will be heard from this vCPU.
    fn wait(&mut self) -> io::Result<bool>;

    /// Tells the other side that the slot holds an answer.
    ///
    /// # Errors
    /// The event device failed.
    fn notify(&mut self) -> io::Result<()>;
}

/// A shared [`Domain`].
pub type SharedDomain = Arc<dyn Domain>;
