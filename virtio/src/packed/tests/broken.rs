//! Rings that a driver broke.

use super::*;

/// Every way to break a ring, each with its own error.
#[test]
fn broken_rings() {
    type Break = fn(&mut PackedRing);
    type IsExpected = fn(&QueueError) -> bool;
    let cases: &[(&str, Break, IsExpected)] = &[
        (
            "id",
            |r| r.offer(SIZE, &[(DATA, 1, true)]),
            |e| matches!(e, QueueError::IdOutOfRange { id: 8, size: 8 }),
        ),
        (
            "id far",
            |r| r.offer(0xffff, &[(DATA, 1, true), (DATA, 1, true)]),
            |e| matches!(e, QueueError::IdOutOfRange { id: 0xffff, .. }),
        ),
        (
            "no end",
            |r| {
                for index in 0..SIZE {
                    r.descriptor(index, DATA, 1, 0, NEXT | AVAIL);
                }
            },
            |e| matches!(e, QueueError::TooLong { head: 0, limit: 8 }),
        ),
        (
            "goes on at nothing",
            |r| r.descriptor(0, DATA, 1, 0, NEXT | AVAIL),
            |e| matches!(e, QueueError::NotAvailable { head: 0, index: 1 }),
        ),
        (
            "goes on at one that is used",
            |r| {
                r.descriptor(0, DATA, 1, 0, NEXT | AVAIL);
                r.descriptor(1, DATA, 1, 0, AVAIL | USED);
            },
            |e| matches!(e, QueueError::NotAvailable { head: 0, index: 1 }),
        ),
        (
            "goes on at one with flags inverted",
            |r| {
                r.descriptor(0, DATA, 1, 0, NEXT | AVAIL);
                r.descriptor(1, DATA, 1, 0, USED);
            },
            |e| matches!(e, QueueError::NotAvailable { head: 0, index: 1 }),
        ),
        (
            "readable after writable",
            |r| r.offer(0, &[(DATA, 1, true), (DATA, 1, false)]),
            |e| matches!(e, QueueError::ReadableAfterWritable { head: 0 }),
        ),
        (
            "too many bytes",
            |r| {
                let table = Ring::new(&r.sim, RING, SIZE);
                for index in 0..600 {
                    table.descriptor_at(TABLE, index, RAM / 2, (RAM / 2) as u32, 0, 0);
                }
                r.offer_raw(0, &[(TABLE, 600 * 16, INDIRECT)]);
            },
            |e| matches!(e, QueueError::Overflow { len: 0x1_0000_0000, .. }),
        ),
        (
            "over the ring",
            |r| r.offer(0, &[(RING + 127, 1, true)]),
            |e| matches!(e, QueueError::OverRing { head: 0, .. }),
        ),
        (
            "over event suppression",
            |r| r.offer(0, &[(DATA, 1, true), (r.layout.used.0 - 4, 8, true)]),
            |e| matches!(e, QueueError::OverRing { head: 0, .. }),
        ),
        ("outside RAM", |r| r.offer(0, &[(RAM - 1, 2, false)]), |e| matches!(e, QueueError::Memory(_))),
        ("address wraps", |r| r.offer(0, &[(u64::MAX, 2, true)]), |e| matches!(e, QueueError::Memory(_))),
        (
            "indirect and next",
            |r| r.offer_raw(0, &[(TABLE, 16, INDIRECT), (DATA, 1, 0)]),
            |e| matches!(e, QueueError::IndirectWithNext { head: 0 }),
        ),
        (
            "indirect at the end",
            |r| r.offer_raw(0, &[(DATA, 1, 0), (TABLE, 16, INDIRECT)]),
            |e| matches!(e, QueueError::IndirectWithNext { head: 0 }),
        ),
        (
            "indirect empty",
            |r| r.offer_raw(0, &[(TABLE, 0, INDIRECT)]),
            |e| matches!(e, QueueError::IndirectLength { len: 0, .. }),
        ),
        (
            "indirect uneven",
            |r| r.offer_raw(0, &[(TABLE, 33, INDIRECT)]),
            |e| matches!(e, QueueError::IndirectLength { len: 33, .. }),
        ),
        (
            "indirect long",
            |r| r.offer_raw(0, &[(TABLE, 1025 * 16, INDIRECT)]),
            |e| matches!(e, QueueError::IndirectLength { .. }),
        ),
        (
            "indirect huge",
            |r| r.offer_raw(0, &[(TABLE, 0xffff_fff0, INDIRECT)]),
            |e| matches!(e, QueueError::IndirectLength { .. }),
        ),
        (
            "indirect outside RAM",
            |r| r.offer_raw(0, &[(RAM - 16, 32, INDIRECT)]),
            |e| matches!(e, QueueError::Memory(_)),
        ),
    ];
    for (name, break_it, is_expected) in cases {
        let mut bench = Bench::new(SIZE, BOTH);
        break_it(&mut bench.ring);
        assert!(bench.queue.enable_notification().unwrap(), "{name}: found before it is slept over");
        let error = bench.pop().unwrap_err();
        assert!(is_expected(&error), "{name}: {error:?}");
        assert!(!error.to_string().is_empty());
        assert_eq!(bench.queue.in_flight(), 0, "{name}");
    }
}

