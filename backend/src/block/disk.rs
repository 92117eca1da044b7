//! Opening a disk and finding out what it can do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use thiserror::Error;

use super::synchronous::SynchronousEngine;
use super::uring::{self, UringEngine};
use super::{DiskOptions, Engine, EngineChoice};
use crate::reason;

/// Disks are made of sectors of 512 bytes (virtio 1.3 §5.2.4).
const SECTOR: u32 = 512;
/// The largest block that direct I/O may need: our buffers are aligned to no more.
const MAX_ALIGNMENT: u32 = 4096;

/// Why a disk could not be opened. The texts begin as QEMU's do.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The host refused.
    #[error("Could not open '{path}': {reason}", path = path.display())]
    Open {
        /// What the user typed.
        path: PathBuf,
        /// The host's reason.
        reason: String,
    },
    /// A directory, pipe, character device or the like.
    #[error("Could not open '{path}': a regular file or block device is required", path = path.display())]
    Kind {
        /// What the user typed.
        path: PathBuf,
    },
    /// The size does not suit.
    #[error("Could not open '{path}': its size of {size} bytes is not a multiple of {block}",
            path = path.display())]
    Size {
        /// What the user typed.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of: 512, or for direct I/O the device's block.
        block: u64,
    },
    /// Direct I/O in units larger than ours.
    #[error("Could not open '{path}': its direct I/O needs blocks of {block} bytes, and 4096 is the most that works",
            path = path.display())]
    Alignment {
        /// What the user typed.
        path: PathBuf,
        /// The block it needs, in bytes.
        block: u32,
    },
}

/// An open disk. Clones share it.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Image>);

/// What [`Disk`]s and engines share.
#[derive(Debug)]
pub(super) struct Image {
    file: OwnedFd,
    pub(super) size: u64,
    pub(super) block_device: bool,
    pub(super) read_only: bool,
    pub(super) direct: bool,
    pub(super) no_flush: bool,
    pub(super) discard: bool,
    write_back: bool,
    logical_block: u32,
    physical_block: u32,
    discard_granularity: u32,
    uring: bool,
    /// Learnt at the first refusal, so that later requests do not try in vain.
    pub(super) cannot_punch: Learnt,
    pub(super) cannot_zero: Learnt,
    pub(super) cannot_discard: Learnt,
    no_uring: Learnt,
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A fact about the host that is false until it is found out. Only a hint, so no ordering is needed.
#[derive(Debug, Default)]
pub(super) struct Learnt(AtomicBool);

impl Learnt {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Disk {
    /// Opens a raw image file or a block device and checks that it can be served.
    ///
    /// # Errors
    /// See [`DiskError`]; nothing stays open.
    pub fn open(options: &DiskOptions) -> Result<Disk, DiskError> {
        let path = options.path.as_path();
        // Looked at before it is opened, for opening a pipe or a tape has effects of its own.
        let kind = |mode| FileType::from_raw_mode(mode);
        let suits = |kind| matches!(kind, FileType::RegularFile | FileType::BlockDevice);
        let before = rustix::fs::stat(path).map_err(|error| refused(path, error.into()))?;
        if !suits(kind(before.st_mode)) {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let direct = if options.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = access | direct | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::INVAL if options.direct => DiskError::Open {
                path: path.to_owned(),
                reason: "filesystem does not support O_DIRECT".to_owned(),
            },
            error => refused(path, error.into()),
        })?;
        let refused = |error: rustix::io::Errno| refused(path, error.into());
        let stat = rustix::fs::fstat(&file).map_err(refused)?;
        if !suits(kind(stat.st_mode)) {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        let block_device = kind(stat.st_mode) == FileType::BlockDevice;
        // The end is where the size is, for a block device as well.
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(refused)?;
        let (mut logical_block, mut physical_block) = (SECTOR, SECTOR);
        let mut discard_granularity = SECTOR;
        if block_device {
            logical_block = rustix::fs::ioctl_blksszget(&file).map_err(refused)?;
            physical_block = rustix::fs::ioctl_blkpbszget(&file).map_err(refused)?;
            discard_granularity = device_discard_granularity(stat.st_rdev);
        } else if options.direct {
            logical_block = direct_alignment(&file);
            physical_block = logical_block;
        }
        if options.direct && logical_block > MAX_ALIGNMENT {
            return Err(DiskError::Alignment { path: path.to_owned(), block: logical_block });
        }
        let logical_block = sane_block(logical_block);
        let block = u64::from(logical_block);
        if !size.is_multiple_of(block) {
            return Err(DiskError::Size { path: path.to_owned(), size, block });
        }
        let uring = options.engine == EngineChoice::Auto && !is_in_memory(&file) && uring::is_available();
        Ok(Disk(Arc::new(Image {
            file,
            size,
            block_device,
            read_only: options.read_only,
            direct: options.direct,
            no_flush: options.no_flush,
            write_back: options.write_back,
            discard: options.discard,
            logical_block,
            physical_block: sane_block(physical_block).max(logical_block),
            discard_granularity: sane_block(discard_granularity).max(logical_block),
            uring,
            cannot_punch: Learnt::default(),
            cannot_zero: Learnt::default(),
            cannot_discard: Learnt::default(),
            no_uring: Learnt::default(),
        })))
    }

