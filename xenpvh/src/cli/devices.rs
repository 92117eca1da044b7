//! Devices built from `-device` and `-global`.

use std::collections::BTreeMap;

use super::config::{BlockNode, CharBackend, Chardev, ErrorAction, Monitor, Netdev, RngObject, RngSource};
use super::device_config::{
    BlkDevice, Device, Model, NetDevice, NetOffloads, RngDevice, SerialDevice, SerialPort, Transport,
};
use super::drivers::{Global, Kind, Request};
use super::drives::ERROR_ACTIONS;
use super::keyval::Value;
use super::properties::{self, Setting};
use super::slots::Slots;

/// Most entries an MSI-X table has (PCIe 7.7.2.2).
const MAX_VECTORS: u64 = 2048;
/// What `vectors=`, and unlimited sizes, hold when nothing was said.
const UNSPECIFIED: u64 = u32::MAX as u64;
const MAX_BLK_QUEUES: u64 = 1024;
const MAX_BLOCK: u64 = 2 << 20;
const MAX_RANGE_SECTORS: u64 = 4_194_303;
const MAX_PORTS: u64 = 31;

/// What devices may refer to.
pub(super) struct References<'a> {
    pub netdevs: &'a [Netdev],
    pub blocks: &'a [BlockNode],
    /// Names of nodes that lie under others, with the name of the one above.
    pub covered: &'a [(String, String)],
    pub rngs: &'a [RngObject],
    pub chardevs: &'a [Chardev],
    pub monitors: &'a [Monitor],
}

/// The settings of one device: what was given, over what `-global` says, over defaults.
struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    fn read(request: Request, globals: &mut [Global]) -> Result<Settings, String> {
        let driver = request.driver;
        let mut values = BTreeMap::new();
        let all = driver.all_properties();
        let mut set = |name: &str, value: Value| {
            let Some(property) = all.iter().find(|property| property.name == name) else {
                return Err(format!("Property '{}.{name}' not found", driver.name));
            };
            values.insert(property.name, properties::setting(property, value, driver.name, driver.virtio)?);
            Ok(())
        };
        for property in all.iter().filter(|property| !property.default.is_empty()) {
            set(property.name, Value::Text(property.default.to_owned()))?;
        }
        for global in globals.iter_mut().filter(|global| driver.is_a(&global.driver)) {
            global.used = true;
            let Global { driver, property, value, .. } = global;
            set(property, Value::Text(value.clone()))
                .map_err(|why| format!("can't apply global {driver}.{property}={value}: {why}"))?;
        }
        for (name, value) in request.settings {
            set(&name, value)?;
        }
        Ok(Settings(values))
    }

    fn on(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Setting::Bool(true)))
    }

    fn auto(&self, name: &str) -> Option<bool> {
        if let Some(Setting::OnOffAuto(choice)) = self.0.get(name) { *choice } else { None }
    }

    fn number(&self, name: &str) -> u64 {
        if let Some(Setting::Unsigned(number)) = self.0.get(name) { *number } else { 0 }
    }

    fn small(&self, name: &str) -> u16 {
        u16::try_from(self.number(name)).unwrap_or(u16::MAX)
    }

    fn wide(&self, name: &str) -> u32 {
        u32::try_from(self.number(name)).unwrap_or(u32::MAX)
    }

    fn text(&self, name: &str) -> Option<&str> {
        if let Some(Setting::Text(text)) = self.0.get(name) { Some(text) } else { None }
    }
}

/// Builds devices one after the other, in command-line order.
pub(super) struct Builder<'a> {
    pub references: References<'a>,
    pub globals: &'a mut [Global],
    pub slots: Slots,
    pub devices: Vec<Device>,
}

