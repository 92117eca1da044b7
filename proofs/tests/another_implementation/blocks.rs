//! The script about the block device: its configuration, and requests good and bad.

use proofs::Subject;
use proofs::driver::*;

use crate::log::Log;

const RING: u64 = 0x10_0000;
const HEADER: u64 = 0x20_0000;
const STATUS_BYTE: u64 = 0x20_1000;
const DATA: u64 = 0x21_0000;
const TABLE_AT: u64 = 0x20_2000;
const SIZE: u16 = 64;
const SECTORS: u64 = crate::DISK / 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub fn configuration(subject: &mut dyn Subject, log: &mut Log) {
    let blk = Function::find(subject, 2);
    log.topic("blk configuration");
    for (name, offset, size) in [
        ("capacity", 0, 8),
        ("size_max", 8, 4),
        ("seg_max", 12, 4),
        ("cylinders", 16, 2),
        ("heads", 18, 1),
        ("sectors", 19, 1),
        ("blk_size", 20, 4),
        ("physical_block_exp", 24, 1),
        ("alignment_offset", 25, 1),
        ("min_io_size", 26, 2),
        ("opt_io_size", 28, 4),
        ("writeback", 32, 1),
        ("num_queues", 34, 2),
        ("max_discard_sectors", 36, 4),
        ("max_discard_seg", 40, 4),
        ("discard_sector_alignment", 44, 4),
        ("max_write_zeroes_sectors", 48, 4),
        ("max_write_zeroes_seg", 52, 4),
        ("write_zeroes_may_unmap", 56, 1),
    ] {
        log.note(name, subject.read(blk.device + offset, size));
    }
    log.hex("capacity, low half", subject.read(blk.device, 4));
    log.hex("capacity, byte 1", subject.read(blk.device + 1, 1));
    blk.negotiate(subject, !0);
    blk.drive(subject);
    for (name, offset, value) in [("capacity", 0, 1), ("writeback", 32, 0), ("writeback", 32, 1)] {
        subject.write(blk.device + offset, 1, value);
        log.note(format_args!("{name} written {value}, now"), subject.read(blk.device + offset, 1));
    }
    subject.write(blk.device + 32, 1, 0);
    blk.set(subject, STATUS, 0);
    log.note("writeback after reset", subject.read(blk.device + 32, 1));
    log.note("generation", blk.get(subject, GENERATION));
}

/// A driver of queue 0.
struct Disk {
    blk: Function,
    ring: Ring,
    features: u64,
}

impl Disk {
    fn new(subject: &mut dyn Subject, features: u64) -> Disk {
        let blk = Function::find(subject, 2);
        let accepted = blk.negotiate(subject, features);
        let ring = Ring::new(subject, &blk, accepted, 0, SIZE, RING);
        blk.drive(subject);
        Disk { blk, ring, features }
    }

    fn prepare(&self, subject: &mut dyn Subject, kind: u32, sector: u64) {
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        subject.ram_write(HEADER, &header);
        subject.ram_write(STATUS_BYTE, &[0xee]);
    }

    /// Makes a request of these parts and notes what comes of it.
    fn request(&mut self, subject: &mut dyn Subject, log: &mut Log, parts: &[Part]) {
        self.ring.chain(subject, 0, parts);
        self.ring.offer(subject, 0);
        self.blk.kick(subject, 0);
        let used = self.ring.wait(subject, &self.blk);
        self.note(subject, log, used, parts);
        if self.blk.get(subject, STATUS) & NEEDS_RESET != 0 {
            *self = Disk::new(subject, self.features);
        }
    }

