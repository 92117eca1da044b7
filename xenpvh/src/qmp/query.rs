//! What the query commands answer.

use serde_json::{Value, json};

use super::types::{BlockInfo, CharInfo, Control, FunctionInfo, OperationStats, RegionInfo};

/// The QEMU that we stand in for: libxl looks for what came with 2.11 and later.
const QEMU: (u32, u32, u32) = (10, 0, 2);

/// What we say we are.
pub(super) fn package() -> String {
    format!("xenpvh {}", env!("CARGO_PKG_VERSION"))
}

/// `query-version`, which is also in the greeting.
pub(super) fn version() -> Value {
    let (major, minor, micro) = QEMU;
    json!({"qemu": {"micro": micro, "minor": minor, "major": major}, "package": package()})
}

/// QEMU's version in words, for people.
pub(super) fn version_text() -> String {
    let (major, minor, micro) = QEMU;
    format!("{major}.{minor}.{micro} ({})", package())
}

pub(super) fn status(backend: &dyn Control) -> Value {
    let state = backend.status();
    json!({"status": state.name(), "running": state == super::RunState::Running})
}

pub(super) fn chardevs(chardevs: &[CharInfo]) -> Value {
    chardevs
        .iter()
        .map(|chardev| json!({"frontend-open": true, "filename": chardev.filename, "label": chardev.label}))
        .collect()
}

/// The name of the node of a disk: a drive's is made up.
pub(super) fn node_name(block: &BlockInfo) -> String {
    if block.node_name.is_empty() { format!("#{}", block.device) } else { block.node_name.clone() }
}

fn node(block: &BlockInfo) -> Value {
    let zeroes = if block.detect_zeroes.is_empty() { "off" } else { block.detect_zeroes };
    json!({
        "iops_rd": 0, "detect_zeroes": zeroes, "active": true,
        "image": {
            "virtual-size": block.size, "filename": block.filename, "format": "raw",
            "actual-size": block.actual_size, "dirty-flag": false,
        },
        "iops_wr": 0, "ro": block.read_only, "node-name": node_name(block), "backing_file_depth": 0,
        "drv": "raw", "iops": 0, "bps_wr": 0, "write_threshold": 0, "encrypted": false, "bps": 0, "bps_rd": 0,
        "cache": {
            "no-flush": block.cache.no_flush, "direct": block.cache.direct,
            "writeback": block.cache.writeback,
        },
        "file": block.filename,
    })
}

/// The place of a disk's device in QEMU's tree of objects.
pub(super) fn qdev(block: &BlockInfo) -> String {
    if block.qdev.is_empty() {
        String::new()
    } else {
        format!("/machine/peripheral/{}/virtio-backend", block.qdev)
    }
}

pub(super) fn blocks(backend: &dyn Control) -> Value {
    backend
        .blocks()
        .iter()
        .map(|block| {
            let mut value = json!({
                "io-status": "ok", "device": block.device, "locked": false, "removable": false,
                "inserted": node(block), "type": "unknown",
            });
            if !block.qdev.is_empty() {
                add(&mut value, "qdev", qdev(block));
            }
            value
        })
        .collect()
}

/// Adds a member to an object.
pub(super) fn add(object: &mut Value, key: impl Into<String>, member: impl Into<Value>) {
    if let Some(members) = object.as_object_mut() {
        members.insert(key.into(), member.into());
    }
}

pub(super) fn nodes(backend: &dyn Control) -> Value {
    backend.blocks().iter().map(node).collect()
}

fn stats(block: &BlockInfo) -> Value {
    let mut stats = json!({
        "wr_highest_offset": block.stats.highest_offset, "timed_stats": [],
        "account_invalid": true, "account_failed": true,
    });
    let kinds = [
        ("rd", &block.stats.read),
        ("wr", &block.stats.write),
        ("flush", &block.stats.flush),
        ("unmap", &block.stats.unmap),
        // Zoned disks are not served, but the members are not optional.
        ("zone_append", &OperationStats::default()),
    ];
    for (kind, done) in kinds {
        add(&mut stats, format!("{kind}_operations"), done.operations);
        add(&mut stats, format!("{kind}_total_time_ns"), done.total_time_ns);
        add(&mut stats, format!("failed_{kind}_operations"), done.failed);
        add(&mut stats, format!("invalid_{kind}_operations"), done.invalid);
        if kind != "flush" {
            add(&mut stats, format!("{kind}_bytes"), done.bytes);
            add(&mut stats, format!("{kind}_merged"), 0);
        }
    }
    stats
}

/// `query-blockstats`, of disks or of nodes.
pub(super) fn block_stats(backend: &dyn Control, nodes: bool) -> Value {
    backend
        .blocks()
        .iter()
        .map(|block| {
            let mut value = json!({"stats": stats(block), "node-name": node_name(block)});
            if !nodes {
                add(&mut value, "device", block.device.as_str());
                if !block.qdev.is_empty() {
                    add(&mut value, "qdev", qdev(block));
                }
            }
            value
        })
        .collect()
}

/// What people call a class of PCI devices (PCI Code and ID Assignment Specification).
pub(super) fn class_name(class: u16) -> Option<&'static str> {
    match class {
        0x0100 => Some("SCSI controller"),
        0x0180 => Some("Storage controller"),
        0x0200 => Some("Ethernet controller"),
        0x0600 => Some("Host bridge"),
        0x0604 => Some("PCI bridge"),
        _ => None,
    }
}

fn region(region: &RegionInfo) -> Value {
    json!({
        "prefetch": region.prefetch, "mem_type_64": region.wide, "bar": region.bar, "size": region.size,
        "address": region.address.map_or(json!(-1), Value::from), "type": "memory",
    })
}

fn function(function: &FunctionInfo) -> Value {
    let mut class = json!({"class": function.class});
    if let Some(name) = class_name(function.class) {
        add(&mut class, "desc", name);
    }
    json!({
        "irq_pin": 0, "bus": function.bus, "qdev_id": function.id, "slot": function.slot, "class_info": class,
        "id": {
            "device": function.device, "subsystem-vendor": function.subsystem_vendor,
            "vendor": function.vendor, "subsystem": function.subsystem,
        },
        "function": function.function,
        "regions": function.regions.iter().map(region).collect::<Value>(),
    })
}

/// `query-pci`: buses with their functions.
pub(super) fn pci(backend: &dyn Control) -> Value {
    let functions = backend.functions();
    let mut buses: Vec<u8> = functions.iter().map(|function| function.bus).collect();
    buses.sort_unstable();
    buses.dedup();
    buses
        .into_iter()
        .map(|bus| {
            let devices: Value = functions.iter().filter(|other| other.bus == bus).map(function).collect();
            json!({"bus": bus, "devices": devices})
        })
        .collect()
}
