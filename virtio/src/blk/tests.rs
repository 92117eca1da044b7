use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use backend::block::{Cache, DiskOptions, EngineChoice, Op};
use domain::{Gfn, Gpa};
use tempfile::NamedTempFile;

use super::request::{Action, HEADER_LEN, RANGE_LEN, Raw, Status, parse};
use super::*;
use crate::device::{Queues, Wake};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1};
use crate::testing::{Ring, guest};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What a status byte is before the device writes it.
const UNTOUCHED: u8 = 0xee;

const RING: u64 = 0x10_0000;
const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x40_0000;
const STATUS: u64 = 0x80_0000;
const SECTORS: u64 = 2048;

fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_LEN] {
    let mut bytes = [0; RANGE_LEN];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SECTORS * 512).unwrap();
    file
}

fn options(path: &Path) -> DiskOptions {
    DiskOptions { discard: true, ..DiskOptions::new(path) }
}

struct Bench {
    device: Blk,
    memory: GuestMemory,
    worker: Box<dyn Worker>,
    queues: Queues,
    ring: Ring,
    next_head: u16,
}

impl Bench {
    fn new(disk: &DiskOptions) -> Bench {
        Bench::with(disk, &BlkConfig { serial: "a serial number".to_owned(), ..BlkConfig::default() })
    }

    fn with(disk: &DiskOptions, config: &BlkConfig) -> Bench {
        let device = Blk::new(config, Disk::open(disk).unwrap()).unwrap();
        let (sim, memory) = guest();
        let ring = Ring::new(&sim, RING, 64);
        let features = device.spec().features | FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT;
        let (queue, _) = ring.queue(&memory, features);
        let mut queues = Queues::new();
        queues.insert(0, queue);
        queues.get(0).unwrap().grant(u32::MAX);
        let worker = device.worker(0, features, &memory).unwrap();
        Bench { device, memory, worker, queues, ring, next_head: 0 }
    }

    /// Makes a chain available. Descriptors are taken round and round, four for each.
    fn offer(&mut self, parts: &[(u64, u32, bool)]) -> u16 {
        assert!(parts.len() <= 4);
        let head = self.next_head;
        self.next_head = (head + 4) % self.ring.size();
        self.ring.chain(head, parts);
        self.ring.offer(head);
        head
    }

    fn serve(&mut self) {
        assert_eq!(self.worker.serve(&mut self.queues, 0).unwrap(), Wake::Kick);
    }

    /// Serves until a chain is used; returns its head and length.
    fn used(&mut self) -> (u32, u32) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.serve();
            if let Some(used) = self.ring.take_used() {
                return used;
            }
            assert!(Instant::now() < end, "the request was forgotten");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ring.sim.ram_write(Gpa(at), bytes);
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ring.sim.ram_read(Gpa(at), &mut bytes);
        bytes
    }

    /// Does one request in the usual shape: its status, and how much was written.
    fn request(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) -> (u8, u32) {
        self.put(HEADER, &header(kind, sector));
        let mut parts = vec![(HEADER, HEADER_LEN as u32, false)];
        parts.extend(data.map(|(len, writable)| (DATA, len, writable)));
        parts.push((STATUS, 1, true));
        self.run(&parts)
    }

    fn run(&mut self, parts: &[(u64, u32, bool)]) -> (u8, u32) {
        self.put(STATUS, &[UNTOUCHED]);
        let head = self.offer(parts);
        let (used, len) = self.used();
        assert_eq!(used, u32::from(head));
        (self.get(STATUS, 1)[0], len)
    }
}

fn both(file: &Path) -> [DiskOptions; 2] {
    [EngineChoice::Auto, EngineChoice::Synchronous].map(|engine| DiskOptions { engine, ..options(file) })
}

