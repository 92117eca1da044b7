//! Guest-physical memory: lazily mapped chunks, bounds-checked copies, the dirty log.
//!
//! [`GuestMemory`] is the guest's RAM as the devices see it. It is mapped in chunks of 2 MiB or more,
//! each on first use. There are three ways to use it:
//!
//! * [`GuestMemory::read`] and [`GuestMemory::write`] copy, once.
//! * A [`View`] is for what is looked at over and over (a ring): it holds the mapping and gives typed
//!   access. When the guest's memory map changes the view goes stale and is to be made again.
//! * A [`Pinned`] is a list of `iovec`s for the kernel to copy from or to (a request's data).
//!
//! # Why there is no `&[u8]`
//! The guest writes its memory while we look at it, and so do other threads of ours on its behalf. A
//! Rust reference says that nobody does, so no reference into guest memory exists anywhere: bytes are
//! moved by relaxed atomic loads and stores through raw pointers, and what was copied out is private.
//!
//! # Pages that are not there
//! A guest gives pages back (ballooning) and takes them again. A page that the domain did not map is
//! never touched: the access fails with [`MemoryError::Missing`], after the chunk was mapped afresh once
//! in case the page has come back since.
//!
//! # What changes under a mapping
//! When the guest's memory map changes, Xen tells us and [`GuestMemory::invalidate`] drops every mapping
//! at once, except that those held by a [`View`], a [`Pinned`] or a copy under way stay until their user is
//! done: they point at memory that is no longer the guest's, which harms nobody.
//!
//! # The dirty log
//! Every write by way of this crate sets one bit for its page, after the bytes were written.
//! [`GuestMemory::flush_dirty`] hands the pages to the domain, for live migration.

#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]
#![deny(clippy::undocumented_unsafe_blocks)]

mod chunk;
mod copy;
mod dirty;
mod error;
mod guest;
mod pinned;
mod region;
mod view;

#[cfg(test)]
mod tests;

pub use error::MemoryError;
pub use guest::GuestMemory;
pub use pinned::{Pin, Pinned};
pub use region::Region;
pub use view::View;

// Guest addresses and lengths are 64 bits wide and are used as pointer offsets.
const _: () = assert!(usize::BITS == 64);
