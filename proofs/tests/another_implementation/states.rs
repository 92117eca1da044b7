//! The script about registers: which can be written when, and what is made of values that make no sense.

use proofs::Subject;
use proofs::driver::*;

use crate::log::Log;

/// A ring's place, for queues that are enabled but not used.
const RING: u64 = 0x10_0000;
const HEADER: u64 = 0x20_0000;

pub fn status(subject: &mut dyn Subject, log: &mut Log) {
    let blk = Function::find(subject, 2);
    let offered = blk.offered(subject) as u64;
    let good = (VERSION_1 | EVENT_IDX | INDIRECT) & offered;

    log.topic("status");
    for (name, features, sequence) in [
        ("the usual way", good, &[1, 3, 11, 15][..]),
        ("in big steps", good, &[3, 11, 15]),
        ("all at once", good, &[15]),
        ("the same again", good, &[1, 1, 3, 3, 11, 11, 15, 15]),
        ("everything offered", offered, &[1, 3, 11, 15]),
        ("nothing accepted", 0, &[1, 3, 11]),
        ("without VERSION_1", EVENT_IDX, &[1, 3, 11]),
        ("with a feature not offered", good | 1 << 50, &[1, 3, 11]),
        ("without ACKNOWLEDGE", good, &[2, 3]),
        ("FEATURES_OK first", good, &[8, 11]),
        ("DRIVER_OK without FEATURES_OK", good, &[1, 3, 7, 15]),
        ("a bit taken back", good, &[1, 3, 11, 3]),
        ("DRIVER_OK taken back", good, &[1, 3, 11, 15, 11]),
        ("FAILED", good, &[1, 3, 131]),
        ("FAILED and on", good, &[1, 131, 139]),
        ("NEEDS_RESET by the driver", good, &[1, 3, 67]),
        ("bits that do not exist", good, &[1, 0x33]),
    ] {
        blk.set(subject, STATUS, 0);
        log.hex(format_args!("{name}: after reset"), blk.get(subject, STATUS));
        for (step, value) in sequence.iter().enumerate() {
            // As a driver does: it accepts features when it is known to be one.
            if value & FEATURES_OK != 0 {
                blk.accept(subject, features);
            }
            blk.set(subject, STATUS, *value);
            log.hex(format_args!("{name}: {value:#x} as step {step}"), blk.get(subject, STATUS));
        }
    }
    blk.set(subject, STATUS, 0);

    log.topic("features");
    blk.negotiate(subject, good);
    let accepted = |subject: &mut dyn Subject, word: u64| {
        blk.set(subject, DRIVER_FEATURE_SELECT, word);
        blk.get(subject, DRIVER_FEATURE)
    };
    for word in 0..2 {
        log.hex(format_args!("accepted word {word}"), accepted(subject, word));
    }
    blk.set(subject, DRIVER_FEATURE_SELECT, 0);
    blk.set(subject, DRIVER_FEATURE, 0);
    log.hex("accepted word 0 changed after FEATURES_OK", accepted(subject, 0));
    blk.set(subject, DEVICE_FEATURE, 0);
    blk.set(subject, DEVICE_FEATURE_SELECT, 1);
    log.hex("device feature select", blk.get(subject, DEVICE_FEATURE_SELECT));
    log.note("device features can be written", blk.offered(subject) as u64 != offered);
    blk.set(subject, STATUS, 0);
    for word in 0..2 {
        log.hex(format_args!("accepted word {word} after reset"), accepted(subject, word));
    }
}

