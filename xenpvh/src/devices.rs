//! From the command line's devices to PCI functions: opens what they need on the host.

mod info;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backend::block::{Disk, DiskOptions};
use backend::tap::Tap;
use domain::SharedDomain;
use memory::GuestMemory;
use pci::{Bdf, Bus};
use virtio::blk::{Blk, BlkConfig, Statistics};
use virtio::net::{Net, NetConfig};

use virtio::{Device as VirtioDevice, Placement, Rng, VirtioPci};

use crate::cli::{
    self, BlkDevice, BlockNode, Config, DetectZeroes, Device, ErrorAction, FileKind, Locking, Model,
    NetBackend, NetDevice, RngDevice, RngSource, Script, Tap as TapOptions, TapSource,
};
use crate::run::Failure;

/// What QEMU's `-netdev tap` runs unless told.
const DEFAULT_SCRIPT: &str = "/etc/qemu-ifup";
/// What it runs in the end.
const DEFAULT_DOWN_SCRIPT: &str = "/etc/qemu-ifdown";
const KERNEL_RANDOM: &str = "/dev/urandom";

/// An open disk and the device on it.
pub struct Drive {
    /// What the user called the disk.
    pub node: BlockNode,
    /// The disk.
    pub disk: Disk,
    /// `id=` of the device; empty without.
    pub device: String,
    /// What was done on it.
    pub statistics: Arc<Statistics>,
}

/// A network device, by the names that a user has for it.
pub struct Nic {
    /// `id=` of the device; empty without.
    pub device: String,
    /// The netdev's id.
    pub netdev: String,
    /// The tap's name.
    pub tap: String,
    /// The device.
    pub net: Arc<Net>,
    down_script: Option<String>,
}

/// A function and where it goes.
struct Placed {
    at: Bdf,
    /// `id=`; empty without.
    id: String,
    function: Arc<VirtioPci>,
}

/// All devices of a command line, open and ready.
pub struct Devices {
    functions: Vec<Placed>,
    /// The disks.
    pub drives: Vec<Drive>,
    /// The network devices.
    pub nics: Vec<Nic>,
}

impl Devices {
    /// Opens every device's files and taps, in command-line order. `vcpus` is how many vCPUs the guest has
    /// at most.
    ///
    /// # Errors
    /// The first that cannot be had, as `-option …: why`.
    pub fn open(config: &Config, memory: &GuestMemory, domain: &SharedDomain) -> Result<Devices, Failure> {
        let mut devices = Devices { functions: Vec::new(), drives: Vec::new(), nics: Vec::new() };
        for device in &config.devices {
            devices.add(config, device, memory, domain).map_err(|error| at(config, &device.typed, error))?;
        }
        Ok(devices)
    }

    fn add(
        &mut self,
        config: &Config,
        device: &Device,
        memory: &GuestMemory,
        domain: &SharedDomain,
    ) -> Result<(), Failure> {
        let virtio: Arc<dyn VirtioDevice> = match &device.model {
            Model::Blk(options) => self.blk(config, device, options, domain.vcpus())?,
            Model::Net(options) => self.net(config, device, options)?,
            Model::Rng(options) => Arc::new(rng(options)?),
        };
        let name = if device.id.is_empty() { device.driver } else { &device.id };
        let placement = Placement {
            vectors: device.vectors,
            without: without(&device.model),
            multifunction: device.multifunction,
        };
        let function = VirtioPci::new(virtio, name, placement, memory.clone(), domain.clone())?;
        let at = Bdf::new(0, device.addr.device, device.addr.function).ok_or("no such PCI address")?;
        self.functions.push(Placed { at, id: device.id.clone(), function: Arc::new(function) });
        Ok(())
    }

