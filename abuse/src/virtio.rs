//! As much of a driver as it takes to do it wrong: negotiation, split rings, a good request of each kind.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::mapping::{Mapping, Memory};
use crate::pci::{self, Function};

pub const VENDOR: u64 = 0x1af4;
const FIRST_DEVICE: u64 = 0x1040;

/// A register of the common configuration (virtio 1.3 §4.1.4.3): offset and width.
pub type Register = (u64, u8);
pub const DEVICE_FEATURE_SELECT: Register = (0x00, 4);
pub const DEVICE_FEATURE: Register = (0x04, 4);
pub const DRIVER_FEATURE_SELECT: Register = (0x08, 4);
pub const DRIVER_FEATURE: Register = (0x0c, 4);
pub const CONFIG_VECTOR: Register = (0x10, 2);
pub const QUEUE_COUNT: Register = (0x12, 2);
pub const STATUS: Register = (0x14, 1);
pub const QUEUE_SELECT: Register = (0x16, 2);
pub const QUEUE_SIZE: Register = (0x18, 2);
pub const QUEUE_VECTOR: Register = (0x1a, 2);
pub const QUEUE_ENABLE: Register = (0x1c, 2);
pub const QUEUE_DESCRIPTORS: Register = (0x20, 8);
pub const QUEUE_AVAILABLE: Register = (0x28, 8);
pub const QUEUE_USED: Register = (0x30, 8);
pub const QUEUE_RESET: Register = (0x3a, 2);

pub const ACKNOWLEDGE: u64 = 1;
pub const DRIVER: u64 = 2;
pub const DRIVER_OK: u64 = 4;
pub const FEATURES_OK: u64 = 8;
pub const NEEDS_RESET: u64 = 64;
pub const FAILED: u64 = 128;
/// All that a driver sets when all goes well.
pub const RUNNING: u64 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

const ACCESS_PLATFORM: u64 = 1 << 33;
pub const RING_PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
const NOTIFICATION_DATA: u64 = 1 << 38;
/// What an ordinary start leaves out: another ring, other notifications.
const UNUSUAL: u64 = ACCESS_PLATFORM | RING_PACKED | IN_ORDER | NOTIFICATION_DATA;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Each queue's part of the memory: descriptors, available ring, used ring, a page each.
const QUEUE_LEN: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where buffers begin; rings end before.
pub const BUFFERS: u64 = Memory::LEN / 2;
const MOST_ENTRIES: u64 = 256;

/// A box that emulates everything may stall for seconds.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Net = 1,
    Blk = 2,
    Rng = 4,
}

/// The structures in the BAR: offset and length of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    pub common: (u64, u64),
    pub notify: (u64, u64),
    pub isr: (u64, u64),
    pub device: (u64, u64),
    /// Offset of the capability that is a window on the BAR.
    pub window: u64,
    pub multiplier: u64,
}

pub struct Device {
    pub function: Function,
    pub kind: Kind,
    pub places: Places,
    /// The features of the first negotiation.
    pub offered: u64,
    /// The rings and then the buffers.
    pub memory: Memory,
}

/// All virtio functions of kinds that we know, taken from their drivers.
pub fn all() -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for directory in pci::of_vendor(VENDOR)? {
        let kind = [Kind::Net, Kind::Blk, Kind::Rng]
            .into_iter()
            .find(|kind| pci::device_id(&directory).ok() == Some(FIRST_DEVICE + *kind as u64));
        if let Some(kind) = kind {
            devices.push(Device::take(&directory, kind)?);
        }
    }
    ensure!(!devices.is_empty(), "there is no virtio device");
    Ok(devices)
}

impl Device {
    fn take(directory: &Path, kind: Kind) -> Result<Self> {
        let function = Function::take(directory)?;
        let mut places = Places::default();
        for (id, at) in function.capabilities() {
            if id != 0x09 {
                continue;
            }
            let place = (function.config_read(at + 8, 4), function.config_read(at + 12, 4));
            match function.config_read(at + 3, 1) {
                1 => places.common = place,
                2 => (places.notify, places.multiplier) = (place, function.config_read(at + 16, 4)),
                3 => places.isr = place,
                4 => places.device = place,
                5 => places.window = at,
                _ => {}
            }
        }
        ensure!(places.common.1 > 0 && places.multiplier > 0, "{}: no virtio structures", function.name);
        let mut device = Self { function, kind, places, offered: 0, memory: Memory::new()? };
        device.offered = device.offers();
        Ok(device)
    }

