//! A device's queue against a driver's ring.

mod broken;
mod events;
mod random;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use domain::Gpa;
use memory::Pinned;

use super::*;
use crate::queue::{FEATURE_RING_PACKED, MAX_INDIRECT, Queue};
use crate::ring::check_layout;
use crate::testing::{
    AVAIL, DESC, DISABLE, ENABLE, INDIRECT, NEXT, PackedRing, RAM, Ring, USED, WRITE, guest,
};

const SIZE: u16 = 8;
const RING: u64 = 0x10_0000;
const TABLE: u64 = 0x30_0000;
const DATA: u64 = 0x40_0000;
const BOTH: u64 = FEATURE_EVENT_IDX | FEATURE_INDIRECT;

struct Bench {
    memory: GuestMemory,
    ring: PackedRing,
    queue: Queue,
    interrupts: Arc<AtomicUsize>,
    chain: Chain,
}

impl Bench {
    fn new(size: u16, features: u64) -> Bench {
        Bench::starting_at(size, features, (0, true))
    }

    fn starting_at(size: u16, features: u64, place: (u16, bool)) -> Bench {
        let (sim, memory) = guest();
        let mut ring = PackedRing::new(&sim, RING, size);
        ring.available = place;
        ring.used = place;
        // What is left of the round before, and of the last one in the slots from here on.
        for index in 0..size {
            let wrap = if index < place.0 { place.1 } else { !place.1 };
            ring.descriptor(index, 0, 0, 0, if wrap { AVAIL | USED } else { 0 });
        }
        let (queue, interrupts) = ring.queue(&memory, features);
        Bench { memory, ring, queue, interrupts, chain: Chain::new() }
    }

    fn pop(&mut self) -> Result<bool, QueueError> {
        self.queue.pop(&mut self.chain)
    }

    /// Takes a chain, which has this id, uses it and shows that. Whether the driver was interrupted.
    fn serve(&mut self, id: u16) -> bool {
        assert!(self.pop().unwrap());
        assert_eq!(self.chain.head(), id);
        self.queue.push(id, 7).unwrap();
        self.flush()
    }

    /// Shows what was used. Whether the driver was interrupted.
    fn flush(&mut self) -> bool {
        let before = self.interrupts.load(Ordering::SeqCst);
        self.queue.flush().unwrap();
        self.interrupts.load(Ordering::SeqCst) > before
    }
}

#[test]
fn a_chain_goes_there_and_back() {
    let mut bench = Bench::new(SIZE, BOTH);
    assert!(!bench.pop().unwrap());
    bench.ring.sim.ram_write(Gpa(DATA), b"hello, world");
    let parts = [(DATA, 5, false), (DATA + 5, 7, false), (DATA + 0x1000, 3, true), (DATA + 0x2000, 9, true)];
    bench.ring.offer(5, &parts);
    assert!(bench.pop().unwrap());
    assert_eq!((bench.chain.head(), bench.chain.readable_len(), bench.chain.writable_len()), (5, 12, 12));
    assert_eq!(bench.queue.in_flight(), 1);
    assert!(!bench.pop().unwrap());
    bench.queue.push(5, 12).unwrap();
    assert_eq!(bench.ring.take_used(), None, "not before it is flushed");
    bench.queue.flush().unwrap();
    assert_eq!(bench.ring.read(0), (12, 5, AVAIL | USED | WRITE));
    assert_eq!((bench.ring.take_used(), bench.ring.take_used()), (Some((5, 12)), None));
    let state = QueueState { next_avail: 0x8004, next_used: 0x8004 };
    assert_eq!((bench.queue.in_flight(), bench.queue.state()), (0, state));
    // Nothing written: the length says nothing.
    bench.ring.offer(0, &[(DATA, 5, false)]);
    assert!(bench.pop().unwrap());
    bench.queue.push(0, 0).unwrap();
    bench.queue.flush().unwrap();
    assert_eq!(bench.ring.read(4), (0, 0, AVAIL | USED));
}

#[test]
fn out_of_order_and_round_and_round() {
    for size in [1, 2, 3, 5, 7, 8, 13] {
        for start in [(0, true), (size - 1, false)] {
            let mut bench = Bench::starting_at(size, BOTH, start);
            for round in 0..500u32 {
                // Three chains, the first longer than the others, as many as fit.
                let lengths = [(round % 3) as usize + 1, 1, 1];
                let mut room = usize::from(size);
                let mut ids = Vec::new();
                for (nth, length) in lengths.into_iter().enumerate() {
                    if length <= room {
                        room -= length;
                        let id = ((round as u16) + nth as u16) % size;
                        bench.ring.offer(id, &vec![(DATA, 1, true); length]);
                        ids.push(id);
                    }
                }
                for id in &ids {
                    assert!(bench.pop().unwrap());
                    assert_eq!(bench.chain.head(), *id);
                }
                assert!(!bench.pop().unwrap());
                ids.rotate_left(round as usize % 2);
                for id in &ids {
                    bench.queue.push(*id, round + 1).unwrap();
                }
                assert_eq!(bench.ring.take_used(), None);
                bench.queue.flush().unwrap();
                for id in &ids {
                    assert_eq!(bench.ring.take_used(), Some((*id, round + 1)), "{size} {round}");
                }
                assert_eq!((bench.ring.take_used(), bench.ring.used), (None, bench.ring.available));
            }
        }
    }
}

