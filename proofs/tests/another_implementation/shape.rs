//! The script about what a function is: configuration space, capabilities, features, registers after reset.

use proofs::Subject;
use proofs::driver::*;

use crate::log::Log;

const SLOTS: [(u8, &str); 4] = [(0, "bridge"), (2, "blk"), (3, "rng"), (9, "nothing")];

pub fn configuration(subject: &mut dyn Subject, log: &mut Log) {
    for (slot, name) in SLOTS {
        log.topic(name);
        header(subject, log, slot);
        if config(subject, slot, 0, 2) == 0x1af4 {
            virtio(subject, log, slot);
        }
    }
}

pub fn header(subject: &mut dyn Subject, log: &mut Log, slot: u8) {
    for (name, register, size) in [
        ("vendor", 0x00, 2),
        ("device", 0x02, 2),
        ("command", 0x04, 2),
        ("status", 0x06, 2),
        ("revision", 0x08, 1),
        ("class", 0x08, 4),
        ("header type", 0x0e, 1),
        ("built-in test", 0x0f, 1),
        ("card bus", 0x28, 4),
        ("subsystem vendor", 0x2c, 2),
        ("subsystem", 0x2e, 2),
        ("ROM", 0x30, 4),
        ("interrupt line", 0x3c, 1),
        ("interrupt pin", 0x3d, 1),
        ("minimal grant", 0x3e, 2),
        ("extended space", 0x100, 4),
        ("its end", 0xffc, 4),
    ] {
        log.hex(name, config(subject, slot, register, size));
    }
    for (name, register, size, value) in [
        ("vendor", 0x00, 4, 0),
        ("command", 0x04, 2, 0xffff),
        ("status", 0x06, 2, 0xffff),
        ("revision and class", 0x08, 4, 0xffff_ffff),
        ("cache line size", 0x0c, 1, 0xff),
        ("latency timer", 0x0d, 1, 0xff),
        ("header type", 0x0e, 1, 0xff),
        ("subsystem", 0x2c, 4, 0xffff_ffff),
        ("ROM", 0x30, 4, 0xffff_ffff),
        ("capabilities pointer", 0x34, 1, 0),
        ("interrupt line", 0x3c, 1, 0xff),
        ("interrupt pin", 0x3d, 1, 0xff),
    ] {
        let before = config(subject, slot, register, size);
        set_config(subject, slot, register, size, value);
        let after = config(subject, slot, register, size);
        log.hex(format_args!("bits of {name} that change by {value:#x}"), before ^ after);
        set_config(subject, slot, register, size, before);
    }
    set_config(subject, slot, 4, 2, 0);
}

