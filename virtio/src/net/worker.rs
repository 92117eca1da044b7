//! Serving one pair of queues.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;

use backend::tap::{Receive, VNET_HEADER};
use memory::{GuestMemory, Pinned};
use rustix::event::PollFlags;

use super::{FEATURE_MRG_RXBUF, FEATURE_MTU, GUEST_SEGMENTATION, Pair, Shared, control};
use crate::device::{Queues, Sources, Wake, Worker};
use crate::queue::{Chain, Queue, QueueError};

/// The longest frame with its header: 64 KiB of IP in Ethernet with a VLAN tag.
const MAX_FRAME: usize = VNET_HEADER + 14 + 4 + 65535;
/// Ethernet and VLAN headers: what comes on top of the MTU.
const LINK_HEADERS: usize = 14 + 4;
/// MTU of an interface that nobody said anything about.
const USUAL_MTU: u16 = 1500;
/// Frames received in one go; then the others have their turn.
const RECEIVE_BATCH: u32 = 64;
/// After so many frames the driver is shown what there is: it can work on them while we fetch more.
const FLUSH_EVERY: u32 = 16;
/// Offset of `num_buffers` in the header (virtio 1.3 §5.1.6).
const NUM_BUFFERS: usize = 10;

pub(super) struct NetWorker {
    shared: Arc<Shared>,
    index: usize,
    features: u64,
    memory: GuestMemory,
    control: usize,
    /// Bytes of guest memory to have at hand before a frame is read.
    room: usize,
    chain: Chain,
    /// Guest memory that frames will be read into, and the chains it belongs to.
    receive: Receive,
    staged: VecDeque<Staged>,
    /// What `memory.generation()` was when they were staged.
    generation: u64,
    /// Containers to be used again.
    spare: Vec<Pinned>,
    /// Memory of ours, made when it is first needed.
    bounce: Box<[u8]>,
    /// Length of a frame in `bounce` that the driver has not had room for yet; 0 for none.
    held: usize,
    /// Frames wait, or may: there is no room for them.
    starved: bool,
    /// A frame waits in the transmit queue: the tap takes no more for now.
    blocked: bool,
    /// The tap was asked when we last slept, and had nothing: one look is saved, as on each kick to transmit.
    quiet: bool,
    /// The tap failed. It is left alone until the pair is revived, or the device reset.
    failed: bool,
}

#[derive(Clone, Copy)]
struct Staged {
    head: u16,
    len: usize,
}

/// How much guest memory there is to read frames into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Enough for any frame, or as much as there ever will be.
    Enough,
    /// Maybe enough for the next one.
    Some,
    None,
}

impl NetWorker {
    pub(super) fn new(shared: Arc<Shared>, index: usize, features: u64, memory: GuestMemory) -> NetWorker {
        let mtu = shared.mtu.filter(|_| features & FEATURE_MTU != 0).unwrap_or(0).max(USUAL_MTU);
        let room = if features & FEATURE_MRG_RXBUF == 0 {
            // A frame gets one buffer, whatever its length.
            1
        } else if features & GUEST_SEGMENTATION != 0 {
            MAX_FRAME
        } else {
            usize::from(mtu).saturating_add(VNET_HEADER + LINK_HEADERS)
        };
        let mut worker = NetWorker {
            control: shared.control_queue(features),
            generation: memory.generation(),
            shared,
            index,
            features,
            memory,
            room,
            chain: Chain::new(),
            receive: Receive::new(),
            staged: VecDeque::new(),
            spare: Vec::new(),
            bounce: Box::default(),
            held: 0,
            starved: false,
            blocked: false,
            quiet: false,
            failed: false,
        };
        // What happened before is no news.
        worker.look_for_revival();
        worker
    }

    fn rx(&self) -> usize {
        self.index.saturating_mul(2)
    }

    fn tx(&self) -> usize {
        self.rx().saturating_add(1)
    }

    fn pair(&self) -> Option<&Pair> {
        self.shared.pairs.get(self.index)
    }

    fn is_live(&self) -> bool {
        !self.failed && self.shared.is_live(self.index)
    }

    /// Notes why a tap will not do any more. True if it is the tap's fault and not that of one frame.
    fn note_failure(&mut self, error: &io::Error) -> bool {
        use rustix::io::Errno;
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        let of_a_frame = [Errno::FAULT, Errno::INVAL, Errno::NOMEM, Errno::NOBUFS, Errno::IO, Errno::MSGSIZE];
        if code.is_some_and(|code| of_a_frame.contains(&code)) {
            return false;
        }
        // One that the driver has just told us not to use is not worth a word.
        if self.is_live() {
            log::warn!("{}: {error}; its frames are lost until the device is reset", self.shared.name());
        }
        self.failed = true;
        true
    }

