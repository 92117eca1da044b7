//! Negotiation and set-up: what may be done when.

use super::*;

#[test]
fn vectors_that_are_not_there() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.pci_setup();
    for (vector, expected) in [(0, 0), (3, 3), (4, 0xffff), (0x7ff, 0xffff), (0xffff, 0xffff), (2, 2)] {
        rig.set(CONFIG_VECTOR, 2, vector);
        rig.set(VECTOR, 2, vector);
        assert_eq!((rig.get(CONFIG_VECTOR, 2), rig.get(VECTOR, 2)), (expected, expected));
    }
    rig.set(CONFIG_VECTOR, 2, 0xffff);
    rig.function.state.fire_all();
    assert_eq!(rig.sim.messages().len(), 0);
}

impl State {
    /// Every interrupt there is, wanted or not.
    fn fire_all(&self) {
        self.config_interrupt();
        (1..5).for_each(|index| self.queue_interrupt(index));
    }
}

#[test]
fn negotiation() {
    let rig = Rig::new(Probe::new(Habit::Use));
    // (features accepted, whether that is agreed to)
    let cases: [(u128, bool); 8] = [
        (0, false),
        (1 << 32, true),
        (1 << 32 | 1 << 28 | 1 << 29 | 1 << 3 | 1 << 63, true),
        (1 << 28 | 1 << 29, false),
        (1 << 32 | 1 << 34, false),
        (1 << 32 | 1, false),
        (1 << 32 | 1 << 64, false),
        (1 << 32 | 1 << 127, false),
    ];
    for (features, agreed) in cases {
        rig.set_status(0);
        // Too early.
        rig.set(DRIVER_FEATURE, 4, 1);
        assert_eq!(rig.get(DRIVER_FEATURE, 4), 0);
        rig.set_status(1);
        rig.set(DRIVER_FEATURE, 4, 1);
        assert_eq!(rig.get(DRIVER_FEATURE, 4), 0);
        rig.set_status(3);
        for select in 0..4 {
            rig.set(DRIVER_SELECT, 4, select);
            rig.set(DRIVER_FEATURE, 4, u64::from((features >> (select * 32)) as u32));
        }
        rig.set_status(11);
        assert_eq!(rig.status(), if agreed { 11 } else { 3 }, "{features:#x}");
        rig.set(DRIVER_SELECT, 4, 0);
        rig.set(DRIVER_FEATURE, 4, 4);
        let expected = if agreed { features as u32 } else { 4 };
        assert_eq!(rig.get(DRIVER_FEATURE, 4), u64::from(expected), "too late, if it was agreed to");
        // DRIVER_OK needs FEATURES_OK.
        rig.set_status(15);
        assert_eq!(rig.status(), if agreed { 15 } else { 3 });
    }
}