impl Builder<'_> {
    /// Builds one more device.
    pub fn add(&mut self, request: Request, typed: &str) -> Result<(), String> {
        if request.driver.is_port() {
            return self.port(request, typed);
        }
        let (driver, id) = (request.driver, request.id.clone());
        let settings = Settings::read(request, self.globals)?;
        let multifunction = settings.on("multifunction");
        let wanted = match settings.0.get("addr") {
            Some(Setting::Addr(slot, function)) => Some((*slot, *function)),
            _ => None,
        };
        let addr = self.slots.take(wanted, multifunction, driver.name, &id)?;
        let vectors = match settings.number("vectors") {
            // Its many queues share them, as in QEMU: a vector for each would be most that a guest has.
            UNSPECIFIED if driver.kind == Kind::Serial => Some(settings.small("max_ports").saturating_add(1)),
            UNSPECIFIED => None,
            number if number <= MAX_VECTORS => u16::try_from(number).ok(),
            _ => return Err(format!("Parameter 'vectors' expects at most {MAX_VECTORS}")),
        };
        let model = match driver.kind {
            Kind::Net => Model::Net(self.net(&settings)?),
            Kind::Blk => Model::Blk(self.blk(&settings)?),
            Kind::Rng => Model::Rng(self.rng(&settings)?),
            Kind::Serial | Kind::Console | Kind::SerialPort => Model::Serial(serial(&settings)?),
        };
        self.devices.push(Device {
            typed: typed.to_owned(),
            id,
            driver: driver.name,
            addr,
            multifunction,
            vectors,
            transport: Transport {
                event_idx: settings.on("event_idx"),
                in_order: settings.on("in_order"),
                indirect_desc: settings.on("indirect_desc"),
                iommu_platform: settings.on("iommu_platform"),
                notification_data: settings.on("notification_data"),
                packed: settings.on("packed"),
                queue_reset: settings.on("queue_reset"),
            },
            model,
        });
        Ok(())
    }

    fn net(&self, settings: &Settings) -> Result<NetDevice, String> {
        let netdev = settings.text("netdev").map(str::to_owned);
        if let Some(name) = &netdev {
            if !self.references.netdevs.iter().any(|netdev| netdev.id == *name) {
                return Err(format!("Property 'virtio-net-device.netdev' can't find value '{name}'"));
            }
            let used = |device: &Device| match &device.model {
                Model::Net(net) => net.netdev.as_ref() == Some(name),
                _ => false,
            };
            if self.devices.iter().any(used) {
                return Err(format!(
                    "Property 'virtio-net-device.netdev' can't take value '{name}', it's in use"
                ));
            }
        }
        for name in ["rx_queue_size", "tx_queue_size"] {
            let size = settings.number(name);
            if !(256..=1024).contains(&size) || !size.is_power_of_two() {
                return Err(format!("Invalid {name} (= {size}), must be a power of 2 between 256 and 1024."));
            }
        }
        let speed = match settings.0.get("speed") {
            Some(Setting::Signed(speed @ ..=-2)) => {
                return Err(format!("'speed' must be between 0 and INT_MAX, not {speed}"));
            }
            Some(Setting::Signed(speed)) => u32::try_from(*speed).ok(),
            _ => None,
        };
        let mac = match settings.0.get("mac") {
            Some(Setting::Mac(mac)) => *mac,
            _ => [0; 6],
        };
        let on = |name| settings.on(name);
        Ok(NetDevice {
            netdev,
            mac,
            mq: on("mq"),
            host_mtu: Some(settings.small("host_mtu")).filter(|mtu| *mtu != 0),
            rx_queue_size: settings.small("rx_queue_size"),
            tx_queue_size: settings.small("tx_queue_size"),
            speed,
            full_duplex: settings.text("duplex").map(|word| word == "full"),
            offloads: NetOffloads {
                csum: on("csum"),
                guest_csum: on("guest_csum"),
                guest_tso4: on("guest_tso4"),
                guest_tso6: on("guest_tso6"),
                guest_ecn: on("guest_ecn"),
                guest_ufo: on("guest_ufo"),
                guest_uso4: on("guest_uso4"),
                guest_uso6: on("guest_uso6"),
                host_tso4: on("host_tso4"),
                host_tso6: on("host_tso6"),
                host_ecn: on("host_ecn"),
                host_ufo: on("host_ufo"),
                host_uso: on("host_uso"),
                mrg_rxbuf: on("mrg_rxbuf"),
                status: on("status"),
                ctrl_vq: on("ctrl_vq"),
                ctrl_rx: on("ctrl_rx"),
                ctrl_rx_extra: on("ctrl_rx_extra"),
                ctrl_vlan: on("ctrl_vlan"),
                ctrl_mac_addr: on("ctrl_mac_addr"),
                ctrl_guest_offloads: on("ctrl_guest_offloads"),
            },
        })
    }

    fn blk(&self, settings: &Settings) -> Result<BlkDevice, String> {
        let drive = settings.text("drive").unwrap_or_default().to_owned();
        if drive.is_empty() {
            return Err("drive property not set".to_owned());
        }
        if let Some((_, above)) = self.references.covered.iter().find(|(name, _)| *name == drive) {
            return Err(format!("Drive '{drive}' is already in use by node '{above}'"));
        }
        let Some(node) = self.references.blocks.iter().find(|block| block.name == drive) else {
            return Err(format!("Property 'virtio-blk-device.drive' can't find value '{drive}'"));
        };
        let used = |device: &Device| matches!(&device.model, Model::Blk(blk) if blk.drive == drive);
        if self.devices.iter().any(used) {
            return Err(format!("Drive '{drive}' is already in use by another device"));
        }
        let num_queues = match settings.number("num-queues") {
            0 => return Err("num-queues property must be larger than 0".to_owned()),
            65535 => None,
            number if number > MAX_BLK_QUEUES => {
                return Err(format!("num-queues property must not be larger than {MAX_BLK_QUEUES}"));
            }
            _ => Some(settings.small("num-queues")),
        };
        let queue_size = settings.number("queue-size");
        if !queue_size.is_power_of_two() || queue_size > 1024 {
            return Err(format!(
                "invalid queue-size property ({queue_size}), must be a power of 2 (max 1024)"
            ));
        }
        if queue_size <= 2 {
            return Err(format!("invalid queue-size property ({queue_size}), must be > 2"));
        }
        let logical = block_size("logical_block_size", settings)?;
        let physical = block_size("physical_block_size", settings)?;
        if let (Some(logical), Some(physical)) = (logical, physical)
            && logical > physical
        {
            return Err("logical_block_size > physical_block_size not supported".to_owned());
        }
        let unit = u64::from(logical.unwrap_or(512));
        for name in ["min_io_size", "opt_io_size", "discard_granularity"] {
            let bytes = settings.number(name);
            if bytes != UNSPECIFIED && !bytes.is_multiple_of(unit) {
                return Err(format!("{name} must be a multiple of logical_block_size"));
            }
            if bytes > UNSPECIFIED || (name == "min_io_size" && bytes >= unit.saturating_mul(1 << 16)) {
                return Err(format!("{name} is too large"));
            }
        }
        for name in ["max-discard-sectors", "max-write-zeroes-sectors"] {
            let sectors = settings.number(name);
            if !(1..=MAX_RANGE_SECTORS).contains(&sectors) {
                return Err(format!(
                    "invalid {name} property ({sectors}), must be between 1 and {MAX_RANGE_SECTORS}"
                ));
            }
        }
        let action = |name: &str, otherwise: ErrorAction| {
            let word = settings.text(name).unwrap_or("auto");
            ERROR_ACTIONS.iter().find(|(action, _)| *action == word).map_or(otherwise, |(_, action)| *action)
        };
        if settings.text("rerror") == Some("enospc") {
            return Err("Parameter 'rerror' does not accept value 'enospc'".to_owned());
        }
        Ok(BlkDevice {
            drive,
            serial: settings.text("serial").unwrap_or_default().to_owned(),
            num_queues,
            queue_size: settings.small("queue-size"),
            logical_block_size: logical,
            physical_block_size: physical,
            min_io_size: settings.wide("min_io_size"),
            opt_io_size: settings.wide("opt_io_size"),
            discard_granularity: Some(settings.wide("discard_granularity"))
                .filter(|bytes| *bytes != u32::MAX),
            write_cache: settings.auto("write-cache").unwrap_or(node.cache.writeback),
            config_wce: settings.on("config-wce"),
            discard: settings.on("discard"),
            write_zeroes: settings.on("write-zeroes"),
            max_discard_sectors: settings.wide("max-discard-sectors"),
            max_write_zeroes_sectors: settings.wide("max-write-zeroes-sectors"),
            share_rw: settings.on("share-rw"),
            write_error: action("werror", node.write_error),
            read_error: action("rerror", node.read_error),
        })
    }

    fn rng(&self, settings: &Settings) -> Result<RngDevice, String> {
        let source = match settings.text("rng") {
            None => RngSource::Builtin,
            Some(name) => match self.references.rngs.iter().find(|rng| rng.id == name) {
                Some(rng) => rng.source.clone(),
                None => return Err(format!("Device '{name}' not found")),
            },
        };
        let max_bytes = settings.number("max-bytes");
        if max_bytes == 0 || i64::try_from(max_bytes).is_err() {
            return Err("'max-bytes' parameter must be positive, and less than 2^63".to_owned());
        }
        let period = settings.wide("period");
        if period == 0 {
            return Err("'period' parameter expects a positive integer".to_owned());
        }
        let unlimited = max_bytes == u64::try_from(i64::MAX).unwrap_or(u64::MAX);
        Ok(RngDevice { source, max_bytes: (!unlimited).then_some(max_bytes), period })
    }

    /// Plugs a port into a device that is there already.
    fn port(&mut self, request: Request, typed: &str) -> Result<(), String> {
        let (driver, bus) = (request.driver, request.bus.clone());
        let settings = Settings::read(request, self.globals)?;
        let console = driver.kind == Kind::Console;
        let chardev = settings.text("chardev").map(str::to_owned);
        if let Some(id) = &chardev {
            self.check_chardev(id, driver.name)?;
        }
        let (name, device) = self.serial_bus(bus.as_deref(), driver.name)?;
        let wanted = match settings.number("nr") {
            UNSPECIFIED => None,
            number => Some(number),
        };
        let taken = |number: u64| device.ports.iter().any(|port| u64::from(port.number) == number);
        if let Some(number) = wanted.filter(|number| taken(*number)) {
            return Err(format!("{name}: A port already exists at id {number}"));
        }
        let label = settings.text("name").unwrap_or_default().to_owned();
        if !label.is_empty() && device.ports.iter().any(|port| port.name == label) {
            return Err(format!("{name}: A port already exists by name {label}"));
        }
        let limit = u64::from(device.max_ports);
        // Number 0 is a console's.
        let free = || (if console { 0 } else { 1 }..limit).find(|number| !taken(*number));
        let number = match wanted.or_else(free) {
            None => return Err(format!("{name}: Maximum port limit for this device reached")),
            Some(number) if number >= limit => {
                return Err(format!(
                    "{name}: Out-of-range port id specified, max. allowed: {}",
                    limit.saturating_sub(1)
                ));
            }
            Some(0) if !console => {
                return Err("Port number 0 on virtio-serial devices reserved for virtconsole devices \
                            for backward compatibility."
                    .to_owned());
            }
            Some(number) => u16::try_from(number).unwrap_or(u16::MAX),
        };
        device.ports.push(SerialPort { typed: typed.to_owned(), console, number, name: label, chardev });
        Ok(())
    }

    fn check_chardev(&self, id: &str, driver: &str) -> Result<(), String> {
        let References { chardevs, monitors, .. } = &self.references;
        let Some(chardev) = chardevs.iter().find(|chardev| chardev.id == id) else {
            return Err(format!("Property '{driver}.chardev' can't find value '{id}'"));
        };
        let ports = self.devices.iter().flat_map(|device| match &device.model {
            Model::Serial(serial) => serial.ports.as_slice(),
            _ => &[],
        });
        let mut others = ports.filter_map(|port| port.chardev.as_deref());
        let wrong = if others.any(|other| other == id) || monitors.iter().any(|other| other.chardev == id) {
            format!("chardev '{id}' is already in use")
        } else if let CharBackend::Unused(kind) = chardev.backend {
            format!("a {kind} is not supported")
        } else {
            return Ok(());
        };
        Err(format!("Property '{driver}.chardev' can't take value '{id}': {wrong}"))
    }

    /// The device whose bus is called `wanted`, or the last one; and what QEMU calls that kind of bus.
    fn serial_bus(
        &mut self,
        wanted: Option<&str>,
        driver: &str,
    ) -> Result<(&'static str, &mut SerialDevice), String> {
        const KIND: &str = "virtio-serial-bus";
        let buses = self.devices.iter_mut().filter_map(|device| match &mut device.model {
            Model::Serial(serial) => Some((&device.id, serial)),
            _ => None,
        });
        let mut unnamed = 0u32;
        let mut found = None;
        for (id, serial) in buses {
            let name = if id.is_empty() {
                let name = format!("{KIND}.{unnamed}");
                unnamed = unnamed.saturating_add(1);
                name
            } else {
                format!("{id}.0")
            };
            if wanted.is_none_or(|wanted| wanted == name) {
                found = Some((KIND, serial));
            }
        }
        found.ok_or_else(|| match wanted {
            Some(bus) => format!("Bus '{bus}' not found"),
            None => format!("No '{KIND}' bus found for device '{driver}'"),
        })
    }
}

