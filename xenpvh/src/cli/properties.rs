//! The properties of devices, as tables that drive their parsing and `-device X,help`.

use serde_json::Value as Json;

use super::keyval::Value;
use super::number;

/// What a property's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    OnOffAuto,
    U16,
    U32,
    U64,
    I32,
    Size,
    Str,
    /// Six bytes in hexadecimal.
    Mac,
    /// A slot and function, `1f.7` or `1f`.
    Addr,
    /// The name of something else on the command line.
    Link,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// Which of the two objects that make a virtio-pci device has the property: messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The PCI function.
    Pci,
    /// The virtio device behind it.
    Virtio,
}

/// A property.
#[derive(Clone, Copy, Debug)]
pub(super) struct Property {
    pub name: &'static str,
    pub owner: Owner,
    pub kind: Type,
    /// What it is when not given, as one would type it; empty for nothing.
    pub default: &'static str,
    /// The one value that can be had, and why, where QEMU has others.
    pub only: Option<(&'static str, &'static str)>,
    pub help: &'static str,
}

impl Property {
    const fn new(
        owner: Owner,
        name: &'static str,
        kind: Type,
        default: &'static str,
        help: &'static str,
    ) -> Property {
        Property { name, owner, kind, default, only: None, help }
    }

    const fn only(mut self, value: &'static str, why: &'static str) -> Property {
        self.only = Some((value, why));
        self
    }
}

const fn pci(name: &'static str, kind: Type, default: &'static str, help: &'static str) -> Property {
    Property::new(Owner::Pci, name, kind, default, help)
}

const fn virtio(name: &'static str, kind: Type, default: &'static str, help: &'static str) -> Property {
    Property::new(Owner::Virtio, name, kind, default, help)
}

/// A switch that turns off something offered to the guest.
const fn offer(name: &'static str, help: &'static str) -> Property {
    virtio(name, Type::Bool, "on", help)
}

const NO_PORTS: &str = "legacy virtio needs I/O ports, and a PVH guest's devices have none";
const NOT_YET: &str = "not supported";
const ERROR_ACTIONS: Type = Type::Word(&["auto", "report", "ignore", "enospc", "stop"]);

/// Properties of every virtio-pci device.
pub(super) const COMMON: &[Property] = &[
    pci("acpi-index", Type::U32, "0", "ignored"),
    pci("addr", Type::Addr, "", "Slot and optional function number, example: 06.0 or 06"),
    pci("aer", Type::Bool, "off", "on/off").only("off", NOT_YET),
    pci("ats", Type::Bool, "off", "on/off").only("off", NOT_YET),
    pci("disable-legacy", Type::OnOffAuto, "auto", "on/off/auto").only("on", NO_PORTS),
    pci("disable-modern", Type::Bool, "off", "on/off").only("off", NO_PORTS),
    pci("ioeventfd", Type::Bool, "on", "ignored"),
    pci("modern-pio-notify", Type::Bool, "off", "on/off").only("off", "there are no I/O ports"),
    pci("multifunction", Type::Bool, "off", "on/off"),
    pci("page-per-vq", Type::Bool, "off", "on/off").only("off", NOT_YET),
    pci("rombar", Type::I32, "-1", "ignored, there is no ROM"),
    pci("romfile", Type::Str, "", "ignored, there is no ROM"),
    pci("romsize", Type::U32, "4294967295", "ignored, there is no ROM"),
    pci("vectors", Type::U32, "4294967295", "Size of the MSI-X table, 0 for none"),
    virtio("any_layout", Type::Bool, "on", "on/off").only("on", "virtio 1.0 requires it"),
    offer("event_idx", "Both sides say when they want to hear of the other"),
    virtio("in_order", Type::Bool, "off", "Requests end in the order in which they were made"),
    offer("indirect_desc", "Descriptors outside of the ring"),
    virtio("iommu_platform", Type::Bool, "off", "Addresses are the platform's: guest-physical, as always"),
    virtio("notification_data", Type::Bool, "off", "Notifications say how far the guest has got"),
    virtio("packed", Type::Bool, "off", "Packed rings"),
    offer("queue_reset", "Guest may reset one queue alone"),
];

