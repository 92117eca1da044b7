//! Guest memory held for typed access over a long time.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use domain::Gpa;

use crate::chunk::Chunk;
use crate::copy::{self, Scalar};
use crate::{GuestMemory, MemoryError};

/// A range of guest memory that stays mapped: for rings.
///
/// Offsets are in bytes from its start. An access that is not wholly inside fails with
/// [`MemoryError::OutOfRange`]; no other error occurs. Integers are little-endian, and one that is
/// aligned in guest memory is one access. Writes are logged as dirty.
///
/// When the guest's memory map changes the view still works, on what may no longer be the guest's
/// memory. Whoever holds one asks [`View::is_stale`] when starting on a batch of work and makes it
/// again if so.
#[derive(Debug)]
pub struct View {
    start: Gpa,
    len: usize,
    generation: u64,
    /// The pieces of the range, in order: cut at chunk boundaries only.
    parts: Box<[Part]>,
    /// Offset of the range in the first chunk.
    first: usize,
    chunk_shift: u32,
}

/// The piece of a view that lies in one chunk. All of its pages are there: what is checked once, when the
/// view is made, need not be checked at each access.
#[derive(Debug)]
pub(crate) struct Part {
    /// Start of the chunk, which is before the start of the piece in the first part.
    base: NonNull<u8>,
    chunk: Arc<Chunk>,
}

// SAFETY: `base` is into a mapping that belongs to the process and that `chunk` keeps, used for copies that
// allow for others' writes.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

impl Part {
    pub(crate) fn new(chunk: &Arc<Chunk>) -> Part {
        Part { base: chunk.base(), chunk: Arc::clone(chunk) }
    }
}

impl View {
    /// A view of `len` bytes at `start`, of which `parts` are the pieces, whose pages are all there.
    pub(crate) fn new(
        start: Gpa,
        len: usize,
        generation: u64,
        parts: Box<[Part]>,
        first: usize,
        chunk_shift: u32,
    ) -> View {
        View { start, len, generation, parts, first, chunk_shift }
    }

