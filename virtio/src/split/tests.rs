//! A device's queue against a driver's ring.

mod broken;
mod model;

use std::sync::atomic::AtomicUsize;

use domain::{Gfn, Gpa};
use memory::Pinned;

use super::*;
use crate::queue::{ChainError, MAX_INDIRECT, Queue};
use crate::ring::check_layout;
use crate::testing::{INDIRECT, NEXT, RAM, Ring, WRITE, guest};

const SIZE: u16 = 8;
const RING: u64 = 0x10_0000;
const TABLE: u64 = 0x30_0000;
const DATA: u64 = 0x40_0000;

struct Bench {
    memory: GuestMemory,
    ring: Ring,
    queue: Queue,
    interrupts: std::sync::Arc<AtomicUsize>,
    chain: Chain,
}

impl Bench {
    fn new(size: u16, features: u64) -> Bench {
        Bench::starting_at(size, features, 0)
    }

    fn starting_at(size: u16, features: u64, index: u16) -> Bench {
        let (sim, memory) = guest();
        let mut ring = Ring::new(&sim, RING, size);
        ring.set_available(index);
        ring.used = index;
        let (queue, interrupts) = ring.queue(&memory, features);
        Bench { memory, ring, queue, interrupts, chain: Chain::new() }
    }

    fn pop(&mut self) -> Result<bool, QueueError> {
        self.queue.pop(&mut self.chain)
    }

    /// Takes a chain, uses it and shows that. Whether the driver was interrupted.
    fn serve(&mut self) -> bool {
        let before = self.interrupts();
        assert!(self.pop().unwrap());
        self.queue.push(self.chain.head(), 7).unwrap();
        self.queue.flush().unwrap();
        self.interrupts() > before
    }

    fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::SeqCst)
    }
}

const BOTH: u64 = FEATURE_EVENT_IDX | FEATURE_INDIRECT;

#[test]
fn a_chain_goes_there_and_back() {
    let mut bench = Bench::new(SIZE, BOTH);
    assert!(!bench.pop().unwrap());
    bench.ring.sim.ram_write(Gpa(DATA), b"hello, world");
    bench.ring.chain(
        2,
        &[(DATA, 5, false), (DATA + 5, 7, false), (DATA + 0x1000, 3, true), (DATA + 0x2000, 9, true)],
    );
    bench.ring.offer(2);
    assert!(bench.pop().unwrap());
    assert_eq!((bench.chain.head(), bench.chain.readable_len(), bench.chain.writable_len()), (2, 12, 12));
    assert_eq!(bench.queue.in_flight(), 1);

    let mut reader = bench.chain.reader(&bench.memory);
    let mut text = [0; 8];
    reader.read(&mut text).unwrap();
    assert_eq!((&text, reader.remaining()), (b"hello, w", 4));
    assert!(matches!(reader.read(&mut text), Err(ChainError::Short { wanted: 8, left: 4 })));
    reader.skip(2).unwrap();
    reader.read(&mut text[..2]).unwrap();
    assert_eq!((&text[..2], reader.remaining()), (&b"ld"[..], 0));

    let mut writer = bench.chain.writer(&bench.memory);
    writer.write(b"abcd").unwrap();
    writer.skip(1).unwrap();
    let mut pinned = Pinned::new();
    writer.pin(2, &mut pinned).unwrap();
    assert_eq!((pinned.len(), writer.remaining(), writer.written()), (2, 5, 7));
    assert!(matches!(writer.write(&[0; 6]), Err(ChainError::Short { wanted: 6, left: 5 })));
    writer.pin_rest(&mut pinned).unwrap();
    assert_eq!((pinned.len(), writer.remaining(), writer.written()), (7, 0, 12));
    pinned.copy_from(0, b"XYZ");
    pinned.clear();
    let mut seen = [0; 12];
    bench.ring.sim.ram_read(Gpa(DATA + 0x1000), &mut seen[..3]);
    bench.ring.sim.ram_read(Gpa(DATA + 0x2000), &mut seen[3..]);
    assert_eq!(&seen, b"abcd\0XYZ\0\0\0\0");

    bench.queue.push(2, 12).unwrap();
    assert_eq!(bench.ring.take_used(), None, "not before it is flushed");
    bench.queue.flush().unwrap();
    assert_eq!((bench.ring.take_used(), bench.ring.take_used()), (Some((2, 12)), None));
    assert_eq!(
        (bench.queue.in_flight(), bench.queue.state()),
        (0, QueueState { next_avail: 1, next_used: 1 })
    );
}

