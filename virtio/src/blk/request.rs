//! What a block request asks for, and whether it can be done (virtio 1.3 §5.2.6).
//!
//! Everything is checked here, on numbers read once, before the disk hears of it.

use backend::block::Op;
use pci::width;

use crate::ring::halves;

/// Unit of the capacity and of every address in a request, in bytes.
pub(super) const SECTOR: u32 = 1 << SECTOR_SHIFT;
pub(super) const SECTOR_SHIFT: u32 = 9;
/// Length of the header that each request begins with: type, reserved, sector.
pub(super) const HEADER_LEN: usize = 16;
/// Length of the one segment of a discard or write-zeroes request: sector, number of sectors, flags.
pub(super) const RANGE_LEN: usize = 16;
/// Length of the id string.
pub(super) const ID_LEN: usize = 20;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// In the flags of a range: the space behind it may be given back.
const RANGE_UNMAP: u32 = 1;

/// How a request ended: the last byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    Error = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// What requests have to keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Size of the disk.
    pub(super) sectors: u64,
    /// Bytes that every request must be aligned to; a power of two, at least 512.
    pub(super) block: u32,
    pub(super) read_only: bool,
    /// Most sectors of a discard; 0 for a device that has none.
    pub(super) discard: u32,
    /// Most sectors of a write-zeroes request; 0 for a device that has none.
    pub(super) write_zeroes: u32,
}

/// A request, as far as the bytes tell that the driver wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    /// The first bytes of the readable part.
    pub(super) header: [u8; HEADER_LEN],
    /// The next ones, for a request that has a range there; else zeros.
    pub(super) range: [u8; RANGE_LEN],
    /// Readable bytes after the header.
    pub(super) readable: u64,
    /// Writable bytes before the status byte.
    pub(super) writable: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask the disk.
    Disk {
        /// For what.
        op: Op,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Give the driver the id string, or as much of it as there is room for.
    Id,
}

/// Whether requests of this type have a range after the header.
pub(super) fn has_range(header: &[u8; HEADER_LEN]) -> bool {
    matches!(kind(header), TYPE_DISCARD | TYPE_WRITE_ZEROES)
}

/// Says what a request asks for, or how it ends at once.
pub(super) fn parse(raw: &Raw, limits: &Limits, durable: bool) -> Result<Action, Status> {
    match kind(&raw.header) {
        TYPE_IN => data(raw, limits, Op::Read, raw.writable),
        TYPE_OUT if limits.read_only => Err(Status::Error),
        TYPE_OUT => data(raw, limits, Op::Write { durable }, raw.readable),
        TYPE_FLUSH => Ok(Action::Disk { op: Op::Flush, offset: 0, len: 0 }),
        TYPE_GET_ID => Ok(Action::Id),
        TYPE_DISCARD if limits.discard > 0 => range(raw, limits, limits.discard, |flags| match flags {
            0 => Some(Op::Discard),
            _ => None,
        }),
        TYPE_WRITE_ZEROES if limits.write_zeroes > 0 => {
            range(raw, limits, limits.write_zeroes, |flags| match flags {
                0 => Some(Op::WriteZeroes { unmap: false, durable }),
                RANGE_UNMAP => Some(Op::WriteZeroes { unmap: true, durable }),
                _ => None,
            })
        }
        // A device without these is a read-only one, or the user said so.
        TYPE_DISCARD | TYPE_WRITE_ZEROES if limits.read_only => Err(Status::Error),
        _ => Err(Status::Unsupported),
    }
}

fn kind(header: &[u8; HEADER_LEN]) -> u32 {
    let [a, b, c, d, ..] = *header;
    u32::from_le_bytes([a, b, c, d])
}

fn data(raw: &Raw, limits: &Limits, op: Op, len: u64) -> Result<Action, Status> {
    let [.., a, b, c, d, e, f, g, h] = raw.header;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let offset = place(limits, sector, len)?;
    Ok(Action::Disk { op, offset, len })
}

fn range(
    raw: &Raw,
    limits: &Limits,
    most: u32,
    op: impl FnOnce(u32) -> Option<Op>,
) -> Result<Action, Status> {
    // There may be one segment, and we said so: more of them are not looked at.
    if raw.readable != RANGE_LEN as u64 {
        return Err(if raw.readable < RANGE_LEN as u64 { Status::Error } else { Status::Unsupported });
    }
    let (sector, rest) = halves(raw.range);
    let (sectors, flags) = (width::low32(rest), (rest >> 32) as u32);
    let op = op(flags).ok_or(Status::Unsupported)?;
    if sectors > most {
        return Err(Status::Error);
    }
    let len = u64::from(sectors).saturating_mul(SECTOR.into());
    let offset = place(limits, sector, len)?;
    Ok(Action::Disk { op, offset, len })
}

/// The byte at which a transfer of `len` bytes at `sector` begins, if all of it is on the disk and it is
/// made of whole blocks.
fn place(limits: &Limits, sector: u64, len: u64) -> Result<u64, Status> {
    let size = limits.sectors.saturating_mul(SECTOR.into());
    let block = u64::from(limits.block);
    let offset = sector.checked_mul(SECTOR.into()).ok_or(Status::Error)?;
    let end = offset.checked_add(len).ok_or(Status::Error)?;
    if end > size || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(Status::Error);
    }
    Ok(offset)
}
