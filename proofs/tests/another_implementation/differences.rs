//! Where we and QEMU 10 differ on purpose, and why. Sections (§) are of virtio 1.3.

use crate::log::{Difference, differs};

const NO_INTX: &str = "we have no INTx, which needs a line to the guest that Xen's PVH lacks; MSI-X only";
const COMMAND: &str = "no I/O decode without ports (PCIe §7.5.1.1.3: may be hardwired to 0), but parity \
    response, which PCIe wants writable";
const RESERVED: &str = "reserved bits of the table are zero here (PCIe §7.7.2.4, §7.7.2.7), scratch in QEMU";
const QUEUE_SIZE: &str = "QEMU shows its limit of 1024 at first, whatever queue-size= says";

const FUNCTIONS: [Difference; 4] = [
    differs("*: interrupt pin", "0x0", "0x1", NO_INTX),
    differs("*: bits of command that change by 0xffff", "0x546", "0x507", COMMAND),
    differs("*: MSI-X table +0 after all ones", "0xfffffffc", "0xffffffff", RESERVED),
    differs("*: MSI-X table +12 after all ones", "0x1", "0xffffffff", RESERVED),
];

pub fn functions() -> Vec<Difference> {
    let own = [
        differs("bridge: bits of command that change by 0xffff", "0x544", "0x507", COMMAND),
        differs("blk: feature 4", "0", "1", "GEOMETRY: no cylinders, which nothing has used since BIOSes"),
        differs("blk: queue 0 size at first", "0x100", "0x400", QUEUE_SIZE),
        differs("rng: queue 0 size at first", "0x8", "0x400", QUEUE_SIZE),
    ];
    FUNCTIONS.into_iter().chain(own).collect()
}

pub fn network() -> Vec<Difference> {
    const UFO: &str = "UFO: Linux gave it up in 4.14, and taps only emulate it; USO is in its place";
    let own = [
        differs("net: feature 10", "0", "1", UFO),
        differs("net: feature 14", "0", "1", UFO),
        differs("net: feature 20", "0", "1", "CTRL_RX_EXTRA: nothing is filtered, so nothing more of it"),
        differs("net: feature 21", "0", "1", "GUEST_ANNOUNCE: nothing here ever asks for it"),
        differs("net: queue 0 size at first", "0x100", "0x400", QUEUE_SIZE),
    ];
    FUNCTIONS.into_iter().chain(own).collect()
}

const ORDER: &str = "§3.1.1: the steps come in order, features after DRIVER; QEMU stores what is written";
const KEPT: &str = "§2.1.1: a driver must not clear a bit but by a reset; QEMU does as it is told";

pub const STATUS: [Difference; 15] = [
    differs("status: all at once: 0xf as step 0", "0x3", "0xf", ORDER),
    differs("status: nothing accepted: 0xb as step 2", "0x3", "0xb", "§6.1: VERSION_1 is required"),
    differs("status: without VERSION_1: 0xb as step 2", "0x3", "0xb", "§6.1: VERSION_1 is required"),
    differs(
        "status: with a feature not offered: 0xb as step 2",
        "0x3",
        "0xb",
        "§2.2.1: must not be accepted, so FEATURES_OK is refused; QEMU ignores the bit",
    ),
    differs("status: without ACKNOWLEDGE: 0x2 as step 0", "0x0", "0x2", ORDER),
    differs("status: FEATURES_OK first: 0x8 as step 0", "0x0", "0x8", ORDER),
    differs("status: FEATURES_OK first: 0xb as step 1", "0x3", "0xb", ORDER),
    differs("status: DRIVER_OK without FEATURES_OK: 0x7 as step 2", "0x3", "0x7", ORDER),
    differs("status: a bit taken back: 0x3 as step 3", "0xb", "0x3", KEPT),
    differs("status: DRIVER_OK taken back: 0xb as step 4", "0xf", "0xb", KEPT),
    differs("status: FAILED and on: 0x8b as step 2", "0x83", "0x8b", "§2.1: FAILED ends it"),
    differs("status: NEEDS_RESET by the driver: 0x43 as step 2", "0x3", "0x43", "§2.1: the device's to set"),
    differs("status: bits that do not exist: 0x33 as step 1", "0x3", "0x33", "§2.1: there are no such bits"),
    differs(
        "features: accepted word 0 changed after FEATURES_OK",
        "0x30000000",
        "0x0",
        "§2.1: negotiation is over; QEMU shows the new value, and does not use it",
    ),
    differs("features: accepted word 1 after reset", "0x0", "0x1", "QEMU's register outlives a reset"),
];