#[test]
fn status_bits() {
    let rig = Rig::new(Probe::new(Habit::Use));
    // (what is written one after the other, what is there at the end)
    let cases: [(&[u8], u8); 12] = [
        (&[1, 3], 3),
        (&[3], 3),
        (&[2], 0),
        (&[4], 0),
        (&[8], 0),
        (&[1, 9], 1),
        (&[1, 5], 1),
        (&[3, 1], 3),
        (&[3, 2], 3),
        (&[1, 0x81, 1], 0x81),
        (&[1, 0x81, 0x83], 0x81),
        (&[0x70, 1, 0x71], 1),
    ];
    for (writes, expected) in cases {
        rig.set_status(0);
        writes.iter().for_each(|value| rig.set_status(*value));
        assert_eq!(rig.status(), expected, "{writes:x?}");
    }
    rig.negotiate(FEATURE_VERSION_1);
    rig.set_status(15);
    for value in [11, 7, 3, 1, 14, 0x40] {
        rig.set_status(value);
        assert_eq!(rig.status(), 15, "{value:#x}");
    }
    rig.set_status(0x8f);
    assert_eq!(rig.status(), 0x8f);
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn queue_registers_have_their_time() {
    let probe = Probe::new(Habit::Use);
    let rig = Rig::new(probe.clone());
    rig.pci_setup();
    let ring = rig.ring(0, 4);
    // Before FEATURES_OK.
    rig.set_status(3);
    rig.enable(0, &ring);
    assert_eq!((rig.get(SIZE, 2), rig.get(DESCRIPTORS, 8), rig.get(ENABLE, 2)), (8, 0, 0));
    rig.negotiate(FEATURE_VERSION_1);
    for size in [0, 3, 7, 9, 16, 0x8000, 0xffff] {
        rig.set(SIZE, 2, size);
        assert_eq!(rig.get(SIZE, 2), 8, "{size}");
    }
    for value in [0, 2, 0xffff] {
        rig.set(ENABLE, 2, value);
        assert_eq!((rig.get(ENABLE, 2), rig.status()), (0, 11));
    }
    rig.enable(0, &ring);
    // Enabled: nothing moves any more, before DRIVER_OK and after.
    for status in [11, 15] {
        rig.set_status(status);
        for (offset, size) in [(SIZE, 2), (DESCRIPTORS, 8), (AVAILABLE, 4), (USED + 4, 4), (ENABLE, 2)] {
            rig.set(offset, size, 0);
        }
        assert_eq!((rig.get(SIZE, 2), rig.get(ENABLE, 2)), (4, 1));
        assert_eq!(rig.get(DESCRIPTORS, 8), ring.layout.descriptors.0);
        assert_eq!(rig.get(AVAILABLE, 8), ring.layout.available.0);
        assert_eq!(rig.get(USED, 8), ring.layout.used.0);
    }
    assert_eq!(probe.workers.load(Ordering::SeqCst), 1);
    // One that is enabled later starts at once, on the worker that there is.
    let mut late = rig.ring(1, 2);
    rig.enable(1, &late);
    rig.round(1, &mut late);
    let mut ring = ring;
    rig.round(0, &mut ring);
    assert_eq!(probe.workers.load(Ordering::SeqCst), 1);
}

/// Every register in every state: what the driver writes there counts only where it should.
#[test]
fn registers_in_every_state() {
    /// The selected queue: none, described, enabled, or being reset.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Selected {
        Nothing,
        Free,
        Enabled,
        Resetting,
    }
    use Selected::{Enabled, Free, Nothing, Resetting};

    let reach = |rig: &Rig, value: u8, selected: Selected| {
        rig.set_status(0);
        if value & status::FEATURES_OK != 0 {
            rig.negotiate(FEATURE_VERSION_1 | FEATURE_RING_RESET);
        }
        let ring = rig.ring(0, 4);
        match selected {
            Nothing => rig.set(SELECT, 2, 3),
            Free => rig.set(SELECT, 2, 0),
            Enabled => rig.enable(0, &ring),
            Resetting => {
                rig.enable(0, &ring);
                rig.set_status(15);
                rig.set(RESET, 2, 1);
                assert_eq!((rig.get(RESET, 2), rig.get(ENABLE, 2)), (1, 0));
            }
        }
        if value != 0 {
            rig.set_status(value);
        }
        assert_eq!(rig.status(), value);
    };
    let states = [
        (0, Nothing),
        (0, Free),
        (1, Free),
        (3, Nothing),
        (3, Free),
        (11, Nothing),
        (11, Free),
        (11, Enabled),
        (15, Nothing),
        (15, Free),
        (15, Enabled),
        (15, Resetting),
        (0x83, Free),
        (0x8b, Free),
        (0x8f, Enabled),
        (0x8f, Resetting),
    ];
    // (register, width, what is written, when that changes something)
    type When = fn(u8, Selected) -> bool;
    let setup: When = |status, selected| matches!(status, 11 | 15) && selected == Free;
    let registers: [(u64, u8, u64, When); 17] = [
        (FEATURE_SELECT, 4, 7, |_, _| true),
        (FEATURE, 4, 7, |_, _| false),
        (DRIVER_SELECT, 4, 7, |_, _| true),
        (DRIVER_FEATURE, 4, 1 << 5, |status, _| status == 3),
        (CONFIG_VECTOR, 2, 2, |_, _| true),
        (COUNT, 2, 7, |_, _| false),
        (STATUS, 1, 0, |status, _| status != 0),
        (GENERATION, 1, 7, |_, _| false),
        (SELECT, 2, 1, |_, _| true),
        (SIZE, 2, 2, setup),
        (VECTOR, 2, 2, |_, selected| selected != Nothing),
        (ENABLE, 2, 1, setup),
        (NOTIFY_OFFSET, 2, 7, |_, _| false),
        (DESCRIPTORS, 8, 0x20_0000, setup),
        (AVAILABLE, 8, 0x20_0000, setup),
        (USED, 8, 0x20_0000, setup),
        // It is over at once where nothing runs, so look at the other register.
        (RESET, 2, 1, |status, selected| matches!(status, 11 | 15) && selected == Enabled),
    ];
    for (status, selected) in states {
        for (register, width, value, changes) in registers {
            let probe = Probe::new(Habit::Stuck);
            let rig = Rig::new(probe.clone());
            rig.pci_setup();
            reach(&rig, status, selected);
            let shown = if register == RESET { ENABLE } else { register };
            let before = rig.get(shown, width);
            if register == STATUS {
                // A reset waits for the worker.
                rustix::io::write(&probe.bell, &[1]).unwrap();
            }
            rig.set(register, width, value);
            let changed = rig.get(shown, width) != before;
            assert_eq!(changed, changes(status, selected), "{register:#x} in {status:#x}, {selected:?}");
            rustix::io::write(&probe.bell, &[1]).unwrap();
        }
    }
}

