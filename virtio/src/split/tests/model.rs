//! Our ring and that of the crate `virtio-queue`, side by side: what one takes for a chain the other does.

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof};
use virtio_queue::{Queue as TheirQueue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const BYTES: usize = 16 << 20;

/// The same ring twice, in two memories of the same content.
struct Pair {
    bench: Bench,
    theirs: TheirQueue,
    memory: GuestMemoryMmap<()>,
}

/// A part of a chain: address, length, whether the device writes it.
type Part = (u64, u32, bool);

impl Pair {
    fn new(start: u16) -> Pair {
        let bench = Bench::starting_at(SIZE, BOTH, start);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)]).unwrap();
        let mut theirs = TheirQueue::new(SIZE).unwrap();
        let layout = bench.ring.layout;
        let halves = |address: Gpa| (Some(address.0 as u32), Some((address.0 >> 32) as u32));
        let (low, high) = halves(layout.descriptors);
        theirs.set_desc_table_address(low, high);
        let (low, high) = halves(layout.available);
        theirs.set_avail_ring_address(low, high);
        let (low, high) = halves(layout.used);
        theirs.set_used_ring_address(low, high);
        theirs.set_event_idx(true);
        theirs.set_next_avail(start);
        theirs.set_next_used(start);
        theirs.set_ready(true);
        let pair = Pair { bench, theirs, memory };
        pair.put(layout.available.0 + 2, &start.to_le_bytes());
        assert!(pair.theirs.is_valid(&pair.memory));
        pair
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bench.ring.sim.ram_write(Gpa(at), bytes);
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn describe(&self, table: u64, index: u16, raw: &Raw) {
        let mut bytes = Vec::from(raw.addr.to_le_bytes());
        bytes.extend(raw.len.to_le_bytes());
        bytes.extend(raw.flags.to_le_bytes());
        bytes.extend(raw.next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &bytes);
    }

    fn offer(&mut self, head: u16) {
        let available = self.bench.ring.layout.available.0;
        let index = self.bench.ring.available;
        self.put(available + 4 + u64::from(index % SIZE) * 2, &head.to_le_bytes());
        self.set_available(index.wrapping_add(1));
    }

    fn set_available(&mut self, index: u16) {
        self.bench.ring.available = index;
        self.put(self.bench.ring.layout.available.0 + 2, &index.to_le_bytes());
    }

    /// The used rings, without the flags.
    fn compare_used(&self) {
        let used = self.bench.ring.layout.used.0 + 2;
        let (mut ours, mut theirs) = ([0; 4 + 8 * SIZE as usize], [0; 4 + 8 * SIZE as usize]);
        self.bench.ring.sim.ram_read(Gpa(used), &mut ours);
        self.memory.read_slice(&mut theirs, GuestAddress(used)).unwrap();
        assert_eq!(ours, theirs);
    }

    /// Takes a chain from both and compares. What is held then, or false if the ring is broken.
    fn pop(&mut self, held: &mut Vec<u16>) -> bool {
        let ours = self.bench.pop();
        let theirs = self.theirs.iter(&self.memory).map(|mut chains| {
            chains.next().map(|chain| {
                let head = chain.head_index();
                let parts: Vec<_> = chain.collect();
                let goes_on = parts.last().is_none_or(|last| last.has_next());
                let parts = parts.iter().filter(|part| part.len() > 0);
                let parts = parts.map(|part| (part.addr().0, part.len(), part.is_write_only()));
                (head, parts.collect::<Vec<Part>>(), goes_on)
            })
        });
        let is_fine = ours.is_ok();
        let Ok(theirs) = theirs else {
            // The index jumped. They read it each time, we when we have come to where it was.
            return false;
        };
        match ours {
            Ok(false) => assert!(theirs.is_none()),
            Ok(true) => {
                let chain = &self.bench.chain;
                let mine = (0..).zip(&chain.segments);
                let mine = mine.map(|(nth, part)| (part.addr.0, part.len, nth >= chain.readable));
                let (head, parts, goes_on) = theirs.unwrap();
                assert_eq!((chain.head(), mine.collect()), (head, parts));
                assert!(!goes_on);
                held.push(head);
            }
            Err(QueueError::HeadOutOfRange { head, .. }) => {
                assert_eq!(theirs.unwrap(), (head, vec![], true));
            }
            // Theirs ends before the end.
            Err(
                QueueError::TooLong { .. }
                | QueueError::NextOutOfRange { .. }
                | QueueError::IndirectInIndirect { .. }
                | QueueError::IndirectLength { .. },
            ) => assert!(theirs.unwrap().2),
            // They let these pass: it is for the device to find out.
            Err(
                QueueError::SameHeadTwice { .. }
                | QueueError::IndirectWithNext { .. }
                | QueueError::ReadableAfterWritable { .. }
                | QueueError::OverRing { .. }
                | QueueError::Memory(_),
            ) => assert!(theirs.is_some()),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(usize::from(self.bench.queue.in_flight()), held.len());
        is_fine
    }
}

