//! How a worker is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is written only if the worker sleeps, so that a guest that notifies a busy worker
/// costs no system call. It is there from the start, whether or not the worker is.
#[derive(Debug)]
pub(crate) struct Doorbell {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Doorbell> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Doorbell { event, asleep: AtomicBool::new(false) })
    }

    /// Wakes the worker. What it is to find must have been written before.
    pub(crate) fn ring(&self) {
        // Together with the fence in `listen`: either we see the worker asleep, or it sees its work.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It can only fail for a full counter, which wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// From now on [`Doorbell::ring`] is heard by who waits for the descriptor. Look for work after
    /// this, not before, and then sleep.
    pub(crate) fn listen(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The worker is awake and looks for work anyway.
    pub(crate) fn ignore(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Makes the descriptor not readable again.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
