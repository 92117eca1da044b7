//! The same requests over every kind of ring: a device must not be able to tell.

use std::os::unix::fs::FileExt;

use backend::block::{Disk, DiskOptions};
use tempfile::NamedTempFile;

use super::*;
use crate::blk::{Blk, BlkConfig};

/// Entries of the ring: room for eight requests of four descriptors.
const ENTRIES: u16 = 32;
const REQUESTS: u16 = 8;
const SECTORS: u64 = 256;

/// A little generator: the same numbers in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

/// What came of a request: bytes written, status, and data.
type Outcome = (u32, u8, Vec<u8>);

/// Plays requests to a disk, and returns what came of each, and of the disk.
fn play(kind: u64, features: u64) -> (Vec<Outcome>, Vec<u8>) {
    let file = NamedTempFile::new().unwrap();
    let pattern: Vec<u8> = (0..SECTORS * 512).map(|at| (at / 512 + at) as u8).collect();
    file.as_file().write_all_at(&pattern, 0).unwrap();
    let disk = Disk::open(&DiskOptions::new(file.path())).unwrap();
    let blk = Blk::new(&BlkConfig { serial: "serial".to_owned(), ..BlkConfig::default() }, disk).unwrap();
    let rig = Rig::offering(Arc::new(blk), kind);
    rig.pci_setup();
    rig.negotiate(kind | features | FEATURE_VERSION_1);
    let mut ring = rig.any_ring(0, ENTRIES, kind);
    rig.set_status(15);

    let mut dice = Dice(1);
    let mut results = Vec::new();
    for _ in 0..60 {
        let count = 1 + dice.roll(REQUESTS.into()) as u16;
        for number in 0..count {
            let at = DATA + u64::from(number) * 0x1_0000;
            // In this batch every request has its own sectors, so that their order does not matter.
            let sector = u64::from(number) * (SECTORS / 8) + dice.roll(SECTORS / 8);
            // Some are beyond the end, some of no known kind, some of a length that is none.
            let sector = if dice.roll(10) == 0 { SECTORS + dice.roll(9) } else { sector };
            let request: u32 = [0, 0, 0, 1, 1, 1, 4, 8, 77][dice.roll(9) as usize];
            let len =
                [512, 1024, 512, 100][dice.roll(4) as usize].min((SECTORS / 8 - sector % 32) as u32 * 512);
            let mut header = Vec::from(u64::from(request).to_le_bytes());
            header.extend(sector.to_le_bytes());
            rig.sim.ram_write(Gpa(at), &header);
            let data: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
            rig.sim.ram_write(Gpa(at + 0x1000), &data);
            rig.sim.ram_write(Gpa(at + 0x2000), &[0xee]);
            let parts = [(at, 16, false), (at + 0x1000, len, request != 1), (at + 0x2000, 1, true)];
            match request {
                4 => ring.offer(number, &[parts[0], parts[2]]),
                _ if len > 64 => {
                    // The data in two pieces.
                    let (at, _, write) = parts[1];
                    let pieces = [parts[0], (at, 64, write), (at + 64, len - 64, write), parts[2]];
                    ring.offer(number, &pieces);
                }
                _ => ring.offer(number, &parts),
            }
        }
        let mut used = [None; REQUESTS as usize];
        let mut order = Vec::new();
        rig.kick(0);
        wait_until(|| {
            while let Some((number, len)) = ring.take_used() {
                assert_eq!(used[usize::from(number)].replace(len), None);
                order.push(number);
            }
            order.len() == usize::from(count)
        });
        if kind & FEATURE_IN_ORDER != 0 {
            assert!(order.is_sorted(), "{order:?}");
        }
        for (number, len) in (0u64..).zip(used).take(count.into()) {
            let (mut status, mut data) = ([0], vec![0; 1024]);
            rig.sim.ram_read(Gpa(DATA + number * 0x1_0000 + 0x2000), &mut status);
            rig.sim.ram_read(Gpa(DATA + number * 0x1_0000 + 0x1000), &mut data);
            assert_ne!(status, [0xee]);
            results.push((len.unwrap(), status[0], data));
        }
        rig.sim.messages();
    }
    rig.set_status(0);
    let mut disk = vec![0; pattern.len()];
    file.as_file().read_exact_at(&mut disk, 0).unwrap();
    (results, disk)
}

#[test]
fn rings_are_alike() {
    let expected = play(0, 0);
    assert!(expected.0.iter().any(|(_, status, _)| *status == 0));
    assert!(expected.0.iter().any(|(_, status, _)| *status != 0));
    for kind in [0, FEATURE_RING_PACKED, FEATURE_IN_ORDER, FEATURE_RING_PACKED | FEATURE_IN_ORDER] {
        for features in [0, FEATURE_EVENT_IDX, FEATURE_EVENT_IDX | FEATURE_INDIRECT] {
            assert!(play(kind, features) == expected, "{kind:#x} {features:#x}");
        }
    }
}

/// Interrupts that are asked for come, one at a time, on every kind of ring.
#[test]
fn an_interrupt_each() {
    for kind in [0, FEATURE_RING_PACKED, FEATURE_IN_ORDER, FEATURE_RING_PACKED | FEATURE_IN_ORDER] {
        for size in [4, 32] {
            let rig = Rig::offering(Arc::new(Rng::new(File::open("/dev/urandom").unwrap())), kind);
            rig.pci_setup();
            rig.negotiate(kind | FEATURE_VERSION_1 | FEATURE_EVENT_IDX);
            let mut ring = rig.any_ring(0, size.min(8), kind);
            rig.set_status(15);
            for round in 0..200 {
                ring.want_next();
                ring.offer(0, &[(DATA, round + 1, true)]);
                rig.kick(0);
                assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((0, round + 1))));
            }
            assert!(rig.sim.messages().is_empty());
        }
    }
}