#[derive(Clone, Debug)]
struct Raw {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[derive(Clone, Debug)]
enum Step {
    Describe(u16, Raw),
    DescribeIndirect(u16, Raw),
    Offer(u16),
    Jump(u16),
    WantInterrupt(u16),
    Pop,
    Push(usize, u32),
    Listen,
}

fn raw() -> impl Strategy<Value = Raw> {
    let addr = prop_oneof![8 => DATA..DATA + 0x1_0000, 1 => RAM - 64..RAM + 64, 1 => 0u64..u64::MAX];
    // Most have no flags, or go on, or are written; some are tables.
    let flags = prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(NEXT | WRITE), 0u16..8];
    (addr, 0u32..100, flags, 0u16..10, 0u32..5).prop_map(|(addr, len, flags, next, entries)| {
        if flags & INDIRECT != 0 {
            // Some of a length that is none.
            Raw { addr: TABLE, len: entries * 16 + u32::from(next == 9), flags, next }
        } else {
            Raw { addr, len, flags, next }
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SIZE, raw()).prop_map(|(index, raw)| Step::Describe(index, raw)),
        2 => (0u16..5, raw()).prop_map(|(index, raw)| Step::DescribeIndirect(index, raw)),
        6 => prop_oneof![20 => 0..SIZE, 1 => SIZE..SIZE + 2].prop_map(Step::Offer),
        1 => (0u16..20).prop_map(Step::Jump),
        1 => (0u16..10).prop_map(Step::WantInterrupt),
        8 => Just(Step::Pop),
        6 => (0usize..8, 0u32..100).prop_map(|(which, written)| Step::Push(which, written)),
        2 => Just(Step::Listen),
    ]
}

proptest::proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_same_as_virtio_queue(
        start in prop_oneof![Just(0u16), 0xfff0u16..=0xffff],
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        let mut pair = Pair::new(start);
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Describe(index, raw) => pair.describe(RING, index, &raw),
                Step::DescribeIndirect(index, raw) => pair.describe(TABLE, index, &raw),
                Step::Offer(head) => pair.offer(head),
                // Rarely more than the ring holds.
                Step::Jump(by) if by > SIZE => pair.set_available(pair.bench.ring.available.wrapping_add(by)),
                Step::Jump(_) => {}
                Step::WantInterrupt(ahead) => {
                    let event = pair.bench.ring.available.wrapping_add(ahead).wrapping_sub(8);
                    let at = pair.bench.ring.layout.available.0 + 4 + u64::from(SIZE) * 2;
                    pair.put(at, &event.to_le_bytes());
                }
                Step::Pop => {
                    if !pair.pop(&mut held) {
                        break;
                    }
                }
                Step::Push(which, written) => {
                    if !held.is_empty() {
                        let head = held.remove(which % held.len());
                        pair.bench.queue.push(head, written).unwrap();
                        let before = pair.bench.interrupts();
                        pair.bench.queue.flush().unwrap();
                        pair.theirs.add_used(&pair.memory, head, written).unwrap();
                        let wanted = pair.theirs.needs_notification(&pair.memory).unwrap();
                        assert_eq!(pair.bench.interrupts() > before, wanted);
                    }
                }
                Step::Listen => {
                    // Theirs does not look at how far the index is.
                    let theirs = pair.theirs.enable_notification(&pair.memory).unwrap();
                    match pair.bench.queue.enable_notification() {
                        Ok(ours) => assert_eq!(ours, theirs),
                        Err(error) => {
                            assert!(matches!(error, QueueError::IndexJump { .. }) && theirs);
                            break;
                        }
                    }
                }
            }
            pair.compare_used();
        }
    }
}