    pub fn name(&self) -> String {
        format!("{:?} {}", self.kind, self.function.name.trim_start_matches("0000:"))
    }

    pub fn bar(&self) -> &Mapping {
        &self.function.bar
    }

    pub fn get(&self, (offset, size): Register) -> u64 {
        self.bar().read(self.places.common.0 + offset, size)
    }

    pub fn set(&self, (offset, size): Register, value: u64) {
        self.bar().write(self.places.common.0 + offset, size, value);
    }

    pub fn offers(&self) -> u64 {
        let half = |select| {
            self.set(DEVICE_FEATURE_SELECT, select);
            self.get(DEVICE_FEATURE) << (32 * select)
        };
        half(0) | half(1)
    }

    /// VIRTIO_BLK_F_RO, of a disk.
    pub fn is_read_only(&self) -> bool {
        self.offered & (1 << 5) != 0
    }

    pub fn reset(&self) -> Result<()> {
        self.set(STATUS, 0);
        // Not a status, but what is read where nobody answers: waiting would not help.
        ensure!(self.get(STATUS) != 0xff, "the BAR is not there");
        until(PATIENCE, || self.get(STATUS) == 0).context("the device does not reset")
    }

    /// Negotiates up to FEATURES_OK: what is offered, without what is unusual unless it is `wanted`.
    pub fn negotiate(&self, wanted: u64) -> Result<u64> {
        self.reset()?;
        self.set(STATUS, ACKNOWLEDGE);
        self.set(STATUS, ACKNOWLEDGE | DRIVER);
        let features = self.offers() & (!UNUSUAL | wanted);
        for select in 0..2 {
            self.set(DRIVER_FEATURE_SELECT, select);
            self.set(DRIVER_FEATURE, features >> (32 * select) & 0xffff_ffff);
        }
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        ensure!(self.get(STATUS) & FEATURES_OK != 0, "the device refuses what it offered");
        Ok(features)
    }

    /// Describes queue `index` to the device, with empty rings, and enables it.
    pub fn set_up(&self, index: u64) {
        let queue = self.queue(index);
        self.set(QUEUE_SELECT, index);
        let size = self.get(QUEUE_SIZE).min(MOST_ENTRIES);
        for offset in (0..QUEUE_LEN).step_by(8) {
            self.memory.write(queue.base + offset, 8, 0);
        }
        self.set(QUEUE_SIZE, size);
        self.set(QUEUE_DESCRIPTORS, self.memory.gpa(queue.base));
        self.set(QUEUE_AVAILABLE, self.memory.gpa(queue.base + AVAILABLE));
        self.set(QUEUE_USED, self.memory.gpa(queue.base + USED));
        self.set(QUEUE_ENABLE, 1);
    }

    /// From whatever state of the device to one that runs with all its queues.
    pub fn restart_with(&self, wanted: u64) -> Result<u64> {
        let features = self.negotiate(wanted)?;
        for index in 0..self.get(QUEUE_COUNT) {
            self.set_up(index);
        }
        self.set(STATUS, RUNNING);
        Ok(features)
    }

    pub fn restart(&self) -> Result<u64> {
        self.restart_with(0)
    }

    pub fn queues(&self) -> u64 {
        self.get(QUEUE_COUNT)
    }