#[test]
fn reads_and_writes() {
    let file = image();
    for disk in both(file.path()) {
        let mut bench = Bench::new(&disk);
        let text: Vec<u8> = (0..4096u32).map(|index| ((index * 7) >> 3) as u8).collect();
        bench.put(DATA, &text);
        assert_eq!(bench.request(OUT, 8, Some((4096, false))), (OK, 1));
        let mut stored = vec![0; 4096];
        file.as_file().read_exact_at(&mut stored, 4096).unwrap();
        assert_eq!(stored, text);
        assert_eq!(bench.request(FLUSH, 0, None), (OK, 1));
        bench.put(DATA, &[0; 4096]);
        assert_eq!(bench.request(IN, 8, Some((4096, true))), (OK, 4097));
        assert_eq!(bench.get(DATA, 4096), text);
        // The very last sector, and nothing at all.
        assert_eq!(bench.request(IN, SECTORS - 1, Some((512, true))), (OK, 513));
        assert_eq!(bench.request(IN, SECTORS, None), (OK, 1));
        file.as_file().write_all_at(&[0; 8192], 4096).unwrap();
    }
}

/// "The driver MUST NOT assume how it is split" cuts both ways (virtio 1.3 §2.7.4.1).
#[test]
fn any_layout() {
    let file = image();
    file.as_file().write_all_at(&[0x5a; 1024], 512).unwrap();
    let mut bench = Bench::new(&options(file.path()));
    bench.put(HEADER, &header(IN, 1));
    // Header in three, data and status in one.
    let parts =
        [(HEADER, 1, false), (HEADER + 1, 10, false), (HEADER + 11, 5, false), (STATUS - 1024, 1025, true)];
    assert_eq!(bench.run(&parts), (OK, 1025));
    assert_eq!(bench.get(STATUS - 1024, 1024), [0x5a; 1024]);
    // Header and data in one.
    bench.put(HEADER, &header(OUT, 4));
    bench.put(HEADER + 16, &[0xa5; 512]);
    assert_eq!(bench.run(&[(HEADER, 528, false), (STATUS, 1, true)]), (OK, 1));
    let mut stored = [0; 512];
    file.as_file().read_exact_at(&mut stored, 2048).unwrap();
    assert_eq!(stored, [0xa5; 512]);
    // Data cut in odd places; the status is the last byte, whatever is before it.
    bench.put(HEADER, &header(IN, 4));
    let parts = [(HEADER, 16, false), (DATA + 3, 509, true), (DATA + 4096, 3, true), (STATUS, 1, true)];
    assert_eq!(bench.run(&parts), (OK, 513));
    assert_eq!(bench.get(DATA + 3, 509), [0xa5; 509]);
    assert_eq!(bench.get(DATA + 4096, 4), [0xa5, 0xa5, 0xa5, 0]);
    // A write with more room for the status than it needs.
    bench.put(HEADER, &header(OUT, 4));
    bench.put(STATUS - 7, &[UNTOUCHED; 8]);
    assert_eq!(bench.run(&[(HEADER, 16, false), (DATA, 512, false), (STATUS - 7, 8, true)]), (OK, 0));
    assert_eq!(bench.get(STATUS - 7, 7), [UNTOUCHED; 7]);
}

