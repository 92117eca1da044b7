//! What can go wrong with an access to guest memory.

use std::io;

use domain::Gpa;

/// Why an access to guest memory was not done, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The range is not within one region of RAM. Addresses with bit 63 set (grants) are out of range.
    #[error("{len} bytes at {addr} are not in guest RAM")]
    OutOfRange {
        /// Start of the range.
        addr: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// The guest gave back the page that holds this address.
    #[error("the guest has no page at {addr}")]
    Missing {
        /// First address of the access that is in a missing page.
        addr: Gpa,
    },
    /// The domain could not map the chunk.
    #[error("cannot map guest memory at {addr}: {}", io::Error::from_raw_os_error(*.errno))]
    Map {
        /// Start of the chunk.
        addr: Gpa,
        /// The error number (`EIO` where the domain gave none).
        errno: i32,
    },
    /// The regions given for RAM make no sense.
    #[error(
        "RAM at {addr} of {size:#x} bytes is empty, not in whole pages, above 2^52 or overlaps another region"
    )]
    BadRegion {
        /// Start of the offending region.
        addr: Gpa,
        /// Its size in bytes.
        size: u64,
    },
}

impl MemoryError {
    pub(crate) fn map(addr: Gpa, error: &io::Error) -> MemoryError {
        MemoryError::Map { addr, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}