    /// Size in bytes, a multiple of [`logical_block_size`](Disk::logical_block_size).
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Whether it is a block device rather than an image file.
    pub fn is_block_device(&self) -> bool {
        self.0.block_device
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// Whether the page cache is bypassed.
    pub fn is_direct(&self) -> bool {
        self.0.direct
    }

    /// Whether the `cache=` mode it was opened with has a write cache for the guest to flush.
    pub fn write_back(&self) -> bool {
        self.0.write_back
    }

    /// Bytes that every request must be a multiple of and aligned to: 512 or, for a block device or
    /// direct I/O, what the host needs. A power of two.
    pub fn logical_block_size(&self) -> u32 {
        self.0.logical_block
    }

    /// Bytes that the disk writes at once; at least the logical block size, and a power of two.
    pub fn physical_block_size(&self) -> u32 {
        self.0.physical_block
    }

    /// Bytes that a discard should be aligned to for it to have an effect; a power of two.
    pub fn discard_granularity(&self) -> u32 {
        self.0.discard_granularity
    }

    /// Whether a discard gives space back, as far as is known yet.
    pub fn supports_discard(&self) -> bool {
        self.0.discard && !self.0.cannot_discard.get()
    }

    /// Whether the disk's engines use `io_uring`.
    pub fn uses_uring(&self) -> bool {
        self.0.uring
    }

    #[cfg(test)]
    pub(super) fn image(&self) -> &Image {
        &self.0
    }

    /// Makes an engine for one queue. That `io_uring` was there when the disk was opened does not mean that
    /// it is still: it may be for privileged processes only, or there are no more descriptors.
    pub fn engine(&self) -> Box<dyn Engine> {
        if self.0.uring && !self.0.no_uring.get() {
            match UringEngine::new(self.0.clone()) {
                Ok(engine) => return Box::new(engine),
                Err(error) => {
                    log::warn!("no io_uring any more, doing without: {error}");
                    self.0.no_uring.set();
                }
            }
        }
        Box::new(SynchronousEngine::new(self.0.clone()))
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn refused(path: &Path, error: io::Error) -> DiskError {
    DiskError::Open { path: path.to_owned(), reason: reason(&error) }
}

/// What the host says is a block size; anything strange becomes 512.
fn sane_block(bytes: u32) -> u32 {
    if bytes.is_power_of_two() && bytes >= SECTOR { bytes } else { SECTOR }
}

/// Whether a file is on a file system that has no disk. Nothing there waits for anything, yet these file systems
/// do not tell `io_uring` so, which gives every request to a thread of the kernel: one and a half to three times
/// the cost of making the call ourselves (docs/performance.md).
fn is_in_memory(file: &OwnedFd) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` (linux/magic.h).
    const TYPES: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::fstatfs(file).is_ok_and(|system| TYPES.contains(&system.f_type))
}

/// The unit of direct I/O on a regular file.
fn direct_alignment(file: &OwnedFd) -> u32 {
    let answer = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match answer {
        Ok(statx) if statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && statx.stx_dio_offset_align != 0 => {
            statx.stx_dio_offset_align
        }
        // Linux before 6.1 does not tell. A page is right for every file system on every disk we
        // could meet there, but would change what the guest sees as its block: 512 is QEMU's guess too.
        _ => SECTOR,
    }
}

/// What sysfs says of a device's discards; 0 where it has none.
fn device_discard_granularity(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition's queue is its disk's.
    [format!("{base}/queue"), format!("{base}/../queue")]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{queue}/discard_granularity")).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
