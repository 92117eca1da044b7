//! Queues that run, break, stop and start again.

use super::*;

#[test]
fn random_numbers_end_to_end() {
    let rig = Rig::new(Arc::new(Rng::new(File::open("/dev/urandom").unwrap())));
    rig.pci_setup();
    rig.set(FEATURE_SELECT, 4, 1);
    assert_eq!(rig.get(FEATURE, 4), 1 | 1 << 8);
    rig.set(FEATURE_SELECT, 4, 0);
    assert_eq!(rig.get(FEATURE, 4), 3 << 28);
    rig.negotiate(TRANSPORT_FEATURES);
    assert_eq!((rig.get(COUNT, 2), rig.get(SIZE, 2)), (1, 8));
    let mut ring = rig.ring(0, 8);
    rig.enable(0, &ring);
    rig.set_status(15);
    // More than the cap, readable parts are passed over.
    ring.chain(0, &[(DATA, 16, false), (DATA, 100, true), (DATA + 0x1000, 0x2_0000, true)]);
    ring.offer(0);
    rig.kick(0);
    assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((0, 64 << 10))));
    let mut bytes = [0; 100];
    rig.sim.ram_read(Gpa(DATA), &mut bytes);
    assert!(bytes.iter().filter(|byte| **byte == 0).count() < 20);
    // Nothing to write is nothing written.
    ring.chain(1, &[(DATA, 16, false)]);
    ring.set_used_event(1);
    ring.offer(1);
    rig.kick(0);
    assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((1, 0))));
}

#[test]
fn a_source_that_ends() {
    let rig = Rig::new(Arc::new(Rng::new(File::open("/dev/null").unwrap())));
    rig.pci_setup();
    rig.negotiate(FEATURE_VERSION_1);
    let mut ring = rig.ring(0, 8);
    rig.enable(0, &ring);
    rig.set_status(15);
    ring.chain(0, &[(DATA, 100, true)]);
    ring.offer(0);
    rig.kick(0);
    assert_eq!((rig.message(), ring.take_used()), (Some(0x31), Some((0, 0))));
}

#[test]
fn three_queues_two_workers() {
    let probe = Probe::new(Habit::Use);
    let rig = Rig::new(probe.clone());
    let mut rings = rig.start(FEATURE_EVENT_IDX);
    assert_eq!(probe.workers.load(Ordering::SeqCst), 2);
    for round in 0..50 {
        for (index, ring) in (0..).zip(&mut rings) {
            ring.set_used_event(round);
            rig.round(index, ring);
        }
    }
    assert!(rig.sim.messages().is_empty());
}

#[test]
fn a_broken_ring_stops_one_queue() {
    let probe = Probe::new(Habit::Keep);
    let rig = Rig::new(probe.clone());
    let mut rings = rig.start(0);
    // What it holds is drained, and used.
    rings[0].chain(0, &[(DATA, 1, true)]);
    rings[0].offer(0);
    rig.kick(0);
    rings[0].offer(0);
    rig.kick(0);
    let mut messages = [rig.message(), rig.message()];
    messages.sort();
    assert_eq!(messages, [Some(0x30), Some(0x31)]);
    assert_eq!((rig.status(), rings[0].take_used()), (15 | status::NEEDS_RESET, Some((0, 2))));
    wait_until(|| probe.drained.load(Ordering::SeqCst) == 1);
    // It stays stopped; the others of the same worker go on.
    rig.kick(0);
    rings[1].chain(0, &[(DATA, 1, true)]);
    rings[1].offer(0);
    rig.kick(1);
    wait_until(|| probe.taken.load(Ordering::SeqCst) == 2);
    rig.set_status(0);
    assert_eq!((rings[1].take_used(), rings[0].take_used()), (Some((0, 2)), None));
    assert_eq!((probe.drained.load(Ordering::SeqCst), rig.status()), (3, 0));
}

