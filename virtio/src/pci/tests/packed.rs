//! Packed rings end to end.

use super::*;
use crate::testing::{DESC, ENABLE, PackedRing};

const PACKED: u64 = FEATURE_VERSION_1 | FEATURE_RING_PACKED;

/// A rig whose queue 0 is a packed ring that runs.
fn start(device: Arc<dyn Device>, size: u16, features: u64) -> (Rig, PackedRing) {
    let rig = Rig::offering(device, FEATURE_RING_PACKED | FEATURE_NOTIFICATION_DATA);
    rig.pci_setup();
    rig.negotiate(features | PACKED);
    rig.set(CONFIG_VECTOR, 2, 0);
    let ring = PackedRing::new(&rig.sim, 0x10_0000, size);
    rig.enable_at(0, &ring.layout);
    rig.set_status(15);
    assert_eq!((rig.status(), rig.get(ENABLE_REGISTER, 2)), (15, 1));
    (rig, ring)
}

const ENABLE_REGISTER: u64 = super::ENABLE;

#[test]
fn random_numbers() {
    let device = Arc::new(Rng::new(File::open("/dev/urandom").unwrap()));
    let (rig, mut ring) = start(device, 7, 0);
    for round in 0..30 {
        ring.offer(round % 7, &[(DATA, 16, false), (DATA, 100, true), (DATA + 0x1000, 20, true)]);
        rig.kick(0);
        assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((round % 7, 120))));
    }
}

/// A size that is no power of two needs packed rings, agreed upon.
#[test]
fn sizes() {
    let rig = Rig::offering(Probe::new(Habit::Use), FEATURE_RING_PACKED);
    rig.negotiate(FEATURE_VERSION_1);
    rig.set(SELECT, 2, 1);
    rig.set(SIZE, 2, 100);
    assert_eq!(rig.get(SIZE, 2), 256);
    rig.negotiate(PACKED);
    rig.set(SELECT, 2, 1);
    for (size, expected) in [(100, 100), (257, 100), (0, 100), (0x8000, 100), (1, 1), (255, 255), (256, 256)]
    {
        rig.set(SIZE, 2, size);
        assert_eq!(rig.get(SIZE, 2), expected);
    }
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let (rig, mut ring) = start(Probe::new(Habit::Keep), 8, 0);
    ring.offer(0, &[(DATA, 1, true)]);
    rig.kick(0);
    ring.offer(0, &[(DATA, 1, true)]);
    rig.kick(0);
    let mut messages = [rig.message(), rig.message()];
    messages.sort();
    assert_eq!(messages, [Some(0x30), Some(0x31)]);
    assert_eq!((rig.status(), ring.take_used()), (15 | status::NEEDS_RESET, Some((0, 2))));
}

/// A chain without an end, offered for ever: one error, and then the worker sleeps.
#[test]
fn no_livelock() {
    let probe = Probe::new(Habit::Use);
    let (rig, ring) = start(probe.clone(), 8, 0);
    let flags = crate::testing::NEXT | crate::testing::AVAIL;
    (0..8).for_each(|index| ring.descriptor(index, DATA, 1, 0, flags));
    rig.kick(0);
    assert_eq!((rig.message(), rig.status()), (Some(0x30), 15 | status::NEEDS_RESET));
    (0..1000).for_each(|_| rig.kick(0));
    assert_eq!((probe.taken.load(Ordering::SeqCst), rig.sim.messages().len()), (0, 0));
}

/// What NOTIFICATION_DATA adds to a notification changes nothing: it can be wrong.
#[test]
fn notification_data() {
    let (rig, mut ring) = start(Probe::new(Habit::Use), 8, FEATURE_NOTIFICATION_DATA);
    for (round, data) in [0, 0x8001_0000, 0xffff_ffff, 0x7fff_0003, 2].into_iter().enumerate() {
        ring.offer(round as u16, &[(DATA, 1, true)]);
        rig.set(NOTIFY, 4, data);
        assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((round as u16, 1))));
    }
}

/// Notifies only when asked to, and wants one interrupt a chain: a lost wake-up shows as a hang.
#[test]
fn a_driver_that_notifies_only_when_asked() {
    for size in [7, 8] {
        let (rig, mut ring) = start(Probe::new(Habit::Use), size, FEATURE_EVENT_IDX);
        let mut kicks = 0;
        for round in 0..20_000u32 {
            let place = ring.available;
            ring.set_event(DESC, place);
            ring.offer(round as u16 % size, &[(DATA, 1, true)]);
            std::sync::atomic::fence(Ordering::SeqCst);
            let (flags, event) = ring.event();
            if flags == ENABLE || (flags == DESC && event == place) {
                kicks += 1;
                rig.kick(0);
            }
            while ring.take_used().is_none() {
                std::hint::spin_loop();
            }
            if round % 3 == 0 {
                assert_eq!(rig.message(), Some(0x31));
            } else {
                rig.sim.messages();
            }
            (0..round % 257).for_each(|_| std::hint::spin_loop());
        }
        assert!(kicks > 0);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// A ring of noise, and a driver that goes on writing to it: no panic, no hang, and a reset always helps.
    #[test]
    fn noise(
        size in 1u16..9,
        noise in proptest::collection::vec(proptest::num::u64::ANY, 16),
        writes in proptest::collection::vec((0u64..18, proptest::num::u64::ANY), 0..100),
    ) {
        let (rig, ring) = start(Probe::new(Habit::Use), size, TRANSPORT_FEATURES);
        let at = ring.layout.descriptors.0;
        for (index, word) in (0..).zip(noise) {
            rig.sim.ram_write(Gpa(at + index * 8), &word.to_le_bytes());
        }
        for (offset, word) in writes {
            let at = if offset < 16 { at + offset * 8 } else { ring.layout.available.0 };
            // Addresses that are there, more often than not.
            let word = if offset % 2 == 0 { word % (2 * RAM) } else { word };
            rig.sim.ram_write(Gpa(at), &word.to_le_bytes());
            rig.kick(0);
        }
        rig.set_status(0);
        assert_eq!(rig.status(), 0);
        rig.sim.messages();
        (0..8).for_each(|index| ring.descriptor(index, 0, 0, 0, 0));
        rig.sim.ram_write(ring.layout.available, &[0; 4]);
        rig.negotiate(PACKED);
        let mut ring = PackedRing::new(&rig.sim, 0x10_0000, size);
        rig.enable_at(0, &ring.layout);
        rig.set_status(15);
        ring.offer(0, &[(DATA, 1, true)]);
        rig.kick(0);
        assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((0, 1))));
    }
}
