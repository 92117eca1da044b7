//! The block device (virtio 1.3 §5.2).
//!
//! One worker and one [`backend::block::Engine`] for each queue. `request` says what a request is and
//! whether it makes sense, before anything is done; `worker` keeps it until the host is done with it.

mod request;
mod statistics;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backend::block::Disk;
use memory::GuestMemory;

use crate::device::{Config, Device, QueueSpec, Spec, Worker};
use crate::pci::MAX_QUEUES;
use request::{ID_LEN, Limits, SECTOR, SECTOR_SHIFT};
pub use statistics::{Count, Kind, Statistics};
use worker::BlkWorker;

/// VIRTIO_BLK_F_SEG_MAX: most segments in a request is in the configuration.
const FEATURE_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO: writes fail.
const FEATURE_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE: the block size is in the configuration.
const FEATURE_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH: there is a flush request.
const FEATURE_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY: alignment is in the configuration.
const FEATURE_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_CONFIG_WCE: the write cache can be turned on and off.
const FEATURE_CONFIG_WCE: u64 = 1 << 11;
/// VIRTIO_BLK_F_MQ: more than one queue.
const FEATURE_MQ: u64 = 1 << 12;
/// VIRTIO_BLK_F_DISCARD: there is a discard request.
const FEATURE_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES: there is a write-zeroes request.
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Length of `struct virtio_blk_config` up to and with the write-zeroes fields (virtio 1.3 §5.2.4).
const CONFIG_LEN: usize = 60;
/// Offset of `writeback` in it, the one byte that a driver can write.
const CONFIG_WRITEBACK: usize = 32;

/// What a user can say about a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// What the driver gets when it asks for the id. The first 20 bytes of it count.
    pub serial: String,
    /// Number of queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Entries of each queue: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// Whether the write cache starts turned on; `None`: as the disk's `cache=` mode has it.
    pub write_cache: Option<bool>,
    /// Most sectors of 512 bytes that the driver may discard at once; 0 for no discard at all.
    pub max_discard: u32,
    /// Most sectors that the driver may ask to be zeroed at once; 0 for not at all.
    pub max_write_zeroes: u32,
    /// The block size that the driver sees, in bytes, if not the disk's own. A power of two, and at least
    /// the disk's own.
    pub logical_block_size: Option<u32>,
    /// What the driver is told that the disk writes at once, in bytes, if not the disk's own. A power of two.
    pub physical_block_size: Option<u32>,
    /// Smallest and best request size in bytes, for the driver to know; 0 for nothing known.
    pub min_io_size: u32,
    /// See [`min_io_size`](BlkConfig::min_io_size).
    pub opt_io_size: u32,
    /// Alignment of discards in bytes, if not the disk's own.
    pub discard_granularity: Option<u32>,
}

/// Most sectors of a discard or write-zeroes request: as many as QEMU allows.
pub const MAX_RANGE_SECTORS: u32 = (i32::MAX / 512) as u32;

/// A block size that the disk cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlkError {
    /// Requests could be smaller than what the host can do.
    #[error("logical_block_size {0} is below the image's own {1}")]
    BlockTooSmall(u32, u32),
    /// The last block would be cut off.
    #[error("the image's size of {0} bytes is no multiple of logical_block_size {1}")]
    Size(u64, u32),
}

impl Default for BlkConfig {
    /// QEMU's defaults: one queue of 256, no serial number, discard and write-zeroes on.
    fn default() -> BlkConfig {
        BlkConfig {
            serial: String::new(),
            queues: 1,
            queue_size: 256,
            write_cache: None,
            max_discard: MAX_RANGE_SECTORS,
            max_write_zeroes: MAX_RANGE_SECTORS,
            logical_block_size: None,
            physical_block_size: None,
            min_io_size: 0,
            opt_io_size: 0,
            discard_granularity: None,
        }
    }
}

/// A block device on a [`Disk`].
#[derive(Debug)]
pub struct Blk {
    spec: Spec,
    config: Config,
    disk: Disk,
    limits: Limits,
    serial: [u8; ID_LEN],
    initial_write_cache: bool,
    write_cache: Arc<AtomicBool>,
    statistics: Arc<Statistics>,
}

