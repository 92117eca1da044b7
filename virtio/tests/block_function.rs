//! A block device as a driver meets it: registers, rings and interrupts, threads and all.
#![allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed")]

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use backend::block::{Cache, Disk, DiskOptions, EngineChoice};
use domain::Gpa;
use memory::{GuestMemory, Region};
use pci::Function;
use sim::SimDomain;
use tempfile::NamedTempFile;
use virtio::blk::{Blk, BlkConfig};
use virtio::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Placement, VirtioPci};

const RAM: u64 = 16 << 20;
const SIZE: u16 = 128;
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
const HEADERS: u64 = 0x4_0000;
const STATUSES: u64 = 0x5_0000;
const DATA: u64 = 0x10_0000;
const SLOT: u64 = 16384;
const PATIENCE: Duration = Duration::from_secs(20);

struct Guest {
    sim: Arc<SimDomain>,
    function: VirtioPci,
    size: u16,
    available: u16,
    used: u16,
}

impl Guest {
    fn new(disk: &DiskOptions) -> Guest {
        let sim = SimDomain::new(1, &[(Gpa(0), RAM)]).unwrap();
        let memory = GuestMemory::new(sim.clone(), &[Region { start: Gpa(0), size: RAM }]).unwrap();
        let blk = Blk::new(&BlkConfig::default(), Disk::open(disk).unwrap()).unwrap();
        let function =
            VirtioPci::new(Arc::new(blk), "disk0", Placement::default(), memory, sim.clone()).unwrap();
        let mut guest = Guest { sim, function, size: SIZE, available: 0, used: 0 };
        guest.start();
        guest
    }

    fn set(&self, offset: u64, size: u8, value: u64) {
        self.function.bar_write(0, offset, size, value);
    }

    fn get(&self, offset: u64, size: u8) -> u64 {
        self.function.bar_read(0, offset, size)
    }

    fn u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.sim.ram_read(Gpa(at), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Resets the device and starts it anew (virtio 1.3 §3.1.1).
    fn start(&mut self) {
        self.function.config_write(4, 2, 0x6);
        let mut capability = self.function.config_read(0x34, 1) as u16;
        while self.function.config_read(capability, 1) != 0x11 {
            capability = self.function.config_read(capability + 1, 1) as u16;
        }
        self.set(0x8010, 8, 0xfee0_0000);
        self.set(0x8018, 8, 0x31);
        self.function.config_write(capability + 2, 2, 0x8000);

        self.set(0x14, 1, 0);
        assert_eq!(self.get(0x14, 1), 0);
        self.set(0x14, 1, 3);
        let mut features = 0;
        for word in 0..2 {
            self.set(0, 4, word);
            features |= self.get(4, 4) << (word * 32);
        }
        let wanted = FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT;
        assert_eq!(features & wanted, wanted);
        for word in 0..2 {
            self.set(8, 4, word);
            self.set(12, 4, features >> (word * 32) & 0xffff_ffff);
        }
        self.set(0x14, 1, 11);
        assert_eq!(self.get(0x14, 1), 11);
        self.enable(SIZE);
        self.set(0x14, 1, 15);
        assert_eq!(self.get(0x14, 1), 15);
    }

    /// Puts queue 0, which is not enabled, where it always is, with `size` entries, and enables it.
    fn enable(&mut self, size: u16) {
        for ring in [AVAILABLE, USED] {
            self.sim.ram_write(Gpa(ring), &[0; 4096]);
        }
        (self.size, self.available, self.used) = (size, 0, 0);
        self.set(0x16, 2, 0);
        self.set(0x18, 2, size.into());
        self.set(0x1a, 2, 1);
        for (register, value) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.set(register, 8, value);
        }
        self.set(0x1c, 2, 1);
        assert_eq!(self.get(0x1c, 2), 1);
    }

