//! A chain of descriptors, read and checked, and cursors over its two halves.

use domain::Gpa;
use memory::{GuestMemory, MemoryError, Pin, Pinned};

/// A run of guest memory that a descriptor names; within RAM and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: Gpa,
    pub(crate) len: u32,
}

/// Why a device could not read or write a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The chain is shorter than what the device reads or writes. Often this is only a bad request.
    #[error("{wanted} bytes of a chain wanted, {left} left")]
    Short {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes left.
        left: u64,
    },
    /// The guest's memory is not there (any more).
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One request: a chain of descriptors, checked whole. Reusable, so that steady state allocates nothing.
///
/// All of the device-readable part precedes the device-writable part (virtio 1.3 §2.7.4.2), every
/// segment lies in the guest's RAM, and the lengths add up to less than 2^32.
#[derive(Debug, Default)]
pub struct Chain {
    pub(crate) head: u16,
    pub(crate) segments: Vec<Segment>,
    /// How many of the segments are device-readable; the rest are writable.
    pub(crate) readable: usize,
    pub(crate) readable_len: u64,
    pub(crate) writable_len: u64,
}

impl Chain {
    /// An empty container for [`Queue::pop`](crate::Queue::pop) to fill.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// What to give to [`Queue::push`](crate::Queue::push): below the queue's size, and unlike that of any
    /// other chain in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// A cursor over the device-readable part, at its start.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemory) -> Reader<'a> {
        let segments = self.segments.get(..self.readable).unwrap_or_default();
        Reader(Cursor { memory, segments, offset: 0, remaining: self.readable_len })
    }

    /// A cursor over the device-writable part, at its start.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemory) -> Writer<'a> {
        let segments = self.segments.get(self.readable..).unwrap_or_default();
        Writer { cursor: Cursor { memory, segments, offset: 0, remaining: self.writable_len }, written: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.head = 0;
        self.segments.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// A place in a run of segments.
#[derive(Clone)]
struct Cursor<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    /// Bytes of the first segment that are done.
    offset: u32,
    remaining: u64,
}

impl Cursor<'_> {
    /// Goes `len` bytes on, giving each piece of guest memory passed to `visit` in order.
    fn advance<E: From<ChainError>>(
        &mut self,
        len: u64,
        mut visit: impl FnMut(Gpa, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        if len > self.remaining {
            return Err(ChainError::Short { wanted: len, left: self.remaining }.into());
        }
        let mut left = len;
        while left > 0 {
            let Some((first, rest)) = self.segments.split_first() else {
                return Err(ChainError::Short { wanted: left, left: 0 }.into());
            };
            let here = first.len.saturating_sub(self.offset);
            let step = u32::try_from(left).map_or(here, |left| left.min(here));
            // Segments lie in RAM, so this cannot wrap.
            visit(Gpa(first.addr.0.wrapping_add(u64::from(self.offset))), step)?;
            left = left.saturating_sub(u64::from(step));
            self.remaining = self.remaining.saturating_sub(u64::from(step));
            if step == here {
                self.segments = rest;
                self.offset = 0;
            } else {
                self.offset = self.offset.saturating_add(step);
            }
        }
        Ok(())
    }

    fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        self.advance(len, |_, _| Ok::<_, ChainError>(()))
    }

    fn pin(&mut self, len: u64, direction: Pin, out: &mut Pinned) -> Result<(), ChainError> {
        let memory = self.memory;
        self.advance(len, |addr, len| Ok::<_, ChainError>(memory.pin(addr, len as usize, direction, out)?))
    }
}

/// Reads the device-readable part of a chain, front to back.
///
/// Bytes may change under us until they are copied, so read each once.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl Reader<'_> {
    /// Bytes not read yet.
    pub fn remaining(&self) -> u64 {
        self.0.remaining
    }

    /// Copies the next `out.len()` bytes.
    ///
    /// # Errors
    /// Fewer bytes are left, and none was read; or the guest's memory is not there.
    pub fn read(&mut self, out: &mut [u8]) -> Result<(), ChainError> {
        let memory = self.0.memory;
        let mut rest = &mut *out;
        self.0.advance(rest.len() as u64, |addr, len| {
            let (now, later) =
                std::mem::take(&mut rest).split_at_mut_checked(len as usize).unwrap_or_default();
            rest = later;
            Ok::<_, ChainError>(memory.read(addr, now)?)
        })
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// Fewer bytes are left.
    pub fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        self.0.skip(len)
    }

    /// Appends the next `len` bytes to `out`, for the host to read from guest memory directly.
    ///
    /// # Errors
    /// Fewer bytes are left, or the guest's memory is not there.
    pub fn pin(&mut self, len: u64, out: &mut Pinned) -> Result<(), ChainError> {
        self.0.pin(len, Pin::Read, out)
    }

    /// [`Reader::pin`] for all that is left.
    ///
    /// # Errors
    /// The guest's memory is not there.
    pub fn pin_rest(&mut self, out: &mut Pinned) -> Result<(), ChainError> {
        self.pin(self.remaining(), out)
    }
}

/// Writes the device-writable part of a chain, front to back.
#[derive(Clone)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    written: u64,
}

impl Writer<'_> {
    /// Bytes not written yet.
    pub fn remaining(&self) -> u64 {
        self.cursor.remaining
    }

    /// Bytes written, skipped or pinned so far: what to give to [`Queue::push`](crate::Queue::push) if
    /// all pinned memory was filled.
    pub fn written(&self) -> u32 {
        // A chain is shorter than 2^32 bytes.
        u32::try_from(self.written).unwrap_or(u32::MAX)
    }

    /// Copies `data` to the next bytes.
    ///
    /// # Errors
    /// Fewer bytes are left, and none was written; or the guest's memory is not there.
    pub fn write(&mut self, data: &[u8]) -> Result<(), ChainError> {
        let memory = self.cursor.memory;
        let mut rest = data;
        self.cursor.advance(data.len() as u64, |addr, len| {
            let (now, later) = rest.split_at_checked(len as usize).unwrap_or_default();
            rest = later;
            Ok::<_, ChainError>(memory.write(addr, now)?)
        })?;
        self.note(data.len() as u64);
        Ok(())
    }

    /// Passes over `len` bytes, leaving what the guest had there.
    ///
    /// # Errors
    /// Fewer bytes are left.
    pub fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        self.cursor.skip(len)?;
        self.note(len);
        Ok(())
    }

    /// Appends the next `len` bytes to `out`, for the host to write to guest memory directly.
    ///
    /// # Errors
    /// Fewer bytes are left, or the guest's memory is not there.
    pub fn pin(&mut self, len: u64, out: &mut Pinned) -> Result<(), ChainError> {
        self.cursor.pin(len, Pin::Write, out)?;
        self.note(len);
        Ok(())
    }

    /// [`Writer::pin`] for all that is left.
    ///
    /// # Errors
    /// The guest's memory is not there.
    pub fn pin_rest(&mut self, out: &mut Pinned) -> Result<(), ChainError> {
        self.pin(self.remaining(), out)
    }

    fn note(&mut self, len: u64) {
        self.written = self.written.saturating_add(len);
    }
}
