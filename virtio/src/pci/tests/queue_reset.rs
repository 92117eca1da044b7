//! Queues that are reset alone (virtio 1.3 §2.6.1).

use super::*;

/// Resets the selected queue and waits until the driver has it back.
fn reset(rig: &Rig, index: u64) {
    rig.set(SELECT, 2, index);
    rig.set(RESET, 2, 1);
    wait_until(|| rig.get(RESET, 2) == 0);
    assert_eq!(rig.get(ENABLE, 2), 0);
}

#[test]
fn one_queue_stops_and_starts() {
    for habit in [Habit::Use, Habit::Keep, Habit::GiveBack] {
        let probe = Probe::new(habit);
        let rig = Rig::new(probe.clone());
        let mut rings = rig.start(FEATURE_RING_RESET);
        for turn in 0..10 {
            rings[0].chain(0, &[(DATA, 1, true)]);
            rings[0].offer(0);
            rig.kick(0);
            if turn % 2 == 0 {
                wait_until(|| probe.taken.load(Ordering::SeqCst) > turn / 2);
            }
            let drained = probe.drained.load(Ordering::SeqCst);
            reset(&rig, 0);
            assert_eq!(probe.drained.load(Ordering::SeqCst), drained + 1, "before the driver is told");
            // It is as it was at first.
            assert_eq!((rig.get(SIZE, 2), rig.get(VECTOR, 2)), (8, NO_VECTOR.into()));
            assert_eq!((rig.get(DESCRIPTORS, 8), rig.get(AVAILABLE, 8), rig.get(USED, 8)), (0, 0, 0));
            // Nobody looks at the old ring any more.
            let used = rings[0].used_index();
            rig.sim.messages();
            rings[0].offer(0);
            rig.kick(0);
            std::thread::sleep(Duration::from_millis(1));
            assert_eq!((rings[0].used_index(), rig.sim.messages().len()), (used, 0));
            // With another size, from the start, and on the same worker.
            rings[0] = Ring::new(&rig.sim, 0x90_0000, 1 << (turn % 4));
            rig.sim.ram_write(rings[0].layout.available, &[0; 32]);
            rig.sim.ram_write(rings[0].layout.used, &[0; 128]);
            rig.enable(0, &rings[0]);
            assert_eq!((rig.get(ENABLE, 2), rig.get(RESET, 2), rig.status()), (1, 0, 15));
            if habit == Habit::Use {
                rig.round(0, &mut rings[0]);
                rig.round(1, &mut rings[1]);
            }
        }
        assert_eq!(probe.workers.load(Ordering::SeqCst), 2);
        rig.set_status(0);
        assert_eq!(probe.live.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn while_it_is_being_reset() {
    let probe = Probe::new(Habit::Stuck);
    let rig = Rig::new(probe.clone());
    let mut rings = rig.start(FEATURE_RING_RESET);
    rings[0].chain(0, &[(DATA, 1, true)]);
    rings[0].offer(0);
    rig.kick(0);
    wait_until(|| probe.taken.load(Ordering::SeqCst) == 1);
    rig.set(SELECT, 2, 0);
    rig.set(RESET, 2, 1);
    for _ in 0..3 {
        assert_eq!((rig.get(RESET, 2), rig.get(ENABLE, 2)), (1, 0));
        // Not yet, and not again.
        rig.enable(0, &rings[0]);
        rig.set(RESET, 2, 1);
        rig.set(RESET, 2, 0);
    }
    // The other queues are as they were.
    rig.set(SELECT, 2, 2);
    assert_eq!((rig.get(RESET, 2), rig.get(ENABLE, 2)), (0, 1));
    rig.set(SELECT, 2, 0);
    rustix::io::write(&probe.bell, &[1]).unwrap();
    wait_until(|| rig.get(RESET, 2) == 0);
    // What was in flight came back first.
    assert_eq!(rings[0].take_used(), Some((0, 2)));
    assert_eq!(rig.status(), 15);
}

/// The device is reset while a queue is: all is over when that is.
#[test]
fn device_reset_in_between() {
    let probe = Probe::new(Habit::Stuck);
    let rig = Rig::new(probe.clone());
    let _rings = rig.start(FEATURE_RING_RESET);
    rig.set(SELECT, 2, 0);
    rig.set(RESET, 2, 1);
    assert_eq!(rig.get(RESET, 2), 1);
    std::thread::scope(|scope| {
        scope.spawn(|| rig.set_status(0));
        std::thread::sleep(Duration::from_millis(5));
        rustix::io::write(&probe.bell, &[1]).unwrap();
    });
    assert_eq!((rig.status(), rig.get(RESET, 2), probe.live.load(Ordering::SeqCst)), (0, 0, 0));
    let rig = Rig::new(Probe::new(Habit::Use));
    let mut rings = rig.start(FEATURE_RING_RESET);
    rig.round(0, &mut rings[0]);
}

#[test]
fn when_there_is_nothing_to_stop() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.pci_setup();
    rig.negotiate(FEATURE_VERSION_1 | FEATURE_RING_RESET);
    let mut ring = rig.ring(0, 8);
    rig.enable(0, &ring);
    // No worker yet.
    rig.set(RESET, 2, 1);
    assert_eq!((rig.get(RESET, 2), rig.get(ENABLE, 2), rig.get(DESCRIPTORS, 8)), (0, 0, 0));
    rig.enable(0, &ring);
    rig.set_status(15);
    rig.round(0, &mut ring);
    // Values that are none, a queue that is not enabled, one that is not there.
    for (select, value) in [(0, 0), (0, 2), (0, 0xffff), (1, 1), (3, 1), (0xffff, 1)] {
        rig.set(SELECT, 2, select);
        rig.set(RESET, 2, value);
        assert_eq!(rig.get(RESET, 2), 0);
    }
    rig.round(0, &mut ring);
}

#[test]
fn not_without_the_feature() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let mut rings = rig.start(0);
    rig.set(SELECT, 2, 0);
    rig.set(RESET, 2, 1);
    assert_eq!((rig.get(RESET, 2), rig.get(ENABLE, 2)), (0, 1));
    rig.round(0, &mut rings[0]);
}

/// A queue that the driver broke can be reset, but the device still needs more than that.
#[test]
fn a_broken_queue() {
    let probe = Probe::new(Habit::Use);
    let rig = Rig::new(probe.clone());
    let mut rings = rig.start(FEATURE_RING_RESET);
    rings[0].offer(0xffff);
    rig.kick(0);
    assert_eq!((rig.message(), rig.status()), (Some(0x30), 15 | status::NEEDS_RESET));
    reset(&rig, 0);
    assert_eq!(rig.status(), 15 | status::NEEDS_RESET);
    rig.round(1, &mut rings[1]);
}
