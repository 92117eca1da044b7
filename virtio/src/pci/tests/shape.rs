//! What a driver finds: configuration space, registers, windows.

use super::*;

#[test]
fn what_it_is() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let read = |offset, size| rig.function.config_read(offset, size);
    assert_eq!((read(0, 4), read(8, 4), read(0x2c, 4)), (0x106a_1af4, 0x00ff_0001, 0x1100_1af4));
    assert_eq!((read(0x3d, 1), read(0x30, 4), read(0x06, 2)), (0, 0, 0x10));
    rig.function.config_write(0x10, 4, u32::MAX);
    rig.function.config_write(0x14, 4, u32::MAX);
    assert_eq!((read(0x10, 4), read(0x14, 4), read(0x18, 4)), (0xffff_000c, u32::MAX, 0));
    // Each capability: (id, length or control, type, offset, length).
    let mut at = read(0x34, 1) as u16;
    let mut seen = Vec::new();
    while at != 0 {
        seen.push((read(at, 1), read(at + 2, 1), read(at + 3, 1), read(at + 8, 4), read(at + 12, 4)));
        if seen.len() == 4 {
            assert_eq!(u64::from(read(at + 16, 4)), NOTIFY_MULTIPLIER);
        }
        at = read(at + 1, 1) as u16;
    }
    let expected = [
        (9, 16, 1, 0, 0x1000),
        (9, 16, 3, 0x1000, 0x1000),
        (9, 16, 4, 0x2000, 0x1000),
        (9, 20, 2, 0x3000, 0x1000),
        (9, 20, 5, 0, 0),
    ];
    assert_eq!(seen[..5], expected);
    let msix = rig.function.msix_at;
    assert_eq!((read(msix, 4), read(msix + 4, 4), read(msix + 8, 4)), (0x0003_0011, TABLE, PENDING));
    assert_eq!(seen.len(), 6);
}

#[test]
fn specs_that_cannot_be() {
    struct Odd(Spec, Config);
    impl Device for Odd {
        fn spec(&self) -> &Spec {
            &self.0
        }
        fn config(&self) -> &Config {
            &self.1
        }
        fn worker(&self, _: usize, _: u64, _: &GuestMemory) -> io::Result<Box<dyn Worker>> {
            unreachable!()
        }
    }
    let queue = QueueSpec { max_size: 8, worker: 0 };
    let good = Spec { id: 1, class: 0, features: 0, queues: vec![queue] };
    let (sim, memory) = guest();
    let make = |spec: &Spec, vectors| {
        let device = Arc::new(Odd(spec.clone(), Config::default()));
        VirtioPci::new(
            device,
            "odd",
            Placement { vectors, ..Placement::default() },
            memory.clone(),
            sim.clone(),
        )
        .map(drop)
    };
    make(&good, None).unwrap();
    make(&good, Some(2048)).unwrap();
    make(&Spec { queues: vec![queue; 1024], ..good.clone() }, None).unwrap();
    for vectors in [0, 2049, 0xffff] {
        assert!(matches!(make(&good, Some(vectors)), Err(VirtioPciError::Vectors(_))));
    }
    for id in [0, 64, 0xffff] {
        assert!(matches!(make(&Spec { id, ..good.clone() }, None), Err(VirtioPciError::Id(_))));
    }
    for count in [0, 1025] {
        let spec = Spec { queues: vec![queue; count], ..good.clone() };
        assert!(matches!(make(&spec, None), Err(VirtioPciError::Queues(_))));
    }
    for max_size in [0, 3, 0xffff] {
        let spec = Spec { queues: vec![queue, QueueSpec { max_size, ..queue }], ..good.clone() };
        assert!(matches!(make(&spec, None), Err(VirtioPciError::QueueSize { index: 1, .. })));
    }
    let spec = Spec { queues: vec![queue, QueueSpec { worker: 2, ..queue }], ..good.clone() };
    assert!(matches!(make(&spec, None), Err(VirtioPciError::IdleWorker(1))));
    assert!(matches!(make(&Spec { features: 1 << 34, ..good }, None), Err(VirtioPciError::Features(_))));
}

