//! Plain system calls on the queue's own thread: for kernels that let us have no `io_uring`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use super::bounce::Pool;
use super::disk::Image;
use super::transfer::{Call, Step, Transfer, errno};
use super::{Completion, Engine, Request};

pub(super) struct SynchronousEngine {
    image: Arc<Image>,
    transfer: Transfer,
    pool: Option<Pool>,
    waiting: VecDeque<Request>,
    finished: VecDeque<Completion>,
}

impl SynchronousEngine {
    pub(super) fn new(image: Arc<Image>) -> SynchronousEngine {
        SynchronousEngine {
            image,
            transfer: Transfer::new(),
            pool: None,
            waiting: VecDeque::new(),
            finished: VecDeque::new(),
        }
    }

    fn run(&mut self, request: Request) -> io::Result<()> {
        self.transfer.begin(request, &self.image)?;
        loop {
            match self.transfer.next(&self.image, &mut self.pool) {
                Step::Finish(result) => return result,
                // The one transfer at a time has the pool to itself.
                Step::WaitForBuffer => return Err(errno(libc::ENOMEM)),
                Step::Call(call) => {
                    // SAFETY: `Transfer` keeps the vectors valid until `advance`.
                    let result = unsafe { make(&self.image, call) };
                    if let Some(result) = self.transfer.advance(result, &self.image, &mut self.pool) {
                        return result;
                    }
                }
            }
        }
    }
}

impl Engine for SynchronousEngine {
    fn submit(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    fn flush_submissions(&mut self) -> io::Result<()> {
        while let Some(request) = self.waiting.pop_front() {
            let result = self.run(request);
            let completion = self.transfer.end(result, &mut self.pool);
            self.finished.push_back(completion);
        }
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        self.finished.pop_front()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.waiting.len().saturating_add(self.finished.len())
    }

    fn wait(&mut self) {}
}

/// Makes a call and waits for it.
///
/// # Safety
/// The vectors of a read or write are valid for that.
pub(super) unsafe fn make(image: &Image, call: Call) -> io::Result<usize> {
    use std::os::fd::AsFd;
    let file = image.as_fd();
    let done = |()| 0;
    match call {
        Call::Read { vectors, count, offset } => {
            let (count, offset) = (number(count)?, number(offset)?);
            // SAFETY: promised by the caller.
            let moved = unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) };
            usize::try_from(moved).map_err(|_| io::Error::last_os_error())
        }
        Call::Write { vectors, count, offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let (count, offset) = (number(count)?, number(offset)?);
            // SAFETY: promised by the caller.
            let moved = unsafe { libc::pwritev2(file.as_raw_fd(), vectors, count, offset, flags) };
            usize::try_from(moved).map_err(|_| io::Error::last_os_error())
        }
        Call::Sync => Ok(rustix::fs::fdatasync(file).map(done)?),
        Call::Allocate { mode, offset, len } => {
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
            Ok(rustix::fs::fallocate(file, flags, offset, len).map(done)?)
        }
        Call::Discard { offset, len } => discard(image, offset, len),
    }
}

/// A number as C has it; what does not fit no file has either.
fn number<T, U: TryFrom<T>>(value: T) -> io::Result<U> {
    U::try_from(value).map_err(|_| errno(libc::EINVAL))
}

/// Discards a range of a block device (`BLKDISCARD`, linux/fs.h).
pub(super) fn discard(image: &Image, offset: u64, len: u64) -> io::Result<usize> {
    use std::os::fd::AsFd;
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: the request reads two u64 from the pointer and touches no other memory of ours.
    let result = unsafe { libc::ioctl(image.as_fd().as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(0) }
}