    /// Makes request number `slot` (0 to 31) available.
    fn offer(&mut self, slot: u64, kind: u32, sector: u64, len: u32) {
        let mut header = Vec::from(u64::from(kind).to_le_bytes());
        header.extend(sector.to_le_bytes());
        self.sim.ram_write(Gpa(HEADERS + slot * 16), &header);
        self.sim.ram_write(Gpa(STATUSES + slot), &[0xee]);
        let writable = if kind == 0 { 2 } else { 0 };
        let parts =
            [(HEADERS + slot * 16, 16, 1), (DATA + slot * SLOT, len, 1 | writable), (STATUSES + slot, 1, 2)];
        for (index, (addr, len, flags)) in (slot * 3..).zip(parts) {
            let mut raw = Vec::from(addr.to_le_bytes());
            raw.extend(len.to_le_bytes());
            raw.extend((flags as u16).to_le_bytes());
            raw.extend((index as u16 + 1).to_le_bytes());
            self.sim.ram_write(Gpa(DESCRIPTORS + index * 16), &raw);
        }
        let at = AVAILABLE + 4 + u64::from(self.available % self.size) * 2;
        self.sim.ram_write(Gpa(at), &(slot as u16 * 3).to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.sim.ram_write(Gpa(AVAILABLE + 2), &self.available.to_le_bytes());
    }

    fn kick(&self) {
        self.set(0x3000, 2, 0);
    }

    /// Sleeps on interrupts until all that was made available is used.
    fn finish(&mut self) {
        while self.used != self.available {
            // The next one is to interrupt.
            self.sim.ram_write(Gpa(AVAILABLE + 4 + u64::from(self.size) * 2), &self.used.to_le_bytes());
            let now = self.u16(USED + 2);
            if now == self.used {
                let message = self.sim.wait_message(PATIENCE).expect("an interrupt");
                assert_eq!((message.address, message.data), (0xfee0_0000, 0x31));
            }
            self.used = self.u16(USED + 2);
        }
    }

    fn status(&self, slot: u64) -> u8 {
        let mut byte = [0];
        self.sim.ram_read(Gpa(STATUSES + slot), &mut byte);
        byte[0]
    }
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    file
}

fn word(round: u64, slot: u64) -> [u8; 8] {
    (round << 32 | slot << 8 | 0x5a).to_le_bytes()
}

#[test]
fn requests_complete_and_interrupt() {
    for engine in [EngineChoice::Auto, EngineChoice::Synchronous] {
        for cache in [Cache::WriteBack, Cache::WriteThrough, Cache::None, Cache::DirectSync] {
            let file = image();
            let options = DiskOptions { engine, ..DiskOptions::new(file.path()).cache(cache) };
            if let Err(error) = Disk::open(&options) {
                eprintln!("SKIPPED: {cache:?}: {error}");
                continue;
            }
            let mut guest = Guest::new(&options);
            for round in 0..20 {
                // One after the other, then many at once.
                let depth = if round % 2 == 0 { 1 } else { 32 };
                for slot in 0..depth {
                    guest.sim.ram_write(Gpa(DATA + slot * SLOT), &word(round, slot));
                    guest.offer(slot, 1, slot * 8, 4096);
                }
                guest.kick();
                guest.finish();
                for slot in 0..depth {
                    assert_eq!(guest.status(slot), 0);
                    guest.sim.ram_write(Gpa(DATA + slot * SLOT), &[0; 8]);
                    guest.offer(slot, 0, slot * 8, 4096);
                    guest.kick();
                }
                guest.finish();
                for slot in 0..depth {
                    let mut found = [0; 8];
                    guest.sim.ram_read(Gpa(DATA + slot * SLOT), &mut found);
                    assert_eq!((guest.status(slot), found), (0, word(round, slot)));
                }
            }
            let mut found = [0; 8];
            file.as_file().read_exact_at(&mut found, 31 * 4096).unwrap();
            assert_eq!(found, word(19, 31));
        }
    }
}

/// After a reset nothing of before may touch the guest's memory, and the device works again.
#[test]
fn reset_with_requests_in_flight() {
    let file = image();
    file.as_file().write_all_at(&vec![0x77; 8 << 20], 0).unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Synchronous] {
        let mut guest = Guest::new(&DiskOptions { engine, ..DiskOptions::new(file.path()) });
        for round in 0..100u64 {
            for slot in 0..32 {
                guest.offer(slot, 0, (round + slot) % 64 * 32, SLOT as u32);
            }
            guest.kick();
            if round % 3 == 0 {
                std::thread::yield_now();
            }
            guest.set(0x14, 1, 0);
            assert_eq!(guest.get(0x14, 1), 0);
            for slot in 0..32 {
                guest.sim.ram_write(Gpa(DATA + slot * SLOT), &vec![0x11; SLOT as usize]);
            }
            guest.start();
            guest.offer(0, 0, 0, 512);
            guest.kick();
            guest.finish();
            assert_eq!(guest.status(0), 0);
            for slot in 1..32 {
                let mut found = vec![0; SLOT as usize];
                guest.sim.ram_read(Gpa(DATA + slot * SLOT), &mut found);
                assert!(found.iter().all(|byte| *byte == 0x11), "round {round}: written after the reset");
            }
            while guest.sim.wait_message(Duration::ZERO).is_some() {}
        }
    }
}

