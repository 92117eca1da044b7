//! What holds for every kind of ring.

use std::collections::VecDeque;

use proptest::prelude::{Just, Strategy};

use super::*;
use crate::testing::{AnyRing, guest};

const RING: u64 = 0x10_0000;
const DATA: u64 = 0x40_0000;
/// Buffers of up to four descriptors in a ring of 32.
const BUFFERS: u16 = 8;

const KINDS: [u64; 4] = [0, FEATURE_RING_PACKED, FEATURE_IN_ORDER, FEATURE_RING_PACKED | FEATURE_IN_ORDER];

#[test]
fn starting_points() {
    assert_eq!(QueueState::initial(0), QueueState { next_avail: 0, next_used: 0 });
    let packed = QueueState { next_avail: 0x8000, next_used: 0x8000 };
    assert_eq!(QueueState::initial(FEATURE_RING_PACKED), packed);
}

#[test]
fn in_order() {
    for kind in KINDS {
        let (sim, memory) = guest();
        let mut ring = AnyRing::new(&sim, RING, 32, kind);
        let (mut queue, _) = ring.queue(&memory, kind | FEATURE_EVENT_IDX);
        let mut chain = Chain::new();
        let in_order = kind & FEATURE_IN_ORDER != 0;
        for round in 0..50 {
            let mut heads = Vec::new();
            for number in 0..4 {
                ring.offer(number, &[(DATA, 8, true)]);
                assert!(queue.pop(&mut chain).unwrap());
                heads.push(chain.head());
            }
            for nth in [2, 0, 1] {
                queue.push(heads[nth], round + nth as u32).unwrap();
                assert!(matches!(queue.push(heads[nth], 0), Err(QueueError::NotInFlight { .. })));
            }
            queue.flush().unwrap();
            assert_eq!(queue.in_flight(), 1);
            let used: Vec<_> = std::iter::from_fn(|| ring.take_used()).collect();
            let order: &[u16] = if in_order { &[0, 1, 2] } else { &[2, 0, 1] };
            assert_eq!(used, order.iter().map(|nth| (*nth, round + u32::from(*nth))).collect::<Vec<_>>());
            // The last one is given back and taken again.
            assert_eq!((queue.rewind(4), queue.in_flight()), (1, 0));
            assert!(queue.pop(&mut chain).unwrap());
            queue.push(chain.head(), 9).unwrap();
            queue.flush().unwrap();
            assert_eq!(ring.take_used(), Some((3, 9)));
        }
    }
}

/// With IN_ORDER a chain behind an unfinished one is not shown, nor given back.
#[test]
fn in_order_holds_back() {
    for kind in [FEATURE_IN_ORDER, FEATURE_RING_PACKED | FEATURE_IN_ORDER] {
        let (sim, memory) = guest();
        let mut ring = AnyRing::new(&sim, RING, 32, kind);
        let (mut queue, interrupts) = ring.queue(&memory, kind);
        let mut chain = Chain::new();
        let mut heads = Vec::new();
        for number in 0..2 {
            ring.offer(number, &[(DATA, 8, true)]);
            assert!(queue.pop(&mut chain).unwrap());
            heads.push(chain.head());
        }
        queue.push(heads[1], 5).unwrap();
        queue.flush().unwrap();
        assert_eq!((queue.rewind(2), queue.in_flight(), ring.take_used()), (0, 1, None));
        assert_eq!(interrupts.load(std::sync::atomic::Ordering::SeqCst), 0);
        queue.push(heads[0], 4).unwrap();
        queue.flush().unwrap();
        assert_eq!((ring.take_used(), ring.take_used(), queue.in_flight()), (Some((0, 4)), Some((1, 5)), 0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize),
    Pop,
    Push(usize),
    Flush,
    Rewind,
}

/// A chain that was taken.
struct Taken {
    head: u16,
    parts: usize,
    pushed: bool,
}

/// Runs steps against a ring and a plain model of it. What the driver saw used.
fn play(kind: u64, steps: &[Step]) -> Vec<(u16, u32)> {
    let (sim, memory) = guest();
    let mut ring = AnyRing::new(&sim, RING, 32, kind);
    let (mut queue, _) = ring.queue(&memory, kind);
    let mut chain = Chain::new();
    let mut free: VecDeque<u16> = (0..BUFFERS).collect();
    let mut offered = VecDeque::new();
    let mut taken: Vec<Taken> = Vec::new();
    let mut seen = Vec::new();
    for (written, step) in (1..).zip(steps) {
        match step {
            Step::Offer(parts) => {
                if let Some(number) = free.pop_front() {
                    ring.offer(number, &vec![(DATA + u64::from(number) * 4096, 16, true); *parts]);
                    offered.push_back((number, *parts));
                }
            }
            Step::Pop => {
                assert_eq!(queue.pop(&mut chain).unwrap(), !offered.is_empty());
                if let Some((number, parts)) = offered.pop_front() {
                    let got = (ring.number(chain.head()), chain.writable_len());
                    assert_eq!(got, (number, 16 * parts as u64));
                    taken.push(Taken { head: chain.head(), parts, pushed: false });
                }
            }
            Step::Push(which) => {
                let mut held: Vec<_> = taken.iter_mut().filter(|taken| !taken.pushed).collect();
                if !held.is_empty() {
                    let which = which % held.len();
                    queue.push(held[which].head, written).unwrap();
                    held[which].pushed = true;
                }
            }
            Step::Flush => {
                queue.flush().unwrap();
                while let Some((number, len)) = ring.take_used() {
                    seen.push((number, len));
                    free.push_back(number);
                }
            }
            Step::Rewind => {
                // Nothing taken before one that was pushed is given back.
                let last = taken.pop_if(|last| !last.pushed);
                assert_eq!(queue.rewind(1), u16::from(last.is_some()));
                if let Some(last) = last {
                    offered.push_front((ring.number(last.head), last.parts));
                }
            }
        }
        assert_eq!(usize::from(queue.in_flight()), taken.iter().filter(|taken| !taken.pushed).count());
    }
    seen
}

fn step() -> impl Strategy<Value = Step> {
    proptest::prop_oneof![
        (1usize..5).prop_map(Step::Offer),
        Just(Step::Pop),
        (0usize..8).prop_map(Step::Push),
        Just(Step::Flush),
        Just(Step::Rewind),
    ]
}

proptest::proptest! {
    /// A driver sees the same, whatever the format of its ring.
    #[test]
    fn rings_are_alike(steps in proptest::collection::vec(step(), 0..300)) {
        assert_eq!(play(0, &steps), play(FEATURE_RING_PACKED, &steps));
        let in_order = play(FEATURE_IN_ORDER, &steps);
        assert_eq!(in_order, play(FEATURE_RING_PACKED | FEATURE_IN_ORDER, &steps));
    }
}