#[test]
fn bad_requests_end_and_the_rest_go_on() {
    let file = image();
    let before = std::fs::metadata(file.path()).unwrap().len();
    for disk in both(file.path()) {
        let mut bench = Bench::new(&disk);
        for (kind, sector, data, status) in [
            (IN, SECTORS, Some((512, true)), IOERR),
            (OUT, SECTORS, Some((512, false)), IOERR),
            (OUT, SECTORS - 1, Some((1024, false)), IOERR),
            (OUT, u64::MAX, Some((512, false)), IOERR),
            (OUT, u64::MAX / 512 + 1, Some((512, false)), IOERR),
            (IN, u64::MAX / 512, Some((1024, true)), IOERR),
            (IN, 0, Some((511, true)), IOERR),
            (OUT, 0, Some((513, false)), IOERR),
            // Data on the wrong side.
            (OUT, 0, Some((512, true)), OK),
            (IN, 0, Some((512, false)), OK),
            (2, 0, Some((512, false)), UNSUPPORTED),
            (OUT | 1 << 31, 0, Some((512, false)), UNSUPPORTED),
            (u32::MAX, 0, None, UNSUPPORTED),
            (DISCARD, 0, None, IOERR),
            (WRITE_ZEROES, 0, Some((15, false)), IOERR),
        ] {
            let (found, written) = bench.request(kind, sector, data);
            assert_eq!(found, status, "{kind} {sector} {data:?}");
            assert!(written <= 1 || status == OK, "{kind} {sector} {data:?}");
        }
        // No header, or half of one.
        assert_eq!(bench.run(&[(STATUS, 1, true)]), (IOERR, 1));
        assert_eq!(bench.run(&[(HEADER, 15, false), (STATUS, 1, true)]), (IOERR, 1));
        // No place for a status: given back all the same.
        assert_eq!(bench.run(&[(HEADER, 16, false)]), (UNTOUCHED, 0));
        assert_eq!(bench.run(&[(HEADER, 16, false), (STATUS, 1, false)]), (UNTOUCHED, 0));
        assert_eq!(bench.request(IN, 0, Some((512, true))), (OK, 513));
    }
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), before);
}