#[test]
fn no_worker_to_be_had() {
    let rig = Rig::new(Probe::new(Habit::NoWorker));
    rig.pci_setup();
    rig.negotiate(FEATURE_VERSION_1);
    rig.set(CONFIG_VECTOR, 2, 0);
    rig.enable(0, &rig.ring(0, 8));
    rig.set_status(15);
    assert_eq!((rig.status(), rig.message()), (15 | status::NEEDS_RESET, Some(0x30)));
    rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn reset_with_queues_running() {
    for habit in [Habit::Use, Habit::Spin, Habit::Keep, Habit::GiveBack, Habit::AtSource] {
        let probe = Probe::new(habit);
        let rig = Rig::new(probe.clone());
        for turn in 1..=5 {
            let mut rings = rig.start(FEATURE_EVENT_IDX);
            rig.sim.dirty();
            for (index, ring) in (0..).zip(&mut rings) {
                ring.set_available(0);
                ring.chain(0, &[(DATA, 1, true)]);
                ring.offer(0);
                rig.kick(index);
            }
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Other vCPUs notify and look all the while.
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            (0..4).for_each(|index| rig.kick(index));
                            rig.get(STATUS, 1);
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(2));
                rig.set_status(0);
                assert_eq!(rig.status(), 0);
                stop.store(true, Ordering::Relaxed);
            });
            assert_eq!(
                (probe.live.load(Ordering::SeqCst), probe.resets.load(Ordering::SeqCst)),
                (0, turn * 2)
            );
            assert!(!rig.sim.dirty().is_empty(), "what was written is reported");
            rig.set(SELECT, 2, 1);
            assert_eq!((rig.get(SIZE, 2), rig.get(ENABLE, 2), rig.get(USED, 8)), (256, 0, 0));
            assert_eq!((rig.get(VECTOR, 2), rig.get(CONFIG_VECTOR, 2)), (0xffff, 0xffff));
            assert_eq!((rig.get(SELECT, 2), rig.get(DRIVER_FEATURE, 4)), (1, 0));
            rig.sim.messages();
            // Nothing is served without another start.
            (0..3).for_each(|index| rig.kick(index));
            assert!(rig.sim.messages().is_empty());
            for ring in &rings {
                rig.sim.ram_write(ring.layout.used, &[0; 4]);
                rig.sim.ram_write(ring.layout.available, &[0; 4]);
            }
        }
    }
}

#[test]
fn reset_of_the_function() {
    let probe = Probe::new(Habit::Use);
    let rig = Rig::new(probe.clone());
    rig.start(0);
    rig.function.config_write(register::BAR0, 4, 0x4000_0000);
    assert_eq!(rig.function.bars().base(0), Some(0x4000_0000));
    rig.function.reset();
    assert_eq!((rig.status(), rig.function.bars().base(0), probe.live.load(Ordering::SeqCst)), (0, None, 0));
    assert_eq!(rig.function.config_read(register::COMMAND, 2), 0);
    assert_eq!((rig.get(TABLE.into(), 8), rig.get(u64::from(TABLE) + 8, 8)), (0, 1 << 32));
    let mut rings = rig.start(0);
    rig.round(2, &mut rings[2]);
    drop(rig);
    assert_eq!(probe.live.load(Ordering::SeqCst), 0, "dropping it stops its workers");
}

#[test]
fn bus_mastering() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let mut rings = rig.start(0);
    rig.round(0, &mut rings[0]);
    rig.function.config_write(register::COMMAND, 2, command::MEMORY);
    std::thread::sleep(Duration::from_millis(20));
    rings[0].offer(0);
    rig.kick(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((rings[0].take_used(), rig.sim.messages().len()), (None, 0));
    rig.function.config_write(register::COMMAND, 2, command::MEMORY | command::BUS_MASTER);
    assert_eq!((rig.message(), rings[0].take_used()), (Some(0x31), Some((0, 1))));
}

/// What is in flight is over when the write that turns bus mastering off is, and nothing is started.
#[test]
fn bus_mastering_with_requests_in_flight() {
    // What is given back stays in the ring, which has room for eight.
    for (habit, rounds) in [(Habit::Keep, 20), (Habit::GiveBack, 8)] {
        let probe = Probe::new(habit);
        let rig = Rig::new(probe.clone());
        let mut rings = rig.start(0);
        for round in 1..rounds {
            for (index, ring) in (0..).zip(&mut rings) {
                let head = round as u16 % 8;
                ring.chain(head, &[(DATA, 1, true)]);
                ring.offer(head);
                rig.kick(index);
            }
            if round % 2 == 0 && habit == Habit::Keep {
                wait_until(|| probe.taken.load(Ordering::SeqCst) == 3 * round);
            }
            rig.function.config_write(register::COMMAND, 2, command::MEMORY);
            let drained = probe.drained.load(Ordering::SeqCst);
            assert_eq!(drained, round * 3);
            let before: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
            std::thread::sleep(Duration::from_millis(1));
            (0..3).for_each(|index| rig.kick(index));
            rig.set(NOTIFY, 4, 0);
            let after: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
            assert_eq!((before, rig.sim.messages().len()), (after, 0), "nothing comes any more");
            rig.function.config_write(register::COMMAND, 2, command::MEMORY | command::BUS_MASTER);
            if habit == Habit::Keep {
                // Those that were not taken in time are now.
                wait_until(|| probe.taken.load(Ordering::SeqCst) == 3 * round);
            }
            rig.sim.messages();
        }
        rig.set_status(0);
        if habit == Habit::Keep {
            assert!(rings.iter().all(|ring| ring.used_index() == 19));
        }
    }
}

