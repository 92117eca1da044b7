//! The Xen ABI, and a domain seen through it.
//!
//! Only stable interfaces are used: device-model operations, mapping of frames and of the ioreq page,
//! event channels, grants and xenstore. All go through the kernel's devices by `ioctl`; no library.
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]
#![deny(clippy::undocumented_unsafe_blocks)]

mod devicemodel;
mod domid;
mod error;
mod evtchn;
mod gntdev;
mod ioctl;
mod privcmd;
mod server;
mod xenstore;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::{Domain, Extent, Frames, Gfn, IoreqChannel, Msi, SLOTS_PER_PAGE, Shutdown};

pub use devicemodel::{DeviceModel, IoRange, MAX_SERVERS, Space};
pub use domid::{DomId, DomIdError};
pub use error::XenError;
pub use evtchn::{Evtchn, Port};
pub use gntdev::{Gntdev, Grants};
pub use privcmd::Privcmd;
pub use server::IoreqServer;
pub use xenstore::{Store, StoreError, WatchEvent};

/// A domain under Xen, as its device model sees it.
#[derive(Debug)]
pub struct Xen {
    shared: Arc<Shared>,
    /// Whether there is, or was, an [`IoreqServer`] that uses the event descriptors.
    attached: AtomicBool,
}

/// What the domain, its ioreq server and the channels have in common.
pub(crate) struct Shared {
    model: DeviceModel,
    /// One descriptor a vCPU, so that each of its events wakes the one thread that cares.
    events: Vec<Arc<Evtchn>>,
    channels: Mutex<Vec<Box<dyn IoreqChannel>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { model, events, channels: _ } = self;
        f.debug_struct("Shared").field("model", model).field("vcpus", &events.len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn channels(&self) -> MutexGuard<'_, Vec<Box<dyn IoreqChannel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Xen {
    /// Opens the devices that serving `domid` takes, all of them now so that privileges can be dropped
    /// next, and makes sure that it is a domain that can be served. Changes nothing about the domain.
    ///
    /// # Errors
    /// This is no Xen dom0, the devices may not be opened, there is no such domain, or it is not PVH.
    pub fn open(domid: DomId) -> Result<Xen, XenError> {
        let model = DeviceModel::new(Privcmd::open()?, domid);
        let first = Evtchn::open()?;
        let count = model.nr_vcpus().map_err(|error| match error {
            XenError::Call { call, source } => refusal(domid, call, source),
            other => other,
        })?;
        if !usize::try_from(count).is_ok_and(|count| (1..=SLOTS_PER_PAGE).contains(&count)) {
            return Err(XenError::Vcpus { domid, count });
        }
        let mut events = vec![Arc::new(first)];
        for _ in 1..count {
            events.push(Arc::new(Evtchn::open()?));
        }
        let shared = Arc::new(Shared { model, events, channels: Mutex::default() });
        Ok(Xen { shared, attached: AtomicBool::new(false) })
    }

    /// The domain.
    pub fn domid(&self) -> DomId {
        self.shared.model.domid()
    }

    /// The ids of the domain's ioreq servers, whoever made them. Each is, or was, some device model.
    ///
    /// # Errors
    /// The domain is gone.
    pub fn existing_servers(&self) -> Result<Vec<u16>, XenError> {
        let mut ids = Vec::new();
        for id in 0..MAX_SERVERS {
            if self.shared.model.has_ioreq_server(id)? {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Makes an ioreq server, without ranges and not enabled. One `Xen` serves by one ioreq server only.
    ///
    /// # Errors
    /// The domain has 8 servers (`ENOSPC`), or this `Xen` has or had one (`EBUSY`).
    pub fn create_server(&self) -> Result<IoreqServer, XenError> {
        self.attach(IoreqServer::create)
    }

    /// Takes over the ioreq server `id` that another process left behind: its ranges stay, and so do
    /// accesses that wait for an answer. Enable it next.
    ///
    /// # Errors
    /// There is no such server, it was made by another domain, or this `Xen` has or had one (`EBUSY`).
    pub fn adopt_server(&self, id: u16) -> Result<IoreqServer, XenError> {
        self.attach(|shared| IoreqServer::attach(shared, id))
    }

    /// Destroys the ioreq server `id` that another process left behind. Accesses that wait for an answer
    /// go on with all ones.
    ///
    /// # Errors
    /// There is no such server, or it was made by another domain.
    pub fn destroy_server(&self, id: u16) -> Result<(), XenError> {
        self.shared.model.destroy_ioreq_server(id)
    }

    /// Limits the open devices to this domain, for good. What is here goes on working.
    ///
    /// # Errors
    /// The kernel is older than 4.11, or they were limited before.
    pub fn restrict(&self) -> Result<(), XenError> {
        let domid = self.domid();
        self.shared.model.privcmd().restrict(domid)?;
        self.shared.events.iter().try_for_each(|events| events.restrict(domid))
    }

    fn attach(
        &self,
        make: impl FnOnce(&Arc<Shared>) -> Result<IoreqServer, XenError>,
    ) -> Result<IoreqServer, XenError> {
        if self.attached.swap(true, Ordering::AcqRel) {
            let busy = io::Error::from_raw_os_error(libc::EBUSY);
            return Err(XenError::call(format!("a second ioreq server for domain {}", self.domid()), busy));
        }
        make(&self.shared).inspect_err(|_| self.attached.store(false, Ordering::Release))
    }
}

/// What it means that Xen refuses the first call on a domain.
fn refusal(domid: DomId, call: std::borrow::Cow<'static, str>, source: io::Error) -> XenError {
    match source.raw_os_error() {
        Some(libc::ESRCH) => XenError::NoSuchDomain(domid),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPERM) => XenError::NotPvh { domid, source },
        _ => XenError::Call { call, source },
    }
}

impl Domain for Xen {
    fn vcpus(&self) -> u32 {
        // No more than slots in a page.
        u32::try_from(self.shared.events.len()).unwrap_or(u32::MAX)
    }

    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>> {
        std::mem::take(&mut *self.shared.channels())
    }

    fn map(&self, first: Gfn, count: usize) -> io::Result<Frames> {
        Ok(self.shared.model.privcmd().map(self.domid(), first, count)?)
    }

    fn inject_msi(&self, msi: Msi) -> io::Result<()> {
        Ok(self.shared.model.inject_msi(msi)?)
    }

    fn mark_dirty(&self, extents: &[Extent]) -> io::Result<()> {
        Ok(self.shared.model.modified_memory(extents)?)
    }

    fn shutdown(&self, reason: Shutdown) -> io::Result<()> {
        Ok(self.shared.model.remote_shutdown(reason)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_linux_is_told_apart() {
        if !std::path::Path::new("/dev/xen").exists() {
            let error = Xen::open(DomId::MAX).unwrap_err().to_string();
            assert_eq!(
                error,
                "cannot open /dev/xen/privcmd: No such file or directory (is this a Xen dom0?)"
            );
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let text = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            refusal("5".parse().unwrap(), "XEN_DMOP_nr_vcpus".into(), source).to_string()
        };
        assert_eq!(text(libc::ESRCH), "there is no domain 5");
        let not_pvh = "domain 5 is not a PVH domain (XEN_DMOP_nr_vcpus: Invalid argument)";
        assert_eq!(text(libc::EINVAL), not_pvh);
        assert!(text(libc::EOPNOTSUPP).starts_with("domain 5 is not a PVH domain"));
        assert!(text(libc::EPERM).starts_with("domain 5 is not a PVH domain"));
        assert_eq!(text(libc::EFAULT), "XEN_DMOP_nr_vcpus: Bad address");
    }
}