    /// Gets enough chains ready to read a frame into, if the driver has given us as many.
    fn stage(&mut self, queue: &mut Queue) -> Result<Room, QueueError> {
        let generation = self.memory.generation();
        if generation != self.generation {
            self.unstage(Some(queue));
            self.generation = generation;
        }
        while self.receive.bytes() < self.room && !self.receive.is_full() {
            if !queue.pop(&mut self.chain)? {
                // A queue half of which is ours will not get much better: let it lose long frames.
                let ours = self.staged.len().saturating_mul(2);
                return Ok(match ours {
                    0 => Room::None,
                    _ if ours >= usize::from(queue.size()) => Room::Enough,
                    _ => Room::Some,
                });
            }
            let mut buffer = self.spare.pop().unwrap_or_default();
            let mut writer = self.chain.writer(&self.memory);
            let fits = self.chain.writable_len() >= VNET_HEADER as u64;
            if fits && writer.pin_rest(&mut buffer).is_ok() {
                self.staged.push_back(Staged { head: self.chain.head(), len: buffer.len() });
                self.receive.push(buffer);
                continue;
            }
            // Not even a header fits, or its memory is gone. Chains have to go back in order.
            self.recycle(buffer, 0);
            if !self.staged.is_empty() {
                queue.rewind(1);
                return Ok(Room::Enough);
            }
            queue.push(self.chain.head(), 0)?;
        }
        Ok(Room::Enough)
    }

    /// Gives all that is staged back to the driver's side of the queue, which may be gone.
    fn unstage(&mut self, queue: Option<&mut Queue>) {
        let count = u16::try_from(self.staged.len()).unwrap_or(u16::MAX);
        if let Some(queue) = queue {
            queue.rewind(count);
        }
        self.staged.clear();
        while let Some(buffer) = self.receive.pop() {
            self.recycle(buffer, 0);
        }
    }

    /// Lets go of guest memory, `written` bytes of which were written.
    fn recycle(&mut self, mut buffer: Pinned, written: usize) {
        buffer.truncate(written);
        buffer.clear();
        self.spare.push(buffer);
    }

