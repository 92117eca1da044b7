//! Disks: raw image files and block devices.
//!
//! A [`Disk`] is opened once, with everything checked, and makes an [`Engine`] for each queue that does
//! I/O on it. `transfer` decides what a request needs next, one system call at a time; the engines
//! (`uring`, `synchronous`) only carry those steps out.

mod bounce;
mod disk;
mod options;
mod synchronous;
mod transfer;
mod uring;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;

use memory::Pinned;

pub use disk::{Disk, DiskError};
pub use options::{Cache, DiskOptions, EngineChoice, UnknownCache};

/// What a [`Request`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read from the disk into guest memory.
    Read,
    /// Write guest memory to the disk. If `durable`, it completes only once on stable storage.
    Write {
        /// Complete only once on stable storage.
        durable: bool,
    },
    /// Make every write completed so far durable.
    Flush,
    /// The guest no longer needs this range; what it reads from there is unspecified. Does nothing
    /// where the disk cannot, or was opened without `discard`.
    Discard,
    /// Make this range read as zeros.
    WriteZeroes {
        /// The space behind it may be given back.
        unmap: bool,
        /// Complete only once on stable storage.
        durable: bool,
    },
}

/// One request to an [`Engine`].
#[derive(Debug)]
pub struct Request {
    /// Returned in the [`Completion`]; means nothing to the engine.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How much, in bytes. For reads and writes exactly `data.len()`.
    pub len: u64,
    /// Guest memory for reads and writes, else empty.
    pub data: Pinned,
}

/// A [`Request`] that is over.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// The request's guest memory, handed back.
    pub data: Pinned,
    /// Whether all of it was done. A part of the data may have moved even on an error.
    pub result: io::Result<()>,
}

/// Does I/O on one [`Disk`], for one thread.
///
/// A turn goes: [`complete`](Engine::complete) until it returns `None`, [`submit`](Engine::submit)
/// what is new, then [`flush_submissions`](Engine::flush_submissions) once, which also pushes on requests
/// that need another step. Dropping an engine waits for what the kernel still has in hand.
pub trait Engine: Send {
    /// Takes a request. It starts at the next [`flush_submissions`](Engine::flush_submissions).
    fn submit(&mut self, request: Request);

    /// Hands everything that can start to the kernel, in one system call where that is possible.
    ///
    /// # Errors
    /// The kernel takes no more requests at all. Those that it had not taken yet have failed and can be
    /// had from [`complete`](Engine::complete); so will all later ones.
    fn flush_submissions(&mut self) -> io::Result<()>;

    /// A request that is over, or `None` if there is none at this moment.
    fn complete(&mut self) -> Option<Completion>;

    /// Readable while [`complete`](Engine::complete) may have something. `None` for an engine that
    /// completes everything within [`flush_submissions`](Engine::flush_submissions).
    fn event(&self) -> Option<BorrowedFd<'_>>;

    /// Requests taken and not handed back yet.
    fn in_flight(&self) -> usize;

    /// Sleeps until [`complete`](Engine::complete) may have something; returns at once when nothing is
    /// with the kernel.
    fn wait(&mut self);
}
