//! One request on its way: which system call it needs next, and what the last one's result means.
//!
//! Nothing here calls the kernel, so that every engine treats short transfers, missing features and
//! bounce buffers alike.

use std::io;
use std::ptr;

use libc::iovec;
use memory::Pinned;

use super::bounce::{self, Buffer, Pool};
use super::disk::Image;
use super::{Completion, Op, Request};

/// Most vectors that one system call takes (`IOV_MAX`).
const VECTORS: u32 = 1024;
/// Zeros are written 1 MiB at a time, by as many vectors to the same page as that takes.
const ZERO_BYTES: usize = 1 << 20;
/// How often in a row the kernel may say "try again" before that counts as an error.
const RETRIES: u8 = 32;

#[repr(C, align(4096))]
struct Page([u8; 4096]);
static ZEROS: Page = Page([0; 4096]);

/// One system call. The vectors stay valid and in place until its result is passed to
/// [`Transfer::advance`] or the transfer is dropped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// `preadv2`.
    Read { vectors: *const iovec, count: u32, offset: u64 },
    /// `pwritev2`, with `RWF_DSYNC` if `durable`.
    Write { vectors: *const iovec, count: u32, offset: u64, durable: bool },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: i32, offset: u64, len: u64 },
    /// `ioctl(BLKDISCARD)`.
    Discard { offset: u64, len: u64 },
}

/// What is to happen next.
#[derive(Debug)]
pub(super) enum Step {
    /// Make this call and pass its result to [`Transfer::advance`].
    Call(Call),
    /// Ask again when another transfer has given its bounce buffer back.
    WaitForBuffer,
    /// The request is over.
    Finish(io::Result<()>),
}

/// How a transfer does what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Move,
    Punch,
    Zero,
    WriteZeros,
    Discard,
    Sync,
    End,
}

/// A request being worked on. Reused for request after request, so that its vectors are too.
pub(super) struct Transfer {
    tag: u64,
    op: Op,
    offset: u64,
    len: u64,
    /// What is left of the guest's memory: it is consumed as we go.
    data: Pinned,
    stage: Stage,
    /// Bytes of `len` behind us.
    done: u64,
    retries: u8,
    vectors: Vec<iovec>,
    buffer: Option<Buffer>,
}

// SAFETY: the pointers in `vectors` go to guest memory that `data` keeps mapped, to `buffer`, or to
// `ZEROS`: all of these may be used by any thread.
unsafe impl Send for Transfer {}

impl Transfer {
    /// A transfer that does nothing yet.
    pub(super) fn new() -> Transfer {
        Transfer {
            tag: 0,
            op: Op::Flush,
            offset: 0,
            len: 0,
            data: Pinned::new(),
            stage: Stage::End,
            done: 0,
            retries: 0,
            vectors: Vec::new(),
            buffer: None,
        }
    }

