//! The drivers that `-device` takes, and the reading of `-device` and `-global`.

use super::keyval::{self, Grammar, Value};
use super::properties::{self, Property};

/// Which model a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Net,
    Blk,
    Rng,
    Serial,
    Console,
    SerialPort,
}

/// A driver that `-device` takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    pub name: &'static str,
    pub alias: &'static str,
    /// The class of the virtio half, which messages and `-global` name.
    pub virtio: &'static str,
    pub kind: Kind,
    /// What it is plugged into, as QEMU calls it.
    pub bus: &'static str,
    /// Heading in `-device help`.
    pub category: &'static str,
    pub properties: &'static [Property],
}

/// The bus of virtio-pci devices.
const PCI: &str = "PCI";
/// The bus that a `virtio-serial-pci` makes.
const SERIAL: &str = "virtio-serial-bus";

/// The drivers there are.
pub(super) const DRIVERS: &[Driver] = &[
    Driver {
        name: "virtio-blk-pci",
        alias: "virtio-blk",
        virtio: "virtio-blk-device",
        kind: Kind::Blk,
        bus: PCI,
        category: "Storage devices",
        properties: properties::BLK,
    },
    Driver {
        name: "virtio-blk-pci-non-transitional",
        alias: "",
        virtio: "virtio-blk-device",
        kind: Kind::Blk,
        bus: PCI,
        category: "Storage devices",
        properties: properties::BLK,
    },
    Driver {
        name: "virtio-net-pci",
        alias: "virtio-net",
        virtio: "virtio-net-device",
        kind: Kind::Net,
        bus: PCI,
        category: "Network devices",
        properties: properties::NET,
    },
    Driver {
        name: "virtio-net-pci-non-transitional",
        alias: "",
        virtio: "virtio-net-device",
        kind: Kind::Net,
        bus: PCI,
        category: "Network devices",
        properties: properties::NET,
    },
    Driver {
        name: "virtio-rng-pci",
        alias: "virtio-rng",
        virtio: "virtio-rng-device",
        kind: Kind::Rng,
        bus: PCI,
        category: "Misc devices",
        properties: properties::RNG,
    },
    Driver {
        name: "virtio-rng-pci-non-transitional",
        alias: "",
        virtio: "virtio-rng-device",
        kind: Kind::Rng,
        bus: PCI,
        category: "Misc devices",
        properties: properties::RNG,
    },
    Driver {
        name: "virtio-serial-pci",
        alias: "virtio-serial",
        virtio: "virtio-serial-device",
        kind: Kind::Serial,
        bus: PCI,
        category: "Input devices",
        properties: properties::SERIAL,
    },
    Driver {
        name: "virtio-serial-pci-non-transitional",
        alias: "",
        virtio: "virtio-serial-device",
        kind: Kind::Serial,
        bus: PCI,
        category: "Input devices",
        properties: properties::SERIAL,
    },
    Driver {
        name: "virtconsole",
        alias: "",
        virtio: "virtconsole",
        kind: Kind::Console,
        bus: SERIAL,
        category: "Input devices",
        properties: properties::PORT,
    },
    Driver {
        name: "virtserialport",
        alias: "",
        virtio: "virtserialport",
        kind: Kind::SerialPort,
        bus: SERIAL,
        category: "Input devices",
        properties: properties::PORT,
    },
];

impl Driver {
    /// Every property, in order of name.
    pub fn all_properties(&self) -> Vec<&'static Property> {
        let common = if self.is_port() { &[] } else { properties::COMMON };
        let mut all: Vec<_> = common.iter().chain(self.properties).collect();
        all.sort_by_key(|property| property.name);
        all
    }

    /// Whether it is plugged into a `virtio-serial-pci`, and not a PCI function itself.
    pub fn is_port(&self) -> bool {
        self.bus == SERIAL
    }

    /// Whether a `-global` for `class` is for this driver.
    pub fn is_a(&self, class: &str) -> bool {
        if self.is_port() {
            let console = self.kind == Kind::Console;
            return class == self.name
                || matches!(class, "virtio-serial-port" | "device")
                || (console && class == "virtserialport");
        }
        let base = self.name.strip_suffix("-non-transitional").unwrap_or(self.name);
        class == self.name
            || class == self.virtio
            || class.strip_suffix("-base") == Some(base)
            || matches!(class, "virtio-pci" | "virtio-device" | "pci-device" | "device")
    }
}

/// Finds a driver by name or alias.
pub(super) fn driver(name: &str) -> Result<&'static Driver, String> {
    if let Some(driver) =
        DRIVERS.iter().find(|driver| name == driver.name || (name == driver.alias && !name.is_empty()))
    {
        return Ok(driver);
    }
    if name.strip_suffix("-transitional").is_some_and(|base| DRIVERS.iter().any(|driver| driver.name == base))
    {
        return Err(format!(
            "'{name}' is not supported: legacy virtio needs I/O ports, and a PVH guest's devices have none"
        ));
    }
    Err(format!("'{name}' is not a valid device model name"))
}

/// One `-device` as given.
pub(super) struct Request {
    pub driver: &'static Driver,
    pub id: String,
    /// `bus=`, for a port. A PCI function's is there.
    pub bus: Option<String>,
    pub settings: Vec<(String, Value)>,
}

/// Reads one `-device` argument.
pub(super) fn request(argument: &str) -> Result<Request, String> {
    let mut pairs = keyval::parse_or_json(argument, Grammar::Switches, "driver")?;
    let id = pairs.optional_id()?.unwrap_or_default();
    let name =
        pairs.text("driver")?.filter(|name| !name.is_empty()).ok_or("Parameter 'driver' is missing")?;
    let driver = driver(&name)?;
    let bus = pairs.text("bus")?;
    match bus.as_deref() {
        Some("pcie.0") if driver.is_port() => {
            return Err(format!("Device '{}' can't go on PCIE bus", driver.name));
        }
        Some(bus) if bus != "pcie.0" && !driver.is_port() => return Err(format!("Bus '{bus}' not found")),
        _ => {}
    }
    Ok(Request { driver, id, bus, settings: pairs.into_rest() })
}

/// A `-global`.
pub(super) struct Global {
    /// The class whose instances it is for.
    pub driver: String,
    pub property: String,
    pub value: String,
    /// Whether there was such a device.
    pub used: bool,
}

impl Global {
    /// Reads one `-global` argument.
    pub fn read(argument: &str) -> Result<Global, String> {
        let dotted = argument.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        if let Some(((driver, property), value)) = dotted {
            let word = |text: &str| !text.is_empty() && !text.contains(',');
            if word(driver) && word(property) {
                return Ok(Global {
                    driver: driver.to_owned(),
                    property: property.to_owned(),
                    value: value.to_owned(),
                    used: false,
                });
            }
        }
        let mut pairs = keyval::parse(argument, Grammar::Switches, None)?;
        let parts = (pairs.text("driver")?, pairs.text("property")?, pairs.text("value")?);
        pairs.finish()?;
        match parts {
            (Some(driver), Some(property), Some(value)) => {
                Ok(Global { driver, property, value, used: false })
            }
            _ => Err("options 'driver', 'property', and 'value' are required".to_owned()),
        }
    }

    /// What is odd about it when all devices are there.
    pub fn warning(&self) -> Option<String> {
        if self.used {
            return None;
        }
        let known = DRIVERS.iter().any(|driver| driver.is_a(&self.driver));
        let (driver, property) = (&self.driver, &self.property);
        Some(if known {
            format!("global {driver}.{property}={} not used", self.value)
        } else {
            format!("global {driver}.{property} has invalid class name")
        })
    }
}
