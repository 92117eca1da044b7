//! Guest-physical addresses and frame numbers.

use std::fmt;

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Size of a guest page in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// The bits of an address that say where in its page it lies.
const IN_PAGE: u64 = PAGE_SIZE as u64 - 1;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on, or `None` where that would wrap.
    pub const fn checked_add(self, bytes: u64) -> Option<Gpa> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Gpa(sum)),
            None => None,
        }
    }

    /// The frame that holds this address.
    pub const fn frame(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// Offset within its page, in bytes, 0 to 4095.
    pub const fn page_offset(self) -> usize {
        (self.0 & IN_PAGE) as usize
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A guest frame number: a guest-physical address in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gfn {
    /// Address of the frame's first byte. Bits that do not fit are lost: frames above 2^52 do not exist.
    pub const fn address(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}
