//! `io_uring`: many requests at once, one system call for a batch.
//!
//! The ring's own descriptor is readable while completions wait in it, so it is what a worker polls; a
//! completion is taken from shared memory without a call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::bounce::Pool;
use super::disk::Image;
use super::synchronous;
use super::transfer::{Call, Step, Transfer, errno};
use super::{Completion, Engine, Op, Request};

/// Entries of the submission ring. The kernel makes the completion ring twice as long.
const ENTRIES: u32 = 128;
/// Most calls that the kernel has in hand at once: what the completion ring holds.
const MAX_CALLS: usize = 2 * ENTRIES as usize;
/// How often `io_uring_enter` may say "try again" with nothing in flight.
const ENTER_RETRIES: u32 = 100;
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// `IORING_ENTER_GETEVENTS` (linux/io_uring.h).
const ENTER_GETEVENTS: u32 = 1;

/// Whether this kernel lets us have `io_uring` with all that we need of it.
pub(super) fn is_available() -> bool {
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let mut probe = Probe::new();
    match IoUring::new(1).and_then(|ring| ring.submitter().register_probe(&mut probe)) {
        Ok(()) => needed.iter().all(|code| probe.is_supported(*code)),
        Err(error) => {
            log::debug!("no io_uring here ({error}): disks are served with system calls that block");
            false
        }
    }
}

pub(super) struct UringEngine {
    ring: IoUring,
    image: Arc<Image>,
    pool: Option<Pool>,
    /// Requests by the number that the kernel knows their calls by.
    transfers: Vec<Transfer>,
    /// Numbers that are free.
    free: Vec<usize>,
    /// Numbers whose next step is due, in order.
    due: VecDeque<usize>,
    /// Numbers in the submission ring that the kernel has not taken yet, in order.
    pushed: VecDeque<usize>,
    /// Calls in the submission ring or with the kernel.
    calls: usize,
    finished: VecDeque<Completion>,
    in_flight: usize,
    inline: Inline,
    /// Set for good when the kernel takes no more calls.
    broken: Option<i32>,
}

impl UringEngine {
    pub(super) fn new(image: Arc<Image>) -> io::Result<UringEngine> {
        Ok(UringEngine {
            ring: IoUring::new(ENTRIES)?,
            image,
            pool: None,
            transfers: Vec::new(),
            free: Vec::new(),
            due: VecDeque::new(),
            pushed: VecDeque::new(),
            calls: 0,
            finished: VecDeque::new(),
            in_flight: 0,
            inline: Inline::new(),
            broken: None,
        })
    }

    fn finish(&mut self, number: usize, result: io::Result<()>) {
        let Some(transfer) = self.transfers.get_mut(number) else { return };
        let completion = transfer.end(result, &mut self.pool);
        self.finished.push_back(completion);
        self.free.push(number);
    }

    /// Takes every due step as far as there is room; returns whether some were left.
    fn step(&mut self) -> bool {
        while let Some(&number) = self.due.front() {
            let Some(transfer) = self.transfers.get_mut(number) else { return false };
            let result = match transfer.next(&self.image, &mut self.pool) {
                Step::Finish(result) => result,
                // Those before it have the buffers, and are on their way.
                Step::WaitForBuffer => return false,
                Step::Call(call) if self.inline.suits(&call, transfer.op(), &self.image) => {
                    // SAFETY: the transfer keeps the vectors valid until `advance`.
                    let result = self.inline.watch(|| unsafe { synchronous::make(&self.image, call) });
                    match transfer.advance(result, &self.image, &mut self.pool) {
                        Some(result) => result,
                        None => continue,
                    }
                }
                Step::Call(call) => {
                    if self.calls == MAX_CALLS {
                        return false;
                    }
                    let entry = entry(&self.image, call).user_data(number as u64);
                    // SAFETY: the vectors of the call live in the transfer, and what they point at is
                    // kept by it too, until its completion has been seen: see `reap` and `drop`.
                    if unsafe { self.ring.submission().push(&entry) }.is_err() {
                        return true;
                    }
                    self.calls = self.calls.saturating_add(1);
                    self.pushed.push_back(number);
                    self.due.pop_front();
                    continue;
                }
            };
            self.due.pop_front();
            self.finish(number, result);
        }
        false
    }