#[test]
fn out_of_order_and_round_and_round() {
    let mut bench = Bench::starting_at(4, BOTH, 0xfffe);
    for head in 0..4 {
        bench.ring.chain(head, &[(DATA, 1, true)]);
    }
    for round in 0..0x2_0000u32 {
        let heads = [(round % 4) as u16, ((round + 1) % 4) as u16];
        heads.into_iter().for_each(|head| bench.ring.offer(head));
        for head in heads {
            assert!(bench.pop().unwrap());
            assert_eq!(bench.chain.head(), head);
        }
        bench.queue.push(heads[1], round).unwrap();
        bench.queue.push(heads[0], 1).unwrap();
        bench.queue.flush().unwrap();
        assert_eq!(bench.ring.take_used(), Some((heads[1].into(), round)));
        assert_eq!(bench.ring.take_used(), Some((heads[0].into(), 1)));
    }
}

#[test]
fn indirect_tables() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.descriptor_at(TABLE, 0, DATA, 16, NEXT, 2);
    bench.ring.descriptor_at(TABLE, 2, DATA + 64, 8, NEXT | WRITE, 1);
    bench.ring.descriptor_at(TABLE, 1, DATA + 128, 4, WRITE, 0xffff);
    // WRITE on the indirect descriptor itself says nothing (§2.7.5.3.2).
    bench.ring.descriptor(0, DATA + 32, 2, NEXT, 5);
    bench.ring.descriptor(5, TABLE, 48, INDIRECT | WRITE, 0);
    bench.ring.offer(0);
    assert!(bench.pop().unwrap());
    assert_eq!((bench.chain.readable_len(), bench.chain.writable_len()), (18, 12));
    // Longer than the queue is borne with.
    for index in 0..MAX_INDIRECT {
        bench.ring.descriptor_at(
            TABLE,
            index,
            DATA + u64::from(index),
            1,
            NEXT * u16::from(index < 1023),
            index + 1,
        );
    }
    bench.ring.descriptor(1, TABLE, 1024 * 16, INDIRECT, 0);
    bench.ring.offer(1);
    assert!(bench.pop().unwrap());
    assert_eq!(bench.chain.readable_len(), 1024);
}

#[test]
fn empty_descriptors_add_nothing() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.chain(0, &[(u64::MAX, 0, false), (DATA, 4, false), (0, 0, true), (DATA, 4, true)]);
    bench.ring.offer(0);
    assert!(bench.pop().unwrap());
    assert_eq!(
        (bench.chain.readable_len(), bench.chain.writable_len(), bench.chain.segments.len()),
        (4, 4, 2)
    );
}

#[test]
fn buffers_beside_the_ring() {
    let mut bench = Bench::new(SIZE, BOTH);
    let [available, used] = [bench.ring.layout.available.0, bench.ring.layout.used.0];
    let ends = [RING + 128, available + 22, used + 70];
    let parts = [(RING - 8, 8, true), (ends[0], 8, true), (ends[1], 8, true), (ends[2], 8, true)];
    bench.ring.chain(0, &parts);
    bench.ring.offer(0);
    assert!(bench.pop().unwrap());
    assert_eq!(bench.chain.writable_len(), 32);
}

#[test]
fn places_for_rings() {
    let (sim, memory) = guest();
    let good = Ring::new(&sim, RING, 256).layout;
    check_layout(&memory, &good, 0).unwrap();
    let bad = [
        Layout { descriptors: Gpa(RING + 8), ..good },
        Layout { available: Gpa(RING + 1), ..good },
        Layout { used: Gpa(RING + 2), ..good },
    ];
    for layout in bad {
        assert!(
            matches!(check_layout(&memory, &layout, 0), Err(QueueError::Misaligned { .. })),
            "{layout:?}"
        );
    }
    for address in [RAM, RAM - 16, 0xfee0_0000, !15] {
        for layout in [
            Layout { descriptors: Gpa(address), ..good },
            Layout { available: Gpa(address), ..good },
            Layout { used: Gpa(address), ..good },
        ] {
            assert!(matches!(check_layout(&memory, &layout, 0), Err(QueueError::Memory(_))), "{layout:?}");
        }
    }
    // To the last byte.
    check_layout(&memory, &Layout { descriptors: Gpa(RAM - 4096), ..good }, 0).unwrap();
    // Not every size of a packed ring is one of a split ring.
    let odd = Layout { size: QueueSize::packed(6).unwrap(), ..good };
    assert!(matches!(check_layout(&memory, &odd, 0), Err(QueueError::Size { size: 6 })));
    assert!(QueueSize::new(0).is_none() && QueueSize::new(3).is_none() && QueueSize::new(0xffff).is_none());
    assert_eq!((QueueSize::new(1).unwrap().get(), QueueSize::new(0x8000).unwrap().get()), (1, 0x8000));
}