const SIZES: &str = "§4.1.4.3.2: a power of two up to what was offered; QEMU takes any number up to 1024";

pub const QUEUES: [Difference; 7] = [
    differs("queue: size after 3", "2", "3", SIZES),
    differs("queue: size after 0", "2", "3", SIZES),
    differs("queue: size after 100", "256", "100", SIZES),
    differs("queue: size after 512", "256", "512", SIZES),
    differs("queue: size after 2048", "256", "512", SIZES),
    differs("queue: size after 32768", "256", "512", SIZES),
    differs("queue: size after 65535", "256", "512", SIZES),
];

const AFTER: &str = "§2.6.1: nothing is left of the queue's state; QEMU still shows the addresses";
const NOT_THERE: &str = "§4.1.4.3: the register is there only with RING_RESET; QEMU obeys all the same";

pub const QUEUE_RESET: [Difference; 5] = [
    differs("queue reset: queue 0 descriptors after the reset", "0x0", "0x100000", AFTER),
    differs("queue reset: queue 0 driver area after the reset", "0x0", "0x110000", AFTER),
    differs("queue reset: queue 0 device area after the reset", "0x0", "0x120000", AFTER),
    differs("queue reset: queue 0 enabled without the feature", "0x1", "0x0", NOT_THERE),
    differs("queue reset: queue 0 is served without the feature", "true", "false", NOT_THERE),
];

const FROZEN: &str =
    "§4.1.4.3.2: not while the queue is enabled; QEMU shows the new value, and does not use it";
const ENABLE: &str = "§4.1.4.3.2: only 1 may be written; we ignore the rest, QEMU gives up";

pub const ENABLED_QUEUES: [Difference; 6] = [
    differs("enabled queue, written size: changed", "false", "true", FROZEN),
    differs("enabled queue, written descriptors: changed", "false", "true", FROZEN),
    differs("enabled queue, written driver area: changed", "false", "true", FROZEN),
    differs("enabled queue, written device area: changed", "false", "true", FROZEN),
    differs("enabled queue, written enable, with 0: status", "0xf", "0x4f", ENABLE),
    differs("enabled queue, written enable, with 2: status", "0xf", "0x4f", ENABLE),
];

const GEOMETRY: &str = "GEOMETRY is not offered";

pub const DISKS: [Difference; 3] = [
    differs("blk configuration: cylinders", "0", "2", GEOMETRY),
    differs("blk configuration: heads", "0", "16", GEOMETRY),
    differs("blk configuration: sectors", "0", "63", GEOMETRY),
];

const WRITTEN: &str =
    "§2.7.8.2: only what was written from the start on counts; QEMU counts the whole buffer";
const ID: &str = "§5.2.6: 20 bytes, padded with zeros; QEMU leaves what is behind the first zero as it was";
const TYPES: &str = "§5.2.6: no such type; QEMU knows types of before virtio 1.0";
const NO_RANGE: &str = "a request that makes no sense fails, and the device goes on; QEMU gives up";

