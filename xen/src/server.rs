//! The ioreq server: what makes Xen send a domain's accesses here.
//!
//! The order matters. A server is made disabled, its page is mapped, its ranges are set; then it is
//! enabled, which is when Xen writes the vCPUs' event channels into the page; then these are bound. Each
//! new binding has one event pending, so what happened in between is looked at.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::{IoreqChannel, IoreqPage, Slot};

use crate::evtchn::{Evtchn, Port};
use crate::{IoRange, Shared, XenError};

/// An ioreq server of a domain, destroyed when dropped.
///
/// A process that ends without dropping it, or calling [`close`](IoreqServer::close), leaves it in Xen:
/// the guest's accesses wait there until a successor [adopts](crate::Xen::adopt_server) or destroys it.
#[derive(Debug)]
pub struct IoreqServer {
    shared: Arc<Shared>,
    id: u16,
    page: IoreqPage,
    enabled: bool,
    closed: Arc<AtomicBool>,
}

impl IoreqServer {
    pub(crate) fn create(shared: &Arc<Shared>) -> Result<IoreqServer, XenError> {
        let id = shared.model.create_ioreq_server()?;
        IoreqServer::attach(shared, id).inspect_err(|_| {
            if let Err(error) = shared.model.destroy_ioreq_server(id) {
                log::warn!("{error}");
            }
        })
    }

    pub(crate) fn attach(shared: &Arc<Shared>, id: u16) -> Result<IoreqServer, XenError> {
        let frames = shared.model.privcmd().map_ioreq_page(shared.model.domid(), id)?;
        // SAFETY: the frame is page-aligned, readable and writable, and never unmapped: it is forgotten next.
        let page = unsafe { IoreqPage::from_raw(frames.base()) };
        // Threads may look at their slots until the process ends.
        std::mem::forget(frames);
        let closed = Arc::new(AtomicBool::new(false));
        Ok(IoreqServer { shared: shared.clone(), id, page, enabled: false, closed })
    }

    /// Its id in the domain, 0 to 7.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Lets the accesses to `ranges` come here. An adopted server has those that were set for it before.
    ///
    /// # Errors
    /// A range overlaps one that is set, or there are more than 256 of one kind. Those before it stay set.
    pub fn map_ranges(&self, ranges: &[IoRange]) -> Result<(), XenError> {
        ranges.iter().try_for_each(|range| self.shared.model.map_io_range(self.id, range))
    }

    /// Takes `ranges` back.
    ///
    /// # Errors
    /// A range was not set. Those before it are taken back.
    pub fn unmap_ranges(&self, ranges: &[IoRange]) -> Result<(), XenError> {
        ranges.iter().try_for_each(|range| self.shared.model.unmap_io_range(self.id, range))
    }

    /// Starts the flow of accesses and connects the vCPUs' event channels, which
    /// [`take_channels`](domain::Domain::take_channels) of the domain then returns. Enabling twice is once.
    ///
    /// # Errors
    /// The server is gone, or an event channel cannot be bound: another process still serves it.
    pub fn enable(&mut self) -> Result<(), XenError> {
        if self.enabled {
            return Ok(());
        }
        let shared = &self.shared;
        shared.model.set_ioreq_server_state(self.id, true)?;
        let mut channels: Vec<Box<dyn IoreqChannel>> = Vec::with_capacity(shared.events.len());
        for (vcpu, events) in (0u32..).zip(&shared.events) {
            let none = || XenError::NoEventChannel { id: self.id, vcpu };
            let slot = self.page.slot(vcpu as usize).ok_or_else(none)?;
            let remote = slot.event_port();
            if remote == 0 {
                return Err(none());
            }
            let port = events.bind(shared.model.domid(), remote)?;
            channels.push(Box::new(Channel {
                events: events.clone(),
                port,
                slot,
                masked: false,
                closed: self.closed.clone(),
            }));
        }
        *shared.channels() = channels;
        self.enabled = true;
        Ok(())
    }

