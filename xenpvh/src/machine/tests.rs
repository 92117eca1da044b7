//! The machine behind a real ioreq loop, on a domain without Xen.

use std::sync::Mutex;
use std::thread;

use domain::{PAGE_SIZE, SharedDomain};
use memory::Region;
use pci::{BarIndex, BarKind, Bars, ConfigSpace, Function, Header, HostBridge};
use sim::{SimDomain, Vcpu};

use super::*;

const RAM: u64 = 1 << 20;
const BAR: u64 = 0xfd00_0000;

/// A function whose one BAR is a page of bytes: not virtio, so the machine is no friend of virtio's.
struct Scratch {
    bars: Arc<Bars>,
    bytes: Mutex<[u8; PAGE_SIZE]>,
    config: Mutex<ConfigSpace>,
}

impl Scratch {
    fn new() -> Scratch {
        let bars = Bars::none().with(
            BarIndex::new(0).unwrap(),
            BarKind::Memory32 { prefetch: false },
            PAGE_SIZE as u64,
        );
        let header = Header { vendor: 0x1234, device: 1, class: 0xff_0000, ..Header::default() };
        let config = ConfigSpace::new(header, bars.unwrap());
        Scratch { bars: config.bars(), bytes: Mutex::new([0; PAGE_SIZE]), config: Mutex::new(config) }
    }
}