/// The queue alone is reset (virtio 1.3 §2.6.1): the same, and the device goes on.
#[test]
fn queue_reset_with_requests_in_flight() {
    let file = image();
    file.as_file().write_all_at(&vec![0x77; 8 << 20], 0).unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Synchronous] {
        let mut guest = Guest::new(&DiskOptions { engine, ..DiskOptions::new(file.path()) });
        for round in 0..40u64 {
            for slot in 0..32 {
                guest.offer(slot, 0, (round + slot) % 64 * 32, SLOT as u32);
            }
            guest.kick();
            if round % 3 == 0 {
                std::thread::yield_now();
            }
            guest.set(0x3a, 2, 1);
            let end = std::time::Instant::now() + PATIENCE;
            while guest.get(0x3a, 2) != 0 {
                assert!(std::time::Instant::now() < end, "the queue is not given back");
            }
            assert_eq!((guest.get(0x1c, 2), guest.get(0x14, 1)), (0, 15));
            for slot in 0..32 {
                guest.sim.ram_write(Gpa(DATA + slot * SLOT), &vec![0x11; SLOT as usize]);
            }
            // With another size now and then.
            guest.enable(if round % 2 == 0 { SIZE * 2 } else { SIZE });
            guest.offer(0, 0, 0, 512);
            guest.kick();
            guest.finish();
            assert_eq!((guest.status(0), guest.used), (0, 1));
            for slot in 1..32 {
                let mut found = vec![0; SLOT as usize];
                guest.sim.ram_read(Gpa(DATA + slot * SLOT), &mut found);
                assert!(found.iter().all(|byte| *byte == 0x11), "round {round}: written after the reset");
            }
            while guest.sim.wait_message(Duration::ZERO).is_some() {}
        }
    }
}

/// A broken ring costs the guest the device until it resets it.
#[test]
fn broken_ring_and_recovery() {
    let file = image();
    let mut guest = Guest::new(&DiskOptions::new(file.path()));
    guest.offer(0, 0, 0, 4096);
    guest.sim.ram_write(Gpa(AVAILABLE + 4), &u16::MAX.to_le_bytes());
    guest.kick();
    let end = std::time::Instant::now() + PATIENCE;
    while guest.get(0x14, 1) & 0x40 == 0 {
        assert!(std::time::Instant::now() < end, "the device noticed nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.start();
    guest.offer(0, 0, 0, 4096);
    guest.kick();
    guest.finish();
    assert_eq!(guest.status(0), 0);
}