/// Properties of `virtio-net-pci`.
pub(super) const NET: &[Property] = &[
    virtio("bootindex", Type::I32, "", "ignored, there is no firmware"),
    offer("csum", "Guest may send packets without checksums"),
    offer("ctrl_guest_offloads", "Guest may change its offloads"),
    offer("ctrl_mac_addr", "Guest may change its address"),
    offer("ctrl_rx", "Guest may set receive modes"),
    virtio("ctrl_rx_extra", Type::Bool, "on", "on/off"),
    offer("ctrl_vlan", "Guest may filter VLANs"),
    offer("ctrl_vq", "Control queue"),
    virtio("duplex", Type::Word(&["half", "full"]), "", "half/full"),
    virtio("failover", Type::Bool, "off", "on/off").only("off", NOT_YET),
    virtio("gso", Type::Bool, "on", "ignored"),
    virtio("guest_announce", Type::Bool, "on", "ignored"),
    offer("guest_csum", "Guest takes packets without checksums"),
    offer("guest_ecn", "Guest takes TSO with ECN"),
    offer("guest_tso4", "Guest takes TCP/IPv4 segments"),
    offer("guest_tso6", "Guest takes TCP/IPv6 segments"),
    offer("guest_ufo", "Guest takes UDP fragments"),
    offer("guest_uso4", "Guest takes UDP/IPv4 segments"),
    offer("guest_uso6", "Guest takes UDP/IPv6 segments"),
    virtio("hash", Type::Bool, "off", "on/off").only("off", NOT_YET),
    offer("host_ecn", "Guest may send TSO with ECN"),
    virtio("host_mtu", Type::U16, "0", "MTU for the guest, 0 for none"),
    offer("host_tso4", "Guest may send TCP/IPv4 segments"),
    offer("host_tso6", "Guest may send TCP/IPv6 segments"),
    offer("host_ufo", "Guest may send UDP fragments"),
    offer("host_uso", "Guest may send UDP segments"),
    virtio("mac", Type::Mac, "", "Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56"),
    virtio("mq", Type::Bool, "off", "Offer all queue pairs that the netdev has"),
    offer("mrg_rxbuf", "Mergeable receive buffers"),
    virtio("netdev", Type::Link, "", "ID of a netdev to use as a backend"),
    virtio("rss", Type::Bool, "off", "on/off").only("off", NOT_YET),
    virtio("rx_queue_size", Type::U16, "256", "A power of two between 256 and 1024"),
    virtio("speed", Type::I32, "-1", "Link speed for the guest in Mb/s"),
    offer("status", "Guest can read the link's state"),
    virtio("tx", Type::Str, "", "ignored"),
    virtio("tx_queue_size", Type::U16, "256", "A power of two between 256 and 1024"),
];

/// Properties of `virtio-blk-pci`.
pub(super) const BLK: &[Property] = &[
    virtio("bootindex", Type::I32, "", "ignored, there is no firmware"),
    virtio("config-wce", Type::Bool, "on", "Guest may turn the write cache on and off"),
    virtio("discard", Type::Bool, "on", "Guest may discard"),
    virtio("discard_granularity", Type::Size, "4294967295", "In bytes, a multiple of logical_block_size"),
    virtio("drive", Type::Link, "", "Node name or ID of a block device to use as a backend"),
    virtio("logical_block_size", Type::Size, "0", "A power of two between 512 B and 2 MiB"),
    virtio("max-discard-sectors", Type::U32, "4194303", "1 to 4194303"),
    virtio("max-write-zeroes-sectors", Type::U32, "4194303", "1 to 4194303"),
    virtio("min_io_size", Type::Size, "0", "In bytes, a multiple of logical_block_size"),
    virtio("num-queues", Type::U16, "65535", "Number of queues, by default one a vCPU"),
    virtio("opt_io_size", Type::Size, "0", "In bytes, a multiple of logical_block_size"),
    virtio("physical_block_size", Type::Size, "0", "A power of two between 512 B and 2 MiB"),
    virtio("queue-size", Type::U16, "256", "A power of two between 4 and 1024"),
    virtio("report-discard-granularity", Type::Bool, "on", "ignored"),
    virtio("request-merging", Type::Bool, "on", "ignored"),
    virtio("rerror", ERROR_ACTIONS, "auto", "When a read fails (report/ignore/stop/auto)"),
    virtio("seg-max-adjust", Type::Bool, "on", "ignored"),
    virtio("serial", Type::Str, "", "Serial number, at most 20 bytes"),
    virtio("share-rw", Type::Bool, "off", "Others may write to the image too"),
    virtio("werror", ERROR_ACTIONS, "auto", "When a write fails (report/ignore/enospc/stop/auto)"),
    virtio("write-cache", Type::OnOffAuto, "auto", "Guest sees a volatile write cache"),
    virtio("write-zeroes", Type::Bool, "on", "Guest may write zeroes"),
];

/// Properties of `virtio-rng-pci`.
pub(super) const RNG: &[Property] = &[
    virtio("max-bytes", Type::U64, "9223372036854775807", "Most bytes in each period"),
    virtio("period", Type::U32, "65536", "In milliseconds"),
    virtio("rng", Type::Link, "", "ID of an rng object"),
];

/// Properties of `virtio-serial-pci`.
pub(super) const SERIAL: &[Property] = &[
    offer("emergency-write", "Guest may write to its first console without a queue"),
    virtio("max_ports", Type::U32, "31", "Number of ports that there may be, 1 to 31"),
];

/// Properties of `virtconsole` and `virtserialport`.
pub(super) const PORT: &[Property] = &[
    virtio("chardev", Type::Link, "", "ID of a chardev to use as a backend"),
    virtio("name", Type::Str, "", "What the guest calls the port"),
    virtio("nr", Type::U32, "4294967295", "Number of the port, by default the first that is free"),
];