#[test]
fn same_id_twice() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.offer(3, &[(DATA, 1, true)]);
    bench.ring.offer(3, &[(DATA, 1, true)]);
    assert!(bench.pop().unwrap());
    assert!(matches!(bench.pop(), Err(QueueError::SameHeadTwice { head: 3 })));
    bench.queue.push(3, 0).unwrap();
    assert!(bench.pop().unwrap(), "once it is used it may come again");
    bench.queue.push(3, 0).unwrap();
    for id in [3, 0, 7, 8, 0xffff] {
        assert!(matches!(bench.queue.push(id, 0), Err(QueueError::NotInFlight { .. })), "{id}");
    }
}

/// A driver may not write where it has nothing back from us.
#[test]
fn more_than_the_ring_holds() {
    let mut bench = Bench::new(4, BOTH);
    for id in 0..4 {
        bench.ring.offer(id, &[(DATA, 1, true)]);
        assert!(bench.pop().unwrap());
    }
    assert!(!bench.pop().unwrap());
    bench.ring.offer(0, &[(DATA, 1, true)]);
    assert!(matches!(bench.pop(), Err(QueueError::Overfull { size: 4 })));
    // Used, but the driver cannot have seen that yet.
    bench.queue.push(0, 0).unwrap();
    assert!(matches!(bench.pop(), Err(QueueError::Overfull { size: 4 })));

    let mut bench = Bench::new(4, BOTH);
    bench.ring.offer(0, &[(DATA, 1, true), (DATA, 1, true), (DATA, 1, true)]);
    assert!(bench.pop().unwrap());
    bench.ring.offer(1, &[(DATA, 1, true), (DATA, 1, true)]);
    assert!(matches!(bench.pop(), Err(QueueError::TooLong { head: 3, limit: 1 })));
}

/// Flags that say neither available nor used are nothing at all, and do not keep anybody awake.
#[test]
fn flags_inverted() {
    for start in [(0, true), (5, false)] {
        let mut bench = Bench::starting_at(SIZE, BOTH, start);
        let available = PackedRing::flags(start);
        for flags in [0, AVAIL | USED, available ^ (AVAIL | USED)] {
            for index in 0..SIZE {
                bench.ring.descriptor(index, DATA, 1, 0, flags | NEXT);
            }
            assert!(!bench.pop().unwrap() && !bench.queue.enable_notification().unwrap());
        }
    }
}

#[test]
fn indirect_needs_the_feature() {
    let mut bench = Bench::new(SIZE, FEATURE_EVENT_IDX);
    bench.ring.offer_raw(0, &[(TABLE, 16, INDIRECT)]);
    assert!(matches!(bench.pop(), Err(QueueError::IndirectRefused { head: 0 })));
}