#[test]
fn passing_an_event() {
    // (event, old, new, passed), around the wrap too.
    let table = [
        (0, 0, 1, true),
        (1, 0, 1, false),
        (0, 1, 2, false),
        (4, 0, 5, true),
        (5, 0, 5, false),
        (0xffff, 0xffff, 0, true),
        (0xffff, 0xfffe, 0xffff, false),
        (0, 0xffff, 1, true),
        (0, 0xfffe, 0, false),
        (0xfffe, 0xfffd, 3, true),
        (0x8000, 0, 1, false),
    ];
    for (event, old, new, expected) in table {
        assert_eq!(passed(event, old, new), expected, "{event:#x} {old:#x} {new:#x}");
    }
}

#[test]
fn interrupts_with_event_idx() {
    for start in [0, 0xfffd] {
        let mut bench = Bench::starting_at(SIZE, BOTH, start);
        let at = |n: u16| start.wrapping_add(n);
        for head in 0..SIZE {
            bench.ring.chain(head, &[(DATA, 1, true)]);
            bench.ring.offer(head);
        }
        // Flags mean nothing here.
        bench.ring.set_available_flags(1);
        bench.ring.set_used_event(at(0));
        assert!(bench.serve());
        assert!(!bench.serve(), "not asked for again");
        bench.ring.set_used_event(at(3));
        assert!(!bench.serve());
        assert!(bench.serve());
        bench.ring.set_used_event(at(6));
        for _ in 0..3 {
            assert!(bench.pop().unwrap());
            bench.queue.push(bench.chain.head(), 0).unwrap();
        }
        let before = bench.interrupts();
        bench.queue.flush().unwrap();
        bench.queue.flush().unwrap();
        assert_eq!(bench.interrupts(), before + 1, "one for the batch");
    }
}

#[test]
fn interrupts_with_flags() {
    let mut bench = Bench::new(SIZE, 0);
    for head in 0..3 {
        bench.ring.chain(head, &[(DATA, 1, true)]);
        bench.ring.offer(head);
    }
    assert!(bench.serve());
    bench.ring.set_available_flags(1);
    assert!(!bench.serve());
    bench.ring.set_available_flags(0);
    assert!(bench.serve());
}

#[test]
fn notifications() {
    let mut bench = Bench::starting_at(SIZE, BOTH, 0xffff);
    for head in 0..2 {
        bench.ring.chain(head, &[(DATA, 1, true)]);
    }
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!(bench.ring.available_event(), 0xffff);
    bench.queue.disable_notification().unwrap();
    bench.ring.offer(0);
    assert!(bench.queue.enable_notification().unwrap(), "it came in between");
    assert!(bench.pop().unwrap());
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!((bench.ring.available_event(), bench.ring.used_flags()), (0, 0));

    let mut bench = Bench::new(SIZE, 0);
    bench.queue.disable_notification().unwrap();
    assert_eq!(bench.ring.used_flags(), 1);
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!(bench.ring.used_flags(), 0);
    bench.ring.set_available(9);
    assert!(matches!(bench.queue.enable_notification(), Err(QueueError::IndexJump { .. })));
}

#[test]
fn rewinding() {
    let mut bench = Bench::starting_at(SIZE, BOTH, 0xfffe);
    for head in 0..4 {
        bench.ring.chain(head, &[(DATA, 1, true)]);
        bench.ring.offer(head);
    }
    for _ in 0..4 {
        assert!(bench.pop().unwrap());
    }
    // What the driver does to its ring meanwhile changes nothing about what is held.
    bench.ring.sim.ram_write(Gpa(bench.ring.layout.available.0 + 4), &[0xff; 16]);
    bench.queue.push(1, 0).unwrap();
    assert_eq!(bench.queue.rewind(4), 2, "not past one that was used");
    assert_eq!((bench.queue.in_flight(), bench.queue.state().next_avail), (1, 0));
    assert_eq!(bench.queue.rewind(1), 0);
    assert!(matches!(bench.pop(), Err(QueueError::HeadOutOfRange { .. })), "read anew");
}

