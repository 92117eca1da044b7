//! The block device (virtio 1.3 §5.2).
//!
//! One worker and one [`backend::block::Engine`] for each queue. `request` says what a request is and
//! whether it makes sense, before anything is done; `worker` keeps it until the host is done with it.

mod request;
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
use request::{ID_LEN, Limits, MAX_RANGE_SECTORS, SECTOR};
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
    /// Whether the driver may discard.
    pub discard: bool,
    /// Whether the driver may ask for zeros without sending them.
    pub write_zeroes: bool,
}

impl Default for BlkConfig {
    /// QEMU's defaults: one queue of 256, no serial number, discard and write-zeroes on.
    fn default() -> BlkConfig {
        BlkConfig {
            serial: String::new(),
            queues: 1,
            queue_size: 256,
            write_cache: None,
            discard: true,
            write_zeroes: true,
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
}

impl Blk {
    /// A device with these properties. Numbers out of range are brought into it.
    pub fn new(options: &BlkConfig, disk: Disk) -> Blk {
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let limits = Limits {
            sectors: disk.size() / SECTOR,
            block: disk.logical_block_size(),
            read_only: disk.is_read_only(),
            discard: options.discard && !disk.is_read_only(),
            write_zeroes: options.write_zeroes && !disk.is_read_only(),
        };
        let always =
            FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY | FEATURE_CONFIG_WCE;
        let offered = [
            (true, always),
            (limits.read_only, FEATURE_RO),
            (queues > 1, FEATURE_MQ),
            (limits.discard, FEATURE_DISCARD),
            (limits.write_zeroes, FEATURE_WRITE_ZEROES),
        ];
        let features = offered.iter().filter(|(on, _)| *on).fold(0, |all, (_, bits)| all | bits);
        let queue = |index| QueueSpec { max_size: options.queue_size, worker: usize::from(index) };
        let write_cache = options.write_cache.unwrap_or(disk.write_back());
        let mut serial = [0; ID_LEN];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        Blk {
            // The class is mass storage, SCSI: QEMU's choice.
            spec: Spec { id: 2, class: 0x01_00_00, features, queues: (0..queues).map(queue).collect() },
            config: Config::new(configuration(options.queue_size, queues, &disk, &limits, write_cache)),
            limits,
            serial,
            initial_write_cache: write_cache,
            write_cache: Arc::new(AtomicBool::new(write_cache)),
            disk,
        }
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
            self.disk.engine()?,
            self.limits,
            self.serial,
            can_flush.then(|| self.write_cache.clone()),
        )))
    }

    fn reset(&self) {
        self.set_write_cache(self.initial_write_cache);
    }
}

/// `struct virtio_blk_config` (virtio 1.3 §5.2.4).
fn configuration(queue_size: u16, queues: u16, disk: &Disk, limits: &Limits, write_cache: bool) -> Vec<u8> {
    let block = disk.logical_block_size();
    let exponent = disk.physical_block_size().trailing_zeros().saturating_sub(block.trailing_zeros());
    let mut bytes = Vec::with_capacity(CONFIG_LEN);
    bytes.extend(limits.sectors.to_le_bytes());
    // size_max: not offered.
    bytes.extend([0; 4]);
    // Header and status take a descriptor each.
    bytes.extend(u32::from(queue_size.saturating_sub(2).max(1)).to_le_bytes());
    // geometry: not offered.
    bytes.extend([0; 4]);
    bytes.extend(block.to_le_bytes());
    // physical_block_exp, alignment_offset, min_io_size, opt_io_size: QEMU says 0 to the last three.
    bytes.push(exponent as u8);
    bytes.extend([0; 7]);
    bytes.extend([write_cache.into(), 0]);
    bytes.extend(queues.to_le_bytes());
    let when = |on: bool, value: u32| if on { value } else { 0 }.to_le_bytes();
    let granularity = disk.discard_granularity().checked_div(SECTOR as u32).unwrap_or(1);
    bytes.extend(when(limits.discard, MAX_RANGE_SECTORS));
    bytes.extend(when(limits.discard, 1));
    bytes.extend(when(limits.discard, granularity));
    bytes.extend(when(limits.write_zeroes, MAX_RANGE_SECTORS));
    bytes.extend(when(limits.write_zeroes, 1));
    bytes.extend([limits.write_zeroes.into(), 0, 0, 0]);
    bytes
}