    pub fn queue(&self, index: u64) -> Queue<'_> {
        Queue { device: self, index, base: index * QUEUE_LEN }
    }

    /// The queue that takes requests: the one to transmit, of a network card.
    pub fn data(&self) -> Queue<'_> {
        self.queue(if self.kind == Kind::Net { 1 } else { 0 })
    }

    pub fn needs_reset(&self) -> bool {
        self.get(STATUS) & NEEDS_RESET != 0
    }

    /// The device has understood that it was driven wrongly, and says so.
    pub fn is_broken(&self) -> Result<()> {
        until(PATIENCE, || self.needs_reset()).context("the device does not say that it needs a reset")
    }

    /// The device was not put off: it runs and serves.
    pub fn is_well(&self) -> Result<()> {
        ensure!(self.get(STATUS) == RUNNING, "the device is in state {:#x}", self.get(STATUS));
        self.serves()
    }

    /// A good request of each sort ends well.
    pub fn serves(&self) -> Result<()> {
        match self.kind {
            Kind::Rng => {
                let len = self.data().carry_out(&[(self.buffer(0), 64, WRITE)])?;
                ensure!(len > 0, "no random bytes");
            }
            Kind::Blk => self.disk_serves()?,
            Kind::Net => {
                // Whoever has the other end of the tap answers, or says something else.
                let receive = self.queue(0);
                let before = receive.used();
                receive.offer_chain(&[(self.buffer(0x10000), 0x11000, WRITE)]);
                receive.kick();
                self.memory.write_bytes(BUFFERS, &arp_request());
                self.data().carry_out(&[(self.buffer(0), arp_request().len() as u32, 0)])?;
                receive.wait(before).context("no answer from the network")?;
            }
        }
        Ok(())
    }

    fn disk_serves(&self) -> Result<()> {
        let (sector, len) = (8, 512);
        let pattern: Vec<u8> = (0..len)
            .map(|at| (at as u8) ^ self.function.number as u8 ^ self.memory.read(BUFFERS, 1) as u8)
            .collect();
        let data = BUFFERS + 0x1000;
        self.memory.write_bytes(data, &pattern);
        let status = self.disk(1, sector, &[(self.memory.gpa(data), len as u32, 0)])?;
        if status == 0 {
            self.memory.write_bytes(data, &vec![0; len as usize]);
        }
        let status = (status, self.disk(0, sector, &[(self.memory.gpa(data), len as u32, WRITE)])?);
        match status {
            (0, 0) if self.memory.bytes(data, len) == pattern => Ok(()),
            (1, 0) if self.is_read_only() => Ok(()),
            _ => bail!("a write and a read of a sector ended with {status:?}, or with other data"),
        }
    }

    /// A request to the disk: its status byte.
    pub fn disk(&self, kind: u32, sector: u64, data: &[Buffer]) -> Result<u8> {
        let status = BUFFERS + 0x100;
        self.memory.write(status, 1, 0xee);
        let mut chain = vec![self.disk_header(kind, sector)];
        chain.extend(data);
        chain.push((self.memory.gpa(status), 1, WRITE));
        self.data().carry_out(&chain)?;
        Ok(self.memory.read(status, 1) as u8)
    }

    pub fn disk_header(&self, kind: u32, sector: u64) -> Buffer {
        self.memory.write(BUFFERS, 8, kind.into());
        self.memory.write(BUFFERS + 8, 8, sector);
        (self.buffer(0), 16, 0)
    }

    /// A command to the network card: its answer.
    pub fn command(&self, command: &[u8]) -> Result<u8> {
        let queue = self.queue(self.queues() - 1);
        self.memory.write_bytes(BUFFERS, command);
        self.memory.write(BUFFERS + 0x8000, 1, 0xee);
        queue.carry_out(&[(self.buffer(0), command.len() as u32, 0), (self.buffer(0x8000), 1, WRITE)])?;
        Ok(self.memory.read(BUFFERS + 0x8000, 1) as u8)
    }

    /// What the device calls the byte at `offset` of the buffers.
    pub fn buffer(&self, offset: u64) -> u64 {
        self.memory.gpa(BUFFERS + offset)
    }
}

/// A run of memory for a device: address, length, flags.
pub type Buffer = (u64, u32, u16);

/// A split ring; all that is known of it is in memory.
#[derive(Clone, Copy)]
pub struct Queue<'a> {
    pub device: &'a Device,
    pub index: u64,
    /// Offset in the device's memory.
    pub base: u64,
}