    /// Starts on a request.
    pub(super) fn begin(&mut self, request: Request, image: &Image) -> io::Result<()> {
        let Request { tag, op, offset, len, data } = request;
        (self.tag, self.op, self.offset, self.len, self.data) = (tag, op, offset, len, data);
        (self.done, self.retries, self.stage) = (0, 0, Stage::End);
        // The device checked this long ago; a mistake there must not make an image grow.
        if offset.checked_add(len).is_none_or(|end| end > image.size) {
            return Err(errno(libc::EINVAL));
        }
        if image.read_only && matches!(op, Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. }) {
            return Err(errno(libc::EROFS));
        }
        let moves = matches!(op, Op::Read | Op::Write { .. });
        if moves && self.data.len() as u64 != len {
            return Err(errno(libc::EINVAL));
        }
        self.stage = match op {
            Op::Flush if image.no_flush || image.read_only => Stage::End,
            Op::Flush => Stage::Sync,
            _ if len == 0 => Stage::End,
            Op::Read | Op::Write { .. } => Stage::Move,
            Op::Discard if !image.discard || image.cannot_discard.get() => Stage::End,
            Op::Discard if image.block_device => Stage::Discard,
            Op::Discard => Stage::Punch,
            Op::WriteZeroes { unmap: true, .. } if image.discard && !image.cannot_punch.get() => Stage::Punch,
            Op::WriteZeroes { .. } if !image.cannot_zero.get() => Stage::Zero,
            Op::WriteZeroes { .. } => Stage::WriteZeros,
        };
        Ok(())
    }

    /// What it was asked for.
    pub(super) fn op(&self) -> Op {
        self.op
    }

    /// Bytes that are still to be moved.
    fn left(&self) -> u64 {
        self.len.saturating_sub(self.done)
    }

    /// The next `most` of them, or all.
    fn left_up_to(&self, most: usize) -> usize {
        usize::try_from(self.left()).unwrap_or(most).min(most)
    }

    /// What is to happen next.
    pub(super) fn next(&mut self, image: &Image, pool: &mut Option<Pool>) -> Step {
        let (offset, len) = (self.offset, self.len);
        Step::Call(match self.stage {
            Stage::End => return Step::Finish(Ok(())),
            Stage::Sync => Call::Sync,
            Stage::Discard => Call::Discard { offset, len },
            Stage::Punch => {
                Call::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len }
            }
            Stage::Zero => {
                Call::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len }
            }
            Stage::WriteZeros => {
                self.gather_zeros();
                self.call(&self.vectors, image)
            }
            Stage::Move => {
                if image.direct {
                    match self.bounce(pool) {
                        Ok(true) => {}
                        Ok(false) => return Step::WaitForBuffer,
                        Err(error) => return Step::Finish(Err(error)),
                    }
                    self.call(&self.vectors, image)
                } else {
                    // The guest's own vectors, as they are.
                    self.call(self.data.iovecs(), image)
                }
            }
        })
    }

    /// Takes in the result of the last call: bytes moved, or the error. `None`: ask for the next step.
    pub(super) fn advance(
        &mut self,
        result: io::Result<usize>,
        image: &Image,
        pool: &mut Option<Pool>,
    ) -> Option<io::Result<()>> {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => return self.fail(error, image),
        };
        self.retries = 0;
        match self.stage {
            Stage::Move | Stage::WriteZeros => {
                // A read that finds nothing is past the end of a file that shrank under us. The guest
                // gets an error, not zeros that were never on the disk.
                if moved == 0 || moved as u64 > self.left() {
                    return Some(Err(errno(libc::EIO)));
                }
                if let Err(error) = self.settle_buffer(moved, pool) {
                    return Some(Err(error));
                }
                self.data.advance(moved);
                self.done = self.done.saturating_add(moved as u64);
                if self.done < self.len {
                    return None;
                }
                self.finish_stage(image)
            }
            Stage::Punch | Stage::Zero | Stage::Discard => self.finish_stage(image),
            Stage::Sync | Stage::End => Some(Ok(())),
        }
    }

    /// Ends the request: what goes back to whoever made it.
    pub(super) fn end(&mut self, result: io::Result<()>, pool: &mut Option<Pool>) -> Completion {
        self.release_buffer(pool);
        self.stage = Stage::End;
        Completion { tag: self.tag, data: std::mem::take(&mut self.data), result }
    }

    /// The work is done; some of it still has to be made durable.
    fn finish_stage(&mut self, image: &Image) -> Option<io::Result<()>> {
        match self.op {
            // `RWF_DSYNC` covers writes; there is no such flag for the others.
            Op::WriteZeroes { durable: true, .. } if !image.no_flush => {
                self.stage = Stage::Sync;
                None
            }
            _ => Some(Ok(())),
        }
    }

    fn fail(&mut self, error: io::Error, image: &Image) -> Option<io::Result<()>> {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        if matches!(code, libc::EINTR | libc::EAGAIN) && self.retries < RETRIES {
            self.retries = self.retries.saturating_add(1);
            return None;
        }
        // ENODEV and ENOTTY are what some drivers and file systems say for "not here".
        let unsupported = matches!(code, libc::EOPNOTSUPP | libc::ENODEV | libc::ENOTTY | libc::ENOSYS);
        match (self.stage, self.op) {
            (Stage::Punch | Stage::Discard, Op::Discard) if unsupported => {
                image.cannot_discard.set();
                Some(Ok(()))
            }
            (Stage::Punch, _) if unsupported => {
                image.cannot_punch.set();
                self.stage = if image.cannot_zero.get() { Stage::WriteZeros } else { Stage::Zero };
                None
            }
            (Stage::Zero, _) if unsupported => {
                image.cannot_zero.set();
                self.stage = Stage::WriteZeros;
                None
            }
            _ => Some(Err(error)),
        }
    }

    /// The call that moves what `vectors` hold, or the first of them, to or from where we have got.
    fn call(&self, vectors: &[iovec], image: &Image) -> Call {
        let count = u32::try_from(vectors.len()).unwrap_or(VECTORS).min(VECTORS);
        let vectors = vectors.as_ptr();
        // Not beyond the end of the image: `begin` looked.
        let offset = self.offset.saturating_add(self.done);
        match self.op {
            Op::Read => Call::Read { vectors, count, offset },
            Op::Write { durable } => {
                Call::Write { vectors, count, offset, durable: durable && !image.no_flush }
            }
            // Zeros are made durable all at once in the end.
            _ => Call::Write { vectors, count, offset, durable: false },
        }
    }

    /// Points the vectors at zeros for what is left, or for a piece of it.
    fn gather_zeros(&mut self) {
        self.vectors.clear();
        let mut left = self.left_up_to(ZERO_BYTES);
        while left > 0 {
            let len = left.min(ZEROS.0.len());
            // The kernel only reads from here.
            self.vectors.push(iovec { iov_base: ptr::from_ref(&ZEROS).cast_mut().cast(), iov_len: len });
            left = left.saturating_sub(len);
        }
    }

    /// Takes a buffer for the next piece, fills it for a write and points the vectors at it. False
    /// while the pool is empty.
    fn bounce(&mut self, pool: &mut Option<Pool>) -> io::Result<bool> {
        let len = self.left_up_to(bounce::BUFFER_BYTES);
        // One that is left from a call that was interrupted will do if it is as long.
        if self.buffer.as_ref().is_some_and(|buffer| buffer.len() != len) {
            self.release_buffer(pool);
        }
        if self.buffer.is_none() {
            let pool = match pool {
                Some(pool) => pool,
                None => pool.insert(Pool::new()?),
            };
            self.buffer = pool.take(len);
        }
        let Some(buffer) = &mut self.buffer else { return Ok(false) };
        if matches!(self.op, Op::Write { .. }) && buffer.fill(&self.data) != len {
            return Err(errno(libc::EFAULT));
        }
        self.vectors.clear();
        self.vectors.push(iovec { iov_base: buffer.as_ptr().as_ptr().cast(), iov_len: len });
        Ok(true)
    }

    /// Copies what a read brought into the guest and lets the buffer go.
    fn settle_buffer(&mut self, moved: usize, pool: &mut Option<Pool>) -> io::Result<()> {
        if let (Some(buffer), Op::Read) = (&self.buffer, self.op)
            && buffer.empty(moved, &self.data) != moved
        {
            return Err(errno(libc::EFAULT));
        }
        self.release_buffer(pool);
        Ok(())
    }

    fn release_buffer(&mut self, pool: &mut Option<Pool>) {
        if let (Some(buffer), Some(pool)) = (self.buffer.take(), pool) {
            pool.free(buffer);
        }
    }
}

/// An error that allocates nothing.
pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
