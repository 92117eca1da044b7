//! What a command line comes to: the devices.

use std::fmt;

use super::config::{ErrorAction, RngSource};

/// `-device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// `id=`; empty when not given.
    pub id: String,
    /// The device's name with aliases resolved, such as `virtio-net-pci`.
    pub driver: &'static str,
    /// Where it sits on bus 0: from `addr=`, or the first free slot in command-line order.
    pub addr: Addr,
    /// `multifunction=on`: function 0 of several in its slot.
    pub multifunction: bool,
    /// `vectors=`: size of the MSI-X table; `None` for the device's own choice, `Some(0)` for no MSI-X.
    pub vectors: Option<u16>,
    /// What its queues and its transport offer.
    pub transport: Transport,
    /// What it is, with the rest of its properties.
    pub model: Model,
}

/// Which features of queues and transport the guest may be offered (virtio 1.3 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// `event_idx=`.
    pub event_idx: bool,
    /// `in_order=`.
    pub in_order: bool,
    /// `indirect_desc=`.
    pub indirect_desc: bool,
    /// `iommu_platform=`.
    pub iommu_platform: bool,
    /// `notification_data=`.
    pub notification_data: bool,
    /// `packed=`.
    pub packed: bool,
    /// `queue_reset=`.
    pub queue_reset: bool,
}

/// A device and function number on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr {
    /// 1 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

/// The devices there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// `virtio-net-pci`.
    Net(NetDevice),
    /// `virtio-blk-pci`.
    Blk(BlkDevice),
    /// `virtio-rng-pci`.
    Rng(RngDevice),
    /// `virtio-serial-pci`.
    Serial(SerialDevice),
}

/// Properties of `virtio-net-pci`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// `netdev=`; a device without one is a NIC with no cable.
    pub netdev: Option<String>,
    /// `mac=`, or 52:54:00:12:34:56 and up for each NIC without.
    pub mac: [u8; 6],
    /// `mq=`: offer the guest as many queue pairs as the netdev has.
    pub mq: bool,
    /// `host_mtu=`; `None` when 0 or not given.
    pub host_mtu: Option<u16>,
    /// `rx_queue_size=`: a power of two, 256 to 1024.
    pub rx_queue_size: u16,
    /// `tx_queue_size=`: a power of two, 256 to 1024.
    pub tx_queue_size: u16,
    /// `speed=` in Mb/s and `duplex=`, for the guest to read; `None` for unknown.
    pub speed: Option<u32>,
    /// Whether the link is full duplex, when said.
    pub full_duplex: Option<bool>,
    /// Features to leave out.
    pub offloads: NetOffloads,
}

/// Which features the guest may be offered (all, unless turned off).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetOffloads {
    /// `csum=`: the guest may leave checksums to us.
    pub csum: bool,
    /// `guest_csum=`: the guest takes packets without checksums.
    pub guest_csum: bool,
    /// `guest_tso4=`.
    pub guest_tso4: bool,
    /// `guest_tso6=`.
    pub guest_tso6: bool,
    /// `guest_ecn=`.
    pub guest_ecn: bool,
    /// `guest_ufo=`.
    pub guest_ufo: bool,
    /// `guest_uso4=`.
    pub guest_uso4: bool,
    /// `guest_uso6=`.
    pub guest_uso6: bool,
    /// `host_tso4=`.
    pub host_tso4: bool,
    /// `host_tso6=`.
    pub host_tso6: bool,
    /// `host_ecn=`.
    pub host_ecn: bool,
    /// `host_ufo=`.
    pub host_ufo: bool,
    /// `host_uso=`.
    pub host_uso: bool,
    /// `mrg_rxbuf=`: mergeable receive buffers.
    pub mrg_rxbuf: bool,
    /// `status=`: the guest can read whether the link is up.
    pub status: bool,
    /// `ctrl_vq=`: the control queue.
    pub ctrl_vq: bool,
    /// `ctrl_rx=`: receive modes over the control queue.
    pub ctrl_rx: bool,
    /// `ctrl_rx_extra=`: more receive modes.
    pub ctrl_rx_extra: bool,
    /// `ctrl_vlan=`: VLAN filters over the control queue.
    pub ctrl_vlan: bool,
    /// `ctrl_mac_addr=`: MAC address over the control queue.
    pub ctrl_mac_addr: bool,
    /// `ctrl_guest_offloads=`: offloads over the control queue.
    pub ctrl_guest_offloads: bool,
}

/// Properties of `virtio-blk-pci`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkDevice {
    /// `drive=`: a [`BlockNode`]'s name. No other device has the same.
    pub drive: String,
    /// `serial=`, of which the guest sees the first 20 bytes; empty when not given.
    pub serial: String,
    /// `num-queues=`; `None` for one a vCPU.
    pub num_queues: Option<u16>,
    /// `queue-size=`: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// `logical_block_size=` in bytes: a power of two, 512 to 2 MiB; `None` for what suits the image.
    pub logical_block_size: Option<u32>,
    /// `physical_block_size=` in bytes: as the logical one and at least that.
    pub physical_block_size: Option<u32>,
    /// `min_io_size=` in bytes, 0 when not given.
    pub min_io_size: u32,
    /// `opt_io_size=` in bytes, 0 when not given.
    pub opt_io_size: u32,
    /// `discard_granularity=` in bytes, when given.
    pub discard_granularity: Option<u32>,
    /// `write-cache=`, or what the drive's `cache=` says: the guest sees a volatile write cache.
    pub write_cache: bool,
    /// `config-wce=`: the guest may turn the write cache on and off.
    pub config_wce: bool,
    /// `discard=`: offer discards.
    pub discard: bool,
    /// `write-zeroes=`: offer zeroing.
    pub write_zeroes: bool,
    /// `max-discard-sectors=`.
    pub max_discard_sectors: u32,
    /// `max-write-zeroes-sectors=`.
    pub max_write_zeroes_sectors: u32,
    /// `share-rw=on`: others may write to the image at the same time.
    pub share_rw: bool,
    /// `werror=` of the device, or else of its drive.
    pub write_error: ErrorAction,
    /// `rerror=` of the device, or else of its drive; never [`ErrorAction::Enospc`].
    pub read_error: ErrorAction,
}

/// Properties of `virtio-rng-pci`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngDevice {
    /// Where the bytes come from: the object that `rng=` names, or the kernel.
    pub source: RngSource,
    /// `max-bytes=` in every `period`; `None` for no limit.
    pub max_bytes: Option<u64>,
    /// `period=` in milliseconds, at least 1.
    pub period: u32,
}

/// Properties of `virtio-serial-pci`, and what is plugged into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialDevice {
    /// `max_ports=`, 1 to 31.
    pub max_ports: u16,
    /// `emergency-write=`: the guest may write a byte to its first console without a queue.
    pub emergency_write: bool,
    /// The ports in command-line order.
    pub ports: Vec<SerialPort>,
}

/// `-device virtconsole` or `-device virtserialport`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// Whether it is a `virtconsole`.
    pub console: bool,
    /// `nr=`, or the first that is free; below `max_ports`, and unlike that of any other port of the device.
    pub number: u16,
    /// `name=`; empty when not given, else unlike that of any other port of the device.
    pub name: String,
    /// `chardev=`: a [`Chardev`](super::Chardev)'s id. Nothing else has the same.
    pub chardev: Option<String>,
}
