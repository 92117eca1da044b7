//! Guest memory held for the kernel to copy from or to.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::chunk::Chunk;
use crate::copy;

/// Which way a pinned range is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The device reads guest memory (device-readable buffers: data to write to a disk or to send).
    Read,
    /// The device writes guest memory (device-writable buffers), which makes it dirty.
    Write,
}

/// Most ranges that an empty `Pinned` keeps room for. No honest driver has more in a request; one that has
/// shall not make us keep the memory for it.
const KEPT: usize = 256;

/// Ranges of guest memory as `iovec`s, and what keeps them mapped.
///
/// Made empty, filled by [`GuestMemory::pin`](crate::GuestMemory::pin), emptied by [`Pinned::clear`] and
/// filled again: it keeps its allocations. Ranges pinned one after the other make one stream of bytes,
/// in which every `offset` below counts. Neighbours in guest memory share an `iovec` where they can, so
/// there are as a rule no more `iovec`s than pins plus chunk boundaries; the kernel takes at most 1024 a
/// call (`IOV_MAX`).
///
/// The array of `iovec`s stays where it is while a `Pinned` is moved, until it is next changed.
#[derive(Debug, Default)]
pub struct Pinned {
    iovecs: Vec<libc::iovec>,
    /// Index of the first `iovec` not consumed by [`Pinned::advance`].
    first: usize,
    len: usize,
    /// Bytes consumed by [`Pinned::advance`].
    consumed: usize,
    /// Each chunk once, if its uses follow each other.
    guards: Vec<Arc<Chunk>>,
    writes: Vec<Write>,
}

/// A range to be logged as dirty.
#[derive(Debug)]
struct Write {
    /// Where it starts in the stream, consumed bytes included.
    at: usize,
    /// Index in `guards`.
    guard: usize,
    /// Offset in the chunk.
    offset: usize,
    len: usize,
}

// SAFETY: the pointers in the iovecs are into mappings that belong to the process and that `guards` keeps;
// they are only ever used for copies that allow for others' writes.
unsafe impl Send for Pinned {}

impl Pinned {
    /// An empty one, which has allocated nothing.
    pub fn new() -> Pinned {
        Pinned::default()
    }

    /// Logs as dirty what is pinned for [`Pin::Write`], releases everything and keeps the allocations.
    /// Dropping it does the same, but for the last.
    ///
    /// To be called when the kernel is done with the memory, not before.
    pub fn clear(&mut self) {
        for write in self.writes.drain(..) {
            if let Some(chunk) = self.guards.get(write.guard) {
                chunk.mark(write.offset, write.len);
            }
        }
        self.iovecs.clear();
        self.first = 0;
        self.len = 0;
        self.consumed = 0;
        self.guards.clear();
        if self.iovecs.capacity() > KEPT || self.writes.capacity() > KEPT || self.guards.capacity() > KEPT {
            (self.iovecs, self.guards, self.writes) = (Vec::new(), Vec::new(), Vec::new());
        }
    }