#[test]
fn budget() {
    let mut bench = Bench::new(SIZE, BOTH);
    for head in 0..3 {
        bench.ring.chain(head, &[(DATA, 1, true)]);
        bench.ring.offer(head);
    }
    bench.queue.grant(2);
    assert!(bench.pop().unwrap() && bench.pop().unwrap() && !bench.pop().unwrap());
    assert!(bench.queue.enable_notification().unwrap(), "and the rest is not forgotten");
    bench.queue.grant(2);
    assert!(bench.pop().unwrap() && !bench.pop().unwrap());
}

#[test]
fn the_memory_map_changes() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.chain(0, &[(DATA, 4, true)]);
    bench.ring.offer(0);
    assert!(bench.pop().unwrap());
    // The used ring's page goes and comes back as another page.
    let frame = bench.ring.layout.used.frame();
    bench.ring.sim.punch(frame);
    bench.ring.sim.refill(frame);
    bench.memory.invalidate();
    bench.queue.push(0, 4).unwrap();
    bench.queue.flush().unwrap();
    assert_eq!(bench.ring.take_used(), Some((0, 4)), "written to the new page");
    // It goes for good.
    bench.ring.sim.punch(Gfn(frame.0));
    bench.memory.invalidate();
    assert!(matches!(bench.pop(), Err(QueueError::Memory(_))));
    assert!(matches!(bench.queue.enable_notification(), Err(QueueError::Memory(_))));
}

#[test]
fn steady_state_keeps_its_allocations() {
    let mut bench = Bench::new(SIZE, BOTH);
    for index in 0..4 {
        bench.ring.descriptor_at(TABLE, index, DATA, 1, NEXT * u16::from(index < 3), index + 1);
    }
    bench.ring.descriptor(0, TABLE, 64, INDIRECT, 0);
    let mut seen = None;
    for _ in 0..100 {
        bench.ring.offer(0);
        bench.serve();
        let now = (bench.chain.segments.as_ptr(), bench.chain.segments.capacity());
        assert_eq!(*seen.get_or_insert(now), now);
    }
}

proptest::proptest! {
    /// Random rings: whatever comes out is in RAM, and the device's books stay right.
    #[test]
    fn random_rings(
        table in proptest::collection::vec((0u64..RAM + 64, 0u32..5000, 0u16..8, 0u16..9), 8),
        indirect in proptest::collection::vec((0u64..RAM + 64, 0u32..5000, 0u16..6, 0u16..5), 4),
        heads in proptest::collection::vec(0u16..9, 0..20),
    ) {
        let mut bench = Bench::new(SIZE, BOTH);
        for (index, (addr, len, flags, next)) in (0..).zip(table) {
            let (addr, len) = if flags & INDIRECT != 0 { (TABLE, 64) } else { (addr, len) };
            bench.ring.descriptor(index, addr, len, flags, next);
        }
        for (index, (addr, len, flags, next)) in (0..).zip(indirect) {
            bench.ring.descriptor_at(TABLE, index, addr, len, flags, next);
        }
        let mut used = 0u16;
        for head in heads {
            bench.ring.offer(head);
            match bench.pop() {
                Ok(true) => {
                    let chain = &bench.chain;
                    let sum: u64 = chain.segments.iter().map(|segment| u64::from(segment.len)).sum();
                    assert_eq!(sum, chain.readable_len() + chain.writable_len());
                    assert!(chain.segments.iter().all(|s| s.addr.0 + u64::from(s.len) <= RAM));
                    chain.writer(&bench.memory).pin_rest(&mut Pinned::new()).unwrap();
                    chain.reader(&bench.memory).pin_rest(&mut Pinned::new()).unwrap();
                    bench.queue.push(chain.head(), 0).unwrap();
                    used += 1;
                }
                Ok(false) => unreachable!("one was offered"),
                Err(_) => break,
            }
        }
        bench.queue.flush().unwrap();
        assert_eq!((0..).map_while(|_: u32| bench.ring.take_used()).count(), usize::from(used));
    }
}
