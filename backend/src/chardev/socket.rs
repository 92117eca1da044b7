//! A socket, on which we are called or by which we call.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Chardev, Watch, whole};
use crate::socket::Listener;

/// One peer at a time on a stream socket.
#[derive(Debug)]
pub struct Socket {
    /// Where peers call; `None` if it was us who called.
    listener: Option<Listener>,
    peer: Option<OwnedFd>,
    watch: Option<Watch>,
}

impl Socket {
    /// Whoever calls there, one after the other.
    #[must_use]
    pub fn server(listener: Listener) -> Socket {
        Socket { listener: Some(listener), peer: None, watch: None }
    }

    /// Whoever is at the other end of this connection, which does not block.
    #[must_use]
    pub fn client(peer: OwnedFd) -> Socket {
        Socket { listener: None, peer: Some(peer), watch: None }
    }

    /// Waits for the first peer, however long that takes.
    pub fn wait(&mut self) {
        while self.peer.is_none() {
            let Some(listener) = &self.listener else { return };
            // A signal that is not deadly may cut it short: then once more.
            let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], None);
            self.attend(false);
        }
    }

    /// What a call on the peer came to. One that has left is let go of.
    fn outcome(&mut self, result: rustix::io::Result<usize>) -> io::Result<usize> {
        match result {
            Ok(count) if count > 0 => Ok(count),
            Err(Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            _ => {
                self.peer = None;
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        if let Some(peer) = listener.accept()? {
            if let Some(watch) = &self.watch {
                watch.add(&peer)?;
            }
            self.peer = Some(peer);
        }
        Ok(())
    }
}

/// Whether the peer will not say any more.
fn has_left(peer: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(peer, PollFlags::RDHUP)];
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

impl Chardev for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(peer) = &self.peer else { return Err(io::ErrorKind::NotConnected.into()) };
        let result = whole(|| recv(peer, &mut *bytes, RecvFlags::DONTWAIT)).map(|(count, _)| count);
        self.outcome(result)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(peer) = &self.peer else { return Err(io::ErrorKind::NotConnected.into()) };
        let result = whole(|| send(peer, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
        self.outcome(result)
    }

    fn is_open(&self) -> bool {
        self.peer.is_some()
    }

    fn attend(&mut self, unread: bool) {
        if unread && self.peer.as_ref().is_some_and(has_left) {
            self.peer = None;
        }
        if self.peer.is_none()
            && let Err(error) = self.accept()
        {
            let name = self.listener.as_ref().map_or("", Listener::filename);
            log::warn!("cannot accept a caller on {name}: {error}");
        }
    }

    fn watch(&mut self, watch: Watch) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            watch.add(listener)?;
        }
        if let Some(peer) = &self.peer {
            watch.add(peer)?;
        }
        self.watch = Some(watch);
        Ok(())
    }
}