    /// Bytes pinned and not consumed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether [`Pinned::len`] is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is pinned and not consumed, in order.
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.iovecs.get(self.first..).unwrap_or_default()
    }

    /// Keeps the first `len` bytes and lets go of the rest, which is then not dirty: for a buffer that was
    /// filled in part. Does nothing if there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let mut excess = self.len.saturating_sub(len);
        while excess > 0 && self.iovecs.len() > self.first {
            let Some(last) = self.iovecs.last_mut() else { break };
            if last.iov_len > excess {
                last.iov_len = last.iov_len.saturating_sub(excess);
                break;
            }
            excess = excess.saturating_sub(last.iov_len);
            self.iovecs.pop();
        }
        self.len = len;
        let end = self.consumed.saturating_add(len);
        self.writes.retain_mut(|write| {
            write.len = write.len.min(end.saturating_sub(write.at));
            write.len > 0
        });
    }

    /// Consumes the first `count` bytes: for the rest of a transfer that was done in part. They stay
    /// mapped, and are logged as dirty in the end if they were pinned for [`Pin::Write`].
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len = self.len.saturating_sub(left);
        self.consumed = self.consumed.saturating_add(left);
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if iovec.iov_len > left {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(left);
                iovec.iov_len = iovec.iov_len.saturating_sub(left);
                break;
            }
            left = left.saturating_sub(iovec.iov_len);
            self.first = self.first.saturating_add(1);
        }
    }

    /// Copies from the pinned memory at `offset` to `buf`. Returns the number of bytes copied, fewer than
    /// `buf` has room for only at the end of what is pinned.
    pub fn copy_to(&self, offset: usize, buf: &mut [u8]) -> usize {
        let mut rest = buf;
        self.each_piece(offset, rest.len(), |pointer, len| {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: `each_piece` gives `len` bytes of a mapping that `guards` keeps.
            unsafe { copy::load_bytes(pointer, piece) };
            rest = tail;
        })
    }

    /// Copies `buf` to the pinned memory at `offset`, which is to be pinned for [`Pin::Write`]. Returns the
    /// number of bytes copied, fewer than all only at the end of what is pinned.
    pub fn copy_from(&self, offset: usize, buf: &[u8]) -> usize {
        let mut rest = buf;
        self.each_piece(offset, rest.len(), |pointer, len| {
            let (piece, tail) = rest.split_at(len);
            // SAFETY: as in `copy_to`.
            unsafe { copy::store_bytes(pointer, piece) };
            rest = tail;
        })
    }

    /// Calls `act` with each contiguous piece of `len` bytes at `offset`; returns the sum of their lengths.
    fn each_piece(&self, offset: usize, len: usize, mut act: impl FnMut(NonNull<u8>, usize)) -> usize {
        let mut skip = offset;
        let mut left = len;
        for iovec in self.iovecs() {
            if left == 0 {
                break;
            }
            let here = iovec.iov_len.saturating_sub(skip).min(left);
            if here > 0
                && let Some(base) = NonNull::new(iovec.iov_base.cast::<u8>().wrapping_add(skip))
            {
                act(base, here);
                left = left.saturating_sub(here);
            }
            skip = skip.saturating_sub(iovec.iov_len);
        }
        len.saturating_sub(left)
    }

    /// Appends `len` bytes (not 0) at `pointer`, which are at `offset` in `chunk`.
    pub(crate) fn push(
        &mut self,
        chunk: &Arc<Chunk>,
        pointer: NonNull<u8>,
        offset: usize,
        len: usize,
        direction: Pin,
    ) {
        let same_chunk = self.guards.last().is_some_and(|last| Arc::ptr_eq(last, chunk));
        if !same_chunk {
            self.guards.push(Arc::clone(chunk));
        }
        if direction == Pin::Write {
            self.log_write(offset, len, same_chunk);
        }
        self.len = self.len.saturating_add(len);

        // Only within a chunk: two mappings that happen to touch are still two.
        let first = self.first;
        if same_chunk
            && self.iovecs.len() > first
            && let Some(last) = self.iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == pointer.as_ptr()
        {
            last.iov_len = last.iov_len.saturating_add(len);
        } else {
            self.iovecs.push(libc::iovec { iov_base: pointer.as_ptr().cast(), iov_len: len });
        }
    }

    fn log_write(&mut self, offset: usize, len: usize, same_chunk: bool) {
        let at = self.consumed.saturating_add(self.len);
        if same_chunk
            && let Some(last) = self.writes.last_mut()
            && last.offset.checked_add(last.len) == Some(offset)
            && last.at.checked_add(last.len) == Some(at)
        {
            last.len = last.len.saturating_add(len);
        } else {
            self.writes.push(Write { at, guard: self.guards.len().saturating_sub(1), offset, len });
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.clear();
    }
}