    /// Guest-physical address of its first byte.
    pub fn address(&self) -> Gpa {
        self.start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the guest's memory map changed since the view was made. One atomic load.
    pub fn is_stale(&self, memory: &GuestMemory) -> bool {
        self.generation != memory.generation()
    }

    /// Copies `buf.len()` bytes at `offset` out.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], before anything was copied.
    pub fn read_bytes(&self, offset: usize, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = buf;
        self.each_piece(offset, rest.len(), |_, pointer, _, len| {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: `each_piece` gives a pointer to `len` mapped bytes.
            unsafe { copy::load_bytes(pointer, piece) };
            rest = tail;
        })
    }

    /// Copies `buf` in at `offset`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], before anything was copied.
    pub fn write_bytes(&self, offset: usize, buf: &[u8]) -> Result<(), MemoryError> {
        let mut rest = buf;
        self.each_piece(offset, rest.len(), |chunk, pointer, at, len| {
            let (piece, tail) = rest.split_at(len);
            // SAFETY: as in `read_bytes`.
            unsafe { copy::store_bytes(pointer, piece) };
            chunk.mark(at, len);
            rest = tail;
        })
    }

    /// Calls `act` with each piece of a range that lies in one chunk: the chunk, a pointer to the piece,
    /// its offset in the chunk, and its length.
    fn each_piece(
        &self,
        offset: usize,
        len: usize,
        mut act: impl FnMut(&Chunk, NonNull<u8>, usize, usize),
    ) -> Result<(), MemoryError> {
        let end = offset.checked_add(len).ok_or_else(|| self.outside(offset, len))?;
        if end > self.len {
            return Err(self.outside(offset, len));
        }
        let mut at = offset;
        while at < end {
            let (part, within) = self.locate(at).ok_or_else(|| self.outside(offset, len))?;
            let to_boundary = self.chunk_size().saturating_sub(within);
            let here = end.saturating_sub(at).min(to_boundary);
            // SAFETY: in the part's chunk, since `locate` found it there and the boundary is not crossed.
            let pointer = unsafe { part.base.add(within) };
            act(&part.chunk, pointer, within, here);
            at = at.saturating_add(here);
        }
        Ok(())
    }

    fn load<S: Scalar>(&self, offset: usize, order: Ordering) -> Result<S, MemoryError> {
        if let Some((pointer, _, _)) = self.scalar::<S>(offset) {
            // SAFETY: `scalar` gives an aligned pointer to as many bytes.
            return Ok(unsafe { S::load(pointer, order) });
        }
        let mut bytes = S::Bytes::default();
        self.read_bytes(offset, bytes.as_mut())?;
        if order != Ordering::Relaxed {
            fence(order);
        }
        Ok(S::from_le(bytes))
    }

    fn store<S: Scalar>(&self, offset: usize, value: S, order: Ordering) -> Result<(), MemoryError> {
        if let Some((pointer, chunk, at)) = self.scalar::<S>(offset) {
            // SAFETY: as in `load`.
            unsafe { value.store(pointer, order) };
            chunk.mark(at, size_of::<S>());
            return Ok(());
        }
        if order != Ordering::Relaxed {
            fence(order);
        }
        self.write_bytes(offset, value.to_le().as_ref())
    }

    /// A pointer to the integer at `offset`, its chunk and its offset there, if it is inside and aligned.
    fn scalar<S>(&self, offset: usize) -> Option<(NonNull<u8>, &Chunk, usize)> {
        if offset.checked_add(size_of::<S>())? > self.len {
            return None;
        }
        let (part, within) = self.locate(offset)?;
        if !within.is_multiple_of(size_of::<S>()) {
            return None;
        }
        // SAFETY: in the part's chunk, and so is the rest of the integer, since it is aligned.
        Some((unsafe { part.base.add(within) }, &part.chunk, within))
    }

    /// The part that holds the byte at `offset`, which is inside, and the byte's offset in its chunk.
    fn locate(&self, offset: usize) -> Option<(&Part, usize)> {
        let at = self.first.checked_add(offset)?;
        let part = self.parts.get(at >> self.chunk_shift)?;
        Some((part, at & self.chunk_size().saturating_sub(1)))
    }

    fn chunk_size(&self) -> usize {
        1usize.checked_shl(self.chunk_shift).unwrap_or(usize::MAX)
    }

    #[cold]
    fn outside(&self, offset: usize, len: usize) -> MemoryError {
        let addr = Gpa(self.start.0.saturating_add(offset as u64));
        MemoryError::OutOfRange { addr, len: len as u64 }
    }
}

macro_rules! accessors {
    ($int:ty, $read:ident, $write:ident, $load:ident, $store:ident) => {
        impl View {
            #[doc = concat!("Loads the ", stringify!($int), " at `offset`.")]
            ///
            /// # Errors
            /// [`MemoryError::OutOfRange`].
            pub fn $read(&self, offset: usize) -> Result<$int, MemoryError> {
                self.load(offset, Ordering::Relaxed)
            }

            #[doc = concat!("Stores the ", stringify!($int), " `value` at `offset`.")]
            ///
            /// # Errors
            /// [`MemoryError::OutOfRange`].
            pub fn $write(&self, offset: usize, value: $int) -> Result<(), MemoryError> {
                self.store(offset, value, Ordering::Relaxed)
            }

            #[doc = concat!("Loads the ", stringify!($int), " at `offset`; later accesses stay behind it.")]
            ///
            /// # Errors
            /// [`MemoryError::OutOfRange`].
            pub fn $load(&self, offset: usize) -> Result<$int, MemoryError> {
                self.load(offset, Ordering::Acquire)
            }

            #[doc = concat!("Stores the ", stringify!($int), " at `offset`; earlier accesses stay before it.")]
            ///
            /// # Errors
            /// [`MemoryError::OutOfRange`].
            pub fn $store(&self, offset: usize, value: $int) -> Result<(), MemoryError> {
                self.store(offset, value, Ordering::Release)
            }
        }
    };
}

accessors!(u8, read_u8, write_u8, load_u8_acquire, store_u8_release);
accessors!(u16, read_u16, write_u16, load_u16_acquire, store_u16_release);
accessors!(u32, read_u32, write_u32, load_u32_acquire, store_u32_release);
accessors!(u64, read_u64, write_u64, load_u64_acquire, store_u64_release);
