//! What can go wrong when talking to Xen.

use std::borrow::Cow;
use std::io;

use crate::DomId;

/// Why a call to Xen, or to the kernel's Xen devices, failed.
#[derive(Debug, thiserror::Error)]
pub enum XenError {
    /// A device of the kernel's Xen support could not be opened.
    #[error("cannot open {path}: {}{}", describe(source), hint(source))]
    Open {
        /// The device.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No domain has this id.
    #[error("there is no domain {0}")]
    NoSuchDomain(DomId),
    /// The domain is there but takes no device model.
    #[error("domain {domid} is not a PVH domain (XEN_DMOP_nr_vcpus: {})", describe(source))]
    NotPvh {
        /// The domain.
        domid: DomId,
        /// How Xen refused.
        source: io::Error,
    },
    /// The vCPUs do not fit the one ioreq page.
    #[error("domain {domid} has {count} vCPUs, and only 1 to {} can be served", domain::SLOTS_PER_PAGE)]
    Vcpus {
        /// The domain.
        domid: DomId,
        /// What Xen said.
        count: u32,
    },
    /// An enabled ioreq server has a vCPU without an event channel.
    #[error("Xen has no event channel for vCPU {vcpu} of ioreq server {id}")]
    NoEventChannel {
        /// The ioreq server.
        id: u16,
        /// The vCPU.
        vcpu: u32,
    },
    /// A call failed.
    #[error("{call}: {}", describe(source))]
    Call {
        /// The call, as its header spells it, with what it was about.
        call: Cow<'static, str>,
        /// What came back.
        source: io::Error,
    },
}

impl XenError {
    pub(crate) fn call(call: impl Into<Cow<'static, str>>, source: io::Error) -> XenError {
        XenError::Call { call: call.into(), source }
    }

    /// The errno behind the error, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            XenError::Open { source, .. }
            | XenError::NotPvh { source, .. }
            | XenError::Call { source, .. } => source.raw_os_error(),
            XenError::NoSuchDomain(_) => Some(libc::ESRCH),
            XenError::Vcpus { .. } | XenError::NoEventChannel { .. } => None,
        }
    }
}

impl From<XenError> for io::Error {
    /// Keeps the kind and the text; the errno is [`XenError::raw_os_error`] of the inner error.
    fn from(error: XenError) -> io::Error {
        let kind = match error.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound,
            Some(errno) => io::Error::from_raw_os_error(errno).kind(),
            None => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The text of an OS error without Rust's "(os error 2)".
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error().and_then(|errno| text.strip_suffix(&format!(" (os error {errno})"))) {
        Some(bare) => bare.to_owned(),
        None => text,
    }
}

/// What a user may have overlooked when a Xen device cannot be opened.
pub(crate) fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::ECONNREFUSED) => " (is this a Xen dom0?)",
        Some(libc::EACCES | libc::EPERM) => " (are you root?)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn open_errors_are_one_line_with_a_hint() {
        let error = XenError::Open { path: "/dev/xen/privcmd", source: errno(libc::ENOENT) };
        let expected = "cannot open /dev/xen/privcmd: No such file or directory (is this a Xen dom0?)";
        assert_eq!(error.to_string(), expected);
        let error = XenError::Open { path: "/dev/xen/evtchn", source: errno(libc::EACCES) };
        assert_eq!(error.to_string(), "cannot open /dev/xen/evtchn: Permission denied (are you root?)");
        let error = XenError::Open { path: "/dev/xen/evtchn", source: errno(libc::EMFILE) };
        assert_eq!(error.to_string(), "cannot open /dev/xen/evtchn: Too many open files");
    }

    #[test]
    fn call_errors_name_the_call() {
        let error = XenError::call("XEN_DMOP_create_ioreq_server", errno(libc::ENOSPC));
        assert_eq!(error.to_string(), "XEN_DMOP_create_ioreq_server: No space left on device");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let error = io::Error::from(error);
        assert_eq!(error.to_string(), "XEN_DMOP_create_ioreq_server: No space left on device");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_missing_domain_keeps_its_errno() {
        let error = XenError::call("XEN_DMOP_nr_vcpus", errno(libc::ESRCH));
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<XenError>()).unwrap();
        assert_eq!(inner.raw_os_error(), Some(libc::ESRCH));
    }
}
