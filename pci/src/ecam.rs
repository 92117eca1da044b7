//! The enhanced configuration access mechanism (PCIe 6.1 §7.2.2): configuration space as memory, 4 KiB a
//! function, 1 MiB a bus.

use crate::{Bdf, Bus, width};

/// Bytes of address space that a bus takes.
pub const BUS_SIZE: u64 = 1 << 20;

/// The function and the register at `offset` of the ECAM region. Bits above 27 are not looked at.
pub const fn decode(offset: u64) -> (Bdf, u16) {
    (Bdf::from_bits((offset >> 12 & 0xffff) as u16), (offset & 0xfff) as u16)
}

/// Reads `size` bytes at `offset` of the ECAM region. Accesses that are not aligned or longer than 4
/// bytes are split into ones that are, low first.
pub fn read(bus: &Bus, offset: u64, size: u8) -> u64 {
    width::pieces(offset, size, 4).fold(0, |value, (at, size, start)| {
        let (bdf, register) = decode(at);
        width::insert(value, start, size, bus.config_read(bdf, register, size).into())
    })
}

/// Writes the low `size` bytes of `value`, split as [`read`] does.
pub fn write(bus: &Bus, offset: u64, size: u8, value: u64) {
    for (at, size, start) in width::pieces(offset, size, 4) {
        let (bdf, register) = decode(at);
        bus.config_write(bdf, register, size, width::low32(width::extract(value, start, size)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::HostBridge;

    #[test]
    fn decodes() {
        assert_eq!(decode(0), (Bdf::default(), 0));
        assert_eq!(decode(0x0123_4567), (Bdf::new(0x12, 6, 4).unwrap(), 0x567));
        assert_eq!(decode(0xfff_ffff), (Bdf::new(0xff, 31, 7).unwrap(), 0xfff));
    }

    #[test]
    fn splits_what_is_not_aligned() {
        let bus = Bus::new(1);
        bus.insert(Bdf::default(), Arc::new(HostBridge::new())).unwrap();
        assert_eq!(read(&bus, 0, 4), 0x0008_1b36);
        assert_eq!(read(&bus, 0, 8), 0x0008_1b36);
        assert_eq!((read(&bus, 2, 8), read(&bus, 4, 8)), (8, 0x0600_0000 << 32));
        assert_eq!(read(&bus, 1, 2), 0x081b);
        assert_eq!(read(&bus, 0x3b, 8), 0);
        write(&bus, 0x3b, 2, 0xabcd);
        assert_eq!(read(&bus, 0x3c, 1), 0xab);
        // An absent function and what is beyond 256 bytes.
        assert_eq!(read(&bus, 0x8000, 4), 0xffff_ffff);
        assert_eq!(read(&bus, 0x100, 8), u64::MAX);
        assert_eq!(read(&bus, 0xfe, 4), 0xffff_0000);
        assert_eq!(read(&bus, u64::MAX, 8), 0x0000_0000_081b_36ff);
    }
}
