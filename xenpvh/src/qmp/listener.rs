//! The sockets on which clients call.
#![expect(unsafe_code, reason = "system calls")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Clients that may wait while one is served.
const BACKLOG: i32 = 16;

/// Why there is no socket. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It could not be bound.
    #[error("Failed to bind socket to {}: {}", .0.display(), reason(.1))]
    Bind(PathBuf, io::Error),
    /// Something that is in its place could not be removed.
    #[error("Failed to unlink socket {}: {}", .0.display(), reason(.1))]
    Unlink(PathBuf, io::Error),
    /// The descriptor that was named is not open, or not a socket.
    #[error("File descriptor '{0}' is not a socket")]
    NotASocket(RawFd),
    /// It will not listen: it is connected, perhaps.
    #[error("Failed to listen on {0}: {reason}", reason = reason(.1))]
    Listen(String, io::Error),
}

/// An error without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// One listening socket. If it was bound here, its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    filename: String,
    bound: Option<Bound>,
}

/// A socket's file: by device and inode, for by now another process may have put its own in its place.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Binds a new socket at `path`, in place of one that is left there.
    ///
    /// # Errors
    /// It cannot be there.
    pub fn bind(path: &Path) -> Result<Listener, ListenError> {
        // Only a socket is thrown away; anything else that is there was not meant.
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(path).map_err(|error| ListenError::Unlink(path.to_owned(), error))?;
        }
        let failed = |error| ListenError::Bind(path.to_owned(), error);
        let socket = UnixListener::bind(path).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        let bound = Bound { path: path.to_owned(), identity: (file.st_dev(), file.st_ino()) };
        Listener::new(socket, Some(bound), &path.display().to_string())
    }

    /// Takes over a socket that whoever started us has bound.
    ///
    /// # Errors
    /// It is not a socket, or it cannot listen.
    pub fn inherit(fd: RawFd) -> Result<Listener, ListenError> {
        // A copy, so that there is one owner of each number whatever else the command line says of this one.
        // SAFETY: no memory is passed, and a number that is not open is refused.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(ListenError::NotASocket(fd));
        }
        // SAFETY: the kernel has just made it for us.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        if rustix::net::sockopt::socket_type(&copy) != Ok(rustix::net::SocketType::STREAM) {
            return Err(ListenError::NotASocket(fd));
        }
        let socket = UnixListener::from(copy);
        let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let name = path.map_or_else(|| format!("fd:{fd}"), |path| path.display().to_string());
        Listener::new(socket, None, &name)
    }

    fn new(socket: UnixListener, bound: Option<Bound>, name: &str) -> Result<Listener, ListenError> {
        let listener = Listener { socket, filename: format!("unix:{name},server=on"), bound };
        rustix::net::listen(&listener.socket, BACKLOG)
            .map_err(io::Error::from)
            .and_then(|()| listener.socket.set_nonblocking(true))
            .map_err(|error| ListenError::Listen(name.to_owned(), error))?;
        Ok(listener)
    }

    /// What `query-chardev` calls it.
    #[must_use]
    pub fn filename(&self) -> &str {
        &self.filename
    }

    /// The next client that is there, if any, not blocking.
    ///
    /// # Errors
    /// There may be one, but it cannot be had now, as when no descriptors are left.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.socket.accept() {
                Ok((client, _)) => {
                    // A client that cannot be had without blocking is not had at all.
                    if client.set_nonblocking(true).is_ok() {
                        return Ok(Some(client));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(Bound { path, identity }) = &self.bound else { return };
        let still_ours = |file: fs::Metadata| (file.st_dev(), file.st_ino()) == *identity;
        if fs::symlink_metadata(path).is_ok_and(still_ours) {
            // Gone already is as good.
            let _ = fs::remove_file(path);
        }
    }
}
