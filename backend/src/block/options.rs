//! How a disk is to be opened.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// QEMU's `cache=` modes: three switches under five names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The host's page cache, written back when the guest flushes.
    #[default]
    WriteBack,
    /// The host's page cache; every write is durable when it completes.
    WriteThrough,
    /// No page cache (`O_DIRECT`); the disk's own write cache is flushed when the guest flushes.
    None,
    /// No page cache, and every write is durable when it completes.
    DirectSync,
    /// The host's page cache, and flushes are ignored: a host crash loses data.
    Unsafe,
}

impl Cache {
    /// Whether the page cache is bypassed (`cache.direct`).
    pub const fn direct(self) -> bool {
        matches!(self, Cache::None | Cache::DirectSync)
    }

    /// Whether flushes do nothing (`cache.no-flush`).
    pub const fn no_flush(self) -> bool {
        matches!(self, Cache::Unsafe)
    }

    /// Whether the device starts with its write cache on (the device's `write-cache`).
    pub const fn write_back(self) -> bool {
        !matches!(self, Cache::WriteThrough | Cache::DirectSync)
    }
}

/// A `cache=` mode that does not exist. Its text is QEMU's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("invalid cache option")]
pub struct UnknownCache;

impl FromStr for Cache {
    type Err = UnknownCache;

    fn from_str(name: &str) -> Result<Cache, UnknownCache> {
        Ok(match name {
            "writeback" => Cache::WriteBack,
            "writethrough" => Cache::WriteThrough,
            "none" | "off" => Cache::None,
            "directsync" => Cache::DirectSync,
            "unsafe" => Cache::Unsafe,
            _ => return Err(UnknownCache),
        })
    }
}

/// Which engine does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// `io_uring` where the kernel lets us, else [`Synchronous`](EngineChoice::Synchronous).
    #[default]
    Auto,
    /// System calls that block the queue's thread.
    Synchronous,
}

/// How a disk is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// An image file or a block device.
    pub path: PathBuf,
    /// Refuse writes.
    pub read_only: bool,
    /// Bypass the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Flushes and durable writes do nothing special.
    pub no_flush: bool,
    /// What a device on this disk starts with as its write cache; see [`Disk::write_back`](super::Disk::write_back).
    pub write_back: bool,
    /// Give space back when the guest discards it (QEMU's `discard=unmap`).
    pub discard: bool,
    /// Which engine does the I/O.
    pub engine: EngineChoice,
}

impl DiskOptions {
    /// Options for `path` with QEMU's defaults: writable, `cache=writeback`, `discard=ignore`.
    pub fn new(path: impl Into<PathBuf>) -> DiskOptions {
        DiskOptions {
            path: path.into(),
            read_only: false,
            direct: false,
            no_flush: false,
            write_back: true,
            discard: false,
            engine: EngineChoice::Auto,
        }
    }

    /// Sets the three switches that a `cache=` mode stands for.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> DiskOptions {
        self.direct = cache.direct();
        self.no_flush = cache.no_flush();
        self.write_back = cache.write_back();
        self
    }
}