    fn serve_rx(&mut self, queue: &mut Queue) -> Result<Wake, QueueError> {
        let mut frames = 0u32;
        self.starved = false;
        let wake = loop {
            if !self.is_live() {
                break Wake::Source;
            }
            if frames == RECEIVE_BATCH {
                break Wake::Again;
            }
            let room = self.stage(queue)?;
            if self.held > 0 && (self.receive.bytes() >= self.held || room == Room::Enough) {
                let frame = mem::take(&mut self.bounce);
                self.deliver(queue, frame.get(..self.held), self.held)?;
                (self.bounce, self.held) = (frame, 0);
                frames = frames.saturating_add(1);
                continue;
            }
            if self.held > 0 || room == Room::None {
                self.starved = true;
                break Wake::Kick;
            }
            if mem::take(&mut self.quiet) {
                break Wake::Source;
            }
            match self.fetch(room) {
                // How long it is shows only now: the driver may have to give us more for it.
                Ok(len) if room == Room::Some => {
                    self.held = len;
                    continue;
                }
                Ok(len) => self.deliver(queue, None, len)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Wake::Source,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.note_failure(&error);
                }
            }
            frames = frames.saturating_add(1);
            if frames.is_multiple_of(FLUSH_EVERY) {
                queue.flush()?;
            }
        };
        queue.flush()?;
        Ok(wake)
    }

    /// Reads a frame: into what is staged if any frame fits there, else into memory of ours.
    fn fetch(&mut self, room: Room) -> io::Result<usize> {
        let pair = self.shared.pairs.get(self.index).ok_or(io::ErrorKind::WouldBlock)?;
        if room == Room::Enough {
            return pair.tap.read(&self.receive);
        }
        if self.bounce.is_empty() {
            self.bounce = vec![0; MAX_FRAME].into_boxed_slice();
        }
        pair.tap.read_bytes(&mut self.bounce)
    }

    /// Gives the driver a frame of `len` bytes: the one that was read into what is staged, or `bounced`. What
    /// there is no room for is cut off.
    fn deliver(&mut self, queue: &mut Queue, bounced: Option<&[u8]>, len: usize) -> Result<(), QueueError> {
        let mut reach = 0usize;
        let mut buffers = 0u16;
        for staged in &self.staged {
            if reach >= len {
                break;
            }
            reach = reach.saturating_add(staged.len);
            buffers = buffers.saturating_add(1);
        }
        let mut left = len;
        let mut bounced = bounced.unwrap_or_default();
        for index in 0..buffers {
            let (Some(staged), Some(buffer)) = (self.staged.pop_front(), self.receive.pop()) else { break };
            let here = staged.len.min(left);
            left = left.saturating_sub(here);
            let copied = buffer.copy_from(0, bounced.get(..here).unwrap_or_default());
            bounced = bounced.get(copied..).unwrap_or_default();
            if index == 0 {
                // The host leaves these two bytes as they were.
                buffer.copy_from(NUM_BUFFERS, &buffers.to_le_bytes());
            }
            self.recycle(buffer, here);
            queue.push(staged.head, u32::try_from(here).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn serve_tx(&mut self, queue: &mut Queue) -> Result<Wake, QueueError> {
        let mut frames = 0u32;
        self.blocked = false;
        let mut frame = self.spare.pop().unwrap_or_default();
        let wake = loop {
            if !queue.pop(&mut self.chain)? {
                break Wake::Kick;
            }
            match self.send(&mut frame) {
                // Sent, or lost as frames may be.
                Ok(()) => queue.push(self.chain.head(), 0)?,
                Err(_) => {
                    queue.rewind(1);
                    self.blocked = true;
                    break Wake::Source;
                }
            }
            frames = frames.saturating_add(1);
            if frames.is_multiple_of(FLUSH_EVERY) {
                queue.flush()?;
            }
        };
        self.recycle(frame, 0);
        queue.flush()?;
        Ok(wake)
    }

    /// Sends the frame in `self.chain`, or loses it. The one error is that the tap has to be waited for.
    fn send(&mut self, frame: &mut Pinned) -> io::Result<()> {
        let len = self.chain.readable_len();
        if len < VNET_HEADER as u64 || len > MAX_FRAME as u64 || !self.is_live() {
            return Ok(());
        }
        frame.clear();
        if self.chain.reader(&self.memory).pin_rest(frame).is_err() {
            return Ok(());
        }
        let Some(pair) = self.pair() else { return Ok(()) };
        loop {
            match pair.tap.write(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    self.note_failure(&error);
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Takes note of a sign of life.
    fn look_for_revival(&mut self) {
        let mut count = [0; 8];
        if let Some(pair) = self.pair()
            && rustix::io::read(&pair.revived, &mut count).is_ok()
        {
            self.failed = false;
        }
    }
}

impl Worker for NetWorker {
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError> {
        if !self.is_live() {
            self.look_for_revival();
        }
        let Some(queue) = queues.get(index) else { return Ok(Wake::Kick) };
        if index == self.control {
            let NetWorker { shared, features, memory, chain, .. } = self;
            control::serve(shared, *features, memory, queue, chain)?;
            return Ok(Wake::Kick);
        }
        if index == self.rx() {
            self.serve_rx(queue)
        } else if index == self.tx() {
            self.serve_tx(queue)
        } else {
            Ok(Wake::Kick)
        }
    }

    fn sources<'fd>(&'fd self, queues: &Queues, out: &mut Sources<'fd>) {
        let Some(pair) = self.pair() else { return };
        let (rx, tx) = (queues.contains(self.rx()), queues.contains(self.tx()));
        if !self.is_live() {
            // Only `serve` makes it unreadable again.
            if rx || tx {
                out.add(pair.revived.as_fd(), PollFlags::IN);
            }
            return;
        }
        let mut flags = PollFlags::empty();
        if rx && !self.starved {
            flags |= PollFlags::IN;
        }
        if tx && self.blocked {
            flags |= PollFlags::OUT;
        }
        if !flags.is_empty() {
            out.add(pair.tap.as_fd(), flags);
        }
    }

    fn woken(&mut self, ready: &[bool]) {
        self.quiet = self.is_live() && !self.starved && ready == [false];
    }

    fn drain(&mut self, queues: &mut Queues, index: usize) -> Result<(), QueueError> {
        if index == self.control {
            return Ok(());
        }
        if index == self.rx() {
            let mut queue = queues.get(index);
            self.unstage(queue.as_deref_mut());
            (self.starved, self.held) = (false, 0);
            if let Some(queue) = queue {
                return queue.flush();
            }
        } else if index == self.tx() {
            self.blocked = false;
        }
        Ok(())
    }
}
