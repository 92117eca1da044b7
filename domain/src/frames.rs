//! A mapping of guest frames into this process.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::PAGE_SIZE;

/// A run of guest frames mapped into this process; unmapped when dropped.
///
/// Other vCPUs write this memory while we look at it, so there is no way to get a reference into it:
/// users copy through raw pointers (see the `memory` crate, the one place that does).
#[derive(Debug)]
pub struct Frames {
    base: NonNull<u8>,
    count: usize,
    /// One bit a frame, set where the guest has no such frame. Empty when none is missing.
    missing: Vec<u64>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Frames` gives out only its address.
unsafe impl Send for Frames {}
// SAFETY: as above; no method changes anything through a shared reference.
unsafe impl Sync for Frames {}

impl Frames {
    /// Takes over a mapping of `count` pages at `base`; `missing` lists the indices of the pages in it
    /// that must not be touched.
    ///
    /// # Safety
    /// `base` is the page-aligned start of a mapping of `count * PAGE_SIZE` bytes that nothing else will
    /// unmap, and every page not listed in `missing` stays readable and writable while it exists.
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        count: usize,
        missing: impl IntoIterator<Item = usize>,
    ) -> Frames {
        let mut bits = Vec::new();
        for index in missing.into_iter().filter(|index| *index < count) {
            if bits.is_empty() {
                bits = vec![0u64; count.div_ceil(64)];
            }
            if let Some(word) = bits.get_mut(index / 64) {
                *word |= 1 << (index % 64);
            }
        }
        Frames { base, count, missing: bits }
    }

    /// Start of the mapping.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Number of frames, the missing ones included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether frame `index` of the run is there and may be touched.
    pub fn is_present(&self, index: usize) -> bool {
        index < self.count && self.missing.get(index / 64).is_none_or(|word| word & (1 << (index % 64)) == 0)
    }

    /// Whether every frame of the run is there.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // It is mapped, so it fits.
        let bytes = self.count.saturating_mul(PAGE_SIZE);
        // SAFETY: `from_raw` made this mapping ours alone, and users hold the `Frames` while they use it.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), bytes) };
        debug_assert!(result.is_ok(), "munmap of guest frames: {result:?}");
    }
}
