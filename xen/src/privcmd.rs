//! `/dev/xen/privcmd`: device-model operations, and mapping frames of a domain (linux/xen/privcmd.h).

use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::thread;
use std::time::Duration;

use domain::{Frames, Gfn, PAGE_SHIFT, PAGE_SIZE};
use rustix::mm::{MapFlags, ProtFlags};

use crate::devicemodel::{DmOp, RawExtent};
use crate::ioctl;
use crate::{DomId, XenError};

const PATH: &str = "/dev/xen/privcmd";

const MMAPBATCH_V2: u32 = ioctl::number(b'P', 4, size_of::<MmapBatch>());
const DM_OP: u32 = ioctl::number(b'P', 5, size_of::<DmOpCall>());
const RESTRICT: u32 = ioctl::number(b'P', 6, size_of::<u16>());
const MMAP_RESOURCE: u32 = ioctl::number(b'P', 7, size_of::<MmapResource>());

/// `XENMEM_resource_ioreq_server` (xen/include/public/memory.h).
const RESOURCE_IOREQ_SERVER: u32 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`; frame 0 is the page of buffered requests, not used here.
const FRAME_IOREQ: u32 = 1;

/// How often pages that are on their way in from Xen's page store are asked for again.
const PAGING_RETRIES: u32 = 10;
const PAGING_DELAY: Duration = Duration::from_millis(1);

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MmapBatch {
    num: u32,
    dom: u16,
    addr: u64,
    arr: *const u64,
    err: *mut c_int,
}
const _: () = assert!(size_of::<MmapBatch>() == 32 && std::mem::offset_of!(MmapBatch, dom) == 4);
const _: () =
    assert!(std::mem::offset_of!(MmapBatch, addr) == 8 && std::mem::offset_of!(MmapBatch, arr) == 16);
const _: () = assert!(std::mem::offset_of!(MmapBatch, err) == 24);

/// `struct privcmd_dm_op_buf`.
#[repr(C)]
struct DmOpBuffer {
    pointer: *mut c_void,
    size: usize,
}
const _: () = assert!(size_of::<DmOpBuffer>() == 16 && std::mem::offset_of!(DmOpBuffer, size) == 8);

/// `struct privcmd_dm_op`.
#[repr(C)]
struct DmOpCall {
    dom: u16,
    num: u16,
    buffers: *const DmOpBuffer,
}
const _: () = assert!(size_of::<DmOpCall>() == 16 && std::mem::offset_of!(DmOpCall, num) == 2);
const _: () = assert!(std::mem::offset_of!(DmOpCall, buffers) == 8);

/// `struct privcmd_mmap_resource`.
#[repr(C)]
struct MmapResource {
    dom: u16,
    kind: u32,
    id: u32,
    idx: u32,
    num: u64,
    addr: u64,
}
const _: () = assert!(size_of::<MmapResource>() == 32 && std::mem::offset_of!(MmapResource, kind) == 4);
const _: () =
    assert!(std::mem::offset_of!(MmapResource, id) == 8 && std::mem::offset_of!(MmapResource, idx) == 12);
const _: () = assert!(std::mem::offset_of!(MmapResource, num) == 16);
const _: () = assert!(std::mem::offset_of!(MmapResource, addr) == 24);

/// The device. One descriptor serves everything, so that [`restrict`](Privcmd::restrict) holds for all.
#[derive(Debug)]
pub struct Privcmd {
    fd: OwnedFd,
}

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no Xen domain with the right to serve others, or the caller may not open it.
    pub fn open() -> Result<Privcmd, XenError> {
        Ok(Privcmd { fd: ioctl::open(PATH)? })
    }

    /// Limits this descriptor to one domain, for good.
    ///
    /// # Errors
    /// It is limited to another domain already (`EINVAL`), or the kernel is older than 4.11.
    pub fn restrict(&self, domid: DomId) -> Result<(), XenError> {
        let mut id = domid.get();
        // SAFETY: RESTRICT reads one domid_t.
        let result = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), RESTRICT, &raw mut id) };
        result.map(drop).map_err(|error| XenError::call("IOCTL_PRIVCMD_RESTRICT", error))
    }

    /// Makes a device-model operation. Where it succeeds, `op` holds its results.
    pub(crate) fn dm_op(&self, domid: DomId, op: &mut DmOp, extents: &mut [RawExtent]) -> io::Result<()> {
        // The kernel pins both for writing, whichever way the data goes.
        let buffers = [
            DmOpBuffer { pointer: ptr::from_mut(op).cast(), size: size_of::<DmOp>() },
            DmOpBuffer { pointer: extents.as_mut_ptr().cast(), size: size_of_val(extents) },
        ];
        let num = if extents.is_empty() { 1 } else { 2 };
        let mut call = DmOpCall { dom: domid.get(), num, buffers: buffers.as_ptr() };
        // SAFETY: DM_OP reads the call and the buffer list, and reads and writes at most the stated sizes
        // of the buffers, all borrowed mutably or owned here.
        unsafe { ioctl::ioctl_retry(self.fd.as_fd(), DM_OP, &raw mut call) }.map(drop)
    }

    /// Maps `count` frames from `first`. Frames the domain does not have are missing in the result.
    ///
    /// # Errors
    /// `count` is 0 or the run goes past the end of guest-physical memory; there is no such domain
    /// (`ESRCH`); or the kernel refused the whole mapping.
    pub fn map(&self, domid: DomId, first: Gfn, count: usize) -> Result<Frames, XenError> {
        let failed = |error| {
            XenError::call(
                format!("IOCTL_PRIVCMD_MMAPBATCH_V2({count} frames at {})", first.address()),
                error,
            )
        };
        let end = first.0.checked_add(count as u64).filter(|end| *end <= 1 << (64 - PAGE_SHIFT));
        if count == 0 || u32::try_from(count).is_err() || end.is_none() {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let area = Area::new(self, count)?;
        let missing = map_pages(count, |range, errors| {
            let beyond = || io::Error::from_raw_os_error(libc::EINVAL);
            let frames: Vec<u64> = (first.0..).skip(range.start).take(range.len()).collect();
            let offset = range.start.checked_mul(PAGE_SIZE).ok_or_else(beyond)?;
            let address = area.base.addr().checked_add(offset).ok_or_else(beyond)?;
            let mut call = MmapBatch {
                num: range.len().try_into().map_err(|_| beyond())?,
                dom: domid.get(),
                addr: address.get() as u64,
                arr: frames.as_ptr(),
                err: errors.as_mut_ptr(),
            };
            // SAFETY: MMAPBATCH_V2 reads `num` frame numbers, writes `num` errors (both that long) and
            // fills pages of `area`, which is ours and which nobody has looked into yet.
            unsafe { ioctl::ioctl(self.fd.as_fd(), MMAPBATCH_V2, &raw mut call) }.map(drop)
        });
        match missing {
            // SAFETY: the area was mapped for this alone, and pages that the kernel did not fill are listed.
            Ok(missing) => Ok(unsafe { Frames::from_raw(area.into_base(), count, missing) }),
            Err(error) => Err(failed(error)),
        }
    }

    /// Maps the page of slots of an ioreq server (xen/include/public/memory.h, `XENMEM_acquire_resource`).
    ///
    /// # Errors
    /// There is no such server or domain, or the server was made by another domain.
    pub fn map_ioreq_page(&self, domid: DomId, server: u16) -> Result<Frames, XenError> {
        let area = Area::new(self, 1)?;
        let mut call = MmapResource {
            dom: domid.get(),
            kind: RESOURCE_IOREQ_SERVER,
            id: server.into(),
            idx: FRAME_IOREQ,
            num: 1,
            addr: area.base.as_ptr() as usize as u64,
        };
        // SAFETY: MMAP_RESOURCE reads the call and fills the one page of `area`, which is ours.
        match unsafe { ioctl::ioctl(self.fd.as_fd(), MMAP_RESOURCE, &raw mut call) } {
            // SAFETY: the area was mapped for this alone, and its one page is filled.
            Ok(_) => Ok(unsafe { Frames::from_raw(area.into_base(), 1, []) }),
            Err(error) => Err(XenError::call("IOCTL_PRIVCMD_MMAP_RESOURCE", error)),
        }
    }
}

#[cfg(test)]
impl Privcmd {
    /// On a device that knows none of the calls.
    pub(crate) fn without_xen() -> Privcmd {
        Privcmd { fd: std::fs::File::open("/dev/null").unwrap().into() }
    }
}

/// Address space reserved on the device, its pages not there yet: a touch would be a bus error.
struct Area {
    base: NonNull<u8>,
    bytes: usize,
}

impl Area {
    fn new(privcmd: &Privcmd, pages: usize) -> Result<Area, XenError> {
        let failed = |error| XenError::call(format!("mmap of {PATH} ({pages} pages)"), error);
        let bytes = pages.checked_mul(PAGE_SIZE);
        let bytes = bytes.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, &privcmd.fd, 0) };
        let base = base.map_err(|error| failed(error.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(io::ErrorKind::Other.into()))?;
        Ok(Area { base, bytes })
    }

    /// Hands the mapping over to the caller.
    fn into_base(self) -> NonNull<u8> {
        let base = self.base;
        std::mem::forget(self);
        base
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping, and it was not handed over.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(result.is_ok(), "munmap of {PATH}: {result:?}");
    }
}

/// Maps pages 0 to `count` with `batch`, which fills in a negative errno for each page it could not map,
/// and returns those that are missing.
///
/// `ENOENT` says that Xen has paged the frame out and is fetching it. Only these may be tried again: the
/// kernel takes the first call for the whole area, and later ones for pages not mapped yet.
fn map_pages(
    count: usize,
    mut batch: impl FnMut(Range<usize>, &mut [c_int]) -> io::Result<()>,
) -> io::Result<Vec<usize>> {
    let is_paging = |error: &io::Error| error.raw_os_error() == Some(libc::ENOENT);
    let mut errors = vec![0; count];
    match batch(0..count, &mut errors) {
        Err(error) if !is_paging(&error) => return Err(error),
        _ => {}
    }
    'retries: for _ in 0..PAGING_RETRIES {
        let mut runs = paged_out(&errors).peekable();
        if runs.peek().is_none() {
            break;
        }
        thread::sleep(PAGING_DELAY);
        for run in runs.collect::<Vec<_>>() {
            let Some(errors) = errors.get_mut(run.clone()) else { continue };
            match batch(run, errors) {
                Err(error) if !is_paging(&error) => break 'retries,
                _ => {}
            }
        }
    }
    if errors.contains(&-libc::ESRCH) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(errors.iter().enumerate().filter(|(_, error)| **error != 0).map(|(index, _)| index).collect())
}

/// Runs of pages that failed with `ENOENT`.
fn paged_out(errors: &[c_int]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0usize;
    errors.chunk_by(|a, b| a == b).filter_map(move |run| {
        let range = start..start.saturating_add(run.len());
        start = range.end;
        (run.first() == Some(&-libc::ENOENT)).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers() {
        assert_eq!(MMAPBATCH_V2, 0x0020_5004);
        assert_eq!(DM_OP, 0x0010_5005);
        assert_eq!(RESTRICT, 0x0002_5006);
        assert_eq!(MMAP_RESOURCE, 0x0020_5007);
    }

    #[test]
    fn holes_are_missing_and_not_retried() {
        let mut calls = Vec::new();
        let missing = map_pages(5, |range, errors| {
            calls.push(range);
            errors[1] = -libc::EINVAL;
            errors[4] = -libc::EINVAL;
            Ok(())
        });
        assert_eq!(missing.unwrap(), [1, 4]);
        assert_eq!(calls, vec![0..5; 1]);
    }

    #[test]
    fn all_may_be_missing() {
        let missing = map_pages(3, |_, errors| {
            errors.fill(-libc::EINVAL);
            Ok(())
        });
        assert_eq!(missing.unwrap(), [0, 1, 2]);
    }

    #[test]
    fn paged_out_runs_are_retried_alone() {
        let mut calls = Vec::new();
        let missing = map_pages(6, |range, errors| {
            calls.push(range.clone());
            match calls.len() {
                1 => errors.copy_from_slice(&[
                    0,
                    -libc::ENOENT,
                    -libc::ENOENT,
                    -libc::EINVAL,
                    0,
                    -libc::ENOENT,
                ]),
                2 => errors.copy_from_slice(&[0, -libc::ENOENT]),
                _ => errors.fill(0),
            }
            if errors.contains(&-libc::ENOENT) {
                Err(io::Error::from_raw_os_error(libc::ENOENT))
            } else {
                Ok(())
            }
        });
        assert_eq!(missing.unwrap(), [3]);
        assert_eq!(calls, [0..6, 1..3, 5..6, 2..3]);
    }

    #[test]
    fn what_stays_paged_out_is_missing() {
        let mut calls = 0;
        let missing = map_pages(2, |_, errors| {
            calls += 1;
            errors[0] = -libc::ENOENT;
            Err(io::Error::from_raw_os_error(libc::ENOENT))
        });
        assert_eq!(missing.unwrap(), [0]);
        assert_eq!(calls, 1 + PAGING_RETRIES);
    }

    #[test]
    fn a_missing_domain_is_an_error() {
        let result = map_pages(2, |_, errors| {
            errors.fill(-libc::ESRCH);
            Ok(())
        });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ESRCH));
        let result = map_pages(2, |_, _| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn bad_runs_never_reach_the_kernel() {
        let privcmd = Privcmd::without_xen();
        let domid = DomId::MAX;
        for (first, count) in [(0, 0), (u64::MAX, 1), ((1 << 52) - 1, 2), (0, 1 << 32)] {
            let error = privcmd.map(domid, Gfn(first), count).unwrap_err();
            assert!(error.to_string().starts_with("IOCTL_PRIVCMD_MMAPBATCH_V2"), "{error}");
        }
    }

    #[test]
    fn a_plain_linux_has_no_device() {
        if !std::path::Path::new(PATH).exists() {
            let error = Privcmd::open().unwrap_err().to_string();
            assert_eq!(
                error,
                "cannot open /dev/xen/privcmd: No such file or directory (is this a Xen dom0?)"
            );
        }
    }
}
