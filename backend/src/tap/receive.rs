//! Guest memory waiting for frames.

use std::collections::VecDeque;

use libc::iovec;
use memory::Pinned;

/// Most vectors that one `readv` takes (`IOV_MAX`).
const VECTORS: usize = 1024;

/// Buffers in the order in which frames fill them. A frame may fill several.
///
/// The vectors of all of them stand in one array, so that a frame costs work only for the buffers that
/// it fills.
#[derive(Debug, Default)]
pub struct Receive {
    buffers: VecDeque<Pinned>,
    vectors: Vec<iovec>,
    /// How many of `vectors` belong to buffers taken out already.
    first: usize,
    bytes: usize,
}

// SAFETY: the pointers go to memory that `buffers` keeps mapped, which any thread may use.
unsafe impl Send for Receive {}

impl Receive {
    /// No buffers.
    pub fn new() -> Receive {
        Receive::default()
    }

    /// Adds a buffer at the end.
    pub fn push(&mut self, buffer: Pinned) {
        // Not each time, but soon enough that the array is never much longer than what is in use: it would grow
        // long after the first frames.
        if self.first >= self.vectors.len().div_ceil(2) {
            self.vectors.drain(..self.first);
            self.first = 0;
        }
        self.vectors.extend_from_slice(buffer.iovecs());
        self.bytes = self.bytes.saturating_add(buffer.len());
        self.buffers.push_back(buffer);
    }

    /// Takes the first buffer out.
    pub fn pop(&mut self) -> Option<Pinned> {
        let buffer = self.buffers.pop_front()?;
        self.first = self.first.saturating_add(buffer.iovecs().len());
        self.bytes = self.bytes.saturating_sub(buffer.len());
        Some(buffer)
    }

    /// Takes the last buffer out.
    pub fn pop_last(&mut self) -> Option<Pinned> {
        let buffer = self.buffers.pop_back()?;
        self.vectors.truncate(self.vectors.len().saturating_sub(buffer.iovecs().len()));
        self.bytes = self.bytes.saturating_sub(buffer.len());
        Some(buffer)
    }

    /// The first buffer.
    pub fn first(&self) -> Option<&Pinned> {
        self.buffers.front()
    }

    /// Number of buffers.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Size of all of them together, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether one `readv` cannot reach beyond these: more would not help it.
    pub fn is_full(&self) -> bool {
        self.rest().len() >= VECTORS
    }

    /// What one `readv` can fill.
    pub(super) fn vectors(&self) -> &[iovec] {
        let rest = self.rest();
        rest.get(..VECTORS).unwrap_or(rest)
    }

    /// Those of the buffers that are still here.
    fn rest(&self) -> &[iovec] {
        self.vectors.get(self.first..).unwrap_or_default()
    }
}
