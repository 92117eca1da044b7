//! Serving one queue of a block device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use backend::block::{Completion, Engine, Op, Request};
use memory::{GuestMemory, Pinned};
use rustix::event::PollFlags;

use super::Statistics;
use super::request::{self, Action, HEADER_LEN, ID_LEN, Limits, RANGE_LEN, Raw, Status};
use crate::device::{Queues, Sources, Wake, Worker};
use crate::queue::{Chain, ChainError, Queue, QueueError};

pub(super) struct BlkWorker {
    index: usize,
    memory: GuestMemory,
    engine: Box<dyn Engine>,
    limits: Limits,
    statistics: Arc<Statistics>,
    serial: [u8; ID_LEN],
    /// Whether writes may stay in a cache until the next flush; `None` if there will be no flush.
    write_cache: Option<Arc<AtomicBool>>,
    /// What the disk is working on, by the tag it knows it by.
    slots: Vec<Slot>,
    /// Tags that are free.
    free: Vec<usize>,
    /// The chain being looked at.
    chain: Chain,
    complained: bool,
    /// When requests last came or ended. Asked once for many: where the clock takes a system call, it would
    /// cost as much as the request.
    now: Instant,
}

/// One request with the disk. Kept when it is over, for its allocations.
#[derive(Default)]
struct Slot {
    chain: Chain,
    data: Pinned,
    /// What the disk has to do.
    work: Option<Work>,
}

/// What it is, where, how many bytes, and since when the disk has it.
#[derive(Clone, Copy)]
struct Work {
    op: Op,
    offset: u64,
    len: u64,
    since: Instant,
}

/// What became of a request.
enum Outcome {
    /// The disk has it; its chain is in a slot.
    Started,
    /// It is over already, this many bytes before the status byte written.
    Over(Status, u64),
    /// There is no place for a status.
    NoStatus,
}

impl BlkWorker {
    pub(super) fn new(
        index: usize,
        memory: GuestMemory,
        engine: Box<dyn Engine>,
        limits: Limits,
        statistics: Arc<Statistics>,
        serial: [u8; ID_LEN],
        write_cache: Option<Arc<AtomicBool>>,
    ) -> BlkWorker {
        BlkWorker {
            index,
            memory,
            engine,
            limits,
            statistics,
            serial,
            write_cache,
            slots: Vec::new(),
            free: Vec::new(),
            chain: Chain::new(),
            complained: false,
            now: Instant::now(),
        }
    }

    /// Starts on the request in `self.chain`.
    fn start(&mut self) -> Outcome {
        let Some(writable) = self.chain.writable_len().checked_sub(1) else { return Outcome::NoStatus };
        match self.try_start(writable) {
            Ok(Ok(())) => Outcome::Started,
            Ok(Err((status, written))) => Outcome::Over(status, written),
            // The chain is too short for its header, or its memory is gone.
            Err(_) => Outcome::Over(Status::Error, 0),
        }
    }

    fn try_start(&mut self, writable: u64) -> Result<Result<(), (Status, u64)>, ChainError> {
        let mut reader = self.chain.reader(&self.memory);
        let mut raw = Raw { header: [0; HEADER_LEN], range: [0; RANGE_LEN], readable: 0, writable };
        reader.read(&mut raw.header)?;
        raw.readable = reader.remaining();
        if request::has_range(&raw.header) && raw.readable >= RANGE_LEN as u64 {
            reader.clone().read(&mut raw.range)?;
        }
        let durable = self.write_cache.as_ref().is_none_or(|on| !on.load(Ordering::Relaxed));
        let (op, offset, len) = match request::parse(&raw, &self.limits, durable) {
            Ok(Action::Disk { op, offset, len }) => (op, offset, len),
            Ok(Action::Id) => {
                let len = usize::try_from(writable).unwrap_or(ID_LEN).min(ID_LEN);
                let id = self.serial.get(..len).unwrap_or_default();
                self.chain.writer(&self.memory).write(id)?;
                return Ok(Err((Status::Ok, len as u64)));
            }
            Err(status) => {
                self.statistics.add_invalid();
                return Ok(Err((status, 0)));
            }
        };
        let tag = self.free.pop().unwrap_or(self.slots.len());
        if tag == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let Some(slot) = self.slots.get_mut(tag) else { return Ok(Err((Status::Error, 0))) };
        let mut data = std::mem::take(&mut slot.data);
        let pinned = match op {
            Op::Read => self.chain.writer(&self.memory).pin(len, &mut data),
            Op::Write { .. } => reader.pin(len, &mut data),
            _ => Ok(()),
        };
        if let Err(error) = pinned {
            data.truncate(0);
            data.clear();
            slot.data = data;
            self.free.push(tag);
            return Err(error);
        }
        slot.work = Some(Work { op, offset, len, since: self.now });
        std::mem::swap(&mut slot.chain, &mut self.chain);
        self.engine.submit(Request { tag: tag as u64, op, offset, len, data });
        Ok(Ok(()))
    }

