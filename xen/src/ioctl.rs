//! The one way into `ioctl`, and opening the devices that take it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::XenError;

/// A request number with no direction bits, as all of Xen's are (linux/ioctl.h, `_IOC`).
pub(crate) const fn number(kind: u8, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14);
    ((size as u64 & 0x3fff) as u32) << 16 | (kind as u32) << 8 | number as u32
}

/// Opens a device for reading and writing, closed on exec.
pub(crate) fn open(path: &'static str) -> Result<OwnedFd, XenError> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(XenError::Open { path, source }),
    }
}

/// Makes the call once. Its result, where not negative, is the call's own.
///
/// # Safety
/// `argument` is what `request` takes on the device behind `fd`: memory valid for whatever the kernel
/// reads and writes there, and everything that memory points to likewise.
pub(crate) unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u32, argument: *mut T) -> io::Result<u32> {
    // SAFETY: the caller vouches for the argument, and the descriptor is open while it is borrowed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), argument) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes the call until no signal interrupts it.
///
/// # Safety
/// As [`ioctl`].
pub(crate) unsafe fn ioctl_retry<T>(fd: BorrowedFd<'_>, request: u32, argument: *mut T) -> io::Result<u32> {
    loop {
        // SAFETY: the caller's promise, which holds for every round.
        match unsafe { ioctl(fd, request, argument) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
