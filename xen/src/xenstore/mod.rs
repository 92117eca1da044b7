//! A client of xenstore, the host's small shared tree of settings (xen.git: docs/misc/xenstore.txt).

mod wire;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::DomId;
use crate::error::{describe, hint};
use wire::{Kind, Message};

/// Where xenstored listens, and the kernel's way to it where it runs in another domain.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
const DEVICE: &str = "/dev/xen/xenbus";

/// Longest absolute path (xs_wire.h, `XENSTORE_ABS_PATH_MAX`).
const PATH_MAX: usize = 3072;
/// How long xenstored may take to answer. It serves all of the host one by one.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a transaction that others got in the way of is tried again.
const TRANSACTION_RETRIES: u32 = 32;
/// Most events that wait to be looked at. The guest can cause them, by writing to nodes that are watched.
const EVENTS_MAX: usize = 1024;

/// Why xenstore could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no way to xenstored.
    #[error("cannot reach xenstored: cannot open {path}: {}{}", describe(source), hint(source))]
    Open {
        /// What was tried.
        path: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Xenstored refused a request.
    #[error("{request}({path}): {}", describe(source))]
    Refused {
        /// The request, as xs_wire.h spells it.
        request: &'static str,
        /// What it was about: a path, mostly.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A path or token that cannot be sent.
    #[error("'{0}' is no xenstore path")]
    BadPath(String),
    /// Path and value are more than fits one message (4096 bytes).
    #[error("too long for a xenstore message")]
    TooLong,
    /// Transactions do not nest.
    #[error("a xenstore transaction within another")]
    Nested,
    /// Xenstored did not answer within 30 seconds. The connection is of no more use.
    #[error("xenstored does not answer")]
    Timeout,
    /// Xenstored broke the protocol. The connection is of no more use.
    #[error("xenstored broke the protocol: {0}")]
    Protocol(&'static str),
    /// The connection failed, now or earlier.
    #[error("the connection to xenstored failed: {}", describe(.0))]
    Connection(io::Error),
}

impl StoreError {
    /// Whether the node that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
    }
}

/// A change at or below a watched path, or the first event of a new watch, which tells of no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed.
    pub path: String,
    /// The token given with the watch.
    pub token: String,
}

/// A connection to xenstored.
///
/// Requests wait for their answers. Events that come meanwhile are kept: take [`next_event`](Store::next_event)
/// until there is none before sleeping on the descriptor.
#[derive(Debug)]
pub struct Store {
    fd: OwnedFd,
    timeout: Duration,
    /// Set once the two sides may disagree about where messages start.
    broken: bool,
    last_request: u32,
    /// The transaction that requests belong to, or 0.
    transaction: u32,
    /// Bytes of messages that are not here whole.
    input: Vec<u8>,
    events: VecDeque<WatchEvent>,
    /// What is watched; as events, for when there are too many to keep.
    watches: Vec<WatchEvent>,
}

