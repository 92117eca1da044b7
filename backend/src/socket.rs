//! Stream sockets: those on which clients call, and those of servers that we call.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::reason;

/// Clients that may wait while one is served.
const BACKLOG: i32 = 16;

/// Why there is no socket. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
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
    /// The host has no such name.
    #[error("address resolution failed for {0}: {reason}", reason = reason(.1))]
    Resolve(String, io::Error),
    /// The port is not free, or the address not ours.
    #[error("Failed to find an available port: {}", reason(.0))]
    Port(io::Error),
    /// Nobody answers.
    #[error("Failed to connect to '{0}': {reason}", reason = reason(.1))]
    Connect(String, io::Error),
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A Unix socket.
    Path(PathBuf),
    /// A TCP port of a host, by its name or number.
    Tcp(String, u16),
    /// Open already, inherited from whoever started us.
    Fd(RawFd),
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketAddress::Path(path) => write!(f, "{}", path.display()),
            SocketAddress::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            SocketAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            SocketAddress::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// Calls the server at `address`: the connection, which does not block.
///
/// # Errors
/// Nobody answers there.
pub fn connect(address: &SocketAddress) -> Result<OwnedFd, SocketError> {
    let failed = |error| SocketError::Connect(address.to_string(), error);
    let socket = match address {
        SocketAddress::Path(path) => UnixStream::connect(path).map_err(failed)?.into(),
        SocketAddress::Tcp(host, port) => {
            let socket = TcpStream::connect(resolve(host, *port)?.as_slice()).map_err(failed)?;
            socket.set_nodelay(true).map_err(failed)?;
            socket.into()
        }
        SocketAddress::Fd(fd) => inherit(*fd)?,
    };
    rustix::io::ioctl_fionbio(&socket, true).map_err(|error| failed(error.into()))?;
    Ok(socket)
}

/// The addresses that a name stands for.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, SocketError> {
    let addresses = (host, port).to_socket_addrs();
    addresses
        .map(Iterator::collect)
        .map_err(|error| SocketError::Resolve(SocketAddress::Tcp(host.to_owned(), port).to_string(), error))
}

/// Takes over the stream socket `fd`, which whoever started us has opened.
///
/// # Errors
/// It is not one.
fn inherit(fd: RawFd) -> Result<OwnedFd, SocketError> {
    // A copy, so that there is one owner of each number whatever else the command line says of this one.
    // SAFETY: no memory is passed, and a number that is not open is refused.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(SocketError::NotASocket(fd));
    }
    // SAFETY: the kernel has just made it for us.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let is_stream = rustix::net::sockopt::socket_type(&copy) == Ok(rustix::net::SocketType::STREAM);
    is_stream.then_some(copy).ok_or(SocketError::NotASocket(fd))
}

/// One listening socket. If it was bound here, its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
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
    /// A socket that listens at `address`.
    ///
    /// # Errors
    /// It cannot be there.
    pub fn open(address: &SocketAddress) -> Result<Listener, SocketError> {
        match address {
            SocketAddress::Path(path) => Listener::bind(path),
            SocketAddress::Tcp(host, port) => Listener::bind_tcp(host, *port),
            SocketAddress::Fd(fd) => Listener::inherit(*fd),
        }
    }

    /// Binds a new socket at `path`, in place of one that is left there.
    ///
    /// # Errors
    /// It cannot be there.
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        // Only a socket is thrown away; anything else that is there was not meant.
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(path).map_err(|error| SocketError::Unlink(path.to_owned(), error))?;
        }
        let failed = |error| SocketError::Bind(path.to_owned(), error);
        let socket = UnixListener::bind(path).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        let bound = Bound { path: path.to_owned(), identity: (file.st_dev(), file.st_ino()) };
        Listener::new(socket.into(), Some(bound), "unix", &path.display().to_string())
    }

    /// Binds a new socket at a port of ours.
    fn bind_tcp(host: &str, port: u16) -> Result<Listener, SocketError> {
        let socket = TcpListener::bind(resolve(host, port)?.as_slice()).map_err(SocketError::Port)?;
        // Another one than was asked for if that was 0.
        let port = socket.local_addr().map_or(port, |address| address.port());
        let name = SocketAddress::Tcp(host.to_owned(), port).to_string();
        Listener::new(socket.into(), None, "tcp", &name)
    }

    /// Takes over a socket that whoever started us has bound.
    ///
    /// # Errors
    /// It is not a socket, or it cannot listen.
    pub fn inherit(fd: RawFd) -> Result<Listener, SocketError> {
        let socket = UnixListener::from(inherit(fd)?);
        let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let name = path.map_or_else(|| format!("fd:{fd}"), |path| path.display().to_string());
        Listener::new(socket.into(), None, "unix", &name)
    }

    fn new(socket: OwnedFd, bound: Option<Bound>, family: &str, name: &str) -> Result<Listener, SocketError> {
        let listener = Listener { socket, filename: format!("{family}:{name},server=on"), bound };
        rustix::net::listen(&listener.socket, BACKLOG)
            .and_then(|()| rustix::io::ioctl_fionbio(&listener.socket, true))
            .map_err(|error| SocketError::Listen(name.to_owned(), error.into()))?;
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
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => return Ok(Some(client)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
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