impl Queue<'_> {
    fn memory(&self) -> &Memory {
        &self.device.memory
    }

    pub fn size(&self) -> u64 {
        self.device.set(QUEUE_SELECT, self.index);
        self.device.get(QUEUE_SIZE).clamp(1, MOST_ENTRIES)
    }

    /// Writes one descriptor, whatever it says.
    pub fn put(&self, index: u64, (address, len, flags): Buffer, next: u16) {
        descriptor(self.memory(), self.base + index * 16, (address, len, flags), next);
    }

    /// Addresses of descriptors, available and used ring, for buffers that lie where they should not.
    pub fn parts(&self) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|offset| self.memory().gpa(self.base + offset))
    }

    pub fn available(&self) -> u16 {
        self.memory().read(self.base + AVAILABLE + 2, 2) as u16
    }

    pub fn set_available(&self, index: u16) {
        self.memory().write(self.base + AVAILABLE + 2, 2, index.into());
    }

    /// How far both sides have got, for an error message.
    pub fn describe(&self) -> String {
        let (available, used, status) = (self.available(), self.used(), self.device.get(STATUS));
        format!("queue {}: available {available:#x}, used {used:#x}, status {status:#x}", self.index)
    }

    /// What the driver wants to be interrupted at.
    pub fn set_used_event(&self, index: u16) {
        let size = self.size();
        self.memory().write(self.base + AVAILABLE + 4 + size * 2, 2, index.into());
    }

    pub fn used(&self) -> u16 {
        self.memory().read(self.base + USED + 2, 2) as u16
    }

    /// Makes a chain available, without a kick.
    pub fn offer(&self, head: u16) {
        let index = self.available();
        let slot = u64::from(index) % self.size();
        self.memory().write(self.base + AVAILABLE + 4 + slot * 2, 2, head.into());
        self.set_available(index.wrapping_add(1));
    }

    /// Puts a chain at the start of the table and makes it available.
    pub fn offer_chain(&self, chain: &[Buffer]) {
        self.chain_at(0, chain);
        self.offer(0);
    }

    /// Puts a chain into the table from descriptor `first` on.
    pub fn chain_at(&self, first: u64, chain: &[Buffer]) {
        for (index, (address, len, flags)) in (first..).zip(chain) {
            let last = index + 1 == first + chain.len() as u64;
            let flags = flags | if last { 0 } else { NEXT };
            self.put(index, (*address, *len, flags), index as u16 + 1);
        }
    }

    pub fn kick(&self) {
        self.notify(self.index, self.index);
    }

    /// Rings the doorbell of a queue that need not be there, with any value.
    pub fn notify(&self, queue: u64, value: u64) {
        let Places { notify, multiplier, .. } = self.device.places;
        self.device.bar().write(notify.0 + queue * multiplier, 2, value);
    }

    /// Waits for the used ring to go on from `before`; the length in its last element.
    pub fn wait(&self, before: u16) -> Result<u32> {
        until(PATIENCE, || self.used() != before).with_context(|| {
            format!("queue {}: no answer, device status {:#x}", self.index, self.device.get(STATUS))
        })?;
        let slot = u64::from(self.used().wrapping_sub(1)) % self.size();
        Ok(self.memory().read(self.base + USED + 4 + slot * 8 + 4, 4) as u32)
    }

    /// One chain there and back.
    pub fn carry_out(&self, chain: &[Buffer]) -> Result<u32> {
        let before = self.used();
        self.offer_chain(chain);
        self.kick();
        self.wait(before)
    }
}

/// Writes a descriptor of a split ring, or of an indirect table.
pub fn descriptor(memory: &Memory, at: u64, (address, len, flags): Buffer, next: u16) {
    memory.write(at, 8, address);
    memory.write(at + 8, 4, len.into());
    memory.write(at + 12, 2, flags.into());
    memory.write(at + 14, 2, next.into());
}

/// Waits for something to come about.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        ensure!(start.elapsed() < limit, "nothing within {} s", limit.as_secs());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The network header, all zeros, and a question for the host's end of the tap.
pub fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; 12];
    let us = [2, 0, 0, 0x66, 0, 2];
    frame.extend([0xff; 6]);
    frame.extend(us);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(us);
    frame.extend([10, 66, 0, 2, 0, 0, 0, 0, 0, 0, 10, 66, 0, 1]);
    frame.resize(12 + 60, 0);
    frame
}
