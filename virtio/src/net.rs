//! The network device (virtio 1.3 §5.1) on a tap.
//!
//! Each pair of queues has a worker of its own and a queue of the tap to itself (`worker`); commands
//! come in over the control queue (`control`). Frames go between the tap and guest memory in one system
//! call each, headers included, so that offloads need nothing from us.

mod control;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use backend::tap::{Offloads, Tap};
use memory::GuestMemory;
use rustix::event::{EventfdFlags, eventfd};

use crate::device::{Config, Device, QueueSpec, Spec, Worker};
use worker::NetWorker;

/// VIRTIO_NET_F_CSUM: we take frames whose checksum is not complete.
const FEATURE_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM: the driver takes such frames.
const FEATURE_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the driver can change its mind about that.
const FEATURE_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// VIRTIO_NET_F_MTU: the MTU is in the configuration.
const FEATURE_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC: the MAC address is in the configuration.
const FEATURE_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_GUEST_TSO4.
const FEATURE_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6.
const FEATURE_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_ECN.
const FEATURE_GUEST_ECN: u64 = 1 << 9;
/// VIRTIO_NET_F_HOST_TSO4.
const FEATURE_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6.
const FEATURE_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_ECN.
const FEATURE_HOST_ECN: u64 = 1 << 13;
/// VIRTIO_NET_F_MRG_RXBUF: a frame may fill several buffers.
const FEATURE_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS: whether the link is up is in the configuration.
const FEATURE_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
const FEATURE_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_CTRL_RX: receive modes.
const FEATURE_CTRL_RX: u64 = 1 << 18;
/// VIRTIO_NET_F_CTRL_VLAN: VLAN filter.
const FEATURE_CTRL_VLAN: u64 = 1 << 19;
/// VIRTIO_NET_F_MQ: several pairs of queues.
const FEATURE_MQ: u64 = 1 << 22;
/// VIRTIO_NET_F_CTRL_MAC_ADDR: the driver can set the MAC address.
const FEATURE_CTRL_MAC_ADDR: u64 = 1 << 23;
/// VIRTIO_NET_F_GUEST_USO4.
const FEATURE_GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6.
const FEATURE_GUEST_USO6: u64 = 1 << 55;
/// VIRTIO_NET_F_HOST_USO.
const FEATURE_HOST_USO: u64 = 1 << 56;

/// VIRTIO_NET_F_SPEED_DUPLEX: the configuration has them.
const FEATURE_SPEED_DUPLEX: u64 = 1 << 63;

/// Frames of up to 64 KiB may come with any of these.
const GUEST_SEGMENTATION: u64 =
    FEATURE_GUEST_TSO4 | FEATURE_GUEST_TSO6 | FEATURE_GUEST_USO4 | FEATURE_GUEST_USO6;
/// All that is about the frames the driver takes.
const GUEST_OFFLOADS: u64 = FEATURE_GUEST_CSUM | FEATURE_GUEST_ECN | GUEST_SEGMENTATION;

/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// Offset of `status` in `struct virtio_net_config` (virtio 1.3 §5.1.4).
const CONFIG_STATUS: usize = 6;
/// In it: the link is up (VIRTIO_NET_S_LINK_UP).
const LINK_UP: u8 = 1;

/// What a user can say about a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The MAC address it starts with.
    pub mac: [u8; 6],
    /// The MTU that the driver is told of.
    pub mtu: Option<u16>,
    /// Entries of each receive queue: a power of two, 256 to 1024.
    pub rx_queue_size: u16,
    /// Entries of each transmit queue: a power of two, 256 to 1024.
    pub tx_queue_size: u16,
    /// Speed in Mb/s and whether full duplex, for the driver to show.
    pub speed: Option<(u32, bool)>,
}

impl NetConfig {
    /// A device of this MAC address with QEMU's defaults: queues of 256.
    pub fn new(mac: [u8; 6]) -> NetConfig {
        NetConfig { mac, mtu: None, rx_queue_size: 256, tx_queue_size: 256, speed: None }
    }
}

/// A network device on the queues of one tap.
#[derive(Debug)]
pub struct Net(Arc<Shared>);

/// What the device, its workers and its control queue share.
#[derive(Debug)]
struct Shared {
    spec: Spec,
    config: Config,
    mac: [u8; 6],
    mtu: Option<u16>,
    pairs: Vec<Pair>,
    /// Pairs that the driver uses, the first ones.
    active: AtomicU16,
    link: AtomicBool,
}

/// One pair's end on the host.
#[derive(Debug)]
struct Pair {
    tap: Tap,
    /// Becomes readable when the pair may have come to life.
    revived: OwnedFd,
}

impl Net {
    /// A device with a pair of queues for each queue of the tap, of which there is at least one.
    ///
    /// # Errors
    /// No more descriptors, or no tap.
    pub fn new(options: &NetConfig, taps: Vec<Tap>) -> io::Result<Net> {
        let uso = taps.first().ok_or(io::ErrorKind::InvalidInput)?.has_uso();
        let count = u16::try_from(taps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pair =
            |tap| Ok(Pair { tap, revived: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? });
        let pairs = taps.into_iter().map(pair).collect::<io::Result<Vec<_>>>()?;
        let mut config = Vec::from(options.mac);
        config.extend([LINK_UP, 0]);
        config.extend(count.to_le_bytes());
        config.extend(options.mtu.unwrap_or(0).to_le_bytes());
        if let Some((speed, full_duplex)) = options.speed {
            config.extend(speed.to_le_bytes());
            config.push(full_duplex.into());
        }
        let shared = Shared {
            spec: Spec {
                id: 1,
                class: 0x02_00_00,
                features: features(count, options, uso),
                queues: queues(options, usize::from(count)),
            },
            config: Config::new(config),
            mac: options.mac,
            mtu: options.mtu,
            pairs,
            active: AtomicU16::new(1),
            link: AtomicBool::new(true),
        };
        shared.activate(1)?;
        Ok(Net(Arc::new(shared)))
    }

    /// Plugs the cable in or pulls it out: no frame goes either way while it is out, and the driver is
    /// told.
    pub fn set_link(&self, up: bool) {
        self.0.link.store(up, Ordering::Release);
        self.0.config.update(|bytes| {
            if let Some(status) = bytes.get_mut(CONFIG_STATUS) {
                *status = if up { *status | LINK_UP } else { *status & !LINK_UP };
            }
        });
        self.0.revive();
    }

    /// Whether the link is up.
    pub fn link(&self) -> bool {
        self.0.link.load(Ordering::Acquire)
    }
}

impl Device for Net {
    fn spec(&self) -> &Spec {
        &self.0.spec
    }

