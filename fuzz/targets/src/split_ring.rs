//! The split ring: what the driver writes, what the device does with it, in any order.

use arbitrary::{Arbitrary, Unstructured};
use domain::Gpa;
use virtio::{QueueSize, QueueState};

use crate::guest::Guest;
use crate::queue::{DeviceEnd, DeviceStep, Features};
use crate::ring::{Descriptor, Ring};

/// Two chunks of guest memory.
const RAM: u64 = 4 << 20;

#[derive(Arbitrary, Debug)]
struct Setup {
    order: u8,
    features: Features,
    start: u16,
    place: Place,
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
        available: u32,
        used: u32,
    },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Device(DeviceStep),
    Pop,
    Push(u8),
    Describe(Descriptor),
    /// In a table elsewhere.
    DescribeIn(u16, Descriptor),
    /// A well-formed chain, made available.
    Offer {
        head: u8,
        parts: Vec<(u16, u16, bool)>,
    },
    Available {
        slot: u8,
        head: u16,
    },
    Advance(u8),
    Index(u16),
    Flags(u16),
    UsedEvent(u16),
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
    let mut ring = Ring::new(at, setup.order);
    if let Place::Any { size, descriptors, available, used } = setup.place {
        let Some(size) = QueueSize::new(size) else { return };
        let place = |at: u32| Gpa(u64::from(at) % (RAM + 0x1000));
        ring.layout.size = size;
        ring.layout.descriptors = place(descriptors);
        ring.layout.available = place(available);
        ring.layout.used = place(used);
    }
    ring.show(&guest, setup.start);
    let state = QueueState { next_avail: setup.start, next_used: setup.start };
    let device = DeviceEnd::new(&guest, ring.layout, setup.features.bits(), state);
    let Ok(mut device) = device else {
        assert!(matches!(setup.place, Place::Any { .. }), "a good ring is refused");
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

fn drive(guest: &Guest, ring: &mut Ring, step: Step) {
    let size = u64::from(ring.size());
    let available = ring.layout.available.0;
    match step {
        Step::Device(_) | Step::Pop | Step::Push(_) => {}
        Step::Describe(d) => {
            let index = u16::from(d.index) % ring.size();
            d.write(guest, ring.layout.descriptors.0, index, d.next);
        }
        Step::DescribeIn(table, d) => d.write(guest, u64::from(table) * 16, d.index.into(), d.next),
        Step::Offer { head, parts } => {
            let head = u16::from(head) % ring.size();
            let part = |(at, len, writable)| (0x10_0000 + u64::from(at) * 16, u32::from(len), writable);
            let mut parts: Vec<_> = parts.into_iter().take(ring.size().into()).map(part).collect();
            parts.sort_by_key(|part| part.2);
            ring.chain(guest, head, &parts);
            ring.offer(guest, head);
        }
        Step::Available { slot, head } => {
            guest.put(available + 4 + u64::from(slot) % size * 2, &head.to_le_bytes());
        }
        Step::Advance(by) => ring.show(guest, ring.available.wrapping_add(by.into())),
        Step::Index(index) => ring.show(guest, index),
        Step::Flags(flags) => guest.put(available, &flags.to_le_bytes()),
        Step::UsedEvent(index) => guest.put(available + 4 + size * 2, &index.to_le_bytes()),
        Step::Raw(at, bytes) => guest.put(u64::from(at) % RAM, &bytes),
    }
}