pub fn queues(subject: &mut dyn Subject, log: &mut Log) {
    let blk = Function::find(subject, 2);
    log.topic("queue");
    let good = VERSION_1 | EVENT_IDX | INDIRECT;
    blk.negotiate(subject, good);
    for size in [128, 1, 2, 3, 0, 256, 100, 512, 2048, 0x8000, 0xffff, 16] {
        blk.set(subject, QUEUE_SELECT, 0);
        blk.set(subject, QUEUE_SIZE, size);
        log.note(format_args!("size after {size}"), blk.get(subject, QUEUE_SIZE));
    }
    blk.set(subject, QUEUE_SELECT, 1);
    blk.set(subject, QUEUE_SIZE, 64);
    log.note("size of the other", blk.get(subject, QUEUE_SIZE));
    blk.set(subject, QUEUE_SELECT, 0);
    log.note("size again", blk.get(subject, QUEUE_SIZE));

    for (name, register) in
        [("descriptors", QUEUE_DESC), ("driver area", QUEUE_DRIVER), ("device area", QUEUE_DEVICE)]
    {
        blk.set(subject, register, 0x1234_5678_9abc_d000);
        log.hex(format_args!("{name} at once"), blk.get(subject, register));
        blk.set(subject, (register.0, 4), 0x2233_4000);
        blk.set(subject, (register.0 + 4, 4), 0x11);
        log.hex(format_args!("{name} in halves"), blk.get(subject, register));
        log.hex(format_args!("low half of {name}"), blk.get(subject, (register.0, 4)));
        log.hex(format_args!("high half of {name}"), blk.get(subject, (register.0 + 4, 4)));
    }

    for queue in [1, 2, 7, 1023, 0] {
        blk.set(subject, QUEUE_SELECT, queue);
        log.note(format_args!("select after {queue}"), blk.get(subject, QUEUE_SELECT));
        if queue > 1 {
            blk.set(subject, QUEUE_SIZE, 64);
            blk.set(subject, QUEUE_DESC, 0x1000);
            log.note(format_args!("size of queue {queue}"), blk.get(subject, QUEUE_SIZE));
            log.note(format_args!("queue {queue} enabled"), blk.get(subject, QUEUE_ENABLE));
        }
    }
    for vector in [0, 1, 2, 3, 4, 0x7ff, 0xfffe, 0xffff, 1] {
        blk.set(subject, QUEUE_SELECT, 0);
        blk.set(subject, QUEUE_VECTOR, vector);
        log.hex(format_args!("queue vector after {vector:#x}"), blk.get(subject, QUEUE_VECTOR));
        blk.set(subject, CONFIG_VECTOR, vector);
        log.hex(format_args!("config vector after {vector:#x}"), blk.get(subject, CONFIG_VECTOR));
    }

    blk.set(subject, QUEUE_DESC, RING);
    blk.set(subject, QUEUE_DRIVER, RING + 0x1_0000);
    blk.set(subject, QUEUE_DEVICE, RING + 0x2_0000);
    blk.set(subject, QUEUE_ENABLE, 1);
    log.note("enabled", blk.get(subject, QUEUE_ENABLE));
    blk.set(subject, QUEUE_SELECT, 1);
    log.note("the other enabled", blk.get(subject, QUEUE_ENABLE));
    blk.set(subject, QUEUE_SELECT, 0);
    for register in [NUM_QUEUES, GENERATION, QUEUE_NOTIFY_OFF] {
        let before = blk.get(subject, register);
        blk.set(subject, register, !before);
        let changed = blk.get(subject, register) != before;
        log.note(format_args!("register {:#x} can be written", register.0), changed);
    }
    blk.drive(subject);
    log.hex("status with the queue", blk.get(subject, STATUS));
    log.hex("ISR with nothing done", subject.read(blk.isr, 1));
    blk.set(subject, STATUS, 0);
    for (name, register) in [
        ("status", STATUS),
        ("select", QUEUE_SELECT),
        ("enabled", QUEUE_ENABLE),
        ("vector", QUEUE_VECTOR),
        ("config vector", CONFIG_VECTOR),
        ("descriptors", QUEUE_DESC),
        ("driver area", QUEUE_DRIVER),
        ("device area", QUEUE_DEVICE),
    ] {
        log.hex(format_args!("{name} after reset"), blk.get(subject, register));
    }
}

/// What a driver must not do with an enabled queue, each time from the start.
pub fn enabled_queues(subject: &mut dyn Subject, log: &mut Log) {
    let blk = Function::find(subject, 2);
    for (name, register, value) in [
        ("size", QUEUE_SIZE, 8),
        ("descriptors", QUEUE_DESC, 0x30_0000),
        ("driver area", QUEUE_DRIVER, 0x30_0000),
        ("device area", QUEUE_DEVICE, 0x30_0000),
        ("enable, with 0", QUEUE_ENABLE, 0),
        ("enable, with 1 again", QUEUE_ENABLE, 1),
        ("enable, with 2", QUEUE_ENABLE, 2),
    ] {
        log.topic(format_args!("enabled queue, written {name}"));
        let accepted = blk.negotiate(subject, VERSION_1);
        Ring::new(subject, &blk, accepted, 0, 16, RING);
        blk.drive(subject);
        let before = blk.get(subject, register);
        blk.set(subject, register, value);
        log.note("changed", blk.get(subject, register) != before);
        log.hex("status", blk.get(subject, STATUS));
        log.note("enabled", blk.get(subject, QUEUE_ENABLE));
    }
    blk.set(subject, STATUS, 0);
}

