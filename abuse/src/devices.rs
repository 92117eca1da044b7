//! Abuse by what the requests say.

use anyhow::{Context, Result, ensure};

use crate::catalogue::{Abuse, only};
use crate::transport::request;
use crate::virtio::*;

const SECTOR: u64 = 512;
/// Request types of a block device (virtio 1.3 §5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const SCSI: u32 = 2;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Length of the header of a frame.
const HEADER: usize = 12;

pub const ABUSES: &[Abuse] = &[
    only(Kind::Blk, 22, "sectors and lengths that wrap or go over the end", |_, device| {
        let capacity = device.bar().read(device.places.device.0, 8);
        let places = [
            (capacity, SECTOR),
            (capacity - 1, 2 * SECTOR),
            (capacity - 100, 101 * SECTOR),
            (u64::MAX, SECTOR),
            (u64::MAX / SECTOR, 2 * SECTOR),
            (u64::MAX - 1, 4 * SECTOR),
            (1 << 55, SECTOR),
            (8, SECTOR - 1),
            (8, 1),
        ];
        for (sector, len) in places {
            for (kind, flags) in [(IN, WRITE), (OUT, 0)] {
                refused(device, kind, sector, &[(device.buffer(0x1000), len as u32, flags)])?;
                // The sum counts, not each part of it.
                let (half, rest) = (len / 2, len - len / 2);
                let parts = [
                    (device.buffer(0x1000), half as u32, flags),
                    (device.buffer(0x2000), rest as u32, flags),
                ];
                refused(device, kind, sector, &parts)?;
            }
        }
        device.is_well()
    }),
    only(Kind::Blk, 22, "request types that are not offered, SCSI among them", |_, device| {
        for kind in [SCSI, 3, 5, 9, 10, 14, 0x8000_0000, u32::MAX] {
            for flags in [0, WRITE] {
                refused(device, kind, 0, &[(device.buffer(0x1000), 512, flags)])?;
            }
        }
        device.is_well()
    }),
    only(Kind::Blk, 22, "discards and write-zeroes by the million, wrapping, with odd flags", |_, device| {
        let segments: [(u64, u32, u32); 6] = [
            (0, u32::MAX, 0),
            (u64::MAX, 8, 0),
            (u64::MAX - 7, 8, 1),
            (1 << 54, 1 << 31, 0),
            (8, 8, 0xffff_fffe),
            (8, 0xffff_fff8, 1),
        ];
        for kind in [DISCARD, WRITE_ZEROES] {
            for (sector, count, flags) in segments {
                for at in (0..0x8_0000).step_by(16).take(if sector == 0 { 0x8000 } else { 1 }) {
                    let at = BUFFERS + 0x1000 + at;
                    device.memory.write(at, 8, sector);
                    device.memory.write(at + 8, 8, u64::from(count) | u64::from(flags) << 32);
                }
                for len in [16, 15, 17, 0, 32, 0x8_0000] {
                    refused(device, kind, 0, &[(device.buffer(0x1000), len, 0)])?;
                }
            }
        }
        device.is_well()
    }),
    only(
        Kind::Blk,
        22,
        "a header in sixteen pieces, a flush with data, an id with room for one byte",
        |_, device| {
            let header = device.disk_header(IN, 0).0;
            let mut chain: Vec<Buffer> = (0..16).map(|byte| (header + byte, 1, 0)).collect();
            chain.extend([(device.buffer(0x1000), 512, WRITE), (device.buffer(0x100), 1, WRITE)]);
            device.memory.write(BUFFERS + 0x100, 1, 0xee);
            device.data().carry_out(&chain)?;
            ensure!(device.memory.read(BUFFERS + 0x100, 1) == 0, "the header in pieces was not understood");
            for (kind, len, flags) in [
                (FLUSH, 4096, 0),
                (FLUSH, 4096, WRITE),
                (GET_ID, 1, WRITE),
                (GET_ID, 0, WRITE),
                (GET_ID, 0x8_0000, WRITE),
            ] {
                device.disk(kind, u64::MAX, &[(device.buffer(0x1000), len, flags)])?;
            }
            device.is_well()
        },
    ),
    only(Kind::Blk, 22, "requests without header, status or both", |_, device| {
        let header = device.disk_header(IN, 0);
        let data = (device.buffer(0x1000), 512, WRITE);
        let status = (device.buffer(0x100), 1, WRITE);
        for chain in [
            &[header][..],
            &[(header.0, 8, 0), status],
            &[status],
            &[data],
            &[header, (status.0, 1, 0)],
            &[header, (status.0, 0, WRITE)],
            &[(0, 0, 0)],
        ] {
            answered_or_broken(device, chain)?;
        }
        Ok(())
    }),
    only(Kind::Net, 23, "frames that are cut off, too long, or lie about their offloads", |_, device| {
        let frame = arp_request();
        device.memory.write_bytes(BUFFERS, &frame);
        for len in (0..16).chain([0xffff, 0x1_0001, 0x8_0000]) {
            answered_or_broken(device, &[(device.buffer(0), len, 0)])?;
        }
        // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
        let headers: [[u8; HEADER]; 8] = [
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            [1, 0, 0, 0, 0, 0, 59, 0, 60, 0, 0, 0],
            [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            [1, 1, 0xff, 0xff, 1, 0, 34, 0, 16, 0, 0, 0],
            [0, 4, 54, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
            [0xff; HEADER],
            [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            [1, 0x85, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        ];
        for header in headers {
            device.memory.write_bytes(BUFFERS, &header);
            for len in [HEADER, 13, frame.len(), 0xfff0] {
                answered_or_broken(device, &[(device.buffer(0), len as u32, 0)])?;
            }
        }
        Ok(())
    }),
    only(Kind::Net, 23, "a frame in a hundred pieces", |_, device| {
        device.memory.write_bytes(BUFFERS, &arp_request());
        let pieces: Vec<Buffer> = (0..72).map(|at| (device.buffer(at), 1, 0)).collect();
        answered_or_broken(device, &pieces)?;
        device.is_well()
    }),
    only(Kind::Net, 23, "buffers to receive that hold nothing, a byte, or are to be read", |_, device| {
        for (len, flags) in [(0, WRITE), (1, WRITE), (11, WRITE), (20, WRITE), (64, 0)] {
            let receive = device.queue(0);
            for head in 0..receive.size() {
                receive.put(head, (device.buffer(0x8_0000 + head * 64), len, flags), 0);
                receive.offer(head as u16);
            }
            receive.kick();
            for _ in 0..4 {
                answered_or_broken(device, &request(device))?;
            }
            device.restart()?;
        }
        Ok(())
    }),
    only(Kind::Net, 23, "commands that are cut off, unknown, or too much", |_, device| {
        for command in [
            &[][..],
            &[0],
            &[0, 0],
            &[0xff, 0xff, 1],
            &[0, 0, 1, 1],
            &[1, 0, 0xff, 0xff, 0xff, 0xff],
            &[1, 0, 0, 0, 0, 0x40, 0, 0, 0, 0],
            &[1, 1, 2, 0],
            &[2, 0, 0, 0x10],
            &[4, 0, 0, 0],
            &[4, 0, 0xff, 0xff],
            &[4, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0xee; 0x4000],
        ] {
            let answer = device.command(command)?;
            ensure!(
                answer == 1,
                "the command {:x?} has the answer {answer}",
                &command[..command.len().min(8)]
            );
        }
        device.is_well()
    }),
    only(
        Kind::Net,
        23,
        "a command without room for the answer, and a MAC table of all the buffers",
        |_, device| {
            let control = device.queue(device.queues() - 1);
            control.carry_out(&[(device.buffer(0), 3, 0)])?;
            device.memory.write_bytes(BUFFERS, &[1, 0, 0, 0, 2, 0]);
            control.carry_out(&[(device.buffer(0), 0xf_0000, 0), (device.buffer(0xf_8000), 1, WRITE)])?;
            device.is_well()
        },
    ),
    only(Kind::Rng, 25, "two hundred times the same megabyte of randomness", |_, device| {
        let given = device.data().carry_out(&[(device.buffer(0), 0x10_0000, WRITE); 7])?;
        ensure!(given <= 0x1_0000, "{given} random bytes at once");
        for _ in 0..200 {
            device.data().carry_out(&[(device.buffer(0), 0x10_0000, WRITE)])?;
        }
        device.is_well()
    }),
    only(Kind::Rng, 25, "randomness into what is to be read, and into nothing", |_, device| {
        answered_or_broken(device, &[(device.buffer(0), 64, 0)])?;
        answered_or_broken(device, &[(device.buffer(0), 0, WRITE)])
    }),
];

/// The disk answers, and does not say that it is well.
fn refused(device: &Device, kind: u32, sector: u64, data: &[Buffer]) -> Result<()> {
    let describe = || format!("request {kind} at sector {sector:#x} of {data:x?}");
    let status = device.disk(kind, sector, data).with_context(describe)?;
    ensure!(matches!(status, 1 | 2), "{} ends with {status}", describe());
    Ok(())
}

/// The chain comes back, or the device says that it needs a reset and gets it.
fn answered_or_broken(device: &Device, chain: &[Buffer]) -> Result<()> {
    let queue = device.data();
    let before = queue.used();
    queue.offer_chain(chain);
    queue.kick();
    until(std::time::Duration::from_secs(15), || queue.used() != before || device.needs_reset())
        .with_context(|| format!("the chain {chain:x?}"))?;
    if device.needs_reset() {
        device.restart()?;
    }
    Ok(())
}
