//! The packed ring: what the driver writes, what the device does with it, in any order.

use arbitrary::{Arbitrary, Unstructured};
use domain::Gpa;
use virtio::{FEATURE_RING_PACKED, Layout, QueueSize, QueueState};

use crate::guest::Guest;
use crate::queue::{DeviceEnd, DeviceStep, Features};
use crate::ring::{Descriptor, NEXT, PackedRing, WRITE};

/// Two chunks of guest memory.
const RAM: u64 = 4 << 20;

#[derive(Arbitrary, Debug)]
struct Setup {
    size: u8,
    features: Features,
    state: State,
    place: Place,
}

#[derive(Arbitrary, Debug)]
enum State {
    Initial,
    Any { avail: u16, used: u16 },
}

#[derive(Arbitrary, Debug)]
enum Place {
    Plain,
    /// Over the edge of a chunk, by so many times 16 bytes.
    Edge(u8),
    /// Anywhere: the parts may overlap, be misaligned or not in RAM.
    Any {
        size: u16,
        descriptors: u32,
        driver: u32,
        device: u32,
    },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Device(DeviceStep),
    Pop,
    Push(u8),
    /// A descriptor with these very flags.
    Describe {
        descriptor: Descriptor,
        id: u8,
        high: u8,
    },
    /// In a table elsewhere.
    DescribeIn(u16, Descriptor),
    /// A well-formed chain, made available where the driver is.
    Offer {
        id: u8,
        parts: Vec<(u16, u16, bool)>,
    },
    /// An indirect one.
    Indirect {
        id: u8,
        table: u16,
        entries: u8,
    },
    /// The driver goes elsewhere.
    Turn {
        index: u8,
        wrap: bool,
    },
    Wish(u32),
    Raw(u32, [u8; 8]),
}

/// Plays both ends of a ring.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut input) else { return };
    let mut guest = Guest::new(RAM);
    let at = match setup.place {
        Place::Edge(by) => (2 << 20) - u64::from(by) * 16,
        _ => 0x8000,
    };
    let mut ring = PackedRing::new(at, u16::from(setup.size % 64) + 1);
    if let Place::Any { size, descriptors, driver, device } = setup.place {
        let Some(size) = QueueSize::packed(size) else { return };
        let place = |at: u32| Gpa(u64::from(at) % (RAM + 0x1000));
        let (descriptors, available, used) = (place(descriptors), place(driver), place(device));
        ring.layout = Layout { size, descriptors, available, used };
    }
    let features = setup.features.bits() | FEATURE_RING_PACKED;
    let state = match setup.state {
        State::Initial => QueueState::initial(features),
        State::Any { avail, used } => QueueState { next_avail: avail, next_used: used },
    };
    (ring.next, ring.wrap) = (state.next_avail & 0x7fff, state.next_avail & 0x8000 != 0);
    let Ok(mut device) = DeviceEnd::new(&guest, ring.layout, features, state) else {
        let good = matches!((&setup.place, &setup.state), (Place::Plain | Place::Edge(_), State::Initial));
        assert!(!good, "a good ring is refused");
        return;
    };
    while !input.is_empty() && !device.over {
        match Step::arbitrary(&mut input) {
            Ok(Step::Device(step)) => device.play(&mut guest, step),
            Ok(Step::Pop) => device.play(&mut guest, DeviceStep::Pop),
            Ok(Step::Push(nth)) => device.play(&mut guest, DeviceStep::Push { nth, written: 7 }),
            Ok(step) => drive(&guest, &mut ring, step),
            Err(_) => break,
        }
    }
    device.end(&guest);
}

fn drive(guest: &Guest, ring: &mut PackedRing, step: Step) {
    let size = ring.layout.size.get();
    match step {
        Step::Device(_) | Step::Pop | Step::Push(_) => {}
        Step::Describe { descriptor: d, id, high } => {
            let index = u16::from(d.index) % size;
            let rest = (u16::from(d.flags) | u16::from(high) << 8, id.into());
            let table = ring.layout.descriptors.0;
            PackedRing::describe(guest, table, index, d.address.get(), d.len.get(), rest);
        }
        Step::DescribeIn(table, d) => {
            let flags = u16::from(d.flags) & (NEXT | WRITE);
            let table = u64::from(table) * 16;
            PackedRing::describe(guest, table, d.index.into(), d.address.get(), d.len.get(), (flags, 0));
        }
        Step::Offer { id, parts } => {
            let part = |(at, len, writable)| (0x10_0000 + u64::from(at) * 16, u32::from(len), writable);
            let mut parts: Vec<_> = parts.into_iter().take(size.into()).map(part).collect();
            parts.sort_by_key(|part| part.2);
            ring.offer(guest, id.into(), &parts, 0);
        }
        Step::Indirect { id, table, entries } => {
            let table = (u64::from(table) * 16, u32::from(entries) * 16, false);
            ring.offer(guest, id.into(), &[table], crate::ring::INDIRECT);
        }
        Step::Turn { index, wrap } => (ring.next, ring.wrap) = (u16::from(index) % size, wrap),
        Step::Wish(bits) => guest.put(ring.layout.available.0, &bits.to_le_bytes()),
        Step::Raw(at, bytes) => guest.put(u64::from(at) % RAM, &bytes),
    }
}