#[test]
fn registers_of_other_widths() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.negotiate(FEATURE_VERSION_1);
    rig.set(SELECT, 2, 1);
    // Reads are put together from bytes.
    assert_eq!((rig.get(COUNT, 2), rig.get(COUNT, 1), rig.get(COUNT + 1, 1)), (3, 3, 0));
    assert_eq!(rig.get(CONFIG_VECTOR, 4), 0x0003_ffff);
    assert_eq!(rig.get(CONFIG_VECTOR, 8), 0x0001_000b_0003_ffff);
    assert_eq!((rig.get(0x17, 2), rig.get(SIZE + 1, 1), rig.get(0x13, 4)), (0, 1, 0x0100_0b00));
    rig.set(DESCRIPTORS, 8, 0x1122_3344_5566_7788);
    assert_eq!((rig.get(DESCRIPTORS, 8), rig.get(DESCRIPTORS + 4, 4)), (0x1122_3344_5566_7788, 0x1122_3344));
    assert_eq!((rig.get(DESCRIPTORS + 3, 2), rig.get(0x1e, 8)), (0x4455, 0x3344_5566_7788_0001));
    // Writes are not.
    let writes = [
        (DESCRIPTORS, 1),
        (DESCRIPTORS, 2),
        (DESCRIPTORS + 2, 4),
        (DESCRIPTORS + 4, 8),
        (DESCRIPTORS + 1, 8),
        (SIZE, 1),
        (SIZE, 4),
        (SIZE - 2, 4),
        (SELECT, 1),
        (SELECT, 4),
        (SELECT - 2, 4),
        (SELECT - 2, 8),
        (0, 8),
        (0, 2),
        (0, 0),
        (0, 3),
        (STATUS, 2),
        (STATUS, 4),
        (0x38, 2),
        (0x3a, 2),
        (0xfff, 1),
        (0xffc, 8),
        (0xffe, 8),
    ];
    let before: Vec<u64> = (0..0x40).map(|offset| rig.get(offset, 1)).collect();
    for (offset, size) in writes {
        rig.set(offset, size, 0x0404_0404_0404_0404);
        let after: Vec<u64> = (0..0x40).map(|offset| rig.get(offset, 1)).collect();
        assert_eq!(before, after, "{offset:#x}/{size}");
    }
    for offset in (0x38..0x1000).step_by(8) {
        assert_eq!(rig.get(offset, 8), 0);
    }
}

#[test]
fn selectors_that_select_nothing() {
    let rig = Rig::new(Probe::new(Habit::Use));
    rig.negotiate(FEATURE_VERSION_1);
    for select in [3, 4, 0x3ff, 0x400, 0x8000, 0xffff] {
        rig.set(SELECT, 2, select);
        for (offset, size) in
            [(SIZE, 2), (VECTOR, 2), (ENABLE, 2), (DESCRIPTORS, 8), (AVAILABLE, 8), (USED, 8)]
        {
            rig.set(offset, size, 1);
        }
        assert_eq!(rig.get(SELECT, 2), select);
        assert_eq!((rig.get(SIZE, 2), rig.get(VECTOR, 2), rig.get(ENABLE, 2)), (0, NO_VECTOR.into(), 0));
        assert_eq!((rig.get(NOTIFY_OFFSET, 2), rig.get(DESCRIPTORS, 8), rig.get(USED, 8)), (0, 0, 0));
    }
    for select in [2, 3, 4, 5, 0x8000_0000, 0xffff_ffff] {
        rig.set(FEATURE_SELECT, 4, select);
        rig.set(DRIVER_SELECT, 4, select);
        assert_eq!((rig.get(FEATURE, 4), rig.get(DRIVER_FEATURE, 4)), (0, 0), "{select}");
    }
    for index in [3, 4, 1023] {
        rig.kick(index);
    }
    assert_eq!(rig.status(), 11);
}

#[test]
fn device_configuration() {
    let probe = Probe::new(Habit::Use);
    let rig = Rig::new(probe.clone());
    assert_eq!((rig.get(DEVICE, 8), rig.get(DEVICE + 1, 2)), (0x0807_0605_0403_0201, 0x0302));
    assert_eq!((rig.get(DEVICE + 8, 8), rig.get(DEVICE + 10, 4), rig.get(DEVICE + 0xfff, 8)), (0x0a09, 0, 0));
    rig.set(DEVICE + 8, 2, 0xbbaa);
    for (offset, size) in [(8, 4), (9, 2), (10, 1), (0xff8, 8), (0xfff, 8)] {
        rig.set(DEVICE + offset, size, u64::MAX);
    }
    assert_eq!((rig.get(DEVICE + 8, 2), rig.get(GENERATION, 1)), (0xbbaa, 0));
    // The device changes it: not told before there is a driver.
    probe.config.update(|bytes| bytes[0] = 0x77);
    assert_eq!((rig.get(DEVICE, 1), rig.get(GENERATION, 1), rig.sim.messages().len()), (0x77, 1, 0));
    rig.start(0);
    probe.config.update(|bytes| bytes[0] = 0x78);
    assert_eq!((rig.message(), rig.get(GENERATION, 1)), (Some(0x30), 2));
    for _ in 0..256 {
        probe.config.update(|_| ());
    }
    assert_eq!(rig.get(GENERATION, 1), 2, "it wraps");
    drop(rig);
    probe.config.update(|_| ());
}

