//! What is one descriptor or two, and always open: nothing at all, files, ptys, standard input and output.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::{Chardev, Watch, whole};
use crate::reason;

/// Why a chardev could not be had. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum CharError {
    /// The file cannot be written to.
    #[error("Could not create '{}': {}", .0.display(), reason(.1))]
    Create(PathBuf, io::Error),
    /// The host has no pty for us.
    #[error("Failed to create PTY: {}", reason(.0))]
    Pty(io::Error),
    /// Standard input and output are closed, or cannot be set up.
    #[error("standard input and output cannot be used: {}", reason(.0))]
    Stdio(io::Error),
}

/// Bytes go to one descriptor and come from another.
#[derive(Debug, Default)]
pub struct Plain {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    /// The other end of a pty. With us on it, too, it is never without anybody, which would be an error at ours.
    _other_end: Option<OwnedFd>,
    /// How descriptors that are not ours alone were, to be put back in the end.
    _found: Vec<Found>,
}

impl Plain {
    /// Nothing: what is written is gone, and nothing comes.
    #[must_use]
    pub fn null() -> Plain {
        Plain::default()
    }

    /// The file at `path`, made if it is not there. `append` keeps what is in it.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn file(path: &Path, append: bool) -> Result<Plain, CharError> {
        let mut options = OpenOptions::new();
        options.create(true).write(true).append(append).truncate(!append);
        // For a pipe or a terminal.
        let nonblocking = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let file = options.custom_flags(nonblocking.bits().cast_signed()).open(path);
        let file: File = file.map_err(|error| CharError::Create(path.to_owned(), error))?;
        Ok(Plain { output: Some(file.into()), ..Plain::default() })
    }

    /// A new pty, and the path of the end of it that is for others.
    ///
    /// # Errors
    /// The host has none for us.
    pub fn pty() -> Result<(Plain, String), CharError> {
        let open = || -> rustix::io::Result<(Plain, String)> {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let input = rustix::pty::openpt(flags)?;
            rustix::pty::grantpt(&input)?;
            rustix::pty::unlockpt(&input)?;
            rustix::io::ioctl_fionbio(&input, true)?;
            let path = rustix::pty::ptsname(&input, Vec::new())?.to_string_lossy().into_owned();
            let other_end = rustix::pty::ioctl_tiocgptpeer(&input, flags)?;
            // What the guest says is for whoever opens it, and not to come back as an echo.
            let mut termios = tcgetattr(&other_end)?;
            termios.make_raw();
            tcsetattr(&other_end, OptionalActions::Now, &termios)?;
            let output = Some(rustix::io::fcntl_dupfd_cloexec(&input, 3)?);
            let other_end = Some(other_end);
            Ok((Plain { input: Some(input), output, _other_end: other_end, _found: Vec::new() }, path))
        };
        open().map_err(|error| CharError::Pty(error.into()))
    }

    /// Standard input and output. On a terminal keys go to the guest as they are pressed, those that send signals
    /// only without `signals`.
    ///
    /// # Errors
    /// They are not open.
    pub fn stdio(signals: bool) -> Result<Plain, CharError> {
        let open = || -> rustix::io::Result<Plain> {
            let input = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
            let output = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
            // Both before one is changed: they may be the same terminal.
            let found = vec![Found::new(&input)?, Found::new(&output)?];
            rustix::io::ioctl_fionbio(&input, true)?;
            rustix::io::ioctl_fionbio(&output, true)?;
            if let Ok(mut termios) = tcgetattr(&input) {
                termios.local_modes &=
                    !(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN);
                termios.local_modes.set(LocalModes::ISIG, signals);
                tcsetattr(&input, OptionalActions::Now, &termios)?;
            }
            Ok(Plain { input: Some(input), output: Some(output), _other_end: None, _found: found })
        };
        open().map_err(|error| CharError::Stdio(error.into()))
    }
}

impl Chardev for Plain {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(input) = &self.input else { return Err(io::ErrorKind::WouldBlock.into()) };
        match whole(|| rustix::io::read(input, &mut *bytes)) {
            Ok(0) => {
                self.input = None;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            other => Ok(other?),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(output) = &self.output else { return Ok(bytes.len()) };
        match whole(|| rustix::io::write(output, bytes)) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => Ok(other?),
        }
    }

    fn watch(&mut self, watch: Watch) -> io::Result<()> {
        for fd in [&self.input, &self.output].into_iter().flatten() {
            watch.add(fd)?;
        }
        Ok(())
    }
}

/// How a descriptor was that others have, too.
struct Found {
    fd: OwnedFd,
    flags: rustix::fs::OFlags,
    termios: Option<Termios>,
}

impl Found {
    fn new(fd: impl AsFd) -> Result<Found, Errno> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        Ok(Found { flags: rustix::fs::fcntl_getfl(&fd)?, termios: tcgetattr(&fd).ok(), fd })
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        // Nobody is left to be told that it failed.
        let _ = rustix::fs::fcntl_setfl(&self.fd, self.flags);
        if let Some(termios) = &self.termios {
            let _ = tcsetattr(&self.fd, OptionalActions::Now, termios);
        }
    }
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found").field("fd", &self.fd).field("flags", &self.flags).finish_non_exhaustive()
    }
}
