use super::*;
use crate::{BarIndex, BarKind};

fn space() -> ConfigSpace {
    let index = |index| BarIndex::new(index).unwrap();
    let bars = Bars::none()
        .with(index(0), BarKind::Memory64 { prefetch: true }, 0x1_0000)
        .unwrap()
        .with(index(2), BarKind::Memory32 { prefetch: false }, 0x1000)
        .unwrap();
    let header = Header {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_00_00,
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    };
    ConfigSpace::new(header, bars)
}

#[test]
fn header_is_read_only() {
    let mut space = space();
    for offset in [0x00, 0x08, 0x2c, 0x34] {
        let before = space.read(offset, 4);
        space.write(offset, 4, !before).unwrap();
        assert_eq!(space.read(offset, 4), before, "{offset:#x}");
    }
    assert_eq!(space.read(0, 4), 0x1042_1af4);
    assert_eq!((space.read(8, 1), space.read(9, 1), space.read(0xa, 2)), (1, 0, 0x0100));
    assert_eq!((space.read(0x3c, 1), space.read(0x3d, 1)), (0, 0));
    space.write(0x3c, 2, 0x010b).unwrap();
    assert_eq!(space.read(0x3c, 2), 0x0b, "the line is scratch, the pin is not");
}

#[test]
fn sizing() {
    // (register, value written, value read): all ones tell the size, low bits stay.
    let table = [
        (0x10, 0xffff_ffff, 0xffff_000c),
        (0x14, 0xffff_ffff, 0xffff_ffff),
        (0x18, 0xffff_ffff, 0xffff_f000),
        (0x1c, 0xffff_ffff, 0),
        (0x20, 0xffff_ffff, 0),
        (0x24, 0xffff_ffff, 0),
        (0x30, 0xffff_ffff, 0),
        (0x10, 0x1234_5678, 0x1234_000c),
        (0x18, 0xf000_1fff, 0xf000_1000),
    ];
    let mut space = space();
    for (offset, write, read) in table {
        space.write(offset, 4, write).unwrap();
        assert_eq!(space.read(offset, 4), read, "{offset:#x} <- {write:#x}");
    }
}

#[test]
fn bytes_reach_only_themselves() {
    let mut space = space();
    space.write(0x1a, 2, 0xf123).unwrap();
    assert_eq!(space.read(0x18, 4), 0xf123_0000);
    space.write(0x19, 1, 0x20).unwrap();
    assert_eq!(space.read(0x18, 4), 0xf123_2000);
    space.write(0x1b, 1, 0xe0).unwrap();
    assert_eq!((space.read(0x18, 4), space.read(0x1b, 1), space.read(0x1a, 2)), (0xe023_2000, 0xe0, 0xe023));
    assert_eq!(space.write(0x04, 1, 0xff).unwrap(), Written { register: 4, before: 0, after: 0x46 });
    assert_eq!(space.write(0x05, 1, 0xff).unwrap(), Written { register: 4, before: 0x46, after: 0x546 });
}

#[test]
fn decode_follows_the_command_register() {
    let mut space = space();
    let bars = space.bars();
    space.write(0x10, 4, 0x4000_0000).unwrap();
    space.write(0x14, 4, 0x2).unwrap();
    space.write(0x18, 4, 0xf000_0000).unwrap();
    assert_eq!((bars.base(0), bars.base(2)), (None, None));
    space.write(0x04, 2, 2).unwrap();
    assert_eq!((bars.base(0), bars.base(2)), (Some(0x2_4000_0000), Some(0xf000_0000)));
    // Sizing, half by half, with decode on.
    space.write(0x10, 4, u32::MAX).unwrap();
    assert_eq!(bars.base(0), Some(0x2_ffff_0000));
    space.write(0x14, 4, u32::MAX).unwrap();
    assert_eq!(bars.base(0), None, "up to the end of the address space");
    space.write(0x10, 4, 0).unwrap();
    space.write(0x14, 4, 0).unwrap();
    assert_eq!(bars.base(0), None, "at 0");
    space.write(0x18, 4, u32::MAX).unwrap();
    assert_eq!(bars.base(2), None);
    space.write(0x18, 4, 0xf000_2000).unwrap();
    assert_eq!(bars.base(2), Some(0xf000_2000));
    space.write(0x04, 2, 0).unwrap();
    assert_eq!((bars.base(0), bars.base(2)), (None, None));
    space.write(0x04, 2, 2).unwrap();
    space.reset();
    assert_eq!((bars.base(0), bars.base(2), space.read(0x18, 4), space.read(4, 4)), (None, None, 0, 0));
}

#[test]
fn capabilities_are_chained() {
    let mut space = space();
    let first = space.add_capability(9, &[1, 2, 3], &[0xff]).unwrap();
    let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!((space.read(0x34, 1), space.read(6, 2)), (0x40, 0x10));
    assert_eq!((space.read(0x40, 4), space.read(0x44, 1)), (0x0201_4809, 3));
    assert_eq!((space.read(0x48, 1), space.read(0x49, 1)), (0x11, 0));
    space.write(0x40, 4, u32::MAX).unwrap();
    space.write(0x48, 4, u32::MAX).unwrap();
    assert_eq!((space.read(0x40, 4), space.read(0x48, 4)), (0x02ff_4809, 0xc000_0011));
    space.reset();
    assert_eq!((space.read(0x40, 4), space.read(0x48, 4), space.read(6, 2)), (0x0201_4809, 0x11, 0x10));
    assert_eq!(space.add_capability(9, &[0; 255], &[]), None);
    assert_eq!(space.add_capability(9, &[0; 170], &[]), Some(0x54));
    assert_eq!(space.add_capability(9, &[], &[]), None, "full to the last byte");
}

#[test]
fn past_the_end() {
    let mut space = space();
    assert_eq!((space.read(256, 4), space.read(4095, 1), space.read(u16::MAX, 2)), (u32::MAX, 0xff, 0xffff));
    assert_eq!((space.write(256, 4, 0), space.write(u16::MAX, 1, 0)), (None, None));
}

proptest::proptest! {
    #[test]
    fn never_panics(accesses in proptest::collection::vec((0u16..300, 0u8..9, proptest::num::u32::ANY), 0..200)) {
        let mut space = space();
        let bars = space.bars();
        for (offset, size, value) in accesses {
            space.write(offset, size, value);
            space.read(offset, size);
            assert_eq!(space.read(0, 4), 0x1042_1af4);
            if let Some(base) = bars.base(0) {
                assert!(base != 0 && base % 0x1_0000 == 0 && base.checked_add(0x1_0000).is_some());
            }
        }
    }
}

#[test]
fn what_the_device_sets_the_guest_cannot() {
    let mut space = space();
    space.set_multifunction();
    // A register that shows a state goes back to the first one on reset; the header says the same for ever.
    space.set(0x40, 0x1234_5678);
    space.write(0x40, 4, 0).unwrap();
    space.write(0x0c, 4, 0).unwrap();
    assert_eq!((space.read(0x40, 4), space.read(0x0c, 4)), (0x1234_5678, 0x0080_0000));
    space.reset();
    assert_eq!((space.read(0x40, 4), space.read(0x0c, 4)), (0, 0x0080_0000));
    space.set(0x1000, 1);
}
