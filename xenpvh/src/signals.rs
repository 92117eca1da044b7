//! The signals that end us, as a descriptor to poll.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// SIGHUP (libxl at destroy), SIGINT and SIGTERM.
pub struct Signals(UnixStream);

/// Makes a write beyond the limit for files (libxl sets one of 256 KiB with `dm_restrict`) fail, as any
/// other, and not kill us.
pub fn ignore_file_size_limit() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

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
    /// From now on the next one ends the process at once: somebody has lost patience.
    ///
    /// # Errors
    /// The handlers could not be set.
    pub fn exit_on_next(&self) -> io::Result<()> {
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let armed = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_shutdown(signal, 1, armed)?;
        }
        Ok(())
    }

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
