//! What was done on a block device since the start, for QMP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backend::block::Op;

/// Kinds of requests that are counted apart, as QEMU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, and zeroing.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

impl Kind {
    pub(super) fn of(op: Op) -> Kind {
        match op {
            Op::Read => Kind::Read,
            Op::Write { .. } | Op::WriteZeroes { .. } => Kind::Write,
            Op::Flush => Kind::Flush,
            Op::Discard => Kind::Discard,
        }
    }
}

/// The counts of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes that went through.
    pub bytes: u64,
    /// Requests that succeeded.
    pub operations: u64,
    /// Requests that the host failed.
    pub failed: u64,
    /// Time that all of them took together.
    pub time: Duration,
}

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    operations: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Counters of a block device, written by its workers and read by anybody.
#[derive(Debug, Default)]
pub struct Statistics {
    counters: [Counter; 4],
    invalid: AtomicU64,
    highest_offset: AtomicU64,
}

impl Statistics {
    /// What was done of one kind.
    pub fn count(&self, kind: Kind) -> Count {
        let Some(counter) = self.counters.get(kind as usize) else { return Count::default() };
        Count {
            bytes: counter.bytes.load(Ordering::Relaxed),
            operations: counter.operations.load(Ordering::Relaxed),
            failed: counter.failed.load(Ordering::Relaxed),
            time: Duration::from_nanos(counter.nanoseconds.load(Ordering::Relaxed)),
        }
    }

    /// Requests that made no sense and never reached the disk.
    pub fn invalid(&self) -> u64 {
        self.invalid.load(Ordering::Relaxed)
    }

    /// End of the highest byte written, from the start of the disk.
    pub fn highest_offset(&self) -> u64 {
        self.highest_offset.load(Ordering::Relaxed)
    }

    pub(super) fn add_invalid(&self) {
        self.invalid.fetch_add(1, Ordering::Relaxed);
    }

    /// A request of `len` bytes at `offset` is over.
    pub(super) fn add(&self, op: Op, offset: u64, len: u64, time: Duration, succeeded: bool) {
        let Some(counter) = self.counters.get(Kind::of(op) as usize) else { return };
        let add = |to: &AtomicU64, value| to.fetch_add(value, Ordering::Relaxed);
        add(&counter.nanoseconds, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        if succeeded {
            add(&counter.bytes, len);
            add(&counter.operations, 1);
            if Kind::of(op) == Kind::Write {
                self.highest_offset.fetch_max(offset.saturating_add(len), Ordering::Relaxed);
            }
        } else {
            add(&counter.failed, 1);
        }
    }
}