    /// Takes what the disk is done with. Returns whether there was anything.
    fn reap(&mut self, mut queue: Option<&mut Queue>) -> Result<bool, QueueError> {
        let mut any = false;
        if self.engine.in_flight() > 0 {
            self.now = Instant::now();
        }
        while let Some(Completion { tag, mut data, result }) = self.engine.complete() {
            any = true;
            let Ok(tag) = usize::try_from(tag) else { continue };
            let Some(slot) = self.slots.get_mut(tag) else { continue };
            let Some(Work { op, offset, len, since }) = slot.work.take() else { continue };
            self.statistics.add(op, offset, len, self.now.saturating_duration_since(since), result.is_ok());
            let (status, written) = match result {
                Ok(()) => (Status::Ok, if op == Op::Read { len } else { 0 }),
                Err(error) => {
                    log::debug!("disk request failed: {error}");
                    (Status::Error, 0)
                }
            };
            data.clear();
            slot.data = data;
            self.free.push(tag);
            if let Some(queue) = &mut queue {
                finish(queue, &self.memory, &slot.chain, status, written)?;
            }
        }
        Ok(any)
    }

    /// Lets the disk get on with everything it has.
    fn push_on(&mut self) {
        if let Err(error) = self.engine.flush_submissions()
            && !self.complained
        {
            // The requests come back as failed, and the driver hears of that.
            self.complained = true;
            log::error!("no more disk requests can be made: {error}");
        }
    }
}

/// Writes the status and gives the chain back. `written` bytes precede the status byte if all went well.
fn finish(
    queue: &mut Queue,
    memory: &GuestMemory,
    chain: &Chain,
    status: Status,
    written: u64,
) -> Result<(), QueueError> {
    let mut writer = chain.writer(memory);
    let before = chain.writable_len().saturating_sub(1);
    // Memory that is gone cannot be told; the driver gets its chain back.
    let told = writer.skip(before).and_then(|()| writer.write(&[status as u8])).is_ok();
    // Only what was written from the start on counts (virtio 1.3 §2.7.8.2).
    let whole = told && written == before;
    let len = if whole { writer.written() } else { u32::try_from(written).unwrap_or(0) };
    queue.push(chain.head(), len)
}

impl Worker for BlkWorker {
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError> {
        let Some(queue) = queues.get(index).filter(|_| index == self.index) else { return Ok(Wake::Kick) };
        self.reap(Some(queue))?;
        self.now = Instant::now();
        while queue.pop(&mut self.chain)? {
            match self.start() {
                Outcome::Started => {}
                Outcome::Over(status, written) => {
                    finish(queue, &self.memory, &self.chain, status, written)?;
                }
                Outcome::NoStatus => {
                    if !self.complained {
                        self.complained = true;
                        log::warn!("a block request has no status byte");
                    }
                    queue.push(self.chain.head(), 0)?;
                }
            }
        }
        self.push_on();
        // Much is over at once: what the page cache has, and everything without `io_uring`.
        while self.reap(Some(queue))? {
            self.push_on();
        }
        queue.flush()?;
        Ok(Wake::Kick)
    }

    fn sources<'fd>(&'fd self, _: &Queues, out: &mut Sources<'fd>) {
        if self.engine.in_flight() > 0
            && let Some(event) = self.engine.event()
        {
            out.add(event, PollFlags::IN);
        }
    }

    fn drain(&mut self, queues: &mut Queues, index: usize) -> Result<(), QueueError> {
        if index != self.index {
            return Ok(());
        }
        let mut queue = queues.get(index);
        let mut result = Ok(());
        while self.engine.in_flight() > 0 {
            self.push_on();
            self.engine.wait();
            if let Err(error) = self.reap(queue.as_deref_mut()) {
                // The ring is lost: the disk still has to finish, but nobody will be told.
                queue = None;
                result = Err(error);
            }
        }
        match (result, queue) {
            (Ok(()), Some(queue)) => queue.flush(),
            (result, _) => result,
        }
    }
}
