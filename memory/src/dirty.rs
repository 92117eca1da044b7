//! Which pages of a region were written since the last report.

use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use std::thread;
use std::time::Duration;

const BITS: usize = u64::BITS as usize;

/// One bit a page, and one summary bit for each 64 of them so that looking for nothing is quick.
///
/// Both are allocated zeroed, so that a large guest costs memory only where it is written.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    pages: Box<[AtomicU64]>,
    /// Bit n of word m: word `64 m + n` of `pages` may have bits set. Never clear when it has, once
    /// [`DirtyLog::mark`] has returned.
    summary: Box<[AtomicU64]>,
}

impl DirtyLog {
    pub(crate) fn new(pages: usize) -> DirtyLog {
        let words = pages.div_ceil(BITS);
        DirtyLog { pages: zeroed(words), summary: zeroed(words.div_ceil(BITS)) }
    }

    /// Marks `count` pages from `first`. To be called after they were written: a bit that is taken
    /// before the bytes arrive would report the page too early.
    pub(crate) fn mark(&self, first: usize, count: usize) {
        if count == 1 {
            // Rings and small copies: no loop, no runs.
            let (index, shift) = split(first);
            return self.mark_word(index, run(shift, 1));
        }
        let end = first.saturating_add(count);
        let mut page = first;
        while page < end {
            let (index, shift) = split(page);
            let room = u64::BITS.saturating_sub(shift);
            let here = u32::try_from(end.saturating_sub(page)).unwrap_or(room).min(room);
            self.mark_word(index, run(shift, here));
            page = page.saturating_add(here as usize);
        }
    }

    /// Sets bits of one word. In the steady state of a device (its ring pages, again and again) they are
    /// set already and nothing is written, so that the cache line stays shared.
    #[inline]
    fn mark_word(&self, index: usize, bits: u64) {
        let (group, shift) = split(index);
        let (Some(word), Some(summary)) = (self.pages.get(index), self.summary.get(group)) else { return };
        // The other half of the barrier in `settle`: the compiler, too, leaves the bytes before the look.
        compiler_fence(Ordering::SeqCst);
        if word.load(Ordering::Relaxed) & bits != bits {
            // Acquire keeps the look at the summary behind it: the word set and the summary not would be
            // a page lost.
            word.fetch_or(bits, Ordering::AcqRel);
        }
        // Also when the word's bit was there: whoever set it may not have got this far yet. Release
        // pairs with the swap in `drain`: who sees the summary sees the word.
        let bit = run(shift, 1);
        if summary.load(Ordering::Relaxed) & bit == 0 {
            summary.fetch_or(bit, Ordering::Release);
        }
    }

    /// Takes every mark, handing over runs of pages (first, count) in ascending order.
    pub(crate) fn drain(&self, mut found: impl FnMut(usize, u32)) {
        for (group, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for_each_run(summary.swap(0, Ordering::Acquire), |shift, words| {
                let first = group.saturating_mul(BITS).saturating_add(shift as usize);
                for (index, word) in self.pages.iter().enumerate().skip(first).take(words as usize) {
                    let base = index.saturating_mul(BITS);
                    for_each_run(word.swap(0, Ordering::Relaxed), |shift, pages| {
                        found(base.saturating_add(shift as usize), pages);
                    });
                }
            });
        }
    }
}

/// Word index and bit number.
fn split(bit: usize) -> (usize, u32) {
    (bit / BITS, (bit as u64 & 63) as u32)
}

/// `count` bits set from bit `shift` up; together no more than 64.
fn run(shift: u32, count: u32) -> u64 {
    let ones = u64::MAX.checked_shr(u64::BITS.saturating_sub(count)).unwrap_or(0);
    ones.checked_shl(shift).unwrap_or(0)
}

/// Calls `found` with (first bit, count) of every run of ones.
fn for_each_run(mut bits: u64, mut found: impl FnMut(u32, u32)) {
    while bits != 0 {
        let shift = bits.trailing_zeros();
        let count = bits.checked_shr(shift).unwrap_or(0).trailing_ones();
        found(shift, count);
        bits &= !run(shift, count);
    }
}

/// Atomics from memory that the allocator knows to be zero, so that none of it is touched.
fn zeroed(words: usize) -> Box<[AtomicU64]> {
    let plain = Box::into_raw(vec![0u64; words].into_boxed_slice());
    // SAFETY: from a box just now, and `AtomicU64` has the layout of `u64`.
    unsafe { Box::from_raw(plain as *mut [AtomicU64]) }
}

/// Lets this process use the barrier in [`settle`].
pub(crate) fn prepare_settle() {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
}

/// Waits until every write before a mark that was found set already has reached memory.
///
/// A writer stores its bytes, then sees the page's bit set and leaves it at that. Its bytes may still be in
/// its CPU's store buffer while we take the bit and report the page, and then the page would be copied without
/// them. A fence in each `mark` would prevent it at a cost for every write; instead the rare reporter has the
/// kernel run one on every CPU where this process runs (membarrier(2)).
pub(crate) fn settle() {
    if !membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
        // No such call, or a sandbox forbids it. No store buffer takes as long as this to drain.
        thread::sleep(Duration::from_micros(100));
    }
}

fn membarrier(command: impl TryInto<libc::c_long>) -> bool {
    let Ok(command) = command.try_into() else { return false };
    let none: libc::c_long = 0;
    // SAFETY: the call reads and writes no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, none, none) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(log: &DirtyLog) -> Vec<(usize, u32)> {
        let mut runs = Vec::new();
        log.drain(|first, count| runs.push((first, count)));
        runs
    }

    #[test]
    fn runs_come_out_once_and_in_order() {
        let log = DirtyLog::new(64 * 64 * 2 + 10);
        log.mark(5000, 1);
        log.mark(3, 2);
        log.mark(4, 1);
        log.mark(64 * 64 * 2 + 9, 1);
        assert_eq!(drained(&log), [(3, 2), (5000, 1), (64 * 64 * 2 + 9, 1)]);
        assert_eq!(drained(&log), []);
    }

    #[test]
    fn long_runs_are_cut_at_words() {
        let log = DirtyLog::new(1000);
        log.mark(60, 140);
        assert_eq!(drained(&log), [(60, 4), (64, 64), (128, 64), (192, 8)]);
        log.mark(0, 64);
        assert_eq!(drained(&log), [(0, 64)]);
    }

    #[test]
    fn beyond_the_end_is_ignored() {
        let log = DirtyLog::new(64);
        log.mark(64, 10);
        log.mark(0, 0);
        assert_eq!(drained(&log), []);
    }

    #[test]
    fn settle_works_with_and_without_the_call() {
        prepare_settle();
        settle();
        assert!(!membarrier(-1));
    }
}