#[test]
fn indirect_tables() {
    let mut bench = Bench::new(SIZE, BOTH);
    let raw = Ring::new(&bench.ring.sim, RING, SIZE);
    // In a table no flag but WRITE counts, and ids do not either (§2.8.7).
    let packed = |index, addr, len, flags| raw.descriptor_at(TABLE, index, addr, len, 0x7777, flags);
    packed(0, DATA, 16, NEXT | INDIRECT);
    packed(1, DATA + 64, 8, WRITE | NEXT | AVAIL);
    packed(2, DATA + 128, 4, WRITE | NEXT | USED);
    // WRITE on the indirect descriptor itself says nothing.
    bench.ring.offer_raw(3, &[(TABLE, 48, INDIRECT | WRITE)]);
    assert!(bench.pop().unwrap());
    assert_eq!((bench.chain.head(), bench.chain.readable_len(), bench.chain.writable_len()), (3, 16, 12));
    // Longer than the queue is borne with.
    for index in 0..MAX_INDIRECT {
        packed(index, DATA + u64::from(index), 1, 0);
    }
    bench.ring.offer_raw(4, &[(TABLE, 1024 * 16, INDIRECT)]);
    assert!(bench.pop().unwrap());
    assert_eq!((bench.chain.head(), bench.chain.readable_len()), (4, 1024));
    for id in [4, 3] {
        bench.queue.push(id, 1).unwrap();
    }
    bench.queue.flush().unwrap();
    assert_eq!((bench.ring.take_used(), bench.ring.take_used()), (Some((4, 1)), Some((3, 1))));
}

#[test]
fn empty_descriptors_add_nothing() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.offer(0, &[(u64::MAX, 0, false), (DATA, 4, false), (0, 0, true), (DATA, 4, true)]);
    assert!(bench.pop().unwrap());
    assert_eq!(bench.chain.segments.len(), 2);
    bench.queue.push(0, 4).unwrap();
    bench.queue.flush().unwrap();
    assert_eq!(bench.ring.take_used(), Some((0, 4)));
}

#[test]
fn places_for_rings() {
    let (sim, memory) = guest();
    let check = |layout: &Layout| check_layout(&memory, layout, FEATURE_RING_PACKED);
    for size in [1, 5, 255, 256, 0x8000] {
        check(&PackedRing::new(&sim, RING, size).layout).unwrap();
    }
    let good = PackedRing::new(&sim, RING, 256).layout;
    let bad = [
        Layout { descriptors: Gpa(RING + 8), ..good },
        Layout { available: Gpa(RING + 2), ..good },
        Layout { used: Gpa(RING + 2), ..good },
    ];
    for layout in bad {
        assert!(matches!(check(&layout), Err(QueueError::Misaligned { .. })), "{layout:?}");
    }
    for address in [RAM, 0xfee0_0000, !15] {
        for layout in [
            Layout { descriptors: Gpa(address), ..good },
            Layout { available: Gpa(address), ..good },
            Layout { used: Gpa(address), ..good },
        ] {
            assert!(matches!(check(&layout), Err(QueueError::Memory(_))), "{layout:?}");
        }
    }
    check(&Layout { descriptors: Gpa(RAM - 4096), available: Gpa(RAM - 4), used: Gpa(RAM - 8), ..good })
        .unwrap();
    assert!(matches!(check(&Layout { descriptors: Gpa(RAM - 4080), ..good }), Err(QueueError::Memory(_))));
    assert!(QueueSize::packed(0).is_none() && QueueSize::packed(0x8001).is_none());
    assert_eq!(QueueSize::packed(0x8000), QueueSize::new(0x8000));
}