/// Without memory decoding there is no BAR: reads find nothing, and doorbells are not heard. Queues run on.
#[test]
fn memory_decoding() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let bus = pci::Bus::new(1);
    let at = pci::Bdf::new(0, 1, 0).unwrap();
    bus.insert(at, rig.function.clone()).unwrap();
    let mut rings = rig.start(0);
    for base in [0xe000_0000u64, 0x12_3456_0000] {
        bus.config_write(at, register::BAR0, 4, base as u32);
        bus.config_write(at, register::BAR0 + 4, 4, (base >> 32) as u32);
        assert_eq!(bus.mmio_read(base + STATUS, 1), Some(15));
        bus.config_write(at, register::COMMAND, 2, command::BUS_MASTER);
        assert_eq!((bus.mmio_read(base + STATUS, 1), bus.mmio_write(base + STATUS, 1, 0)), (None, false));
        // Until the worker sleeps.
        std::thread::sleep(Duration::from_millis(20));
        rings[0].chain(0, &[(DATA, 1, true)]);
        rings[0].offer(0);
        assert!(!bus.mmio_write(base + NOTIFY, 2, 0));
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!((rings[0].take_used(), rig.sim.messages().len()), (None, 0));
        bus.config_write(at, register::COMMAND, 2, command::MEMORY | command::BUS_MASTER);
        assert_eq!(bus.mmio_read(base + STATUS, 1), Some(15));
        assert!(bus.mmio_write(base + NOTIFY, 2, 0));
        assert_eq!((rig.message(), rings[0].take_used()), (Some(0x31), Some((0, 1))));
    }
}

#[test]
fn sources_wake() {
    let probe = Probe::new(Habit::AtSource);
    let rig = Rig::new(probe.clone());
    let mut rings = rig.start(0);
    rings[2].chain(0, &[(DATA, 1, true)]);
    rings[2].offer(0);
    rig.kick(2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rings[2].take_used(), None);
    // Two workers share the pipe: ring until the right one has it.
    wait_until(|| {
        rustix::io::write(&probe.bell, &[1]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        !rig.sim.messages().is_empty()
    });
    assert_eq!(rings[2].take_used(), Some((0, 1)));
}

#[test]
fn without_msix_the_isr_tells() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let mut rings = rig.start(0);
    rig.function.config_write(rig.function.msix_at + 2, 2, 0);
    rings[0].chain(0, &[(DATA, 1, true)]);
    rings[0].offer(0);
    rig.kick(0);
    wait_until(|| rig.get(ISR, 1) == 1);
    assert!(rings[0].take_used().is_some());
    assert!(rig.sim.messages().is_empty());
}

#[test]
fn isr_clears_when_read() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.start(0);
    rig.function.config_write(rig.function.msix_at + 2, 2, 0);
    rig.function.state.queue_interrupt(0);
    rig.function.state.config_interrupt();
    assert_eq!((rig.get(ISR + 1, 1), rig.get(ISR + 4, 4)), (0, 0));
    assert_eq!((rig.get(ISR, 1), rig.get(ISR, 1)), (3, 0));
    rig.function.state.queue_interrupt(0);
    assert_eq!((rig.get(ISR, 4), rig.get(ISR, 4)), (1, 0));
    assert!(rig.sim.messages().is_empty());
}

/// Notifies only when asked to, and wants one interrupt a chain: a lost wake-up shows as a hang.
#[test]
fn a_driver_that_notifies_only_when_asked() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let mut ring = rig.start(FEATURE_EVENT_IDX).into_iter().next().unwrap();
    ring.chain(0, &[(DATA, 1, true)]);
    ring.chain(1, &[(DATA, 1, true)]);
    let mut kicks = 0;
    for round in 0..20_000u16 {
        ring.set_used_event(round);
        ring.offer(round % 2);
        if ring.available_event() == round {
            kicks += 1;
            rig.kick(0);
        }
        // Now and then the next comes just as the worker goes to sleep.
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
