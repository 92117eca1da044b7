//! Event suppression, ours and the driver's.

use super::*;

#[test]
fn passing_an_event() {
    let place = |index, wrap| Place { index, wrap };
    let bits = |index, wrap| place(index, wrap).bits();
    // (event, where we are, slots since we told last, passed), in a ring of 8.
    let table = [
        (bits(0, true), place(1, true), 1, true),
        (bits(1, true), place(1, true), 1, false),
        (bits(0, true), place(2, true), 1, false),
        (bits(0, true), place(2, true), 2, true),
        (bits(7, true), place(0, false), 1, true),
        (bits(0, false), place(0, false), 8, false),
        (bits(0, false), place(1, false), 1, true),
        (bits(7, true), place(1, false), 1, false),
        (bits(7, true), place(1, false), 2, true),
        (bits(6, true), place(1, false), 2, false),
        // The next round.
        (bits(2, false), place(6, true), 1, false),
        (bits(2, false), place(6, true), 8, false),
        // All of the ring at once.
        (bits(3, true), place(3, false), 8, true),
        (bits(3, false), place(3, false), 8, false),
        // No such places.
        (bits(0x7fff, true), place(3, true), 8, false),
        (bits(0x7fff, false), place(3, true), 8, false),
    ];
    for (event, now, slots, expected) in table {
        assert_eq!(passed(event, now, slots, 8), expected, "{event:#x} {now:?} {slots}");
    }
}

/// Whatever place the driver names, however far ahead, at whatever place the ring is.
#[test]
fn interrupts_at_every_place() {
    for size in [1, 2, 3, 5, 8] {
        let mut bench = Bench::new(size, BOTH);
        for _ in 0..4 {
            for ahead in 0..size {
                for count in 1..=size {
                    let event = bench.ring.next(bench.ring.used, ahead);
                    bench.ring.set_event(DESC, event);
                    for id in 0..count {
                        bench.ring.offer(id, &[(DATA, 1, true)]);
                        assert!(bench.pop().unwrap());
                        bench.queue.push(id, 1).unwrap();
                    }
                    assert_eq!(bench.flush(), ahead < count, "{size} {ahead} {count} {:?}", bench.ring.used);
                    assert!(!bench.flush(), "one for the batch");
                    while bench.ring.take_used().is_some() {}
                }
            }
        }
    }
}

/// The event lies inside a chain of several descriptors, of which one is used.
#[test]
fn interrupts_inside_a_chain() {
    let mut bench = Bench::starting_at(5, BOTH, (3, true));
    let start = bench.ring.used;
    for (ahead, expected) in [(0, true), (1, true), (2, true), (3, false)] {
        let mut bench = Bench::starting_at(5, BOTH, start);
        bench.ring.set_event(DESC, bench.ring.next(start, ahead));
        bench.ring.offer(0, &[(DATA, 1, true), (DATA, 1, true), (DATA, 1, true)]);
        assert_eq!(bench.serve(0), expected, "{ahead}");
    }
    // One that is a round behind is not passed.
    bench.ring.set_event(DESC, (3, false));
    bench.ring.offer(0, &[(DATA, 1, true)]);
    assert!(!bench.serve(0));
}

#[test]
fn interrupts_by_flags() {
    for features in [0, BOTH] {
        let mut bench = Bench::new(SIZE, features);
        let never = (6, false);
        // DESC was not negotiated in the first turn, and 3 never has a meaning.
        let cases = [(ENABLE, true), (DISABLE, false), (DESC, features == 0), (3, true), (0xfffc, true)];
        for (flags, expected) in cases {
            bench.ring.set_event(flags, never);
            bench.ring.offer(0, &[(DATA, 1, true)]);
            assert_eq!(bench.serve(0), expected, "{flags:#x} with {features:#x}");
        }
    }
}

#[test]
fn notifications() {
    let mut bench = Bench::starting_at(SIZE, BOTH, (7, true));
    assert_eq!(bench.ring.event(), (ENABLE, (0, false)));
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!(bench.ring.event(), (DESC, (7, true)));
    bench.queue.disable_notification().unwrap();
    assert_eq!(bench.ring.event().0, DISABLE);
    bench.ring.offer(0, &[(DATA, 1, true), (DATA, 1, true)]);
    assert!(bench.queue.enable_notification().unwrap(), "it came in between");
    assert!(bench.pop().unwrap());
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!(bench.ring.event(), (DESC, (1, false)), "behind the chain, in the next round");

    let mut bench = Bench::new(SIZE, 0);
    bench.queue.disable_notification().unwrap();
    assert_eq!(bench.ring.event().0, DISABLE);
    assert!(!bench.queue.enable_notification().unwrap());
    assert_eq!(bench.ring.event(), (ENABLE, (0, false)));
    bench.ring.offer(0, &[(DATA, 1, true)]);
    assert!(bench.queue.enable_notification().unwrap());
}

#[test]
fn a_device_before_us_asked_for_silence() {
    let (sim, memory) = guest();
    let ring = PackedRing::new(&sim, RING, SIZE);
    sim.ram_write(ring.layout.used, &[0xff; 4]);
    let _queue = ring.queue(&memory, BOTH);
    assert_eq!(ring.event(), (ENABLE, (0, false)));
}