#[test]
fn what_is_offered() {
    let optional =
        [FEATURE_RING_PACKED, FEATURE_IN_ORDER, FEATURE_NOTIFICATION_DATA, FEATURE_ACCESS_PLATFORM];
    let offered = |rig: &Rig| {
        let word = |select| {
            rig.set(FEATURE_SELECT, 4, select);
            rig.get(FEATURE, 4)
        };
        word(0) | word(1) << 32
    };
    let own = 1 << 3 | 1 << 63;
    let rig = Rig::new(Probe::new(Habit::Use));
    assert_eq!(offered(&rig), own | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40);
    for with in optional {
        let rig = Rig::offering(Probe::new(Habit::Use), with);
        assert_eq!(offered(&rig), own | TRANSPORT_FEATURES | with);
        // What is offered need not be accepted, and what is not cannot.
        for accepted in optional {
            rig.set_status(0);
            rig.set_status(3);
            rig.set(DRIVER_SELECT, 4, 1);
            rig.set(DRIVER_FEATURE, 4, (FEATURE_VERSION_1 | accepted) >> 32);
            rig.set_status(11);
            assert_eq!(rig.status(), if accepted == with { 11 } else { 3 });
        }
        rig.negotiate(FEATURE_VERSION_1);
    }
    let without = FEATURE_RING_RESET | FEATURE_EVENT_IDX | FEATURE_INDIRECT | 1 << 3;
    let rig = Rig::with(Probe::new(Habit::Use), Placement { without, ..Placement::default() });
    assert_eq!(offered(&rig), 1 << 63 | FEATURE_VERSION_1);
    let (sim, memory) = guest();
    for with in [1 << 36, 1 << 37, 1 << 39, 1 << 41, 1, 1 << 63] {
        let placement = Placement { with: with | FEATURE_IN_ORDER, ..Placement::default() };
        let made = VirtioPci::new(Probe::new(Habit::Use), "odd", placement, memory.clone(), sim.clone());
        assert!(matches!(made, Err(VirtioPciError::Optional(bits)) if bits == with));
    }
}

#[test]
fn rings_in_bad_places() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.pci_setup();
    let good = rig.ring(0, 8).layout;
    for bad in [1, 0x10_0008, RAM - 16, RAM, 0xfee0_0000, 0xc000_0000, !15, u64::MAX] {
        for register in [DESCRIPTORS, AVAILABLE, USED] {
            rig.negotiate(FEATURE_VERSION_1);
            rig.set(CONFIG_VECTOR, 2, 0);
            rig.set(DESCRIPTORS, 8, good.descriptors.0);
            rig.set(AVAILABLE, 8, good.available.0);
            rig.set(USED, 8, good.used.0);
            rig.set(register, 8, bad);
            rig.set(ENABLE, 2, 1);
            let is_bad = rig.status() & status::NEEDS_RESET != 0;
            // Aligned well enough for the others.
            let fine = bad == 0x10_0008 && register != DESCRIPTORS;
            assert_eq!((is_bad, rig.get(ENABLE, 2) == 0), (!fine, !fine), "{bad:#x} at {register:#x}");
            // The driver is told once it can be.
            assert!(rig.sim.messages().is_empty());
            rig.set_status(15);
            assert_eq!(rig.sim.messages().len(), usize::from(is_bad));
            assert_eq!(rig.status() & 15, 15);
        }
    }
}

#[test]
fn a_ring_that_cannot_be_mapped() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.pci_setup();
    rig.negotiate(FEATURE_VERSION_1);
    let ring = rig.ring(0, 8);
    rig.sim.punch(ring.layout.available.frame());
    rig.memory.invalidate();
    rig.enable(0, &ring);
    assert_eq!(rig.status(), 11);
    rig.set(CONFIG_VECTOR, 2, 0);
    rig.set_status(15);
    assert_eq!((rig.status(), rig.message()), (15 | status::NEEDS_RESET, Some(0x30)));
}

#[test]
fn vectors_fewer_than_queues() {
    let placement = Placement { vectors: Some(1), ..Placement::default() };
    let rig = Rig::with(Probe::new(Habit::Use), placement);
    rig.pci_setup();
    rig.set(VECTOR, 2, 1);
    assert_eq!(rig.get(VECTOR, 2), 0xffff);
    rig.set(VECTOR, 2, 0);
    assert_eq!(rig.get(VECTOR, 2), 0);
}