#[test]
fn window_on_the_bar() {
    let rig = Rig::new(Probe::new(Habit::Use));
    let at = rig.function.window_at;
    let look = |bar: u32, offset: u32, length: u32| {
        rig.function.config_write(at + WINDOW_BAR, 1, bar);
        rig.function.config_write(at + WINDOW_OFFSET, 4, offset);
        rig.function.config_write(at + WINDOW_LENGTH, 4, length);
        assert_eq!(rig.function.config_read(at + WINDOW_LENGTH, 4), length);
    };
    let read = || rig.function.config_read(at + WINDOW_DATA, 4);
    let write = |value| rig.function.config_write(at + WINDOW_DATA, 4, value);
    look(0, STATUS as u32, 1);
    write(0xffff_ff03);
    assert_eq!((rig.status(), read()), (3, 3));
    rig.function.config_write(at + WINDOW_DATA, 1, 0);
    assert_eq!((rig.status(), read()), (0, 0));
    look(0, SELECT as u32, 2);
    write(0x1234_0002);
    assert_eq!((rig.get(SELECT, 2), rig.function.config_read(at + WINDOW_DATA, 2)), (2, 2));
    look(0, COUNT as u32 - 2, 4);
    assert_eq!((read(), rig.function.config_read(at + WINDOW_DATA + 2, 1)), (0x0003_ffff, 3));
    look(0, TABLE, 4);
    write(0x1230);
    assert_eq!((read(), rig.get(TABLE.into(), 4)), (0x1230, 0x1230));
    // Windows on nothing read as zero and swallow writes.
    let before: Vec<u64> = (0..BAR_SIZE).step_by(8).map(|offset| rig.get(offset, 8)).collect();
    for (bar, offset, length) in [
        (1, 0, 4),
        (5, 0, 4),
        (6, 0, 4),
        (255, 0, 4),
        (0, 0, 0),
        (0, 0, 3),
        (0, 0, 5),
        (0, 0, 8),
        (0, 0, 0x104),
        (0, 0, u32::MAX),
        (0, 1, 2),
        (0, 2, 4),
        (0, 0xffff, 2),
        (0, 0x1_0000, 1),
        (0, 0xffff_fffc, 4),
        (0, u32::MAX, 1),
    ] {
        look(bar, offset, length);
        write(0xffff_ffff);
        assert_eq!(read(), 0, "bar {bar} offset {offset:#x} length {length}");
    }
    let after: Vec<u64> = (0..BAR_SIZE).step_by(8).map(|offset| rig.get(offset, 8)).collect();
    assert_eq!(before, after);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Any accesses whatever, over memory of any content: no panic, no hang, and a reset always helps.
    #[test]
    fn random_accesses(
        accesses in proptest::collection::vec((0u8..8, 0u64..0x40, 0usize..6, proptest::num::u64::ANY), 0..300),
        noise in proptest::collection::vec(proptest::num::u8::ANY, 4096),
    ) {
        let probe = Probe::new(Habit::Use);
        let rig = Rig::new(probe.clone());
        rig.sim.ram_write(Gpa(0x10_0000), &noise);
        let _rings = rig.start(TRANSPORT_FEATURES);
        for (what, offset, size, value) in accesses {
            let size = [1, 2, 4, 8, 3, 0][size];
            let small = value % 0x12_0000;
            match what {
                0 => rig.set(offset, size, value),
                1 => rig.set(offset, size, small & !0xf),
                2 => rig.set(STATUS, 1, [0, 1, 3, 11, 15, 0x8f, value][value as usize % 7]),
                3 => rig.set(value % BAR_SIZE, size, value >> 16),
                4 => { rig.get(value % BAR_SIZE, size); }
                5 => rig.function.config_write(offset as u16 * 4, [1, 2, 4][value as usize % 3], (value >> 8) as u32),
                6 => { rig.function.config_read(value as u16 & 0xfff, 1); }
                _ => rig.kick(offset % 4),
            }
        }
        rig.set_status(0);
        assert_eq!((rig.status(), probe.live.load(Ordering::SeqCst)), (0, 0));
        rig.sim.messages();
        for ring in [0, 1, 2] {
            let ring = rig.ring(ring, 8);
            rig.sim.ram_write(ring.layout.available, &[0; 64]);
            rig.sim.ram_write(ring.layout.used, &[0; 128]);
        }
        rig.function.reset();
        rig.sim.messages();
        let mut rings = rig.start(0);
        rig.round(1, &mut rings[1]);
    }
}