pub const REQUESTS: [Difference; 21] = [
    differs("read beyond the end: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("read over the end: used length", "Some(0)", "Some(1025)", WRITTEN),
    differs("read far away: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("read where bytes wrap: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("read part of a sector: used length", "Some(0)", "Some(101)", WRITTEN),
    differs("read a sector and a part: used length", "Some(0)", "Some(613)", WRITTEN),
    differs("room behind the status: used length", "Some(0)", "Some(514)", WRITTEN),
    differs("lifetime: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("type 0xffffffff: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("zone report: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("get the id into more: used length", "Some(20)", "Some(65)", WRITTEN),
    differs("get the id: sum of 20 bytes", "0x7cc69c3df6d02ff", "0x2e3221354d51852d", ID),
    differs("get the id into more: sum of 64 bytes", "0x884be5b564440fd", "0x2a4759be4fb21613", ID),
    differs("type 2: ends", "with 0x2", "with 0x1", TYPES),
    differs("type 2: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("type 5: ends", "with 0x2", "with 0x0", TYPES),
    differs("type 5: used length", "Some(0)", "Some(513)", WRITTEN),
    differs("type 5: sum of 512 bytes", "0x0", "0x7fc0cb8c0c5513ac", TYPES),
    differs("write zeroes, no range: ends", "with 0x1", "gives up", NO_RANGE),
    differs("write zeroes, no range: used length", "Some(1)", "None", NO_RANGE),
    differs("write zeroes, no range: head", "Some(0)", "None", NO_RANGE),
];

const SENSELESS: &str = "the ring is sound and only the request is not: it fails, and the device goes on";
const EMPTY: &str = "§2.7.5 does not forbid a buffer of length 0, and it harms nobody";
const DMA: &str = "what is not RAM is no buffer; QEMU reads and writes whatever is there, if need be nothing";
const NEXT_TOO: &str = "§2.7.5.3.1: not both flags; QEMU overlooks the second";
const RINGS: &str = "rings are checked when they are enabled; QEMU reads zeros from what is not there";

pub const BROKEN: [Difference; 14] = [
    differs("head out of range: ISR", "0x2", "0x3", "only the configuration changed; QEMU sets both bits"),
    differs("header short: ends", "0x1, length 0", "gives up", SENSELESS),
    differs("no header: ends", "0x1, length 0", "gives up", SENSELESS),
    differs("no status byte: ends", "0xee, length 0", "gives up", SENSELESS),
    differs("only a status byte: ends", "0x1, length 1", "gives up", SENSELESS),
    differs("length zero: ends", "0x0, length 1", "gives up", EMPTY),
    differs("data in a hole: ends", "gives up", "0x0, length 513", DMA),
    differs("data over the end of RAM: ends", "gives up", "0x0, length 513", DMA),
    differs("data that wraps: ends", "gives up", "0x0, length 513", DMA),
    differs("header in a hole: ends", "gives up", "0x0, length 513", DMA),
    differs("status in a hole: ends", "gives up", "0xee, length 513", DMA),
    differs("indirect table with next: ends", "gives up", "0x0, length 513", NEXT_TOO),
    differs("driver area in a hole: needs a reset", "true", "false", RINGS),
    differs("device area in a hole: needs a reset", "true", "false", RINGS),
];

pub const ENTROPY: [Difference; 2] = [
    differs("rng, nothing to write: came back", "true", "false", "QEMU keeps a chain without room for good"),
    differs("rng, nothing to write: configuration", "0", "4294967295", "what is not there: zeros or ones"),
];

const NO_ISR: &str = "§4.1.4.5: not used with MSI-X; QEMU sets it all the same";

pub const MSIX: [Difference; 3] = [
    differs("MSI-X: ISR", "0x0", "0x1", NO_ISR),
    differs("MSI-X, vector masked: ISR", "0x0", "0x1", NO_ISR),
    differs("MSI-X, no vector: ISR", "0x0", "0x1", NO_ISR),
];

pub const HELD_BACK: [Difference; 1] = [differs(
    "bus master off: device status",
    "0xf",
    "0xb",
    "the device only waits; QEMU takes DRIVER_OK back, for a driver that never gave it",
)];

const EXTRA: &str = "CTRL_RX_EXTRA is not offered";

pub const COMMANDS: [Difference; 5] = [
    differs("all unicast: answer", "0x1", "0x0", EXTRA),
    differs("no multicast: answer", "0x1", "0x0", EXTRA),
    differs("no unicast: answer", "0x1", "0x0", EXTRA),
    differs("no broadcast: answer", "0x1", "0x0", EXTRA),
    differs("receive mode with more: answer", "0x1", "0x0", "§5.1.6.5.1: one byte; QEMU ignores the rest"),
];