    fn config(&self) -> &Config {
        &self.0.config
    }

    fn worker(&self, index: usize, features: u64, memory: &GuestMemory) -> io::Result<Box<dyn Worker>> {
        self.0.set_offloads(features & GUEST_OFFLOADS);
        Ok(Box::new(NetWorker::new(self.0.clone(), index, features, memory.clone())))
    }

    fn reset(&self) {
        self.0.set_offloads(0);
        if let Err(error) = self.0.activate(1) {
            log::warn!("cannot put the queues of {} back: {error}", self.0.name());
        }
        let mac = self.0.mac;
        self.0.set_mac(mac);
    }
}

impl Shared {
    fn name(&self) -> &str {
        self.pairs.first().map_or("", |pair| pair.tap.name())
    }

    /// Queue that commands come in on (virtio 1.3 §5.1.2): after the pairs, but a driver without
    /// multiqueue knows of one pair only.
    fn control_queue(&self, features: u64) -> usize {
        let pairs = if features & FEATURE_MQ != 0 { self.pairs.len() } else { 1 };
        pairs.saturating_mul(2)
    }

    /// Whether frames go over pair `index` at this moment.
    fn is_live(&self, index: usize) -> bool {
        index < usize::from(self.active.load(Ordering::Acquire)) && self.link.load(Ordering::Acquire)
    }

    /// Has the host spread frames over the first `count` pairs.
    fn activate(&self, count: u16) -> io::Result<()> {
        // Workers leave a pair alone before it is cut off, and take it up after it is there.
        self.active.fetch_min(count, Ordering::AcqRel);
        for (index, pair) in self.pairs.iter().enumerate() {
            pair.tap.set_enabled(index < usize::from(count))?;
        }
        self.active.store(count, Ordering::Release);
        self.revive();
        Ok(())
    }

    /// Has every worker look again whether its pair is live.
    fn revive(&self) {
        for pair in &self.pairs {
            // It can only fail when the counter is full, and then it is readable all right.
            let _ = rustix::io::write(&pair.revived, &1u64.to_ne_bytes());
        }
    }

    /// Sets what frames the driver takes, by the feature bits that say so.
    fn set_offloads(&self, features: u64) {
        let has = |bit| features & bit != 0;
        let offloads = Offloads {
            checksum: has(FEATURE_GUEST_CSUM),
            tso4: has(FEATURE_GUEST_TSO4),
            tso6: has(FEATURE_GUEST_TSO6),
            ecn: has(FEATURE_GUEST_ECN),
            uso: has(FEATURE_GUEST_USO4) && has(FEATURE_GUEST_USO6),
        };
        // They belong to the interface, not to one of its queues.
        if let Some(pair) = self.pairs.first()
            && let Err(error) = pair.tap.set_offloads(offloads)
        {
            log::warn!("cannot set the offloads of {}: {error}", self.name());
        }
    }

    fn set_mac(&self, mac: [u8; 6]) {
        self.config.modify(|bytes| {
            for (to, from) in bytes.iter_mut().zip(mac) {
                *to = from;
            }
        });
    }
}

fn features(pairs: u16, options: &NetConfig, uso: bool) -> u64 {
    let always = FEATURE_MAC
        | FEATURE_STATUS
        | FEATURE_CSUM
        | FEATURE_GUEST_CSUM
        | FEATURE_HOST_TSO4
        | FEATURE_HOST_TSO6
        | FEATURE_HOST_ECN
        | FEATURE_GUEST_TSO4
        | FEATURE_GUEST_TSO6
        | FEATURE_GUEST_ECN
        | FEATURE_MRG_RXBUF
        | FEATURE_CTRL_VQ
        | FEATURE_CTRL_RX
        | FEATURE_CTRL_VLAN
        | FEATURE_CTRL_MAC_ADDR
        | FEATURE_CTRL_GUEST_OFFLOADS;
    let offered = [
        (true, always),
        (options.mtu.is_some(), FEATURE_MTU),
        (options.speed.is_some(), FEATURE_SPEED_DUPLEX),
        (uso, FEATURE_HOST_USO | FEATURE_GUEST_USO4 | FEATURE_GUEST_USO6),
        (pairs > 1, FEATURE_MQ),
    ];
    offered.iter().filter(|(on, _)| *on).fold(0, |all, (_, bits)| all | bits)
}

/// rx0, tx0, rx1, …, control (virtio 1.3 §5.1.2).
fn queues(options: &NetConfig, pairs: usize) -> Vec<QueueSpec> {
    let pair = |worker| {
        [options.rx_queue_size, options.tx_queue_size].map(|max_size| QueueSpec { max_size, worker })
    };
    let control = QueueSpec { max_size: CONTROL_SIZE, worker: 0 };
    (0..pairs).flat_map(pair).chain([control]).collect()
}
