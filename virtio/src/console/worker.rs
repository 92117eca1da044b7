//! Serving the ports.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use backend::chardev::Poller;
use memory::GuestMemory;
use rustix::event::PollFlags;

use super::control::{self, Known};
use super::{Port, Shared};
use crate::device::{Queues, Sources, Wake, Worker};
use crate::queue::{Chain, Queue, QueueError};

/// Bytes moved at a time.
const BUFFER: usize = 4096;
/// Bytes sent in one go; then the others have their turn. A guest can make a chain of 4 GiB.
const MOST: u64 = 64 << 10;

pub(super) struct ConsoleWorker {
    shared: Arc<Shared>,
    multiport: bool,
    memory: GuestMemory,
    poller: Poller,
    chain: Chain,
    buffer: Box<[u8; BUFFER]>,
    /// By port.
    known: Vec<Known>,
    lines: Vec<Line>,
}

/// How far a port has got.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// The host may have something for us.
    readable: bool,
    /// The host takes nothing, though there is something.
    blocked: bool,
    /// Bytes that the host has taken of the chain that comes next.
    sent: u64,
    /// It was said that the host does not take what it should.
    complained: bool,
}

/// What a queue is for (virtio 1.3 §5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Tell,
    Hear,
}

impl Role {
    fn of(index: usize) -> Role {
        match index {
            0 => Role::Receive(0),
            1 => Role::Transmit(0),
            2 => Role::Tell,
            3 => Role::Hear,
            _ => {
                let port = index.saturating_sub(2) / 2;
                if index.is_multiple_of(2) { Role::Receive(port) } else { Role::Transmit(port) }
            }
        }
    }
}

/// What became of a chain that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The host has it, or it is lost.
    Done,
    /// The host takes no more of it now.
    Blocked,
    /// It is long, and others are to have their turn.
    Later,
}

impl ConsoleWorker {
    pub(super) fn new(
        shared: Arc<Shared>,
        multiport: bool,
        memory: GuestMemory,
    ) -> io::Result<ConsoleWorker> {
        let poller = Poller::new()?;
        let count = shared.ports.len();
        for port in shared.ports.iter().flatten() {
            let mut host = port.host();
            host.watch(poller.watch(usize::from(port.number)))?;
            host.attend(multiport);
        }
        // A driver that cannot say so has its port open.
        let known = Known::new(!multiport);
        let line = Line { readable: true, ..Line::default() };
        Ok(ConsoleWorker {
            shared,
            multiport,
            memory,
            poller,
            chain: Chain::new(),
            buffer: Box::new([0; BUFFER]),
            known: vec![known; count],
            lines: vec![line; count],
        })
    }

    fn is_open(&self, number: usize) -> bool {
        self.shared.port(number).is_some_and(|port| port.host().is_open())
    }

    /// Something happened at the host's end of a port, or the guest closed its own: sees who is there.
    fn attend(&mut self, number: usize) {
        let ConsoleWorker { shared, known, lines, .. } = self;
        if let (Some(port), Some(known), Some(line)) =
            (shared.port(number), known.get(number), lines.get_mut(number))
        {
            port.host().attend(!known.guest_open);
            (line.readable, line.blocked) = (true, false);
        }
    }

    /// Whoever was at the host's end has left. The next is let in when the driver knows, if it is to know.
    fn note_left(&mut self, number: usize) {
        let is_told = |port: &Port| self.multiport && !port.console;
        if !self.shared.port(number).is_some_and(is_told) {
            self.attend(number);
        }
    }

    /// Gives the guest what comes from the host. What it has no room for stays there.
    fn receive(&mut self, number: usize, queue: &mut Queue) -> Result<Wake, QueueError> {
        let ConsoleWorker { shared, memory, chain, buffer, known, lines, .. } = self;
        let (Some(port), Some(known), Some(line)) =
            (shared.port(number), known.get(number), lines.get_mut(number))
        else {
            return Ok(Wake::Source);
        };
        let mut host = port.host();
        let wake = loop {
            if !known.guest_open || !line.readable || !host.is_open() {
                break Wake::Source;
            }
            if !queue.pop(chain)? {
                break Wake::Kick;
            }
            let room = usize::try_from(chain.writable_len()).unwrap_or(BUFFER).min(BUFFER);
            let room = buffer.get_mut(..room).unwrap_or_default();
            let mut writer = chain.writer(memory);
            if !room.is_empty() {
                let Ok(count) = host.read(room) else {
                    queue.rewind(1);
                    line.readable = false;
                    continue;
                };
                writer.write(room.get(..count).unwrap_or_default())?;
            }
            let written = writer.written();
            queue.push(chain.head(), written)?;
        };
        queue.flush()?;
        Ok(wake)
    }

