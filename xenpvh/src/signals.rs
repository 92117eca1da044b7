//! The signals that end us, as a descriptor to poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// SIGHUP (libxl at destroy), SIGINT and SIGTERM.
pub struct Signals(UnixStream);

impl Signals {
    /// Takes the signals over for the whole process.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn new() -> io::Result<Signals> {
        let (reader, writer) = UnixStream::pair()?;
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(signal, OwnedFd::from(writer.try_clone()?))?;
        }
        Ok(Signals(reader))
    }
}

impl Signals {
    /// Waits for one up to `patience`.
    pub fn wait(&self, patience: Duration) {
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        if let Ok(patience) = Timespec::try_from(patience) {
            // Cut short or not, nothing depends on it.
            let _ = rustix::event::poll(&mut fds, Some(&patience));
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
