use super::*;
use crate::{BarIndex, BarKind, Bars, ConfigSpace, Header, HostBridge};

/// A function that is no host bridge and not virtio: a scratch page behind a BAR.
struct Scratch {
    name: String,
    config: Mutex<ConfigSpace>,
    bars: Arc<Bars>,
    page: Mutex<[u8; 4096]>,
}

impl Scratch {
    fn new(name: &str) -> Arc<Scratch> {
        let bars = Bars::none()
            .with(BarIndex::new(0).unwrap(), BarKind::Memory64 { prefetch: false }, 4096)
            .unwrap();
        let config = ConfigSpace::new(Header { vendor: 0x1234, device: 1, ..Header::default() }, bars);
        let bars = config.bars();
        let page = Mutex::new([0; 4096]);
        Arc::new(Scratch { name: name.to_owned(), config: Mutex::new(config), bars, page })
    }
}

impl Function for Scratch {
    fn name(&self) -> &str {
        &self.name
    }
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.config.lock().unwrap().read(offset, size)
    }
    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.config.lock().unwrap().write(offset, size, value);
    }
    fn bars(&self) -> &Bars {
        &self.bars
    }
    fn bar_read(&self, bar: u8, offset: u64, size: u8) -> u64 {
        assert_eq!(bar, 0);
        let page = self.page.lock().unwrap();
        // More bits than asked for, which the bus must take off.
        (0..8).rev().fold(0, |value, byte| {
            value << 8 | u64::from(page.get(offset as usize + byte).copied().unwrap_or(size))
        })
    }
    fn bar_write(&self, bar: u8, offset: u64, size: u8, value: u64) {
        assert_eq!(bar, 0);
        let bytes = value.to_le_bytes();
        self.page.lock().unwrap()[offset as usize..][..size.into()].copy_from_slice(&bytes[..size.into()]);
    }
    fn reset(&self) {
        self.config.lock().unwrap().reset();
    }
}

fn at(device: u8) -> Bdf {
    Bdf::new(0, device, 0).unwrap()
}

/// Puts the BAR of the function at `at` to `base` and enables decoding.
fn map(bus: &Bus, at: Bdf, base: u64) {
    bus.config_write(at, 0x10, 4, base as u32);
    bus.config_write(at, 0x14, 4, (base >> 32) as u32);
    bus.config_write(at, 0x04, 2, 2);
}

#[test]
fn places() {
    let bus = Bus::new(1);
    assert_eq!(bus.first_free_slot(), Some(at(0)));
    bus.insert(at(0), Arc::new(HostBridge::new())).unwrap();
    bus.insert(at(2), Scratch::new("two")).unwrap();
    assert_eq!(bus.first_free_slot(), Some(at(1)));
    bus.insert(Bdf::new(0, 1, 3).unwrap(), Scratch::new("one")).unwrap();
    assert_eq!(bus.first_free_slot(), Some(at(3)));
    let error = bus.insert(at(2), Scratch::new("again")).unwrap_err();
    assert_eq!(error.to_string(), "PCI: slot 2 function 0 not available for again, in use by two");
    let error = bus.insert(Bdf::new(1, 0, 0).unwrap(), Scratch::new("far")).unwrap_err();
    assert_eq!(error.to_string(), "PCI: no bus 1 for far");
    let names: Vec<_> =
        bus.functions().iter().map(|(bdf, function)| format!("{bdf} {}", function.name())).collect();
    assert_eq!(names, ["00:00.0 gpex-root", "00:01.3 one", "00:02.0 two"]);
    assert_eq!(bus.get(at(2)).unwrap().name(), "two");
    assert!(bus.get(at(1)).is_none());
    for device in 3..32 {
        bus.insert(at(device), Scratch::new("more")).unwrap();
    }
    assert_eq!(bus.first_free_slot(), None);
}

#[test]
fn config_accesses() {
    let bus = Bus::new(256);
    bus.insert(at(4), Scratch::new("four")).unwrap();
    assert_eq!((bus.config_read(at(4), 0, 4), bus.config_read(at(4), 2, 2)), (0x0001_1234, 1));
    for (bdf, offset, size, expected) in [
        (at(5), 0, 4, 0xffff_ffff),
        (at(5), 0, 1, 0xff),
        (at(4), 1, 2, 0xffff),
        (at(4), 0, 3, 0xff_ffff),
        (at(4), 0, 8, 0xffff_ffff),
        (at(4), 0, 0, 0),
        (at(4), 4096, 4, 0xffff_ffff),
        (at(4), 256, 4, 0xffff_ffff),
    ] {
        assert_eq!(bus.config_read(bdf, offset, size), expected, "{bdf} {offset:#x}/{size}");
        bus.config_write(bdf, offset, size, 0);
    }
}

#[test]
fn memory_accesses() {
    let bus = Bus::new(1);
    bus.insert(at(1), Scratch::new("a")).unwrap();
    bus.insert(at(2), Scratch::new("b")).unwrap();
    assert_eq!(bus.mmio_read(0, 4), None);
    map(&bus, at(1), 0x10_0000_0000);
    map(&bus, at(2), 0xf000_0000);
    assert!(bus.mmio_write(0x10_0000_0010, 8, 0x1122_3344_5566_7788));
    assert!(bus.mmio_write(0xf000_0010, 2, 0xffff_abcd));
    assert_eq!(bus.mmio_read(0x10_0000_0010, 8), Some(0x1122_3344_5566_7788));
    assert_eq!(bus.mmio_read(0x10_0000_0011, 1), Some(0x77));
    assert_eq!(bus.mmio_read(0xf000_0010, 4), Some(0xabcd));
    for (address, size) in [
        (0x10_0000_0ffd, 4),
        (0x10_0000_1000, 1),
        (0xefff_ffff, 1),
        (0xf000_0000, 3),
        (0xf000_0000, 0),
        (u64::MAX, 8),
    ] {
        assert_eq!(bus.mmio_read(address, size), None, "{address:#x}/{size}");
        assert!(!bus.mmio_write(address, size, 0));
    }
    let decoded = bus.mmio(0xf000_0ff8, 8).unwrap();
    assert_eq!((decoded.function.name(), decoded.bar, decoded.offset), ("b", 0, 0xff8));
    // One BAR over another: the first function has it.
    map(&bus, at(2), 0x10_0000_0000);
    assert_eq!(bus.mmio(0x10_0000_0000, 4).unwrap().function.name(), "a");
    bus.config_write(at(1), 4, 2, 0);
    assert_eq!(bus.mmio(0x10_0000_0000, 4).unwrap().function.name(), "b");
    bus.reset();
    assert!(bus.mmio(0x10_0000_0000, 4).is_none());
}