#[test]
fn places() {
    let place = |index, wrap| Place { index, wrap };
    assert_eq!(place(6, true).forward(1, 7), place(0, false));
    assert_eq!(place(6, false).forward(7, 7), place(6, true));
    assert_eq!(place(0x7fff, true).forward(0x8000, 0x8000), place(0x7fff, false));
    assert_eq!(place(0x7fff, true).forward(1, 0x8000), place(0, false));
    assert_eq!(place(0, true).forward(1, 1), place(0, false));
    for size in [1, 2, 3, 7, 0x7fff, 0x8000] {
        for index in [0, 1, size / 2, size - 1].map(|index: u16| index.min(size - 1)) {
            for slots in [1, size / 2, size] {
                for wrap in [false, true] {
                    let there = place(index, wrap).forward(slots, size);
                    assert!(there.index < size);
                    assert_eq!(there.back(slots, size), place(index, wrap));
                    assert_eq!(Place::from_bits(there.bits(), size), Some(there));
                }
            }
        }
    }
    assert_eq!((Place::from_bits(7, 7), Place::from_bits(0x8007, 7)), (None, None));
}

#[test]
fn rewinding() {
    for start in [(0, true), (6, true), (7, false)] {
        let mut bench = Bench::starting_at(SIZE, BOTH, start);
        for (id, length) in [(4, 1), (2, 3), (7, 1), (0, 2)] {
            bench.ring.offer(id, &vec![(DATA, 1, true); length]);
            assert!(bench.pop().unwrap());
        }
        bench.queue.push(2, 0).unwrap();
        assert_eq!(bench.queue.rewind(4), 2, "not past one that was used");
        assert_eq!(bench.queue.in_flight(), 1);
        assert_eq!(bench.queue.rewind(1), 0);
        bench.queue.flush().unwrap();
        assert_eq!(bench.ring.take_used(), Some((2, 0)));
        for id in [7, 0] {
            assert!(bench.pop().unwrap());
            assert_eq!(bench.chain.head(), id);
        }
        assert!(!bench.pop().unwrap());
        for id in [0, 4, 7] {
            bench.queue.push(id, 9).unwrap();
        }
        bench.queue.flush().unwrap();
        let used = [bench.ring.take_used(), bench.ring.take_used(), bench.ring.take_used()];
        assert_eq!(used, [Some((0, 9)), Some((4, 9)), Some((7, 9))]);
        assert_eq!(bench.ring.used, bench.ring.available);
    }
}

#[test]
fn stopping_and_starting_again() {
    let mut bench = Bench::new(5, BOTH);
    for round in 0..50u16 {
        let id = round % 5;
        bench.ring.offer(id, &[(DATA, 1, true), (DATA, 1, true)]);
        bench.ring.offer((id + 1) % 5, &[(DATA, 1, true)]);
        assert!(bench.pop().unwrap());
        bench.queue.push(id, 1).unwrap();
        bench.queue.flush().unwrap();
        assert_eq!(bench.ring.take_used(), Some((id, 1)));
        // Another one goes on where this one was.
        let state = bench.queue.state();
        let memory = bench.memory.clone();
        let features = BOTH | FEATURE_RING_PACKED;
        bench.queue = Queue::new(memory, bench.ring.layout, features, state, Box::new(|| ())).unwrap();
        bench.serve((id + 1) % 5);
        assert_eq!(bench.ring.take_used(), Some(((id + 1) % 5, 7)));
    }
    for bits in [5, 0x8005, 0x7fff, 0xffff] {
        for (next_avail, next_used) in [(bits, 0), (0, bits)] {
            let state = QueueState { next_avail, next_used };
            let queue = Queue::new(
                bench.memory.clone(),
                bench.ring.layout,
                FEATURE_RING_PACKED,
                state,
                Box::new(|| ()),
            );
            assert!(matches!(queue, Err(QueueError::State { size: 5, .. })));
        }
    }
}

#[test]
fn the_memory_map_changes() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.offer(0, &[(DATA, 4, true)]);
    assert!(bench.pop().unwrap());
    // The ring's page goes and comes back as another page.
    let frame = bench.ring.layout.descriptors.frame();
    bench.ring.sim.punch(frame);
    bench.ring.sim.refill(frame);
    bench.memory.invalidate();
    bench.queue.push(0, 4).unwrap();
    bench.queue.flush().unwrap();
    assert_eq!(bench.ring.take_used(), Some((0, 4)), "written to the new page");
    bench.ring.sim.punch(frame);
    bench.memory.invalidate();
    assert!(matches!(bench.pop(), Err(QueueError::Memory(_))));
    assert!(matches!(bench.queue.enable_notification(), Err(QueueError::Memory(_))));
}

#[test]
fn steady_state_keeps_its_allocations() {
    let mut bench = Bench::new(SIZE, BOTH);
    let raw = Ring::new(&bench.ring.sim, RING, SIZE);
    (0..4).for_each(|index| raw.descriptor_at(TABLE, index, DATA, 1, 0, 0));
    let mut seen = None;
    for _ in 0..100 {
        bench.ring.offer_raw(0, &[(TABLE, 64, INDIRECT)]);
        bench.serve(0);
        let now = (bench.chain.segments.as_ptr(), bench.chain.segments.capacity());
        assert_eq!(*seen.get_or_insert(now), now);
    }
}