    /// Gives the host what comes from the guest.
    fn transmit(&mut self, number: usize, queue: &mut Queue) -> Result<Wake, QueueError> {
        let mut left = MOST;
        let wake = loop {
            if self.lines.get(number).is_some_and(|line| line.blocked) {
                break Wake::Source;
            }
            if !queue.pop(&mut self.chain)? {
                break Wake::Kick;
            }
            match self.send(number, &mut left)? {
                Sent::Done => queue.push(self.chain.head(), 0)?,
                Sent::Blocked => {
                    queue.rewind(1);
                }
                Sent::Later => {
                    queue.rewind(1);
                    break Wake::Again;
                }
            }
        };
        queue.flush()?;
        Ok(wake)
    }

    /// Sends the chain that was taken, or what is left of it, `left` bytes at most.
    fn send(&mut self, number: usize, left: &mut u64) -> Result<Sent, QueueError> {
        let ConsoleWorker { shared, memory, chain, buffer, lines, .. } = self;
        let (Some(port), Some(line)) = (shared.port(number), lines.get_mut(number)) else {
            return Ok(Sent::Done);
        };
        let mut host = port.host();
        while host.is_open() {
            let mut reader = chain.reader(memory);
            // One that the driver made shorter meanwhile is done, too.
            if reader.skip(line.sent).is_err() || reader.remaining() == 0 {
                break;
            }
            if *left == 0 {
                return Ok(Sent::Later);
            }
            let count = usize::try_from(reader.remaining().min(*left)).unwrap_or(BUFFER).min(BUFFER);
            let bytes = buffer.get_mut(..count).unwrap_or_default();
            reader.read(bytes)?;
            match host.write(bytes) {
                Ok(count) => {
                    line.sent = line.sent.saturating_add(count as u64);
                    *left = left.saturating_sub(count as u64);
                }
                // Linux waits for a console's bytes to be taken with a lock held: they are lost rather.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && port.console => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    line.blocked = true;
                    return Ok(Sent::Blocked);
                }
                Err(error) => {
                    if host.is_open() && !std::mem::replace(&mut line.complained, true) {
                        log::warn!("console port {number}: {error}; what the guest sends is lost");
                    }
                    break;
                }
            }
        }
        line.sent = 0;
        Ok(Sent::Done)
    }

    /// Tells the driver all that it does not know and has buffers for.
    fn tell(&mut self, queue: &mut Queue) -> Result<Wake, QueueError> {
        let shared = self.shared.clone();
        let mut wake = Wake::Source;
        for port in shared.ports.iter().flatten() {
            let number = usize::from(port.number);
            while let Some(known) = self.known.get_mut(number).filter(|known| control::is_news(port, known)) {
                if !control::tell(port, known, &self.memory, queue, &mut self.chain)? {
                    queue.flush()?;
                    return Ok(Wake::Kick);
                }
                if !self.is_open(number) {
                    self.attend(number);
                    wake = Wake::Again;
                }
            }
        }
        queue.flush()?;
        Ok(wake)
    }

    /// Takes note of all that the driver says.
    fn hear(&mut self, queue: &mut Queue) -> Result<Wake, QueueError> {
        let mut wake = Wake::Kick;
        while queue.pop(&mut self.chain)? {
            let ConsoleWorker { shared, known, memory, chain, .. } = self;
            if let Some(number) = control::hear(shared, known, memory, chain) {
                self.attend(number);
            }
            queue.push(self.chain.head(), 0)?;
            // There may be something to answer, or to receive.
            wake = Wake::Again;
        }
        queue.flush()?;
        Ok(wake)
    }
}

impl Worker for ConsoleWorker {
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError> {
        let Some(queue) = queues.get(index) else { return Ok(Wake::Kick) };
        let role = Role::of(index);
        let (Role::Receive(number) | Role::Transmit(number)) = role else {
            return if role == Role::Tell { self.tell(queue) } else { self.hear(queue) };
        };
        let was_open = self.is_open(number);
        let wake = match role {
            Role::Receive(_) => self.receive(number, queue),
            _ => self.transmit(number, queue),
        }?;
        if was_open && !self.is_open(number) {
            self.note_left(number);
            return Ok(Wake::Again);
        }
        Ok(wake)
    }

    fn sources<'fd>(&'fd self, _queues: &Queues, out: &mut Sources<'fd>) {
        out.add(self.poller.as_fd(), PollFlags::IN);
    }

    fn woken(&mut self, ready: &[bool]) {
        // So often that each port had its turn, and no oftener.
        for _ in 0..if ready == [true] { self.lines.len() } else { 0 } {
            let Some(number) = self.poller.take() else { break };
            self.attend(number);
        }
    }

    fn drain(&mut self, _queues: &mut Queues, index: usize) -> Result<(), QueueError> {
        if let Role::Transmit(number) = Role::of(index)
            && let Some(line) = self.lines.get_mut(number)
        {
            (line.sent, line.blocked) = (0, false);
        }
        Ok(())
    }
}
