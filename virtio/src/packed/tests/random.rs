//! Rings of any content.

use super::*;

proptest::proptest! {
    /// Whatever comes out is in RAM, the device's books stay right, and there is an end: without anything
    /// new from the driver no more chains come out than there are descriptors.
    #[test]
    fn random_rings(
        size in 1u16..12,
        start in proptest::num::u16::ANY,
        ring in proptest::collection::vec((0u64..RAM + 64, 0u32..5000, 0u16..13, 0u16..8, 0u8..8), 12),
        table in proptest::collection::vec((0u64..RAM + 64, 0u32..5000, 0u16..8), 4),
        keep in 0usize..4,
    ) {
        let place = (start % size, start & 0x8000 != 0);
        let mut bench = Bench::starting_at(size, BOTH, place);
        let raw = Ring::new(&bench.ring.sim, RING, SIZE);
        for (index, (addr, len, flags)) in (0..).zip(table) {
            raw.descriptor_at(TABLE, index, addr, len, 0, flags);
        }
        let mut at = place;
        for (addr, len, id, flags, state) in ring.into_iter().take(size.into()) {
            let (addr, len) = if flags & INDIRECT != 0 { (TABLE, 64) } else { (addr, len) };
            // Mostly available.
            let state = match state {
                0 => 0,
                1 => AVAIL | USED,
                2 => PackedRing::flags((0, !at.1)),
                _ => PackedRing::flags(at),
            };
            bench.ring.descriptor(at.0, addr, len, id, flags | state);
            at = bench.ring.next(at, 1);
        }
        let mut held = Vec::new();
        let mut popped = 0;
        while let Ok(true) = bench.pop() {
            popped += 1;
            assert!(popped <= size, "it does not end");
            let chain = &bench.chain;
            let sum: u64 = chain.segments.iter().map(|segment| u64::from(segment.len)).sum();
            assert_eq!(sum, chain.readable_len() + chain.writable_len());
            assert!(chain.segments.iter().all(|s| s.addr.0 + u64::from(s.len) <= RAM));
            chain.writer(&bench.memory).pin_rest(&mut Pinned::new()).unwrap();
            chain.reader(&bench.memory).pin_rest(&mut Pinned::new()).unwrap();
            assert!(!held.contains(&chain.head()) && chain.head() < size);
            held.push(chain.head());
            if held.len() > keep {
                bench.queue.push(held.remove(0), 1).unwrap();
                bench.queue.flush().unwrap();
            }
        }
        assert_eq!(usize::from(bench.queue.in_flight()), held.len());
        assert_eq!(usize::from(bench.queue.rewind(size)), held.len());
        assert_eq!(bench.queue.in_flight(), 0);
        bench.queue.flush().unwrap();
    }

    /// A driver that writes anything anywhere between any calls.
    #[test]
    fn random_writes(
        size in 1u16..9,
        steps in proptest::collection::vec((0u8..6, 0u64..160, proptest::num::u64::ANY), 0..200),
    ) {
        let mut bench = Bench::new(size, BOTH);
        let mut held = Vec::new();
        for (what, at, value) in steps {
            match what {
                0 | 1 => {
                    // A descriptor that may well be good.
                    let flags = (value >> 16) as u16 & (NEXT | WRITE | AVAIL | USED);
                    let id = (value >> 8) as u16 % (size + 1);
                    bench.ring.descriptor(at as u16 % size, DATA, 8, id, flags);
                }
                2 => {
                    let at = RING + at % (u64::from(size) * 16) / 8 * 8;
                    bench.ring.sim.ram_write(Gpa(at), &value.to_le_bytes());
                    bench.ring.sim.ram_write(bench.ring.layout.available, &(value as u32).to_le_bytes());
                }
                3 => {
                    if let Ok(true) = bench.pop() {
                        held.push(bench.chain.head());
                    }
                }
                4 if !held.is_empty() => {
                    let id = held.remove(value as usize % held.len());
                    bench.queue.push(id, at as u32).unwrap();
                }
                _ => {
                    bench.queue.flush().unwrap();
                    bench.queue.disable_notification().unwrap();
                    bench.queue.enable_notification().unwrap();
                }
            }
            assert_eq!(usize::from(bench.queue.in_flight()), held.len());
            assert!(held.len() <= size.into());
        }
    }
}
