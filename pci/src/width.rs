//! Accesses of fewer bytes than the register they fall in.

/// The low `size` bytes set; all of them from 8 on.
pub const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1u64 << (size as u32).wrapping_mul(8)).wrapping_sub(1) }
}

/// The low byte of a register or of what is written to one.
pub const fn low8(value: u64) -> u8 {
    (value & 0xff) as u8
}

/// The low 16 bits.
pub const fn low16(value: u64) -> u16 {
    (value & 0xffff) as u16
}

/// The low 32 bits.
pub const fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// What an access of `size` bytes reads where nothing answers: all ones.
pub const fn absent(size: u8) -> u64 {
    mask(size)
}

/// The piece of `value`, a register of up to 8 bytes, that an access at byte `at` of it reads.
pub const fn extract(value: u64, at: u32, size: u8) -> u64 {
    match value.checked_shr(at.wrapping_mul(8)) {
        Some(shifted) => shifted & mask(size),
        None => 0,
    }
}

/// The register `old` after an access wrote the low `size` bytes of `value` at byte `at` of it.
pub const fn insert(old: u64, at: u32, size: u8, value: u64) -> u64 {
    let shift = at.wrapping_mul(8);
    match (mask(size).checked_shl(shift), (value & mask(size)).checked_shl(shift)) {
        (Some(mask), Some(value)) => old & !mask | value,
        _ => old,
    }
}

/// Splits an access to `size` bytes at `offset` into naturally aligned ones of at most `largest` bytes,
/// low first: (offset, size, byte of the whole at which it starts).
pub fn pieces(offset: u64, size: u8, largest: u8) -> impl Iterator<Item = (u64, u8, u32)> {
    let mut done = 0u8;
    std::iter::from_fn(move || {
        let left = size.checked_sub(done).filter(|left| *left > 0)?;
        let at = offset.wrapping_add(u64::from(done));
        let mut piece = largest.max(1);
        while piece > left || !at.is_multiple_of(u64::from(piece)) {
            piece /= 2;
        }
        let start = u32::from(done);
        done = done.saturating_add(piece);
        Some((at, piece, start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_low_first() {
        let split = |offset, size, largest| pieces(offset, size, largest).collect::<Vec<_>>();
        assert_eq!(split(0x10, 4, 4), [(0x10, 4, 0)]);
        assert_eq!(split(0x10, 8, 4), [(0x10, 4, 0), (0x14, 4, 4)]);
        assert_eq!(split(0x11, 4, 4), [(0x11, 1, 0), (0x12, 2, 1), (0x14, 1, 3)]);
        assert_eq!(split(0x13, 2, 4), [(0x13, 1, 0), (0x14, 1, 1)]);
        assert_eq!(split(0x10, 3, 4), [(0x10, 2, 0), (0x12, 1, 2)]);
        assert_eq!(split(u64::MAX, 2, 4), [(u64::MAX, 1, 0), (0, 1, 1)]);
        assert_eq!(split(0, 0, 4), []);
    }

    #[test]
    fn insert_and_extract() {
        assert_eq!(insert(0x1122_3344, 1, 2, 0xffff_abcd), 0x11ab_cd44);
        assert_eq!(extract(0x1122_3344, 1, 2), 0x2233);
        assert_eq!(insert(7, 8, 4, 1), 7);
        assert_eq!(extract(7, 8, 4), 0);
        assert_eq!((low8(0x1234_5678_9abc), low16(0x1234_5678_9abc)), (0xbc, 0x9abc));
        assert_eq!(low32(0x1234_5678_9abc), 0x5678_9abc);
        assert_eq!((mask(0), mask(1), mask(4), mask(8)), (0, 0xff, 0xffff_ffff, u64::MAX));
    }
}