impl Store {
    /// Connects to xenstored by its socket, or else through the kernel.
    ///
    /// # Errors
    /// This is no Xen domain, xenstored does not run, or the caller may not talk to it.
    pub fn open() -> Result<Store, StoreError> {
        for path in SOCKETS {
            match UnixStream::connect(path) {
                Ok(stream) => return Store::from_fd(stream.into()).map_err(StoreError::Connection),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ECONNREFUSED)) => {}
                Err(source) => return Err(StoreError::Open { path, source }),
            }
        }
        match File::options().read(true).write(true).open(DEVICE) {
            Ok(file) => Store::from_fd(file.into()).map_err(StoreError::Connection),
            Err(source) => Err(StoreError::Open { path: DEVICE, source }),
        }
    }

    /// A connection that was made elsewhere: to a stand-in of xenstored, in tests and fuzzers.
    ///
    /// # Errors
    /// It cannot be made not to block.
    #[doc(hidden)]
    pub fn from_fd(fd: OwnedFd) -> io::Result<Store> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Store {
            fd,
            timeout: TIMEOUT,
            broken: false,
            last_request: 0,
            transaction: 0,
            input: Vec::new(),
            events: VecDeque::new(),
            watches: Vec::new(),
        })
    }

    /// The value of a node.
    ///
    /// # Errors
    /// There is none ([`StoreError::is_not_found`]), or it may not be read.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.request(Kind::Read, path, &[path.as_bytes(), &[0]])
    }

    /// The value of a node, or `None` where there is none or it is no text.
    ///
    /// # Errors
    /// It may not be read, or the connection failed.
    pub fn read_text(&mut self, path: &str) -> Result<Option<String>, StoreError> {
        match self.read(path) {
            Ok(value) => Ok(String::from_utf8(value).ok()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value of a node, which is made, with those above it, where it is not there.
    ///
    /// # Errors
    /// It may not be written, or path and value do not fit one message.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), StoreError> {
        self.request(Kind::Write, path, &[path.as_bytes(), &[0], value.as_ref()]).map(drop)
    }

    /// Makes a node with an empty value, unless it is there.
    ///
    /// # Errors
    /// It may not be made.
    pub fn mkdir(&mut self, path: &str) -> Result<(), StoreError> {
        self.request(Kind::Mkdir, path, &[path.as_bytes(), &[0]]).map(drop)
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// It, or the node above it, is not there, or it may not be removed.
    pub fn rm(&mut self, path: &str) -> Result<(), StoreError> {
        self.request(Kind::Rm, path, &[path.as_bytes(), &[0]]).map(drop)
    }

    /// The names of the nodes right below a node.
    ///
    /// # Errors
    /// There is no such node, or the names do not fit one message (`E2BIG`).
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        let names = self.request(Kind::Directory, path, &[path.as_bytes(), &[0]])?;
        self.checked(wire::list(&names))
    }

    /// Watches a node and all below it. A first event comes soon, whether or not the node is there.
    ///
    /// # Errors
    /// The same watch is there already (`EEXIST`), or there are too many.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        check(token)?;
        self.request(Kind::Watch, path, &[path.as_bytes(), &[0], token.as_bytes(), &[0]])?;
        self.watches.push(WatchEvent { path: path.to_owned(), token: token.to_owned() });
        Ok(())
    }

    /// Ends a watch. Events of it that are here already are dropped.
    ///
    /// # Errors
    /// There is no such watch (`ENOENT`).
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        check(token)?;
        self.request(Kind::Unwatch, path, &[path.as_bytes(), &[0], token.as_bytes(), &[0]])?;
        self.watches.retain(|watch| watch.path != path || watch.token != token);
        let others = |event: &WatchEvent| self.watches.iter().any(|watch| watch.token == event.token);
        self.events.retain(others);
        Ok(())
    }

    /// The path of a domain's own nodes: `/local/domain/<domid>`.
    ///
    /// # Errors
    /// The connection failed; xenstored does not check that there is such a domain.
    pub fn get_domain_path(&mut self, domid: DomId) -> Result<String, StoreError> {
        let id = domid.to_string();
        let path = self.request(Kind::GetDomainPath, &id, &[id.as_bytes(), &[0]])?;
        self.checked(wire::text(&path).map(str::to_owned))
    }

    /// Whether a domain is there and has been introduced to xenstored.
    ///
    /// # Errors
    /// The connection failed.
    pub fn is_domain_introduced(&mut self, domid: DomId) -> Result<bool, StoreError> {
        let id = domid.to_string();
        let answer = self.request(Kind::IsDomainIntroduced, &id, &[id.as_bytes(), &[0]])?;
        self.checked(match wire::text(&answer) {
            Ok("T") => Ok(true),
            Ok("F") => Ok(false),
            _ => Err(StoreError::Protocol("neither true nor false")),
        })
    }

    /// Runs `body` so that others see all that it changed or nothing. It is run again where others changed
    /// meanwhile what it saw, and undone where it returns an error.
    ///
    /// # Errors
    /// What `body` returned, or it did not come through in 32 attempts (`EAGAIN`).
    pub fn transaction<T>(
        &mut self,
        mut body: impl FnMut(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.transaction != 0 {
            return Err(StoreError::Nested);
        }
        let mut attempt = 1u32;
        loop {
            let id = self.request(Kind::TransactionStart, "transaction", &[&[0]])?;
            let id = wire::text(&id).ok().and_then(|id| id.parse().ok()).filter(|id| *id != 0);
            self.transaction = self.checked(id.ok_or(StoreError::Protocol("no transaction id")))?;
            let result = body(self);
            let verdict = if result.is_ok() { b"T\0" } else { b"F\0" };
            let end = self.request(Kind::TransactionEnd, "transaction", &[verdict]);
            self.transaction = 0;
            let value = result?;
            match end {
                Ok(_) => return Ok(value),
                Err(StoreError::Refused { source, .. })
                    if source.raw_os_error() == Some(libc::EAGAIN) && attempt < TRANSACTION_RETRIES => {}
                Err(error) => return Err(error),
            }
            attempt = attempt.saturating_add(1);
        }
    }

    /// The next event if one is here. Never waits.
    ///
    /// # Errors
    /// The connection failed.
    pub fn next_event(&mut self) -> Result<Option<WatchEvent>, StoreError> {
        if self.events.is_empty() {
            self.usable()?;
            while let Some(message) = self.receive()? {
                let result = self.unasked(message);
                self.checked(result)?;
            }
        }
        Ok(self.events.pop_front())
    }

    /// Makes a request about `subject` and returns the payload of its reply.
    fn request(&mut self, kind: Kind, subject: &str, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        check(subject)?;
        self.usable()?;
        self.last_request = self.last_request.wrapping_add(1);
        let request = self.last_request;
        let message = wire::encode(kind, request, self.transaction, parts)?;
        let start = Instant::now();
        self.send(&message, start)?;
        let reply = loop {
            match self.receive()? {
                Some(message) if message.kind == wire::WATCH_EVENT => {
                    let result = self.unasked(message);
                    self.checked(result)?;
                }
                Some(reply) => break reply,
                None => self.sleep(PollFlags::IN, start)?,
            }
        };
        if reply.request != request {
            return self.checked(Err(StoreError::Protocol("a reply to another request")));
        }
        if reply.kind == wire::ERROR {
            let name = self.checked(wire::text(&reply.payload).map(str::to_owned))?;
            let source = io::Error::from_raw_os_error(wire::errno(&name));
            return Err(StoreError::Refused { request: kind.name(), path: subject.to_owned(), source });
        }
        if reply.kind != kind as u32 {
            return self.checked(Err(StoreError::Protocol("a reply of another kind")));
        }
        Ok(reply.payload)
    }

    /// Takes note of a message that answers no request.
    fn unasked(&mut self, message: Message) -> Result<(), StoreError> {
        if message.kind != wire::WATCH_EVENT {
            return Err(StoreError::Protocol("a reply to no request"));
        }
        let strings = wire::list(&message.payload)?;
        let [path, token] = <[String; 2]>::try_from(strings)
            .map_err(|_| StoreError::Protocol("a watch event is malformed"))?;
        let event = WatchEvent { path, token };
        if self.events.contains(&event) {
            return Ok(());
        }
        if self.events.len() >= EVENTS_MAX {
            // Each watch as a whole may have changed.
            self.events = self.watches.iter().cloned().collect();
        } else {
            self.events.push_back(event);
        }
        Ok(())
    }

    fn usable(&self) -> Result<(), StoreError> {
        if self.broken { Err(StoreError::Connection(io::ErrorKind::NotConnected.into())) } else { Ok(()) }
    }

    /// Marks the connection as broken where `result` is an error.
    fn checked<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.broken |= result.is_err();
        result
    }

    fn send(&mut self, mut message: &[u8], start: Instant) -> Result<(), StoreError> {
        while !message.is_empty() {
            match rustix::io::write(&self.fd, message) {
                Ok(written) => message = message.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.sleep(PollFlags::OUT, start)?,
                Err(error) => return self.checked(Err(StoreError::Connection(error.into()))),
            }
        }
        Ok(())
    }

    /// The next message, or nothing while it is not here whole.
    fn receive(&mut self) -> Result<Option<Message>, StoreError> {
        loop {
            let message = wire::decode(&mut self.input);
            if let Some(message) = self.checked(message)? {
                return Ok(Some(message));
            }
            let mut buffer = [0; wire::HEADER + wire::PAYLOAD_MAX];
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) => {
                    let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return self.checked(Err(StoreError::Connection(closed)));
                }
                Ok(read) => self.input.extend(buffer.iter().take(read)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return self.checked(Err(StoreError::Connection(error.into()))),
            }
        }
    }

    /// Sleeps until the descriptor is ready, or what was begun at `start` has taken too long.
    fn sleep(&mut self, flags: PollFlags, start: Instant) -> Result<(), StoreError> {
        let left = Timespec::try_from(self.timeout.saturating_sub(start.elapsed())).ok();
        let mut fds = [PollFd::new(&self.fd, flags)];
        let result = match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(0) => Err(StoreError::Timeout),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(StoreError::Connection(error.into())),
        };
        self.checked(result)
    }
}

impl AsFd for Store {
    /// Readable when events may be there; they may also be here already.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A string that can be a part of a message.
fn check(text: &str) -> Result<(), StoreError> {
    if text.is_empty() || text.len() > PATH_MAX || text.contains('\0') {
        return Err(StoreError::BadPath(text.escape_debug().to_string()));
    }
    Ok(())
}
