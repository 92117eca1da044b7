//! The loads and stores themselves: the only code that touches guest memory.
//!
//! Guest memory changes under us. `ptr::copy_nonoverlapping` and slices assume that it does not (a
//! compiler may read twice, or split and repeat a store), so bytes move by relaxed atomics: on x86 each
//! is the plain `mov` that a volatile access would be, and unlike a volatile one it is no data race when
//! two threads of ours meet on the same page. Words of 8 bytes, aligned on the guest's side, keep this
//! within reach of `memcpy` for what goes this way: rings, headers, and bounce buffers. The bulk of data
//! goes through the kernel (see [`Pinned`](crate::Pinned)).
//!
//! Accesses of different sizes do meet on one address, which Rust's model of atomics leaves open. The
//! hardware does not: each byte is some thread's whole byte. Nothing here depends on more than that.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Copies guest memory at `from` to private memory.
///
/// # Safety
/// `into.len()` bytes at `from` are in a live mapping of guest memory.
#[inline]
pub(crate) unsafe fn load_bytes(mut from: NonNull<u8>, into: &mut [u8]) {
    let head = from.align_offset(WORD).min(into.len());
    let (head, rest) = into.split_at_mut(head);
    // SAFETY: the caller's promise, and `head`, the words and the tail are together `into.len()` long.
    unsafe {
        from = load_each(from, head);
        let mut words = rest.chunks_exact_mut(WORD);
        for word in &mut words {
            word.copy_from_slice(&u64::load(from, Ordering::Relaxed).to_le_bytes());
            from = from.add(WORD);
        }
        load_each(from, words.into_remainder());
    }
}

/// Copies private memory to guest memory at `to`.
///
/// # Safety
/// `from.len()` bytes at `to` are in a live mapping of guest memory.
#[inline]
pub(crate) unsafe fn store_bytes(mut to: NonNull<u8>, from: &[u8]) {
    let head = to.align_offset(WORD).min(from.len());
    let (head, rest) = from.split_at(head);
    // SAFETY: as in `load_bytes`.
    unsafe {
        to = store_each(to, head);
        let mut words = rest.chunks_exact(WORD);
        for word in &mut words {
            let mut bytes = [0; WORD];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes).store(to, Ordering::Relaxed);
            to = to.add(WORD);
        }
        store_each(to, words.remainder());
    }
}

/// # Safety
/// As [`load_bytes`].
unsafe fn load_each(mut from: NonNull<u8>, into: &mut [u8]) -> NonNull<u8> {
    for byte in into {
        // SAFETY: the caller's promise.
        unsafe {
            *byte = u8::load(from, Ordering::Relaxed);
            from = from.add(1);
        }
    }
    from
}

/// # Safety
/// As [`store_bytes`].
unsafe fn store_each(mut to: NonNull<u8>, from: &[u8]) -> NonNull<u8> {
    for byte in from {
        // SAFETY: the caller's promise.
        unsafe {
            byte.store(to, Ordering::Relaxed);
            to = to.add(1);
        }
    }
    to
}

/// A little-endian integer that is loaded and stored in one access.
pub(crate) trait Scalar: Copy {
    /// Bytes in memory.
    type Bytes: Default + AsRef<[u8]> + AsMut<[u8]>;

    /// Loads it.
    ///
    /// # Safety
    /// `from` is aligned to the integer's size and in a live mapping of guest memory.
    unsafe fn load(from: NonNull<u8>, order: Ordering) -> Self;

    /// Stores it.
    ///
    /// # Safety
    /// As [`Scalar::load`].
    unsafe fn store(self, to: NonNull<u8>, order: Ordering);

    fn from_le(bytes: Self::Bytes) -> Self;
    fn to_le(self) -> Self::Bytes;
}

macro_rules! scalar {
    ($int:ty, $atomic:ty) => {
        impl Scalar for $int {
            type Bytes = [u8; size_of::<$int>()];

            unsafe fn load(from: NonNull<u8>, order: Ordering) -> $int {
                // SAFETY: aligned and mapped by the caller's promise. Nobody holds a reference to it
                // but other atomics made here.
                <$int>::from_le(unsafe { <$atomic>::from_ptr(from.as_ptr().cast()) }.load(order))
            }

            unsafe fn store(self, to: NonNull<u8>, order: Ordering) {
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(to.as_ptr().cast()) }.store(<$int>::to_le(self), order);
            }

            fn from_le(bytes: Self::Bytes) -> $int {
                <$int>::from_le_bytes(bytes)
            }

            fn to_le(self) -> Self::Bytes {
                self.to_le_bytes()
            }
        }
    };
}

scalar!(u8, AtomicU8);
scalar!(u16, AtomicU16);
scalar!(u32, AtomicU32);
scalar!(u64, AtomicU64);