impl Blk {
    /// A device with these properties. Numbers of queues and sectors out of range are brought into it.
    ///
    /// # Errors
    /// The disk cannot have this block size.
    pub fn new(options: &BlkConfig, disk: Disk) -> Result<Blk, BlkError> {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let own_block = disk.logical_block_size();
        let block = options.logical_block_size.unwrap_or(own_block);
        if block < own_block {
            return Err(BlkError::BlockTooSmall(block, own_block));
        }
        if !disk.size().is_multiple_of(block.into()) {
            return Err(BlkError::Size(disk.size(), block));
        }
        // Whole blocks, or the driver could not ask for the most there may be.
        let block_sectors = block.checked_div(SECTOR).unwrap_or(1).max(1);
        let whole = |sectors: u32| sectors.saturating_sub(sectors.checked_rem(block_sectors).unwrap_or(0));
        let most = |sectors: u32| if disk.is_read_only() { 0 } else { whole(sectors.min(MAX_RANGE_SECTORS)) };
        let limits = Limits {
            sectors: disk.size() >> SECTOR_SHIFT,
            block,
            read_only: disk.is_read_only(),
            discard: most(options.max_discard),
            write_zeroes: most(options.max_write_zeroes),
        };
        let always =
            FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY | FEATURE_CONFIG_WCE;
        let offered = [
            (true, always),
            (limits.read_only, FEATURE_RO),
            (queues > 1, FEATURE_MQ),
            (limits.discard > 0, FEATURE_DISCARD),
            (limits.write_zeroes > 0, FEATURE_WRITE_ZEROES),
        ];
        let features = offered.iter().filter(|(on, _)| *on).fold(0, |all, (_, bits)| all | bits);
        let queue = |index| QueueSpec { max_size: options.queue_size, worker: usize::from(index) };
        let write_cache = options.write_cache.unwrap_or(disk.write_back());
        let mut serial = [0; ID_LEN];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        Ok(Blk {
            // The class is mass storage, SCSI: QEMU's choice.
            spec: Spec { id: 2, class: 0x01_00_00, features, queues: (0..queues).map(queue).collect() },
            config: Config::new(configuration(options, queues, &disk, &limits, write_cache)),
            limits,
            serial,
            initial_write_cache: write_cache,
            write_cache: Arc::new(AtomicBool::new(write_cache)),
            statistics: Arc::default(),
            disk,
        })
    }

    /// What was done on it, also from here on.
    pub fn statistics(&self) -> Arc<Statistics> {
        self.statistics.clone()
    }

    fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
        self.config.modify(|bytes| {
            if let Some(byte) = bytes.get_mut(CONFIG_WRITEBACK) {
                *byte = on.into();
            }
        });
    }
}

impl Device for Blk {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let value = CONFIG_WRITEBACK.checked_sub(offset).and_then(|at| data.get(at));
        if let Some(value) = value {
            self.set_write_cache(*value != 0);
        }
    }

    fn worker(&self, index: usize, features: u64, memory: &GuestMemory) -> io::Result<Box<dyn Worker>> {
        // A driver that knows of no flush could not make its writes durable (virtio 1.3 §5.2.6.2).
        let can_flush = features & (FEATURE_FLUSH | FEATURE_CONFIG_WCE) != 0;
        Ok(Box::new(BlkWorker::new(
            index,
            memory.clone(),
            self.disk.engine(),
            self.limits,
            self.statistics.clone(),
            self.serial,
            can_flush.then(|| self.write_cache.clone()),
        )))
    }

    fn reset(&self) {
        self.set_write_cache(self.initial_write_cache);
    }
}

/// `struct virtio_blk_config` (virtio 1.3 §5.2.4).
fn configuration(
    options: &BlkConfig,
    queues: u16,
    disk: &Disk,
    limits: &Limits,
    write_cache: bool,
) -> Vec<u8> {
    let block = limits.block;
    let physical = options.physical_block_size.unwrap_or(disk.physical_block_size());
    let exponent = physical.trailing_zeros().saturating_sub(block.trailing_zeros());
    let blocks = |bytes: u32| bytes.checked_div(block).unwrap_or(0);
    let mut bytes = Vec::with_capacity(CONFIG_LEN);
    bytes.extend(limits.sectors.to_le_bytes());
    // size_max: not offered.
    bytes.extend([0; 4]);
    // Header and status take a descriptor each.
    bytes.extend(u32::from(options.queue_size.saturating_sub(2).max(1)).to_le_bytes());
    // geometry: not offered.
    bytes.extend([0; 4]);
    bytes.extend(block.to_le_bytes());
    // physical_block_exp, alignment_offset, min_io_size, opt_io_size: the last two in blocks.
    bytes.extend([u8::try_from(exponent).unwrap_or_default(), 0]);
    bytes.extend(u16::try_from(blocks(options.min_io_size)).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(blocks(options.opt_io_size).to_le_bytes());
    bytes.extend([write_cache.into(), 0]);
    bytes.extend(queues.to_le_bytes());
    let granularity = options.discard_granularity.unwrap_or(disk.discard_granularity());
    let granularity = granularity.max(block).checked_div(SECTOR).unwrap_or(1);
    let when = |most: u32, value: u32| if most > 0 { value } else { 0 }.to_le_bytes();
    bytes.extend(limits.discard.to_le_bytes());
    bytes.extend(when(limits.discard, 1));
    bytes.extend(when(limits.discard, granularity));
    bytes.extend(limits.write_zeroes.to_le_bytes());
    bytes.extend(when(limits.write_zeroes, 1));
    bytes.extend([u8::from(limits.write_zeroes > 0), 0, 0, 0]);
    bytes
}