pub fn virtio(subject: &mut dyn Subject, log: &mut Log, slot: u8) {
    let mut ids = Vec::new();
    let bars = bars(subject, slot);
    log.note("BARs for ports", bars.iter().filter(|(_, _, flags)| flags & 1 != 0).count());
    let mut structures = Vec::new();
    for (at, id) in capabilities(subject, slot) {
        match id {
            0x09 => structures.push((config(subject, slot, at + 3, 1), at)),
            _ => ids.push(format!("{id:#x}")),
        }
    }
    // In whatever order they are there.
    structures.sort();
    for (kind, at) in structures {
        ids.push(format!("virtio {kind}"));
        log.note(format_args!("length of virtio {kind}"), config(subject, slot, at + 2, 1));
        log.note(format_args!("id of virtio {kind}"), config(subject, slot, at + 5, 1));
        let (bar, offset) = (config(subject, slot, at + 4, 1), config(subject, slot, at + 8, 4));
        let end = offset + config(subject, slot, at + 12, 4);
        let fits = bars.iter().any(|(index, size, _)| u64::from(*index) == bar && end <= *size);
        // The window is wherever the driver puts it.
        if kind != 5 {
            log.note(format_args!("virtio {kind} is in a BAR"), fits);
        }
        let before = config(subject, slot, at + 8, 4);
        set_config(subject, slot, at + 8, 4, 0x1234_5678);
        log.note(
            format_args!("offset of virtio {kind} can change"),
            config(subject, slot, at + 8, 4) != before,
        );
        set_config(subject, slot, at + 8, 4, before);
        if kind == 2 {
            log.note("notify multiplier", config(subject, slot, at + 16, 4));
        }
    }
    ids.sort();
    log.note("capabilities", ids.join(", "));

    let function = Function::find(subject, slot);
    let msix = function.msix;
    log.hex("MSI-X control", config(subject, slot, msix + 2, 2));
    for value in [0xffff, 0x4000, 0x8000, 0x3fff, 0] {
        set_config(subject, slot, msix + 2, 2, value);
        log.hex(format_args!("MSI-X control after {value:#x}"), config(subject, slot, msix + 2, 2));
    }
    for offset in [0, 4, 8, 12] {
        let at = function.table + offset;
        log.hex(format_args!("MSI-X table +{offset}"), subject.read(at, 4));
        subject.write(at, 4, 0xffff_ffff);
        log.hex(format_args!("MSI-X table +{offset} after all ones"), subject.read(at, 4));
        subject.write(at, 4, 0);
        log.hex(format_args!("MSI-X table +{offset} after zeros"), subject.read(at, 4));
    }
    log.hex("MSI-X pending", subject.read(function.pending, 4));
    subject.write(function.pending, 4, 0xffff_ffff);
    log.hex("MSI-X pending after all ones", subject.read(function.pending, 4));

    let offered = function.offered(subject);
    for bit in 0..128 {
        log.note(format_args!("feature {bit}"), offered >> bit & 1);
    }
    registers(subject, log, &function);
}

fn registers(subject: &mut dyn Subject, log: &mut Log, function: &Function) {
    for (name, register) in [
        ("config vector", CONFIG_VECTOR),
        ("queues", NUM_QUEUES),
        ("device status", STATUS),
        ("generation", GENERATION),
        ("queue select", QUEUE_SELECT),
        ("driver feature select", DRIVER_FEATURE_SELECT),
        ("driver features", DRIVER_FEATURE),
    ] {
        log.hex(format_args!("{name} at first"), function.get(subject, register));
    }
    let queues = function.get(subject, NUM_QUEUES);
    log.hex("queue 0 size at first", function.get(subject, QUEUE_SIZE));
    for queue in 0..queues + 2 {
        function.set(subject, QUEUE_SELECT, queue);
        log.note(format_args!("queue {queue} exists"), function.get(subject, QUEUE_SIZE) != 0);
        if queue < queues {
            let offset = function.get(subject, QUEUE_NOTIFY_OFF);
            log.hex(format_args!("queue {queue} notify offset"), offset);
        }
        for (name, register) in [
            ("select", QUEUE_SELECT),
            ("vector", QUEUE_VECTOR),
            ("enable", QUEUE_ENABLE),
            ("descriptors", QUEUE_DESC),
            ("driver area", QUEUE_DRIVER),
            ("device area", QUEUE_DEVICE),
        ] {
            log.hex(format_args!("queue {queue} {name} at first"), function.get(subject, register));
        }
    }
    log.hex("ISR at first", subject.read(function.isr, 1));
    log.hex("ISR as a word", subject.read(function.isr, 4));
    log.hex("notify reads as", subject.read(function.notify, 2));

    // The window in configuration space (§4.1.4.9) is left alone: QEMU 10 aborts if it is used on this machine.
    // Memory decode off hides the BARs.
    set_config(subject, function.place, 4, 2, 4);
    log.hex("queues with memory decode off", function.get(subject, NUM_QUEUES));
    set_config(subject, function.place, 4, 2, 6);
    log.hex("queues with memory decode on", function.get(subject, NUM_QUEUES));
}
