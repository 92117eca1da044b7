//! The control thread: signals, xenstore, and the dirty log.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use memory::GuestMemory;
use rustix::event::{PollFd, PollFlags, Timespec};
use xen::{DomId, Store, StoreError};

use crate::run::Failure;
use crate::signals::Signals;

/// How often pages that devices wrote are reported, for live migration.
const DIRTY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the control loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGHUP, SIGINT or SIGTERM.
    Signal,
    /// The domain is no more.
    DomainGone,
}

/// Serves everything but the guest until there is a reason to end.
///
/// # Errors
/// xenstored is gone, or the system has no poll for us.
pub fn run(signals: &Signals, store: &mut Store, memory: &GuestMemory, domid: DomId) -> Result<End, Failure> {
    let mut next_flush = Instant::now() + DIRTY_INTERVAL;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(store.as_fd(), PollFlags::IN),
        ];
        let timeout = next_flush.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(timeout)?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = fds.each_ref().map(|fd| !fd.revents().is_empty());
        if ready[0] {
            return Ok(End::Signal);
        }
        if ready[1] && domain_gone(store, domid)? {
            return Ok(End::DomainGone);
        }
        if next_flush <= Instant::now() {
            // Fails only when the domain goes, which xenstore tells us.
            let _ = memory.flush_dirty();
            next_flush = Instant::now() + DIRTY_INTERVAL;
        }
    }
}

/// Reads xenstore's events: `@releaseDomain` says that some domain shut down or is gone.
fn domain_gone(store: &mut Store, domid: DomId) -> Result<bool, StoreError> {
    let mut gone = false;
    while store.next_event()?.is_some() {
        gone |= !store.is_domain_introduced(domid)?;
    }
    Ok(gone)
}