impl Type {
    /// What `-device X,help` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::OnOffAuto => "OnOffAuto",
            Type::U16 => "uint16",
            Type::U32 => "uint32",
            Type::U64 => "uint64",
            Type::I32 => "int32",
            Type::Size => "size",
            Type::Str | Type::Mac | Type::Addr | Type::Link | Type::Word(_) => "str",
        }
    }
}

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Bool(bool),
    /// `None` for auto.
    OnOffAuto(Option<bool>),
    Unsigned(u64),
    Signed(i64),
    Text(String),
    Mac([u8; 6]),
    /// Slot and function.
    Addr(u8, u8),
}

/// Reads the value of `property` of the device `driver`, whose virtio half is `virtio_name`.
pub(super) fn setting(
    property: &Property,
    value: Value,
    driver: &str,
    virtio_name: &str,
) -> Result<Setting, String> {
    let name = property.name;
    let does_not_take = |text: &str| {
        let owner = if property.owner == Owner::Pci { driver } else { virtio_name };
        format!("Property '{owner}.{name}' doesn't take value '{text}'")
    };
    let setting = match property.kind {
        Type::Bool => Setting::Bool(value.switch(name)?),
        Type::OnOffAuto => match value.text(name)?.as_str() {
            "on" => Setting::OnOffAuto(Some(true)),
            "off" => Setting::OnOffAuto(Some(false)),
            "auto" => Setting::OnOffAuto(None),
            other => return Err(format!("Parameter '{name}' does not accept value '{other}'")),
        },
        Type::U16 => Setting::Unsigned(bounded(name, value, u16::MAX.into(), "uint16_t")?),
        Type::U32 => Setting::Unsigned(bounded(name, value, u32::MAX.into(), "uint32_t")?),
        Type::U64 => Setting::Unsigned(bounded(name, value, u64::MAX, "uint64")?),
        Type::I32 => Setting::Signed(signed(name, value)?),
        Type::Size => Setting::Unsigned(value.size(name, "size")?),
        Type::Str | Type::Link => Setting::Text(value.text(name)?),
        Type::Mac => {
            let text = value.text(name)?;
            Setting::Mac(mac(&text).ok_or_else(|| does_not_take(&text))?)
        }
        Type::Addr => {
            let (slot, function) = match value {
                // A number is slot and function in one, as in a config address.
                Value::Json(Json::Number(number)) => number
                    .as_u64()
                    .and_then(|devfn| u8::try_from(devfn).ok())
                    .map(|devfn| (devfn >> 3, devfn & 7))
                    .ok_or_else(|| does_not_take(&number.to_string()))?,
                value => {
                    let text = value.text(name)?;
                    addr(&text).ok_or_else(|| does_not_take(&text))?
                }
            };
            Setting::Addr(slot, function)
        }
        Type::Word(words) => {
            let text = value.text(name)?;
            if !words.contains(&text.as_str()) {
                return Err(format!("Parameter '{name}' does not accept value '{text}'"));
            }
            Setting::Text(text)
        }
    };
    if let Some((only, why)) = property.only {
        let off = matches!(setting, Setting::Bool(false) | Setting::OnOffAuto(Some(false)));
        let on = matches!(setting, Setting::Bool(true) | Setting::OnOffAuto(Some(true)));
        if (off && only == "on") || (on && only == "off") {
            return Err(format!("Property '{driver}.{name}' can only be {only}: {why}"));
        }
    }
    Ok(setting)
}

fn bounded(name: &str, value: Value, max: u64, kind: &str) -> Result<u64, String> {
    if let Value::Text(text) = &value
        && number::signed(text).is_some_and(|number| number < 0)
    {
        return Err(format!("Parameter '{name}' expects {kind}"));
    }
    let number = value.unsigned(name, "integer")?;
    if number > max { Err(format!("Parameter '{name}' expects {kind}")) } else { Ok(number) }
}

fn signed(name: &str, value: Value) -> Result<i64, String> {
    let number = match value {
        Value::Text(text) => {
            number::signed(&text).ok_or_else(|| format!("Parameter '{name}' expects integer"))?
        }
        Value::Json(json) => json.as_i64().ok_or_else(|| format!("Parameter '{name}' expects int64"))?,
    };
    if i32::try_from(number).is_err() {
        Err(format!("Parameter '{name}' expects int32_t"))
    } else {
        Ok(number)
    }
}

/// Six bytes in hexadecimal with colons or dashes between them.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        *byte = hex(parts.next()?, 2)?;
    }
    parts.next().is_none().then_some(bytes)
}

/// A slot and perhaps a function, both in hexadecimal.
fn addr(text: &str) -> Option<(u8, u8)> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let (slot, function) = (hex(slot, 2)?, hex(function, 1)?);
    (slot < 32 && function < 8).then_some((slot, function))
}

fn hex(text: &str, digits: usize) -> Option<u8> {
    let fits = (1..=digits).contains(&text.len()) && text.chars().all(|digit| digit.is_ascii_hexdigit());
    if fits { u8::from_str_radix(text, 16).ok() } else { None }
}
