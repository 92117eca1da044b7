//! `/dev/xen/gntdev`: memory that a domain has granted (linux/xen/gntdev.h).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use domain::PAGE_SIZE;
use rustix::mm::{MapFlags, ProtFlags};

use crate::ioctl;
use crate::{DomId, XenError};

const PATH: &str = "/dev/xen/gntdev";

/// The size in the number counts one reference, however many there are.
const MAP_GRANT_REF: u32 = ioctl::number(b'G', 0, 8 * (HEADER_WORDS + 1));
const UNMAP_GRANT_REF: u32 = ioctl::number(b'G', 1, size_of::<Unmap>());

/// Words of 8 bytes before the references in `struct ioctl_gntdev_map_grant_ref`: count and padding, then
/// the index that comes back.
const HEADER_WORDS: usize = 2;
/// Which word of it is the index.
const INDEX: usize = 1;

/// `struct ioctl_gntdev_unmap_grant_ref`.
#[repr(C)]
struct Unmap {
    index: u64,
    count: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Unmap>() == 16 && std::mem::offset_of!(Unmap, count) == 8);

/// The device. It has no way to be limited to one domain: close it before dropping privileges.
#[derive(Clone, Debug)]
pub struct Gntdev {
    fd: Arc<OwnedFd>,
}

/// Granted pages, mapped into this process next to each other; given back when dropped.
///
/// The granting domain writes this memory while we look at it: no references into it, as for
/// [`domain::Frames`]. Unlike these, the pages can be targets of direct I/O.
#[derive(Debug)]
pub struct Grants {
    device: Gntdev,
    base: NonNull<u8>,
    index: u64,
    count: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `Grants` gives out only its address.
unsafe impl Send for Grants {}
// SAFETY: as above; no method changes anything through a shared reference.
unsafe impl Sync for Grants {}

impl Gntdev {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no Xen domain, or the caller may not open it.
    pub fn open() -> Result<Gntdev, XenError> {
        Ok(Gntdev { fd: Arc::new(ioctl::open(PATH)?) })
    }

    /// Maps the pages that `domid` granted under `references`, for writing too if `writable`.
    ///
    /// # Errors
    /// None or too many references, or one of them is not granted to this domain or not for writing.
    pub fn map(&self, domid: DomId, references: &[u32], writable: bool) -> Result<Grants, XenError> {
        let (count, bytes) = count(references)?;
        let mut call = encode_map(domid, count, references);
        // SAFETY: MAP_GRANT_REF reads the header and as many references as the header says, and writes
        // the index in the header.
        let result = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), MAP_GRANT_REF, call.as_mut_ptr()) };
        result.map_err(|error| XenError::call("IOCTL_GNTDEV_MAP_GRANT_REF", error))?;
        let index = call.get(INDEX).copied().unwrap_or_default();

        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, &*self.fd, index)
        };
        let base = base
            .map_err(io::Error::from)
            .and_then(|base| NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::Other.into()));
        match base {
            Ok(base) => Ok(Grants { device: self.clone(), base, index, count }),
            Err(error) => {
                self.unmap(index, count);
                Err(XenError::call(format!("mmap of {PATH} ({count} grants of domain {domid})"), error))
            }
        }
    }

    fn unmap(&self, index: u64, count: u32) {
        let mut call = Unmap { index, count, pad: 0 };
        // SAFETY: UNMAP_GRANT_REF reads the struct.
        if let Err(error) = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), UNMAP_GRANT_REF, &raw mut call) } {
            log::warn!("IOCTL_GNTDEV_UNMAP_GRANT_REF: {error}");
        }
    }
}

/// `struct ioctl_gntdev_map_grant_ref` in words: {u32 count, u32 pad, u64 index, {u32 domid, u32 ref}...}.
fn encode_map(domid: DomId, count: u32, references: &[u32]) -> Vec<u64> {
    let pair = |first: u32, second: u32| {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    let header = [pair(count, 0), 0];
    let references = references.iter().map(|reference| pair(domid.get().into(), *reference));
    header.into_iter().chain(references).collect()
}

/// How many these are, and the bytes that they map.
fn count(references: &[u32]) -> Result<(u32, usize), XenError> {
    let count = u32::try_from(references.len()).ok().filter(|count| *count != 0);
    count
        .zip(references.len().checked_mul(PAGE_SIZE))
        .ok_or_else(|| XenError::call("IOCTL_GNTDEV_MAP_GRANT_REF", io::ErrorKind::InvalidInput.into()))
}

impl Grants {
    /// Start of the mapping.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.count as usize
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        let bytes = self.count().saturating_mul(PAGE_SIZE);
        // SAFETY: `map` made this mapping ours alone, and users hold the `Grants` while they use it.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), bytes) };
        debug_assert!(result.is_ok(), "munmap of grants: {result:?}");
        self.device.unmap(self.index, self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers() {
        assert_eq!(MAP_GRANT_REF, 0x0018_4700);
        assert_eq!(UNMAP_GRANT_REF, 0x0010_4701);
    }

    #[test]
    fn map_encoding() {
        let words = encode_map("7".parse().unwrap(), 2, &[0x11, 0x22]);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let expected = [
            2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
            7, 0, 0, 0, 0x11, 0, 0, 0, 7, 0, 0, 0, 0x22, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        assert!(count(&[]).is_err());
        assert_eq!(count(&[1, 2]).unwrap(), (2, 8192));
    }

    #[test]
    fn a_plain_linux_has_no_device() {
        if !std::path::Path::new(PATH).exists() {
            let error = Gntdev::open().unwrap_err().to_string();
            assert_eq!(error, "cannot open /dev/xen/gntdev: No such file or directory (is this a Xen dom0?)");
        }
    }
}