    fn blk(
        &mut self,
        config: &Config,
        device: &Device,
        options: &BlkDevice,
        vcpus: u32,
    ) -> Result<Arc<dyn VirtioDevice>, Failure> {
        let node = config.block(&options.drive).ok_or("drive property not set")?;
        for action in [options.write_error, options.read_error] {
            if matches!(action, ErrorAction::Ignore | ErrorAction::Stop) {
                return Err(
                    "werror= and rerror= can only be 'report' or 'enospc': the guest gets every error".into(),
                );
            }
        }
        let disk = open_disk(node).map_err(|error| at(config, &node.typed, error))?;
        let cpus = config.smp.map_or(vcpus, |smp| smp.cpus);
        let when = |on: bool, most: u32| if on { most } else { 0 };
        let blk = Blk::new(
            &BlkConfig {
                serial: options.serial.clone(),
                queues: options.num_queues.unwrap_or(cpus.try_into().unwrap_or(u16::MAX)),
                queue_size: options.queue_size,
                write_cache: Some(options.write_cache),
                max_discard: when(options.discard, options.max_discard_sectors),
                max_write_zeroes: when(options.write_zeroes, options.max_write_zeroes_sectors),
                logical_block_size: options.logical_block_size,
                physical_block_size: options.physical_block_size,
                min_io_size: options.min_io_size,
                opt_io_size: options.opt_io_size,
                discard_granularity: options.discard_granularity,
            },
            disk.clone(),
        )?;
        let statistics = blk.statistics();
        self.drives.push(Drive { node: node.clone(), disk, device: device.id.clone(), statistics });
        Ok(Arc::new(blk))
    }

    fn net(
        &mut self,
        config: &Config,
        device: &Device,
        options: &NetDevice,
    ) -> Result<Arc<dyn VirtioDevice>, Failure> {
        let id = options.netdev.as_deref().ok_or("a NIC needs a netdev= to be of use")?;
        let netdev = config.netdev(id).ok_or("a NIC needs a netdev= to be of use")?;
        let NetBackend::Tap(tap) = &netdev.backend;
        let mut taps = open_tap(tap).map_err(|error| at(config, &netdev.typed, error))?;
        if !options.mq {
            taps.truncate(1);
        }
        let name = taps.first().map(|tap| tap.name().to_owned()).unwrap_or_default();
        let net = NetConfig {
            mac: options.mac,
            mtu: options.host_mtu,
            rx_queue_size: options.rx_queue_size,
            tx_queue_size: options.tx_queue_size,
            speed: options.speed.map(|speed| (speed, options.full_duplex.unwrap_or(true))),
        };
        let net = Arc::new(Net::new(&net, taps)?);
        self.nics.push(Nic {
            device: device.id.clone(),
            netdev: id.to_owned(),
            tap: name,
            net: net.clone(),
            down_script: script(&tap.downscript, DEFAULT_DOWN_SCRIPT),
        });
        Ok(net)
    }

    /// Puts every function on the bus.
    ///
    /// # Errors
    /// Two are at the same place.
    pub fn insert(&self, bus: &Bus) -> Result<(), Failure> {
        for Placed { at, function, .. } in &self.functions {
            bus.insert(*at, function.clone())?;
        }
        Ok(())
    }

    /// Runs what is to be run before taps go.
    pub fn close(&self) {
        for nic in &self.nics {
            if let Some(script) = &nic.down_script
                && let Err(error) = run_script(script, &nic.tap)
            {
                log::warn!("{error}");
            }
        }
    }
}

/// Says which option a failure is about, unless it says so already.
fn at(config: &Config, typed: &str, failure: Failure) -> Failure {
    if failure.is::<cli::Error>() { failure } else { config.error(typed, &failure.to_string()).into() }
}