#[test]
fn ranges() {
    let file = image();
    for disk in both(file.path()) {
        let mut bench = Bench::new(&disk);
        file.as_file().write_all_at(&[1; 65536], 0).unwrap();
        let max = MAX_RANGE_SECTORS;
        for (kind, range, status) in [
            (WRITE_ZEROES, range(16, 16, 0), OK),
            (WRITE_ZEROES, range(48, 16, 1), OK),
            (DISCARD, range(80, 8, 0), OK),
            (DISCARD, range(0, 0, 0), OK),
            (DISCARD, range(0, 8, 1), UNSUPPORTED),
            (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
            (WRITE_ZEROES, range(SECTORS - 1, 2, 0), IOERR),
            (WRITE_ZEROES, range(u64::MAX, 8, 0), IOERR),
            (WRITE_ZEROES, range(u64::MAX / 512, 8, 0), IOERR),
            (DISCARD, range(0, max, 0), IOERR),
            (DISCARD, range(0, max + 1, 0), IOERR),
            (WRITE_ZEROES, range(0, u32::MAX, 1), IOERR),
        ] {
            bench.put(DATA, &range);
            assert_eq!(bench.request(kind, 0, Some((16, false))), (status, 1), "{kind} {range:?}");
        }
        // Two segments where we said that there may be one.
        assert_eq!(bench.request(DISCARD, 0, Some((32, false))), (UNSUPPORTED, 1));
        let mut found = [0; 65536];
        file.as_file().read_exact_at(&mut found, 0).unwrap();
        for (sector, bytes) in found.chunks(512).enumerate() {
            let zero = matches!(sector, 16..32 | 48..64);
            let discarded = matches!(sector, 80..88);
            assert!(discarded || bytes == [u8::from(!zero); 512], "sector {sector}");
        }
    }
}

#[test]
fn id() {
    let file = image();
    let mut bench = Bench::new(&options(file.path()));
    assert_eq!(bench.request(GET_ID, 0, Some((20, true))), (OK, 21));
    assert_eq!(bench.get(DATA, 20), b"a serial number\0\0\0\0\0");
    bench.put(DATA, &[UNTOUCHED; 32]);
    assert_eq!(bench.request(GET_ID, 0, Some((8, true))), (OK, 9));
    assert_eq!(bench.get(DATA, 9), b"a serial\xee");
    assert_eq!(bench.request(GET_ID, 0, Some((32, true))), (OK, 20));
    assert_eq!(bench.get(DATA, 21), b"a serial number\0\0\0\0\0\xee");
    assert_eq!(bench.request(GET_ID, 0, None), (OK, 1));
    let long = BlkConfig { serial: "0123456789012345678901234".to_owned(), ..BlkConfig::default() };
    let mut bench = Bench::with(&options(file.path()), &long);
    assert_eq!(bench.request(GET_ID, 0, Some((20, true))), (OK, 21));
    assert_eq!(bench.get(DATA, 20), b"01234567890123456789");
}

#[test]
fn read_only() {
    let file = image();
    let mut bench = Bench::new(&DiskOptions { read_only: true, ..options(file.path()) });
    let features = bench.device.spec().features;
    assert_eq!(features & (FEATURE_RO | FEATURE_DISCARD | FEATURE_WRITE_ZEROES), FEATURE_RO);
    assert_eq!(bench.request(OUT, 0, Some((512, false))), (IOERR, 1));
    bench.put(DATA, &range(0, 8, 0));
    assert_eq!(bench.request(DISCARD, 0, Some((16, false))), (IOERR, 1));
    assert_eq!(bench.request(WRITE_ZEROES, 0, Some((16, false))), (IOERR, 1));
    assert_eq!(bench.request(FLUSH, 0, None), (OK, 1));
    assert_eq!(bench.request(IN, 0, Some((512, true))), (OK, 513));
}

#[test]
fn features_that_are_off() {
    let file = image();
    let config = BlkConfig { max_discard: 0, max_write_zeroes: 0, ..BlkConfig::default() };
    let mut bench = Bench::with(&options(file.path()), &config);
    assert_eq!(bench.device.spec().features & (FEATURE_DISCARD | FEATURE_WRITE_ZEROES), 0);
    bench.put(DATA, &range(0, 8, 0));
    assert_eq!(bench.request(DISCARD, 0, Some((16, false))), (UNSUPPORTED, 1));
    assert_eq!(bench.request(WRITE_ZEROES, 0, Some((16, false))), (UNSUPPORTED, 1));
}

#[test]
fn file_that_shrank_is_an_error_to_the_guest() {
    let file = image();
    for disk in both(file.path()) {
        let mut bench = Bench::new(&disk);
        file.as_file().set_len(4096).unwrap();
        assert_eq!(bench.request(IN, 0, Some((8192, true))).0, IOERR);
        assert_eq!(bench.request(IN, 64, Some((512, true))), (IOERR, 0));
        assert_eq!(bench.request(IN, 0, Some((4096, true))), (OK, 4097));
        file.as_file().set_len(SECTORS * 512).unwrap();
    }
}

#[test]
fn memory_that_is_gone() {
    let file = image();
    let mut bench = Bench::new(&options(file.path()));
    bench.ring.sim.punch(Gpa(DATA).frame());
    assert_eq!(bench.request(IN, 0, Some((512, true))), (IOERR, 0));
    assert_eq!(bench.request(OUT, 0, Some((512, false))), (IOERR, 1));
    bench.ring.sim.punch(Gfn(HEADER >> 12));
    bench.memory.invalidate();
    assert_eq!(bench.run(&[(HEADER, 16, false), (STATUS, 1, true)]), (IOERR, 1));
    // Not even a status can be told: the chain comes back.
    bench.put(DATA + 4096, &header(FLUSH, 0));
    let head = bench.offer(&[(DATA + 4096, 16, false), (DATA, 1, true)]);
    assert_eq!(bench.used(), (u32::from(head), 0));
}

#[test]
fn many_at_once_and_drain() {
    let file = image();
    for disk in both(file.path()) {
        let mut bench = Bench::new(&disk);
        for round in 0..50u64 {
            for index in 0..16 {
                bench.put(HEADER + index * 16, &header(OUT, index * 8));
                bench.put(DATA + index * 4096, &(round * 16 + index).to_le_bytes());
                let at = STATUS + index;
                bench.put(at, &[UNTOUCHED]);
                bench.offer(&[
                    (HEADER + index * 16, 16, false),
                    (DATA + index * 4096, 4096, false),
                    (at, 1, true),
                ]);
            }
            bench.serve();
            bench.worker.drain(&mut bench.queues, 0).unwrap();
            // Whatever is in flight is over: nothing touches the guest any more.
            assert_eq!(bench.queues.get(0).unwrap().in_flight(), 0);
            assert_eq!(bench.get(STATUS, 16), [OK; 16]);
            for _ in 0..16 {
                assert_eq!(bench.ring.take_used().unwrap().1, 1);
            }
            assert_eq!(bench.ring.take_used(), None);
        }
        let mut found = [0; 8];
        file.as_file().read_exact_at(&mut found, 15 * 4096).unwrap();
        assert_eq!(u64::from_le_bytes(found), 49 * 16 + 15);
    }
}

#[test]
fn drains_without_a_queue_and_ignores_others() {
    let file = image();
    let mut bench = Bench::new(&options(file.path()));
    bench.put(HEADER, &header(IN, 0));
    bench.offer(&[(HEADER, 16, false), (DATA, 65536, true), (STATUS, 1, true)]);
    bench.serve();
    bench.queues.remove(0);
    bench.worker.drain(&mut bench.queues, 0).unwrap();
    bench.worker.drain(&mut bench.queues, 7).unwrap();
    assert_eq!(bench.worker.serve(&mut bench.queues, 7).unwrap(), Wake::Kick);
    assert_eq!(bench.worker.serve(&mut bench.queues, 0).unwrap(), Wake::Kick);
}

#[test]
fn configuration_bytes() {
    let file = image();
    let config = BlkConfig { queues: 4, queue_size: 128, ..BlkConfig::default() };
    let blk = Blk::new(&config, Disk::open(&options(file.path())).unwrap()).unwrap();
    assert_eq!(blk.spec().id, 2);
    assert_eq!(blk.spec().features, 0b111_1110_0100_0100);
    let workers: Vec<_> = blk.spec().queues.iter().map(|queue| (queue.max_size, queue.worker)).collect();
    assert_eq!(workers, [(128, 0), (128, 1), (128, 2), (128, 3)]);
    let mut bytes = [0xff; 64];
    blk.config().read(0, &mut bytes);
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(blk.config().len(), CONFIG_LEN);
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), SECTORS);
    assert_eq!((u32_at(8), u32_at(12), u32_at(16), u32_at(20)), (0, 126, 0, 512));
    assert_eq!((u32_at(24), u32_at(28)), (0, 0));
    assert_eq!((bytes[32], bytes[33], bytes[34], bytes[35]), (1, 0, 4, 0));
    assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (4_194_303, 1, 1));
    assert_eq!((u32_at(48), u32_at(52), bytes[56]), (4_194_303, 1, 1));
}

