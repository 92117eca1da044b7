//! One mapped piece of a region.

use std::ptr::NonNull;
use std::sync::Arc;

use domain::{Frames, Gpa, PAGE_SHIFT, PAGE_SIZE};

use crate::dirty::DirtyLog;

/// A mapped run of guest frames, and where its writes are logged. Unmapped with the last user.
#[derive(Debug)]
pub(crate) struct Chunk {
    frames: Frames,
    start: Gpa,
    /// Index of the first frame in the region's log.
    first_page: usize,
    log: Arc<DirtyLog>,
}

impl Chunk {
    pub(crate) fn new(frames: Frames, start: Gpa, first_page: usize, log: Arc<DirtyLog>) -> Chunk {
        Chunk { frames, start, first_page, log }
    }

    /// Start of the mapping, some pages of which may be missing.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.frames.base()
    }

    /// Where `len` bytes at `offset` are mapped, or `None` unless all are in pages that are there.
    pub(crate) fn pointer(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        let size = self.frames.count().checked_mul(PAGE_SIZE)?;
        if end > size || (!self.frames.is_complete() && self.missing(offset, len).is_some()) {
            return None;
        }
        // SAFETY: in the mapping, by the check above.
        Some(unsafe { self.frames.base().add(offset) })
    }

    /// The first address of `len` bytes at `offset` that is in a missing page.
    pub(crate) fn missing(&self, offset: usize, len: usize) -> Option<Gpa> {
        let (first, last) = pages(offset, len)?;
        let page = (first..=last).find(|page| !self.frames.is_present(*page))?;
        let hole = (page as u64).checked_shl(PAGE_SHIFT)?;
        self.start.checked_add(hole.max(offset as u64))
    }

    /// Logs that `len` bytes at `offset` were written.
    pub(crate) fn mark(&self, offset: usize, len: usize) {
        if let Some((first, last)) = pages(offset, len) {
            let count = last.saturating_sub(first).saturating_add(1);
            self.log.mark(self.first_page.saturating_add(first), count);
        }
    }
}

/// First and last page of a range, or `None` for an empty one.
fn pages(offset: usize, len: usize) -> Option<(usize, usize)> {
    let last = offset.checked_add(len.checked_sub(1)?)?;
    Some((offset >> PAGE_SHIFT, last >> PAGE_SHIFT))
}
