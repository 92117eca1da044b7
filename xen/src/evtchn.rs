//! `/dev/xen/evtchn`: event channels (linux/xen/evtchn.h).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::ioctl;
use crate::{DomId, XenError};

const PATH: &str = "/dev/xen/evtchn";

const BIND_INTERDOMAIN: u32 = ioctl::number(b'E', 1, size_of::<BindInterdomain>());
const UNBIND: u32 = ioctl::number(b'E', 3, size_of::<u32>());
const NOTIFY: u32 = ioctl::number(b'E', 4, size_of::<u32>());
const RESTRICT_DOMID: u32 = ioctl::number(b'E', 6, size_of::<u16>());

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}
const _: () = assert!(size_of::<BindInterdomain>() == 8);

/// A port of this domain, connected to another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(u32);

/// One open descriptor of the device. It delivers the events of the ports bound through it, and only these.
///
/// An event masks its port until [`unmask`](Evtchn::unmask). One that comes meanwhile is not lost: it is
/// delivered at the unmasking.
#[derive(Debug)]
pub struct Evtchn {
    fd: OwnedFd,
}

impl Evtchn {
    /// Opens the device.
    ///
    /// # Errors
    /// This is no Xen domain, or the caller may not open it.
    pub fn open() -> Result<Evtchn, XenError> {
        Ok(Evtchn { fd: ioctl::open(PATH)? })
    }

    /// Limits this descriptor to ports of one domain, for good. Ports bound before keep working.
    ///
    /// # Errors
    /// It is limited already (`EACCES`), or the kernel is older than 4.11.
    pub fn restrict(&self, domid: DomId) -> Result<(), XenError> {
        let mut id = domid.get();
        // SAFETY: RESTRICT_DOMID reads one domid_t.
        let result = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), RESTRICT_DOMID, &raw mut id) };
        result.map(drop).map_err(|error| XenError::call("IOCTL_EVTCHN_RESTRICT_DOMID", error))
    }

    /// Connects a new port to port `remote` of `domid`. One event is pending from the start.
    ///
    /// # Errors
    /// The remote port is not waiting for this domain (`EINVAL`), or no port is free.
    pub fn bind(&self, domid: DomId, remote: u32) -> Result<Port, XenError> {
        let mut call = BindInterdomain { remote_domain: domid.get().into(), remote_port: remote };
        // SAFETY: BIND_INTERDOMAIN reads the struct.
        let port = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), BIND_INTERDOMAIN, &raw mut call) };
        port.map(Port).map_err(|error| {
            XenError::call(format!("IOCTL_EVTCHN_BIND_INTERDOMAIN(domain {domid}, port {remote})"), error)
        })
    }

    /// Disconnects a port.
    ///
    /// # Errors
    /// The port is not bound here (`ENOTCONN`).
    pub fn unbind(&self, port: Port) -> Result<(), XenError> {
        let mut port = port.0;
        // SAFETY: UNBIND reads one port number.
        let result = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), UNBIND, &raw mut port) };
        result.map(drop).map_err(|error| XenError::call("IOCTL_EVTCHN_UNBIND", error))
    }

    /// Sends an event to the other side of a port.
    ///
    /// # Errors
    /// The port is not bound here (`ENOTCONN`).
    pub fn notify(&self, port: Port) -> Result<(), XenError> {
        let mut port = port.0;
        // SAFETY: NOTIFY reads one port number.
        let result = unsafe { ioctl::ioctl_retry(self.fd.as_fd(), NOTIFY, &raw mut port) };
        result.map(drop).map_err(|error| XenError::call("IOCTL_EVTCHN_NOTIFY", error))
    }

    /// Sleeps until an event comes, and returns its port, which is masked now.
    ///
    /// # Errors
    /// A signal came (`EINTR`), or the device failed.
    pub fn next(&self) -> io::Result<Port> {
        let mut port = [0; size_of::<u32>()];
        match rustix::io::read(&self.fd, &mut port)? {
            4 => Ok(Port(u32::from_ne_bytes(port))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Lets a port deliver events again.
    ///
    /// # Errors
    /// The device failed.
    pub fn unmask(&self, port: Port) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &port.0.to_ne_bytes()))? {
            4 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    #[cfg(test)]
    pub(crate) fn from_fd(fd: OwnedFd) -> Evtchn {
        Evtchn { fd }
    }
}

impl AsFd for Evtchn {
    /// Readable while an event waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
impl Port {
    pub(crate) fn new(number: u32) -> Port {
        Port(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers() {
        assert_eq!(BIND_INTERDOMAIN, 0x0008_4501);
        assert_eq!(UNBIND, 0x0004_4503);
        assert_eq!(NOTIFY, 0x0004_4504);
        assert_eq!(RESTRICT_DOMID, 0x0002_4506);
    }

    #[test]
    fn a_plain_linux_has_no_device() {
        if !std::path::Path::new(PATH).exists() {
            let error = Evtchn::open().unwrap_err().to_string();
            assert_eq!(error, "cannot open /dev/xen/evtchn: No such file or directory (is this a Xen dom0?)");
        }
    }
}