/// Feature bits that the user turned off (virtio 1.3 §5.1.3, §5.2.3).
fn without(model: &Model) -> u64 {
    let off: &[(bool, u64)] = match model {
        Model::Net(NetDevice { offloads, .. }) => &[
            (offloads.csum, 1 << 0),
            (offloads.guest_csum, 1 << 1),
            (offloads.ctrl_guest_offloads, 1 << 2),
            (offloads.guest_tso4, 1 << 7),
            (offloads.guest_tso6, 1 << 8),
            (offloads.guest_ecn, 1 << 9),
            (offloads.host_tso4, 1 << 11),
            (offloads.host_tso6, 1 << 12),
            (offloads.host_ecn, 1 << 13),
            (offloads.mrg_rxbuf, 1 << 15),
            (offloads.status, 1 << 16),
            (offloads.ctrl_vq, 1 << 17),
            (offloads.ctrl_rx, 1 << 18),
            (offloads.ctrl_vlan, 1 << 19),
            (offloads.ctrl_mac_addr, 1 << 23),
            (offloads.guest_uso4, 1 << 54),
            (offloads.guest_uso6, 1 << 55),
            (offloads.host_uso, 1 << 56),
        ],
        Model::Blk(blk) => &[(blk.config_wce, 1 << 11)],
        Model::Rng(_) => &[],
    };
    off.iter().filter(|(on, _)| !on).fold(0, |all, (_, bit)| all | bit)
}

/// Opens a disk as its options say, with QEMU's words where the file is of the wrong kind.
fn open_disk(node: &BlockNode) -> Result<Disk, Failure> {
    if node.detect_zeroes != DetectZeroes::Off {
        return Err("detect-zeroes= can only be 'off'".into());
    }
    if node.locking == Locking::On {
        return Err("file.locking=on: images are not locked yet".into());
    }
    let mut options = DiskOptions {
        read_only: node.read_only,
        direct: node.cache.direct,
        no_flush: node.cache.no_flush,
        write_back: node.cache.writeback,
        discard: node.discard,
        ..DiskOptions::new(&node.filename)
    };
    let mut disk = Disk::open(&options);
    if disk.is_err() && node.auto_read_only && !node.read_only {
        options.read_only = true;
        disk = Disk::open(&options).or(disk);
    }
    let disk = disk?;
    let name = node.filename.display();
    match (node.kind, disk.is_block_device()) {
        (FileKind::Regular, true) => {
            Err(format!("'file' driver requires '{name}' to be a regular file").into())
        }
        (FileKind::HostDevice, false) => {
            Err(format!("'host_device' driver requires '{name}' to be a block device").into())
        }
        _ => Ok(disk),
    }
}

fn rng(options: &RngDevice) -> Result<Rng, Failure> {
    if options.max_bytes.is_some() {
        return Err("max-bytes= is not supported: leave it out".into());
    }
    Ok(Rng::new(random_source(&options.source)?))
}

fn random_source(source: &RngSource) -> Result<File, Failure> {
    let path = match source {
        RngSource::Builtin => Path::new(KERNEL_RANDOM),
        RngSource::File(path) => path,
    };
    File::open(path).map_err(|error| format!("Could not open '{}': {error}", path.display()).into())
}

/// Opens a tap, brings it up and, if a bridge is named, makes it a port of that.
fn open_tap(options: &TapOptions) -> Result<Vec<Tap>, Failure> {
    let name = match &options.source {
        TapSource::Name(name) => name,
        TapSource::Fds(fds) => {
            return Ok(fds.iter().map(|fd| Tap::from_number(*fd)).collect::<Result<_, _>>()?);
        }
    };
    let taps = Tap::open(name, options.queues.into())?;
    let Some(tap) = taps.first() else { return Ok(taps) };
    if let Some(bridge) = &options.bridge {
        tap.join_bridge(bridge)?;
    }
    if let Some(script) = script(&options.script, DEFAULT_SCRIPT) {
        run_script(&script, tap.name())?;
    }
    tap.bring_up()?;
    Ok(taps)
}

/// The script to run: none that was not asked for and is not there.
fn script(wanted: &Script, default: &str) -> Option<String> {
    match wanted {
        Script::No => None,
        Script::Path(path) => Some(path.display().to_string()),
        Script::Default => Path::new(default).exists().then(|| default.to_owned()),
    }
}

fn run_script(script: &str, tap: &str) -> Result<(), Failure> {
    let status = Command::new(script).arg(tap).status();
    let status = status.map_err(|error| format!("could not launch network script {script}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => {
            Err(format!("network script {script} failed with status {}", status.code().unwrap_or(-1)).into())
        }
    }
}