    /// Whether Xen still has the server. It loses it when the domain dies, though our mappings of the
    /// domain's memory may keep the domain itself around as a zombie.
    ///
    /// # Errors
    /// Xen cannot be asked.
    pub fn exists(&self) -> Result<bool, XenError> {
        match self.shared.model.has_ioreq_server(self.id) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            result => result,
        }
    }

    /// Destroys the server, once. A vCPU that waits for an answer goes on with all ones.
    ///
    /// Its channels return false from their next `wait`; one that is asleep in it stays so until the
    /// process ends, for nobody sends events any more.
    ///
    /// # Errors
    /// Xen refused. A server that is gone, as when the domain has died, is no error.
    pub fn close(&mut self) -> Result<(), XenError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        match self.shared.model.destroy_ioreq_server(self.id) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
            result => result,
        }
    }

    /// Leaves the server in Xen for a successor, which can connect once this process has ended.
    pub fn leave(self) {
        self.closed.store(true, Ordering::Release);
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::warn!("{error}");
        }
    }
}

/// One vCPU's slot and the event channel that goes with it, on a descriptor of its own.
struct Channel {
    events: Arc<Evtchn>,
    port: Port,
    slot: Slot,
    /// Whether our port is masked, its last event having been taken.
    masked: bool,
    closed: Arc<AtomicBool>,
}

impl IoreqChannel for Channel {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Unmasks only when about to sleep, so that the answer to the vCPU does not wait for that call. What
    /// came while masked is pending, and is delivered then: no wakeup is lost, whether the slot was looked
    /// at before or after.
    fn wait(&mut self) -> io::Result<bool> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(false);
        }
        if self.masked {
            self.events.unmask(self.port)?;
            self.masked = false;
        }
        match self.events.next() {
            Ok(_) => self.masked = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(!self.closed.load(Ordering::Acquire))
    }

    fn notify(&mut self) -> io::Result<()> {
        Ok(self.events.notify(self.port)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::ptr::NonNull;
    use std::sync::atomic::AtomicU8;

    use super::*;

    #[repr(align(4096))]
    struct Page([AtomicU8; 4096]);

    static PAGE: Page = Page([const { AtomicU8::new(0) }; 4096]);

    /// A channel on a socket instead of the device, and the device's end of it.
    fn channel() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // SAFETY: the page is aligned, always there, and may be written, being atomics.
        let page = unsafe { IoreqPage::from_raw(NonNull::from(&PAGE.0).cast()) };
        let channel = Channel {
            events: Arc::new(Evtchn::from_fd(ours.into())),
            port: Port::new(9),
            slot: page.slot(0).unwrap(),
            masked: false,
            closed: Arc::new(AtomicBool::new(false)),
        };
        (channel, theirs)
    }

    #[test]
    fn unmasks_before_the_next_sleep() {
        let (mut channel, mut device) = channel();
        device.set_nonblocking(true).unwrap();
        let mut unmasked = [0; 4];
        device.write_all(&9u32.to_ne_bytes()).unwrap();
        assert!(channel.wait().unwrap());
        assert_eq!(device.read(&mut unmasked).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        device.write_all(&9u32.to_ne_bytes()).unwrap();
        assert!(channel.wait().unwrap());
        assert_eq!(device.read(&mut unmasked).unwrap(), 4);
        assert_eq!(u32::from_ne_bytes(unmasked), 9);
        assert!(device.read(&mut unmasked).is_err());
    }

    #[test]
    fn ends_once_the_server_is_closed() {
        let (mut channel, _device) = channel();
        channel.closed.store(true, Ordering::Release);
        assert!(!channel.wait().unwrap());
    }

    #[test]
    fn a_failed_device_is_an_error() {
        let (mut channel, device) = channel();
        drop(device);
        assert_eq!(channel.wait().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let error = channel.notify().unwrap_err();
        assert!(error.to_string().starts_with("IOCTL_EVTCHN_NOTIFY: "), "{error}");
    }
}