impl Function for Scratch {
    fn name(&self) -> &str {
        "scratch"
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

    fn bar_read(&self, _bar: u8, offset: u64, size: u8) -> u64 {
        let mut value = [0; 8];
        let (at, size) = (offset as usize, usize::from(size));
        value[..size].copy_from_slice(&self.bytes.lock().unwrap()[at..at + size]);
        u64::from_le_bytes(value)
    }

    fn bar_write(&self, _bar: u8, offset: u64, size: u8, value: u64) {
        let (at, size) = (offset as usize, usize::from(size));
        self.bytes.lock().unwrap()[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    fn reset(&self) {}
}

/// A machine under test, its guest, and the threads that serve it.
struct Bench {
    domain: Arc<SimDomain>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Bench {
    fn new(vcpus: u32) -> Bench {
        let domain = SimDomain::new(vcpus, &[(Gpa(0), RAM)]).unwrap();
        let shared: SharedDomain = domain.clone();
        let memory = GuestMemory::new(shared, &[Region { start: Gpa(0), size: RAM }]).unwrap();
        let layout = Layout::stock(RAM, 40);
        let bus = Arc::new(Bus::new(layout.buses()));
        bus.insert(Bdf::default(), Arc::new(HostBridge::new())).unwrap();
        bus.insert(Bdf::new(0, 1, 0).unwrap(), Arc::new(Scratch::new())).unwrap();
        let machine = Arc::new(Machine::new(layout, bus, memory));
        let threads = crate::ioreq::serve(&*domain, &machine).unwrap();
        Bench { domain, threads }
    }

    fn vcpu(&self, index: u32) -> Vcpu {
        self.domain.vcpu(index)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.domain.stop();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn ecam(device: u64, register: u64) -> u64 {
    0xfc80_0000 + (device << 15) + register
}

/// Gives the scratch function's BAR an address and lets it decode memory.
fn place_bar(vcpu: &Vcpu) {
    vcpu.mmio_write(ecam(1, 0x10), 4, BAR).unwrap();
    vcpu.mmio_write(ecam(1, 4), 2, 2).unwrap();
}

#[test]
fn finds_functions_by_ecam_and_by_ports() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    assert_eq!(vcpu.mmio_read(ecam(0, 0), 4).unwrap(), 0x0008_1b36);
    assert_eq!(vcpu.mmio_read(ecam(0, 2), 2).unwrap(), 0x0008);
    assert_eq!(vcpu.mmio_read(ecam(9, 0), 4).unwrap() as u32, u32::MAX);
    assert_eq!(vcpu.config_read(0, 0, 4).unwrap(), 0x0008_1b36);
    assert_eq!(vcpu.config_read(0, 0x0a, 2).unwrap(), 0x0600);
    assert_eq!(vcpu.config_read(9 << 3, 0, 4).unwrap() as u32, u32::MAX);
    assert_eq!(vcpu.config_read(0x0123_0000, 0, 4).unwrap() as u32, u32::MAX, "another segment");
}

#[test]
fn the_address_port_latches_whole_writes_only() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    vcpu.port_write(0xcf8, 4, 0x8000_0000).unwrap();
    vcpu.port_write(0xcfb, 1, 1).unwrap();
    vcpu.port_write(0xcf8, 2, 0xffff).unwrap();
    assert_eq!(vcpu.port_read(0xcf8, 4).unwrap(), 0x8000_0000);
    assert_eq!(vcpu.port_read(0xcf8, 1).unwrap() as u8, 0xff);
    assert_eq!(vcpu.port_read(0x70, 1).unwrap() as u8, 0xff);
    assert_eq!(vcpu.port_read(TIMER_CHANNEL_2, 1).unwrap(), 0, "the timer that is not there");
}

#[test]
fn reaches_bars_where_the_guest_put_them() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    assert_eq!(vcpu.mmio_read(BAR, 4).unwrap() as u32, u32::MAX, "nothing there yet");
    place_bar(&vcpu);
    vcpu.mmio_write(BAR + 8, 8, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(vcpu.mmio_read(BAR + 8, 8).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(vcpu.mmio_read(BAR + 10, 2).unwrap(), 0x5566);
    vcpu.mmio_write(ecam(1, 4), 2, 0).unwrap();
    assert_eq!(vcpu.mmio_read(BAR + 8, 4).unwrap() as u32, u32::MAX, "memory decode is off");
}

#[test]
fn string_instructions_move_data_between_ram_and_device() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    place_bar(&vcpu);
    bench.domain.ram_write(Gpa(0x2000), &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut request = Ioreq {
        access: Access::Memory,
        direction: Direction::Write,
        address: BAR,
        data: 0x2000,
        count: 4,
        size: 2,
        data_is_pointer: true,
        downwards: false,
    };
    vcpu.access(&request).unwrap();
    assert_eq!(vcpu.mmio_read(BAR, 8).unwrap(), 0x0807_0605_0403_0201);

    request =
        Ioreq { direction: Direction::Read, address: BAR + 6, data: 0x3006, downwards: true, ..request };
    vcpu.access(&request).unwrap();
    let mut back = [0; 8];
    bench.domain.ram_read(Gpa(0x3000), &mut back);
    assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn nonsense_is_answered_with_all_ones() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    place_bar(&vcpu);
    let plain = Ioreq {
        access: Access::Memory,
        direction: Direction::Read,
        address: BAR,
        data: 0,
        count: 1,
        size: 3,
        data_is_pointer: false,
        downwards: false,
    };
    assert_eq!(vcpu.access(&plain).unwrap(), u64::MAX);
    for address in [0, RAM, u64::MAX, u64::MAX - 3, BAR + PAGE_SIZE as u64 - 2] {
        let request = Ioreq { size: 4, address, ..plain };
        assert_eq!(vcpu.access(&request).unwrap() as u32, u32::MAX, "{address:#x}");
    }
    // Pointers out of RAM, and counts that no honest Xen sends.
    for direction in [Direction::Read, Direction::Write] {
        let request = Ioreq {
            direction,
            size: 8,
            count: u32::MAX,
            data: u64::MAX - 8,
            data_is_pointer: true,
            downwards: true,
            ..plain
        };
        vcpu.access(&request).unwrap();
    }
    let config = Ioreq { access: Access::Config, size: 8, ..plain };
    assert_eq!(vcpu.access(&config).unwrap(), u64::MAX);
    vcpu.access(&Ioreq { access: Access::Other(7), size: 8, ..plain }).unwrap();
    assert_eq!(vcpu.mmio_read(ecam(0, 0), 4).unwrap(), 0x0008_1b36, "still there");
}

#[test]
fn vcpus_do_not_wait_for_each_other() {
    let bench = Bench::new(4);
    place_bar(&bench.vcpu(0));
    thread::scope(|scope| {
        for index in 0..4 {
            let vcpu = bench.vcpu(index);
            scope.spawn(move || {
                let at = BAR + u64::from(index) * 8;
                for value in 0..500 {
                    vcpu.mmio_write(at, 8, value).unwrap();
                    assert_eq!(vcpu.mmio_read(at, 8).unwrap(), value);
                }
            });
        }
    });
}

#[test]
fn invalidate_drops_every_mapping() {
    let bench = Bench::new(1);
    let vcpu = bench.vcpu(0);
    place_bar(&vcpu);
    let request = Ioreq {
        access: Access::Memory,
        direction: Direction::Write,
        address: BAR,
        data: 0x2000,
        count: 1,
        size: 8,
        data_is_pointer: true,
        downwards: false,
    };
    vcpu.access(&request).unwrap();
    assert_ne!(bench.domain.mapped_frames(), 0);
    vcpu.invalidate().unwrap();
    assert_eq!(bench.domain.mapped_frames(), 0);
    vcpu.access(&request).unwrap();
}
