//! Aligned memory for direct I/O.
//!
//! Direct I/O pins the pages it transfers, and the mapping of another domain's memory cannot be pinned
//! (`EFAULT`), so direct I/O goes through pages of our own.

use std::io;
use std::ptr::NonNull;

use memory::Pinned;
use rustix::mm::{MapFlags, ProtFlags};

/// Unit of the pool, and alignment of every buffer, in bytes.
const PAGE: usize = 4096;
/// Most that one engine's buffers may take together, in bytes. Only what is used is ever resident.
pub(super) const POOL_BYTES: usize = 4 << 20;
/// Most that one buffer may take, in bytes. Larger requests are done in pieces of this.
pub(super) const BUFFER_BYTES: usize = 1 << 20;

/// Pages that an idle pool keeps: enough for one buffer.
const KEPT_PAGES: usize = BUFFER_BYTES / PAGE;
const PAGES: usize = POOL_BYTES / PAGE;
const WORDS: usize = PAGES / 64;

/// One engine's buffers.
///
/// The lowest free run is taken, so that a guest with small requests keeps few pages resident.
#[derive(Debug)]
pub(super) struct Pool {
    base: NonNull<u8>,
    /// One bit a page, set while it is in a [`Buffer`].
    taken: [u64; WORDS],
    /// Pages in buffers.
    used: usize,
    /// The most there were since the pool was last empty and trimmed.
    peak: usize,
}

// SAFETY: the mapping belongs to the process and is reached only through the pool and its buffers.
unsafe impl Send for Pool {}

/// A run of a pool's pages. Give it back with [`Pool::free`].
#[derive(Debug)]
pub(super) struct Buffer {
    base: NonNull<u8>,
    len: usize,
    first: usize,
}

// SAFETY: a buffer is the only handle on its bytes.
unsafe impl Send for Buffer {}

impl Pool {
    /// Reserves address space for the pool; pages come as they are used.
    pub(super) fn new() -> io::Result<Pool> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                POOL_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pool { base, taken: [0; WORDS], used: 0, peak: 0 })
    }

    /// Takes a buffer of `len` bytes, at most [`BUFFER_BYTES`]; `None` while there is no room.
    pub(super) fn take(&mut self, len: usize) -> Option<Buffer> {
        let pages = len.div_ceil(PAGE).max(1);
        let first = self.find(pages)?;
        self.mark(first, pages, true);
        self.used = self.used.saturating_add(pages);
        self.peak = self.peak.max(self.used);
        let offset = first.checked_mul(PAGE)?;
        // SAFETY: `find` returned a run inside the mapping.
        let base = unsafe { self.base.add(offset) };
        Some(Buffer { base, len, first })
    }

    /// Gives a buffer back. After a burst the pages go back to the host.
    pub(super) fn free(&mut self, buffer: Buffer) {
        let pages = buffer.len.div_ceil(PAGE).max(1);
        self.mark(buffer.first, pages, false);
        self.used = self.used.saturating_sub(pages);
        if self.used == 0 && self.peak > KEPT_PAGES {
            self.peak = 0;
            // SAFETY: the mapping is ours, and nobody has a buffer in it.
            let result = unsafe {
                rustix::mm::madvise(self.base.as_ptr().cast(), POOL_BYTES, rustix::mm::Advice::LinuxDontNeed)
            };
            debug_assert!(result.is_ok(), "madvise of a bounce pool: {result:?}");
        }
    }

    fn mark(&mut self, first: usize, pages: usize, taken: bool) {
        for page in first..first.saturating_add(pages) {
            let Some(word) = self.taken.get_mut(page / 64) else { return };
            let bit = 1 << (page % 64);
            *word = if taken { *word | bit } else { *word & !bit };
        }
    }

    /// The first run of `pages` free pages.
    fn find(&self, pages: usize) -> Option<usize> {
        let mut run = 0usize;
        for (word, start) in self.taken.iter().zip((0usize..).step_by(64)) {
            if *word == u64::MAX {
                run = 0;
                continue;
            }
            for bit in 0usize..64 {
                run = if word & (1 << bit) == 0 { run.saturating_add(1) } else { 0 };
                if run == pages {
                    return start.saturating_add(bit).saturating_add(1).checked_sub(pages);
                }
            }
        }
        None
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and engines drop their pool only when the kernel is done with it.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), POOL_BYTES) };
        debug_assert!(result.is_ok(), "munmap of a bounce pool: {result:?}");
    }
}

impl Buffer {
    /// Where its bytes are, for a system call.
    pub(super) fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Size in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Fills it from the start of `data`; returns how many bytes there were. Not while the kernel uses it.
    pub(super) fn fill(&mut self, data: &Pinned) -> usize {
        // SAFETY: the buffer's bytes are mapped and initialised (anonymous memory is zero), nobody else
        // has them, and the caller has no system call running on them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) };
        data.copy_to(0, bytes)
    }

    /// Copies its first `len` bytes to the start of `data`; returns how many there was room for. Not
    /// while the kernel uses it.
    pub(super) fn empty(&self, len: usize, data: &Pinned) -> usize {
        // SAFETY: as in `fill`.
        let bytes = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len.min(len)) };
        data.copy_from(0, bytes)
    }
}
