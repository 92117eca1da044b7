//! Character devices: a stream of bytes to and from the host.
//!
//! Nothing here blocks. Who serves one waits for its [`Poller`] to say that something happened, and then reads and
//! writes until the host would have to be waited for.

mod plain;
mod socket;

#[cfg(test)]
mod tests;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

pub use plain::{CharError, Plain};
pub use socket::Socket;

/// The host's end of a character device.
pub trait Chardev: Send {
    /// Takes bytes that came from the host, at least one.
    ///
    /// # Errors
    /// `WouldBlock` if there are none now. Anything else: there will not be any before it is open again.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Gives bytes to the host: how many it took, at least one.
    ///
    /// # Errors
    /// `WouldBlock` if it takes none now. Anything else, and they are lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Whether somebody is there. Changes only in the methods here.
    fn is_open(&self) -> bool {
        true
    }

    /// Something happened: lets in who calls, if nobody is there, and lets go of who has left, if nobody reads
    /// (`unread`) what they may have said before.
    fn attend(&mut self, unread: bool) {
        let _ = unread;
    }

    /// From here on tells `watch` of all that happens, and of what has happened already.
    ///
    /// # Errors
    /// The host is out of memory.
    fn watch(&mut self, watch: Watch) -> io::Result<()>;
}

/// Waits for any number of chardevs. It is ready to be read when something happened to one.
#[derive(Debug)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
}

impl Poller {
    /// One that waits for nothing yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    /// What a chardev is to tell, so that [`Poller::take`] calls it by `number`.
    pub fn watch(&self, number: usize) -> Watch {
        Watch { epoll: self.epoll.clone(), number: number as u64 }
    }

    /// A chardev to which something happened that was not taken before.
    pub fn take(&self) -> Option<usize> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut event = [MaybeUninit::uninit()];
        let (events, _) = epoll::wait(&self.epoll, &mut event, Some(&NOW)).ok()?;
        let data = events.first()?.data;
        usize::try_from(data.u64()).ok()
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A place in a [`Poller`].
#[derive(Clone, Debug)]
pub struct Watch {
    epoll: Arc<OwnedFd>,
    number: u64,
}

impl Watch {
    /// Has it look at `fd` until that is closed. Each event is told of once.
    fn add(&self, fd: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        match epoll::add(&self.epoll, fd, EventData::new_u64(self.number), flags) {
            // A file is always ready.
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Does it again if a signal came in between.
fn whole<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