    /// Hands what is in the submission ring to the kernel.
    fn enter(&mut self) -> io::Result<()> {
        let mut retries = 0u32;
        loop {
            let result = self.ring.submit();
            let left = self.ring.submission().len();
            while self.pushed.len() > left {
                self.pushed.pop_front();
            }
            match result.map_err(|error| (error.raw_os_error().unwrap_or(libc::EIO), error)) {
                Ok(_) if self.pushed.is_empty() => return Ok(()),
                // It took a part: once more for the rest.
                Ok(taken) if taken > 0 => {}
                Err((libc::EINTR, _)) => {}
                Ok(_) | Err((libc::EAGAIN | libc::EBUSY, _)) => {
                    if self.calls > self.pushed.len() {
                        // Completions will come; reaping them makes room and leads here again.
                        return Ok(());
                    }
                    retries = retries.saturating_add(1);
                    if retries > ENTER_RETRIES {
                        return Err(errno(libc::EAGAIN));
                    }
                    std::thread::sleep(RETRY_AFTER);
                }
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// Sleeps until the kernel has completed something of what it has taken. Submits nothing.
    fn wait_for_kernel(&self) {
        // SAFETY: with no signal mask and nothing to submit there is no memory for the kernel to use.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None) };
        if result.is_err() {
            // Completions appear in the ring all the same.
            std::thread::sleep(RETRY_AFTER);
        }
    }

    /// Gives up on the kernel: whatever it has not taken fails.
    fn give_up(&mut self, error: &io::Error) {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        self.broken = Some(code);
        // The entries stay in the ring, but it is never entered again to submit.
        self.calls = self.calls.saturating_sub(self.pushed.len());
        while let Some(number) = self.pushed.pop_front().or_else(|| self.due.pop_front()) {
            self.finish(number, Err(errno(code)));
        }
    }

    /// Takes one completion from the ring, if there is one.
    fn reap(&mut self) -> bool {
        let Some(entry) = self.ring.completion().next() else { return false };
        let result = usize::try_from(entry.result()).map_err(|_| errno(entry.result().wrapping_neg()));
        self.calls = self.calls.saturating_sub(1);
        // The kernel gives back the numbers that it was given.
        let Ok(number) = usize::try_from(entry.user_data()) else { return true };
        let Some(transfer) = self.transfers.get_mut(number) else { return true };
        match (transfer.advance(result, &self.image, &mut self.pool), self.broken) {
            (Some(result), _) => self.finish(number, result),
            (None, Some(code)) => self.finish(number, Err(errno(code))),
            // Ahead of new ones: it is older than they are, and may hold a buffer.
            (None, None) => self.due.push_front(number),
        }
        true
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, request: Request) {
        self.in_flight = self.in_flight.saturating_add(1);
        let number = self.free.pop().unwrap_or(self.transfers.len());
        if number == self.transfers.len() {
            self.transfers.push(Transfer::new());
        }
        let Some(transfer) = self.transfers.get_mut(number) else { return };
        match (transfer.begin(request, &self.image), self.broken) {
            (Err(error), _) => self.finish(number, Err(error)),
            (Ok(()), Some(code)) => self.finish(number, Err(errno(code))),
            (Ok(()), None) => self.due.push_back(number),
        }
    }

    fn flush_submissions(&mut self) -> io::Result<()> {
        if let Some(code) = self.broken {
            return Err(errno(code));
        }
        self.inline.spent = Duration::ZERO;
        loop {
            let more = self.step();
            if self.pushed.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.enter() {
                self.give_up(&error);
                return Err(error);
            }
            if !more || !self.pushed.is_empty() {
                return Ok(());
            }
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        let mut pushed_on = false;
        loop {
            if let Some(completion) = self.finished.pop_front() {
                self.in_flight = self.in_flight.saturating_sub(1);
                return Some(completion);
            }
            if self.reap() {
                pushed_on = false;
            } else if pushed_on || self.due.is_empty() {
                return None;
            } else {
                // The next step of a request may be its end, of which nothing else would tell. An error has ended
                // all that was due.
                pushed_on = true;
                let _ = self.flush_submissions();
            }
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring's descriptor is open as long as the ring, which `self` keeps.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn wait(&mut self) {
        if self.finished.is_empty() && self.calls > self.pushed.len() && self.ring.completion().is_empty() {
            self.wait_for_kernel();
        }
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // Not wanted any more, but what the kernel has taken it will still read and write.
        while self.calls > self.pushed.len() {
            if !self.reap() {
                self.wait_for_kernel();
            }
        }
    }
}

/// Calls of ours that take longer, in one go, have kept others waiting long enough.
const SLOW: Duration = Duration::from_millis(1);
/// After a write that took so long, the kernel's threads have them: at first for so long, and longer each time.
const AWAY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

/// Which calls we make ourselves.
struct Inline {
    /// Time spent in one go.
    spent: Duration,
    /// How long the next absence is.
    away: Duration,
    away_until: Option<Instant>,
}

impl Inline {
    fn new() -> Inline {
        Inline { spent: Duration::ZERO, away: AWAY[0], away_until: None }
    }

    /// There is no discard in the rings of the kernels we run on. And a write to a file's page cache is mostly a copy;
    /// but ext4, for one, cannot promise that, and then `io_uring` gives each write to a thread of the
    /// kernel, which costs several times as much. So we make the call ourselves while that is quick.
    fn suits(&mut self, call: &Call, op: Op, image: &Image) -> bool {
        match (call, op) {
            (Call::Discard { .. }, _) => true,
            (Call::Write { durable: false, .. }, Op::Write { .. })
                if !image.direct && !image.block_device =>
            {
                self.away_until = self.away_until.filter(|until| Instant::now() < *until);
                self.away_until.is_none() && self.spent < SLOW
            }
            _ => false,
        }
    }

    /// Makes the call.
    fn watch(&mut self, make: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        let begin = Instant::now();
        let result = make();
        let end = Instant::now();
        let took = end.saturating_duration_since(begin);
        self.spent = self.spent.saturating_add(took);
        if took > SLOW {
            self.away_until = end.checked_add(self.away);
            self.away = self.away.saturating_mul(2).min(AWAY[1]);
        } else {
            self.away = AWAY[0];
        }
        result
    }
}

fn entry(image: &Image, call: Call) -> squeue::Entry {
    use std::os::fd::AsFd;
    let file = types::Fd(image.as_fd().as_raw_fd());
    match call {
        // The kernel copies an array of vectors in and checks it; one vector it takes as it is.
        Call::Read { vectors, count: 1, offset } => {
            // SAFETY: the call has one vector, which its transfer keeps.
            let iovec = unsafe { *vectors };
            match u32::try_from(iovec.iov_len) {
                Ok(len) => opcode::Read::new(file, iovec.iov_base.cast(), len).offset(offset).build(),
                Err(_) => opcode::Readv::new(file, vectors, 1).offset(offset).build(),
            }
        }
        Call::Write { vectors, count: 1, offset, durable } => {
            // SAFETY: as above.
            let iovec = unsafe { *vectors };
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            match u32::try_from(iovec.iov_len) {
                Ok(len) => opcode::Write::new(file, iovec.iov_base.cast(), len)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                Err(_) => opcode::Writev::new(file, vectors, 1).offset(offset).rw_flags(flags).build(),
            }
        }
        Call::Read { vectors, count, offset } => {
            opcode::Readv::new(file, vectors, count).offset(offset).build()
        }
        Call::Write { vectors, count, offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            opcode::Writev::new(file, vectors, count).offset(offset).rw_flags(flags).build()
        }
        Call::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, len } => {
            opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
        }
        // Not sent here: `Inline` has this call made.
        Call::Discard { .. } => opcode::Nop::new().build(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, DiskOptions};
    use super::*;

    #[test]
    fn writes_to_the_page_cache_are_our_own_while_they_are_quick() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let disk = Disk::open(&DiskOptions::new(file.path())).unwrap();
        let image = disk.image();
        let call = |durable| Call::Write { vectors: std::ptr::null(), count: 0, offset: 0, durable };
        let (quick, slow) = (
            || Ok(0),
            || {
                std::thread::sleep(SLOW * 2);
                Ok(0)
            },
        );
        let write = Op::Write { durable: false };
        let mut inline = Inline::new();
        assert!(inline.suits(&call(false), write, image));
        assert!(!inline.suits(&call(true), write, image));
        assert!(!inline.suits(&call(false), Op::WriteZeroes { unmap: false, durable: false }, image));
        assert!(inline.suits(&Call::Discard { offset: 0, len: 512 }, Op::Discard, image));

        // A quick one changes nothing, many of them in one go are enough.
        inline.watch(quick).unwrap();
        assert!(inline.suits(&call(false), write, image));
        inline.spent = SLOW;
        assert!(!inline.suits(&call(false), write, image));
        inline.spent = Duration::ZERO;

        // A slow one keeps the others away, each time for longer, until one is quick again.
        for away in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert_eq!(inline.away, Duration::from_secs(away));
            inline.watch(slow).unwrap();
            inline.spent = Duration::ZERO;
            assert!(!inline.suits(&call(false), write, image));
            inline.away_until = Some(Instant::now());
            assert!(inline.suits(&call(false), write, image));
        }
        inline.watch(quick).unwrap();
        assert_eq!(inline.away, AWAY[0]);
    }
}