#[test]
fn write_cache() {
    let file = image();
    let disk = |cache| Disk::open(&options(file.path()).cache(cache)).unwrap();
    let shown = |blk: &Blk| {
        let mut byte = [0];
        blk.config().read(CONFIG_WRITEBACK, &mut byte);
        (byte[0], blk.write_cache.load(Ordering::Relaxed))
    };
    let blk = Blk::new(&BlkConfig::default(), disk(Cache::WriteThrough)).unwrap();
    assert_eq!(shown(&blk), (0, false));
    blk.write_config(CONFIG_WRITEBACK, &[7]);
    assert_eq!(shown(&blk), (1, true));
    // What else a driver may write changes nothing.
    blk.write_config(0, &[0xff; 8]);
    blk.write_config(33, &[0xff; 27]);
    blk.write_config(usize::MAX, &[0]);
    let mut capacity = [0; 8];
    blk.config().read(0, &mut capacity);
    assert_eq!((shown(&blk), u64::from_le_bytes(capacity)), ((1, true), SECTORS));
    blk.write_config(28, &[0xff, 0xff, 0xff, 0xff, 0]);
    assert_eq!(shown(&blk), (0, false));
    blk.write_config(CONFIG_WRITEBACK, &[1]);
    blk.reset();
    assert_eq!(shown(&blk), (0, false));
    let on = BlkConfig { write_cache: Some(true), ..BlkConfig::default() };
    assert_eq!(shown(&Blk::new(&on, disk(Cache::WriteThrough)).unwrap()), (1, true));
    assert_eq!(shown(&Blk::new(&BlkConfig::default(), disk(Cache::Unsafe)).unwrap()), (1, true));
}

