//! Rings that a driver broke.

use super::*;

/// Every way to break a ring, each with its own error.
#[test]
fn broken_rings() {
    type Break = fn(&mut Ring);
    type IsExpected = fn(&QueueError) -> bool;
    let cases: &[(&str, Break, IsExpected)] = &[
        (
            "index forward",
            |r| r.set_available(SIZE + 1),
            |e| matches!(e, QueueError::IndexJump { from: 0, to: 9, size: 8 }),
        ),
        (
            "index back",
            |r| r.set_available(0xffff),
            |e| matches!(e, QueueError::IndexJump { to: 0xffff, .. }),
        ),
        ("head", |r| r.offer(SIZE), |e| matches!(e, QueueError::HeadOutOfRange { head: 8, size: 8 })),
        ("head far", |r| r.offer(0xffff), |e| matches!(e, QueueError::HeadOutOfRange { .. })),
        (
            "to itself",
            |r| {
                r.descriptor(0, DATA, 1, NEXT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::TooLong { head: 0, limit: 8 }),
        ),
        (
            "loop",
            |r| {
                r.descriptor(3, DATA, 1, NEXT, 4);
                r.descriptor(4, DATA, 1, NEXT, 3);
                r.offer(3);
            },
            |e| matches!(e, QueueError::TooLong { head: 3, .. }),
        ),
        (
            "next",
            |r| {
                r.descriptor(1, DATA, 1, NEXT, SIZE);
                r.offer(1);
            },
            |e| matches!(e, QueueError::NextOutOfRange { head: 1, next: 8, size: 8 }),
        ),
        (
            "readable after writable",
            |r| {
                r.chain(0, &[(DATA, 1, true), (DATA, 1, false)]);
                r.offer(0);
            },
            |e| matches!(e, QueueError::ReadableAfterWritable { head: 0 }),
        ),
        (
            "too many bytes",
            |r| {
                let half = RAM / 2;
                for index in 0..600 {
                    r.descriptor_at(TABLE, index, half, half as u32, NEXT, index + 1);
                }
                r.descriptor(0, TABLE, 600 * 16, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::Overflow { len: 0x1_0000_0000, .. }),
        ),
        (
            "over the descriptors",
            |r| {
                r.chain(0, &[(RING - 1, 2, true)]);
                r.offer(0);
            },
            |e| matches!(e, QueueError::OverRing { head: 0, address: Gpa(0xf_ffff) }),
        ),
        (
            "over the available ring",
            |r| {
                r.chain(0, &[(DATA, 1, false), (r.layout.available.0 + 21, 1, false)]);
                r.offer(0);
            },
            |e| matches!(e, QueueError::OverRing { head: 0, .. }),
        ),
        (
            "over the used ring",
            |r| {
                r.descriptor_at(TABLE, 0, 0, RAM as u32, WRITE, 0);
                r.descriptor(0, TABLE, 16, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::OverRing { head: 0, address: Gpa(0) }),
        ),
        (
            "outside RAM",
            |r| {
                r.chain(0, &[(RAM - 1, 2, false)]);
                r.offer(0);
            },
            |e| matches!(e, QueueError::Memory(_)),
        ),
        (
            "address wraps",
            |r| {
                r.chain(0, &[(u64::MAX, 2, true)]);
                r.offer(0);
            },
            |e| matches!(e, QueueError::Memory(_)),
        ),
        (
            "indirect and next",
            |r| {
                r.descriptor(0, TABLE, 16, INDIRECT | NEXT, 1);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectWithNext { head: 0 }),
        ),
        (
            "indirect in indirect",
            |r| {
                r.descriptor_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
                r.descriptor(0, TABLE, 16, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectInIndirect { head: 0 }),
        ),
        (
            "indirect empty",
            |r| {
                r.descriptor(0, TABLE, 0, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectLength { len: 0, .. }),
        ),
        (
            "indirect uneven",
            |r| {
                r.descriptor(0, TABLE, 33, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectLength { len: 33, .. }),
        ),
        (
            "indirect long",
            |r| {
                r.descriptor(0, TABLE, 1025 * 16, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectLength { .. }),
        ),
        (
            "indirect huge",
            |r| {
                r.descriptor(0, TABLE, 0xffff_fff0, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::IndirectLength { .. }),
        ),
        (
            "indirect outside RAM",
            |r| {
                r.descriptor(0, RAM - 16, 32, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::Memory(_)),
        ),
        (
            "indirect next",
            |r| {
                r.descriptor_at(TABLE, 0, DATA, 1, NEXT, 2);
                r.descriptor(0, TABLE, 32, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::NextOutOfRange { next: 2, size: 2, .. }),
        ),
        (
            "indirect last goes on",
            |r| {
                r.descriptor_at(TABLE, 0, DATA, 1, NEXT, 1);
                r.descriptor(0, TABLE, 16, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::NextOutOfRange { next: 1, size: 1, .. }),
        ),
        (
            "indirect loop",
            |r| {
                r.descriptor_at(TABLE, 0, DATA, 1, NEXT, 1);
                r.descriptor_at(TABLE, 1, DATA, 1, NEXT, 0);
                r.descriptor(0, TABLE, 32, INDIRECT, 0);
                r.offer(0);
            },
            |e| matches!(e, QueueError::TooLong { head: 0, limit: 2 }),
        ),
    ];
    for (name, break_it, is_expected) in cases {
        let mut bench = Bench::new(SIZE, BOTH);
        break_it(&mut bench.ring);
        let error = bench.pop().unwrap_err();
        assert!(is_expected(&error), "{name}: {error:?}");
        assert!(!error.to_string().is_empty());
        assert_eq!(bench.queue.in_flight(), 0, "{name}");
    }
}

#[test]
fn same_head_twice() {
    let mut bench = Bench::new(SIZE, BOTH);
    bench.ring.chain(3, &[(DATA, 1, true)]);
    bench.ring.offer(3);
    bench.ring.offer(3);
    assert!(bench.pop().unwrap());
    assert!(matches!(bench.pop(), Err(QueueError::SameHeadTwice { head: 3 })));
    // Once it is used it may come again.
    bench.queue.push(3, 0).unwrap();
    assert!(bench.pop().unwrap());
    bench.queue.push(3, 0).unwrap();
    for head in [3, 0, 7, 8, 63, 64, 0xffff] {
        assert!(matches!(bench.queue.push(head, 0), Err(QueueError::NotInFlight { .. })), "{head}");
    }
}

#[test]
fn indirect_needs_the_feature() {
    let mut bench = Bench::new(SIZE, FEATURE_EVENT_IDX);
    bench.ring.descriptor(0, TABLE, 16, INDIRECT, 0);
    bench.ring.offer(0);
    assert!(matches!(bench.pop(), Err(QueueError::IndirectRefused { head: 0 })));
}