/// A queue is reset alone (virtio 1.3 §2.6.1), while the other goes on.
pub fn queue_reset(subject: &mut dyn Subject, log: &mut Log) {
    let blk = Function::find(subject, 2);
    log.topic("queue reset");
    let accepted = blk.negotiate(subject, VERSION_1 | RING_RESET);
    log.note("offered", accepted & RING_RESET != 0);
    let mut rings =
        [0, 1].map(|queue| Ring::new(subject, &blk, accepted, queue, 16, RING + u64::from(queue) * 0x4_0000));
    blk.drive(subject);
    let offer = |subject: &mut dyn Subject, ring: &mut Ring| {
        // For the id: nothing that takes time.
        subject.ram_write(HEADER, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let parts = [(HEADER, 16, false), (HEADER + 0x1000, 20, true), (HEADER + 0x2000, 1, true)];
        ring.chain(subject, 0, &parts);
        ring.offer(subject, 0);
        blk.kick(subject, ring.queue);
    };
    let works = |subject: &mut dyn Subject, ring: &mut Ring| {
        offer(subject, ring);
        ring.wait(subject, &blk).is_some()
    };
    for ring in &mut rings {
        let works = works(subject, ring);
        log.note(format_args!("queue {} works", ring.queue), works);
    }
    let note = |subject: &mut dyn Subject, log: &mut Log, when: &str| {
        for queue in [0, 1] {
            blk.set(subject, QUEUE_SELECT, queue);
            for (name, register) in [
                ("enabled", QUEUE_ENABLE),
                ("in reset", QUEUE_RESET),
                ("descriptors", QUEUE_DESC),
                ("driver area", QUEUE_DRIVER),
                ("device area", QUEUE_DEVICE),
            ] {
                log.hex(format_args!("queue {queue} {name} {when}"), blk.get(subject, register));
            }
        }
        log.hex(format_args!("status {when}"), blk.get(subject, STATUS));
    };
    note(subject, log, "before");
    blk.set(subject, QUEUE_SELECT, 0);
    blk.set(subject, QUEUE_RESET, 1);
    until(|| blk.get(subject, QUEUE_RESET) == 0);
    note(subject, log, "after the reset");
    offer(subject, &mut rings[0]);
    log.note("queue 0 is served", soon(|| rings[0].take(subject).is_some()));
    log.note("queue 1 is served", works(subject, &mut rings[1]));
    let mut again = Ring::new(subject, &blk, accepted, 0, 8, RING + 0x8_0000);
    note(subject, log, "once enabled again");
    blk.set(subject, QUEUE_SELECT, 0);
    log.note("its size", blk.get(subject, QUEUE_SIZE));
    log.note("queue 0 is served again", works(subject, &mut again));
    log.note("queue 1 is served still", works(subject, &mut rings[1]));
    blk.set(subject, QUEUE_SELECT, 1);
    blk.set(subject, QUEUE_RESET, 0);
    note(subject, log, "after 0 was written");
    blk.set(subject, STATUS, 0);
    note(subject, log, "after a whole reset");

    // Without the feature the register is not there.
    let accepted = blk.negotiate(subject, VERSION_1);
    let mut ring = Ring::new(subject, &blk, accepted, 0, 16, RING);
    blk.drive(subject);
    blk.set(subject, QUEUE_SELECT, 0);
    blk.set(subject, QUEUE_RESET, 1);
    note(subject, log, "without the feature");
    offer(subject, &mut ring);
    let served = sooner_or_later(|| ring.take(subject).is_some());
    log.note("queue 0 is served without the feature", served);
    blk.set(subject, STATUS, 0);
}