/// Limits that no test with a real file reaches.
#[test]
fn parsing_at_the_edges() {
    let limits = Limits {
        sectors: u64::MAX / 512,
        block: 4096,
        read_only: false,
        discard: MAX_RANGE_SECTORS,
        write_zeroes: MAX_RANGE_SECTORS,
    };
    let raw = |kind, sector, readable, writable| Raw {
        header: header(kind, sector),
        range: range(sector, 8, 1),
        readable,
        writable,
    };
    let read = |sector, len| parse(&raw(IN, sector, 0, len), &limits, false);
    let whole = Action::Disk { op: Op::Read, offset: 4096, len: 4096 };
    assert_eq!(read(8, 4096), Ok(whole));
    assert_eq!(read(7, 4096), Err(Status::Error), "blocks of 4096");
    assert_eq!(read(8, 512), Err(Status::Error), "blocks of 4096");
    assert_eq!(read((u64::MAX >> 9) & !7, 4096), Err(Status::Error), "the sum wraps");
    assert_eq!(read(1 << 55, 4096), Err(Status::Error), "the product wraps");
    assert_eq!(read(u64::MAX, u64::from(u32::MAX)), Err(Status::Error));
    for durable in [false, true] {
        let op = |request: &Raw| match parse(request, &limits, durable) {
            Ok(Action::Disk { op, .. }) => op,
            other => panic!("{other:?}"),
        };
        assert_eq!(op(&raw(OUT, 8, 4096, 0)), Op::Write { durable });
        assert_eq!(op(&raw(WRITE_ZEROES, 8, 16, 0)), Op::WriteZeroes { unmap: true, durable });
    }
}

#[test]
fn block_sizes() {
    let file = image();
    let disk = || Disk::open(&options(file.path())).unwrap();
    let with = |logical, physical| BlkConfig {
        logical_block_size: Some(logical),
        physical_block_size: Some(physical),
        min_io_size: 8192,
        opt_io_size: 65536,
        discard_granularity: Some(65536),
        ..BlkConfig::default()
    };
    let blk = Blk::new(&with(4096, 16384), disk()).unwrap();
    let mut bytes = [0; 60];
    blk.config().read(0, &mut bytes);
    assert_eq!(bytes[20..32], [0, 0x10, 0, 0, 2, 0, 2, 0, 16, 0, 0, 0]);
    assert_eq!(bytes[44..48], [128, 0, 0, 0]);
    assert!(matches!(Blk::new(&with(1 << 30, 1 << 30), disk()), Err(BlkError::Size(..))));
    assert!(matches!(Blk::new(&with(256, 512), disk()), Err(BlkError::BlockTooSmall(256, 512))));
}

#[test]
fn statistics() {
    let file = image();
    let mut bench = Bench::new(&options(file.path()));
    let statistics = bench.device.statistics();
    assert_eq!(bench.request(IN, 0, Some((4096, true))).0, OK);
    assert_eq!(bench.request(OUT, 8, Some((1024, false))).0, OK);
    assert_eq!(bench.request(FLUSH, 0, None).0, OK);
    assert_eq!(bench.request(IN, u64::MAX, Some((512, true))).0, IOERR);
    let count = |kind| (statistics.count(kind).bytes, statistics.count(kind).operations);
    assert_eq!(count(Kind::Read), (4096, 1));
    assert_eq!(count(Kind::Write), (1024, 1));
    assert_eq!(count(Kind::Flush), (0, 1));
    assert_eq!(count(Kind::Discard), (0, 0));
    assert_eq!((statistics.invalid(), statistics.highest_offset()), (1, 8 * 512 + 1024));
}