    fn note(&self, subject: &mut dyn Subject, log: &mut Log, used: Option<(u32, u32)>, parts: &[Part]) {
        let mut byte = [0];
        subject.ram_read(STATUS_BYTE, &mut byte);
        match used {
            None => log.note("ends", "gives up"),
            Some(_) => log.note("ends", format_args!("with {:#x}", byte[0])),
        }
        log.note("used length", format_args!("{:?}", used.map(|(_, len)| len)));
        log.note("head", format_args!("{:?}", used.map(|(head, _)| head)));
        let mut data = Vec::new();
        for (address, len, _) in parts.iter().filter(|(address, _, writable)| *writable && *address >= DATA) {
            let mut part = vec![0; *len as usize];
            subject.ram_read(*address, &mut part);
            data.extend(part);
        }
        let sum = if byte[0] == 0 { sum(&data) } else { 0 };
        log.hex(format_args!("sum of {} bytes", data.len()), sum);
    }
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn fill(subject: &mut dyn Subject, seed: u8) {
    let bytes: Vec<u8> = (0..0x1_0000u32).map(|at| (at / 3) as u8 ^ seed).collect();
    subject.ram_write(DATA, &bytes);
}

/// [`requests`] in a packed ring.
pub fn packed_requests(subject: &mut dyn Subject, log: &mut Log) {
    let disk = Disk::new(subject, VERSION_1 | PACKED);
    assert!(disk.ring.is_packed());
    requests(subject, log);
}

pub fn requests(subject: &mut dyn Subject, log: &mut Log) {
    let header = (HEADER, 16, false);
    let status = (STATUS_BYTE, 1, true);
    let from = |len| (DATA, len, false);
    let to = |len| (DATA, len, true);
    let all = VERSION_1 | EVENT_IDX | INDIRECT | PACKED | IN_ORDER | 0xffff;
    let mut disk = Disk::new(subject, all);

    let plain: &[(&str, u32, u64, &[Part])] = &[
        ("read a sector", IN, 0, &[header, to(512), status]),
        ("read many", IN, 100, &[header, to(0x1_0000), status]),
        ("read into pieces", IN, 7, &[header, to(512), (DATA + 5000, 1024, true), status]),
        ("read into odd pieces", IN, 9, &[header, to(100), (DATA + 777, 1436, true), status]),
        ("read the last", IN, SECTORS - 1, &[header, to(512), status]),
        ("read beyond the end", IN, SECTORS, &[header, to(512), status]),
        ("read over the end", IN, SECTORS - 1, &[header, to(1024), status]),
        ("read far away", IN, u64::MAX, &[header, to(512), status]),
        ("read where bytes wrap", IN, 1 << 55, &[header, to(512), status]),
        ("read part of a sector", IN, 0, &[header, to(100), status]),
        ("read a sector and a part", IN, 0, &[header, to(612), status]),
        ("read nothing", IN, 0, &[header, status]),
        ("status with the data", IN, 3, &[header, (STATUS_BYTE - 512, 513, true)]),
        ("write a sector", OUT, 20, &[header, from(512), status]),
        ("write many", OUT, 30, &[header, from(0x1_0000), status]),
        ("header and data in one", OUT, 300, &[(HEADER, 16 + 512, false), status]),
        (
            "header in pieces",
            OUT,
            301,
            &[(HEADER, 1, false), (HEADER + 1, 14, false), (HEADER + 15, 1, false), from(512), status],
        ),
        ("read what was written", IN, 20, &[header, to(0x1_0000 - 512), status]),
        ("read what else was written", IN, 300, &[header, to(1024), status]),
        ("write beyond the end", OUT, SECTORS, &[header, from(512), status]),
        ("write part of a sector", OUT, 0, &[header, from(100), status]),
        ("write nothing", OUT, 0, &[header, status]),
        ("flush", FLUSH, 0, &[header, status]),
        ("flush with a sector", FLUSH, 99, &[header, status]),
        ("get the id", GET_ID, 0, &[header, to(20), status]),
        ("get the id into more", GET_ID, 0, &[header, to(64), status]),
        ("get the id into less", GET_ID, 0, &[header, to(4), status]),
        ("type 2", 2, 0, &[header, to(512), status]),
        ("type 5", 5, 0, &[header, to(512), status]),
        ("lifetime", 10, 0, &[header, to(512), status]),
        ("secure erase", 14, 0, &[header, from(16), status]),
        ("type 0xffffffff", u32::MAX, 0, &[header, to(512), status]),
        ("zone report", 16, 0, &[header, to(512), status]),
        ("room behind the status", IN, 0, &[header, to(512), (STATUS_BYTE, 2, true)]),
    ];
    for (name, kind, sector, parts) in plain {
        log.topic(name);
        fill(subject, *sector as u8);
        disk.prepare(subject, *kind, *sector);
        disk.request(subject, log, parts);
    }

    for (name, kind, ranges) in [
        ("discard", DISCARD, &[(40u64, 8u32, 0u32)][..]),
        ("discard beyond the end", DISCARD, &[(SECTORS, 1, 0)]),
        ("discard over the end", DISCARD, &[(SECTORS - 1, 2, 0)]),
        ("discard to unmap", DISCARD, &[(40, 8, 1)]),
        ("discard with an unknown flag", DISCARD, &[(40, 8, 2)]),
        ("discard of nothing", DISCARD, &[(40, 0, 0)]),
        ("discard of two ranges", DISCARD, &[(40, 1, 0), (50, 1, 0)]),
        ("write zeroes", WRITE_ZEROES, &[(60, 8, 0)]),
        ("write zeroes and unmap", WRITE_ZEROES, &[(70, 8, 1)]),
        ("write zeroes with an unknown flag", WRITE_ZEROES, &[(70, 8, 2)]),
        ("write zeroes beyond the end", WRITE_ZEROES, &[(SECTORS, 8, 0)]),
        ("write zeroes, too many", WRITE_ZEROES, &[(0, u32::MAX, 0)]),
        ("write zeroes to nothing", WRITE_ZEROES, &[(70, 0, 0)]),
        ("write zeroes, no range", WRITE_ZEROES, &[]),
    ] {
        log.topic(name);
        disk.prepare(subject, kind, 0);
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        subject.ram_write(DATA, &bytes);
        let data = (DATA, bytes.len() as u32, false);
        match bytes.is_empty() {
            true => disk.request(subject, log, &[header, status]),
            false => disk.request(subject, log, &[header, data, status]),
        }
        // So that what is compared in the end is not what a discard left.
        if kind == DISCARD {
            fill(subject, 1);
            disk.prepare(subject, OUT, 40);
            disk.request(subject, &mut Log::default(), &[header, from(8 * 512), status]);
        }
    }

    log.topic("indirect table");
    for (name, kind) in [("read", IN), ("write", OUT)] {
        fill(subject, 9);
        disk.prepare(subject, kind, 500);
        let data = if kind == IN { to(4096) } else { from(4096) };
        let parts = [header, data, status];
        let table = disk.ring.table(&parts);
        subject.ram_write(TABLE_AT, &table);
        disk.ring.descriptor(subject, 5, (TABLE_AT, table.len() as u32, TABLE, 0));
        disk.ring.offer(subject, 5);
        disk.blk.kick(subject, 0);
        let used = disk.ring.wait(subject, &disk.blk);
        log.note(name, "");
        disk.note(subject, log, used, &parts);
    }

    log.topic("several at once");
    fill(subject, 3);
    for index in 0..8u16 {
        let at = HEADER + u64::from(index) * 16;
        let mut header = Vec::from(IN.to_le_bytes());
        header.extend([0; 4]);
        header.extend((u64::from(index) * 11).to_le_bytes());
        subject.ram_write(at, &header);
        subject.ram_write(STATUS_BYTE + u64::from(index), &[0xee]);
        let parts = [
            (at, 16, false),
            (DATA + u64::from(index) * 4096, 4096, true),
            (STATUS_BYTE + u64::from(index), 1, true),
        ];
        disk.ring.chain(subject, index * 3, &parts);
        disk.ring.offer(subject, index * 3);
    }
    disk.blk.kick(subject, 0);
    let mut heads: Vec<_> = (0..8).map(|_| disk.ring.wait(subject, &disk.blk)).collect();
    heads.sort_unstable();
    log.note("heads and lengths", format_args!("{heads:?}"));
    let mut data = vec![0; 8 * 4096];
    subject.ram_read(DATA, &mut data);
    log.hex("sum", sum(&data));
    disk.blk.set(subject, STATUS, 0);
}

/// What breaks a ring or a request so that the device may give up: each time from the start.
pub fn broken(subject: &mut dyn Subject, log: &mut Log) {
    const HOLE: u64 = 0x9000_0000;
    const END: u64 = proofs::RAM;

    let header: Raw = (HEADER, 16, NEXT, 1);
    let status: Raw = (STATUS_BYTE, 1, WRITE, 0);
    let data: Raw = (DATA, 512, NEXT | WRITE, 2);
    let cases: &[(&str, u16, &[Raw])] = &[
        ("all is well", 0, &[header, data, status]),
        ("head out of range", SIZE, &[header, data, status]),
        ("next out of range", 0, &[header, (DATA, 512, NEXT | WRITE, SIZE), status]),
        ("loop", 0, &[header, (DATA, 512, NEXT | WRITE, 1)]),
        ("loop to itself", 0, &[(HEADER, 16, NEXT, 0)]),
        ("readable after writable", 0, &[header, data, (HEADER, 16, NEXT, 3), status]),
        ("header short", 0, &[(HEADER, 15, NEXT, 1), data, status]),
        ("no header", 0, &[(DATA, 512, NEXT | WRITE, 1), (STATUS_BYTE, 1, WRITE, 0)]),
        ("no status byte", 0, &[(HEADER, 16, 0, 0)]),
        ("only a status byte", 0, &[status]),
        ("length zero", 0, &[header, (DATA, 0, NEXT | WRITE, 2), status]),
        ("data in a hole", 0, &[header, (HOLE, 512, NEXT | WRITE, 2), status]),
        ("data over the end of RAM", 0, &[header, (END - 256, 512, NEXT | WRITE, 2), status]),
        ("data that wraps", 0, &[header, (u64::MAX - 255, 512, NEXT | WRITE, 2), status]),
        ("header in a hole", 0, &[(HOLE, 16, NEXT, 1), data, status]),
        ("status in a hole", 0, &[header, data, (HOLE, 1, WRITE, 0)]),
        ("indirect table with next", 0, &[(TABLE_AT, 48, TABLE | NEXT, 1), status]),
        ("indirect table of odd size", 0, &[(TABLE_AT, 50, TABLE, 0)]),
        ("indirect table of nothing", 0, &[(TABLE_AT, 0, TABLE, 0)]),
        ("indirect table in a hole", 0, &[(HOLE, 48, TABLE, 0)]),
        ("indirect table that is writable", 0, &[(TABLE_AT, 48, TABLE | WRITE, 0)]),
        ("indirect in indirect", 0, &[(TABLE_AT + 64, 16, TABLE, 0)]),
        ("unknown flags", 0, &[(HEADER, 16, NEXT | 0xff00, 1), data, status]),
    ];
    for (name, head, descriptors) in cases {
        log.topic(name);
        let mut disk = Disk::new(subject, VERSION_1 | INDIRECT);
        disk.prepare(subject, IN, 1);
        fill(subject, 0);
        let inner = [(HEADER, 16, false), (DATA, 512, true), (STATUS_BYTE, 1, true)];
        let table = disk.ring.table(&inner);
        subject.ram_write(TABLE_AT, &table);
        subject.ram_write(TABLE_AT + 64, &descriptor((TABLE_AT, 48, TABLE, 0)));
        for (index, raw) in (0..).zip(*descriptors) {
            disk.ring.descriptor(subject, index, *raw);
        }
        disk.ring.offer(subject, *head);
        disk.blk.kick(subject, 0);
        let used = disk.ring.wait(subject, &disk.blk);
        let isr = disk.blk.isr(subject, true);
        let mut byte = [0];
        subject.ram_read(STATUS_BYTE, &mut byte);
        // Another request, on the ring's next place.
        disk.prepare(subject, IN, 2);
        disk.ring.chain(subject, 8, &inner);
        disk.ring.offer(subject, 8);
        disk.blk.kick(subject, 0);
        let goes_on = match used {
            Some(_) => disk.ring.wait(subject, &disk.blk).is_some(),
            None => soon(|| disk.ring.take(subject).is_some()),
        };
        let status = disk.blk.get(subject, STATUS);
        let end = match (used, status & NEEDS_RESET != 0, goes_on) {
            (None, true, false) => "gives up".to_owned(),
            (Some((_, len)), false, true) => format!("{:#x}, length {len}", byte[0]),
            other => format!("{other:?}"),
        };
        log.note("ends", end);
        log.note("tells so", (isr & 2 != 0) == (status & NEEDS_RESET != 0));
        if *head == SIZE {
            log.hex("ISR", isr);
        }
        log.hex("ISR again", subject.read(disk.blk.isr, 1) & !1);
    }

    log.topic("available index jumps");
    let mut disk = Disk::new(subject, VERSION_1);
    disk.ring.available = SIZE + 1;
    disk.ring.offer(subject, 0);
    disk.blk.kick(subject, 0);
    log.note("came back", disk.ring.wait(subject, &disk.blk).is_some());
    log.hex("device status", disk.blk.get(subject, STATUS));

    log.topic("reset mends all");
    let mut disk = Disk::new(subject, VERSION_1);
    disk.prepare(subject, IN, 1);
    disk.request(subject, log, &[(HEADER, 16, false), (DATA, 512, true), (STATUS_BYTE, 1, true)]);

    // Rings where none can be: what happens at once, and what when it is used.
    for (name, descriptors, driver, device) in [
        ("descriptors in a hole", HOLE, RING + 0x1_0000, RING + 0x2_0000),
        ("driver area in a hole", RING, HOLE, RING + 0x2_0000),
        ("device area in a hole", RING, RING + 0x1_0000, HOLE),
        ("descriptors over the end of RAM", END - 16, RING + 0x1_0000, RING + 0x2_0000),
    ] {
        log.topic(name);
        let blk = Function::find(subject, 2);
        blk.negotiate(subject, VERSION_1);
        blk.set(subject, QUEUE_SELECT, 0);
        blk.set(subject, QUEUE_SIZE, SIZE.into());
        blk.set(subject, QUEUE_DESC, descriptors);
        blk.set(subject, QUEUE_DRIVER, driver);
        blk.set(subject, QUEUE_DEVICE, device);
        blk.set(subject, QUEUE_ENABLE, 1);
        let mut lost = blk.get(subject, STATUS) & NEEDS_RESET != 0;
        blk.drive(subject);
        blk.kick(subject, 0);
        lost |= soon(|| blk.get(subject, STATUS) & NEEDS_RESET != 0);
        log.note("needs a reset", lost);
        blk.set(subject, STATUS, 0);
    }
}