fn serial(settings: &Settings) -> Result<SerialDevice, String> {
    let max_ports = match settings.number("max_ports") {
        0 => return Err("Maximum number of serial ports not specified".to_owned()),
        1..=MAX_PORTS => settings.small("max_ports"),
        _ => return Err(format!("maximum ports supported: {MAX_PORTS}")),
    };
    Ok(SerialDevice { max_ports, emergency_write: settings.on("emergency-write"), ports: Vec::new() })
}

fn block_size(name: &str, settings: &Settings) -> Result<Option<u32>, String> {
    match settings.number(name) {
        0 => Ok(None),
        size if size.is_power_of_two() && (512..=MAX_BLOCK).contains(&size) => Ok(Some(settings.wide(name))),
        _ => Err(format!("parameter {name} must be a power of 2 between 512 and {MAX_BLOCK}")),
    }
}

/// Gives each NIC without an address one, as QEMU numbers them: 52:54:00:12:34:56 and up.
pub(super) fn number_nics(devices: &mut [Device]) {
    let mut taken: Vec<[u8; 6]> = Vec::new();
    let mac = |device: &Device| if let Model::Net(net) = &device.model { Some(net.mac) } else { None };
    taken.extend(devices.iter().filter_map(mac));
    for device in devices {
        let Model::Net(net) = &mut device.model else { continue };
        if net.mac != [0; 6] {
            continue;
        }
        // There are more numbers than functions on the bus, so one is always free.
        let mut numbers = (0x3456u16..).map(|number| {
            let [high, low] = number.to_be_bytes();
            [0x52, 0x54, 0x00, 0x12, high, low]
        });
        net.mac = numbers.find(|mac| !taken.contains(mac)).unwrap_or_default();
        taken.push(net.mac);
    }
}
