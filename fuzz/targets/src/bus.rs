//! The whole machine: any accesses to configuration space, BARs and ports, and any bytes in the rings.
//!
//! The functions are real and on their own threads; only the host is made of memory. Whatever was done to them,
//! a reset device must work, nothing may stay mapped, and only real interrupts may have been sent.

mod accesses;
mod drivers;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use backend::block::{Disk, DiskOptions, EngineChoice};
use domain::{Access, Direction, Domain, Gfn, Ioreq};
use pci::{Bdf, Bus, Function, HostBridge};
use virtio::blk::{Blk, BlkConfig};
use virtio::{Device, Placement, Rng, VirtioPci};
use virtio::{FEATURE_ACCESS_PLATFORM, FEATURE_IN_ORDER, FEATURE_NOTIFICATION_DATA, FEATURE_RING_PACKED};
use xenpvh::layout::Layout;
use xenpvh::machine::Machine;

use crate::guest::Guest;
use crate::{blk_request, net_control};
use accesses::Step;

const RAM: u64 = 4 << 20;
/// Bytes of the image.
const IMAGE: u64 = 256 << 10;
/// Most steps of one input: what more would find, shorter ones find sooner.
const MOST_STEPS: usize = 400;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setup {
    uring: bool,
    read_only: bool,
    discard: bool,
    vectors: Option<u8>,
    /// Place the BARs and let everything work from the start.
    ready: bool,
    /// Offer all that queues can do.
    everything: bool,
}

/// A virtio function and what a driver has to know of it.
struct Slot {
    place: Bdf,
    /// Where its BAR goes.
    bar: u64,
    id: u16,
    queues: u16,
}

/// The machine, its guest, and the host's end of its devices.
struct Bench {
    guest: Guest,
    machine: Machine,
    bus: Arc<Bus>,
    slots: [Slot; 3],
    rings: Vec<drivers::Queue>,
    peers: Vec<OwnedFd>,
    read_only: bool,
    _image: File,
}

const BLK: usize = 0;
const RNG: usize = 1;
const NET: usize = 2;
/// Features that a user has to ask for.
const OPTIONAL: u64 =
    FEATURE_RING_PACKED | FEATURE_IN_ORDER | FEATURE_NOTIFICATION_DATA | FEATURE_ACCESS_PLATFORM;
const FIRST_BAR: u64 = 4 << 30;
const BAR_SIZE: u64 = 64 << 10;

/// Plays a guest to the machine.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut input) else { return };
    let mut bench = Bench::new(setup);
    if setup.ready {
        (0..bench.slots.len()).for_each(|slot| bench.place(slot));
    }
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        bench.play(step);
    }
    bench.settle();
    bench.check();
}

impl Bench {
    fn new(setup: Setup) -> Bench {
        let guest = Guest::new(RAM);
        let layout = Layout::stock(RAM, 40);
        let bus = Arc::new(Bus::new(layout.buses()));
        bus.insert(Bdf::default(), Arc::new(HostBridge::new())).expect("a free place");
        let (image, path) = blk_request::image(IMAGE);
        let options = DiskOptions {
            read_only: setup.read_only,
            discard: setup.discard,
            engine: if setup.uring { EngineChoice::Auto } else { EngineChoice::Synchronous },
            ..DiskOptions::new(path)
        };
        let disk = Disk::open(&options).expect("an open image");
        let blk = Blk::new(&BlkConfig { queues: 2, ..BlkConfig::default() }, disk).expect("a device");
        let source = File::open("/dev/urandom").expect("a source of randomness");
        let (net, peers) = net_control::device(1, Some(1500));
        let devices: [Arc<dyn Device>; 3] = [Arc::new(blk), Arc::new(Rng::new(source)), Arc::new(net)];
        let mut number = 0;
        let slots = devices.map(|device| {
            number += 1;
            let place = Bdf::new(0, number, 0).expect("a place");
            let (id, queues) = (device.spec().id, device.spec().queues.len() as u16);
            let placement = Placement {
                vectors: setup.vectors.map(|count| u16::from(count) + 1),
                with: if setup.everything { OPTIONAL } else { 0 },
                ..Placement::default()
            };
            let function = VirtioPci::new(device, "fuzz", placement, guest.memory.clone(), guest.sim.clone());
            let function: Arc<dyn Function> = Arc::new(function.expect("a function"));
            bus.insert(place, function).expect("a free place");
            Slot { place, bar: FIRST_BAR + u64::from(number) * BAR_SIZE, id, queues }
        });
        let machine = Machine::new(layout, bus.clone(), guest.memory.clone());
        let read_only = setup.read_only;
        Bench { guest, machine, bus, slots, rings: Vec::new(), peers, read_only, _image: image }
    }

    fn access(&self, access: Access, direction: Direction, address: u64, size: u8, data: u64) -> u64 {
        let request = Ioreq {
            access,
            direction,
            address,
            data,
            count: 1,
            size: size.into(),
            data_is_pointer: false,
            downwards: false,
        };
        self.machine.handle(&request)
    }

    fn read(&self, address: u64, size: u8) -> u64 {
        self.access(Access::Memory, Direction::Read, address, size, 0)
    }

    fn write(&self, address: u64, size: u8, value: u64) {
        self.access(Access::Memory, Direction::Write, address, size, value);
    }

    /// Address of a register of a function's configuration space.
    fn ecam(place: Bdf, register: u16) -> u64 {
        0xfc80_0000 + (u64::from(place.bits()) << 12) + u64::from(register)
    }

    /// Gives a function's BAR its place and lets it work.
    fn place(&self, slot: usize) {
        let Slot { place, bar, .. } = self.slots[slot];
        self.write(Bench::ecam(place, 4), 2, 0);
        self.write(Bench::ecam(place, 0x10), 4, bar & 0xffff_ffff);
        self.write(Bench::ecam(place, 0x14), 4, bar >> 32);
        self.write(Bench::ecam(place, 4), 2, 6);
    }

    /// What must be true whatever the guest did.
    fn check(&mut self) {
        for message in self.guest.sim.messages() {
            assert!(message.address >> 20 == 0xfee && message.data & 0xff != 0, "{message:?}");
        }
        self.bus.reset();
        self.guest.sim.messages();
        // If a mapping was still to fail, it is this one.
        drop(self.guest.sim.map(Gfn(0), 1));
        for Slot { place, id, .. } in &self.slots {
            let header = self.bus.config_read(*place, 0, 4);
            assert_eq!(header, 0x1af4 | (0x1040 + u32::from(*id)) << 16);
            assert_eq!(self.bus.config_read(*place, 4, 2), 0);
        }
        self.guest.refill_all();
        self.access(Access::Invalidate, Direction::Write, 0, 4, u64::MAX);
        assert_eq!(self.guest.sim.mapped_frames(), 0, "mappings are left over");
        self.guest.memory.flush_dirty().expect("frames that are RAM");
        for slot in 0..self.slots.len() {
            self.place(slot);
            assert_eq!(self.status(slot), 0, "not reset");
        }
        self.use_blk();
        self.use_rng();
        self.use_net();
        assert_eq!(self.guest.sim.messages(), [], "interrupts that nobody asked for");
        self.bus.reset();
        self.access(Access::Invalidate, Direction::Write, 0, 4, u64::MAX);
        assert_eq!(self.guest.sim.mapped_frames(), 0, "mappings are left over after use");
    }
}
