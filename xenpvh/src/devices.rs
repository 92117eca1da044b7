//! From the command line's devices to PCI functions: opens what they need on the host.

mod info;
mod serial;
mod transport;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::block::{Disk, DiskOptions};
use backend::tap::{Interface, Tap};
use domain::SharedDomain;
use memory::GuestMemory;
use pci::{Bdf, Bus};
use virtio::blk::{Blk, BlkConfig, Statistics};
use virtio::console::FEATURE_EMERGENCY_WRITE;
use virtio::net::{Net, NetConfig};
use virtio::{Device as VirtioDevice, Placement, Rng, VirtioPci};

use crate::cli::{
    self, BlkDevice, BlockNode, Config, DetectZeroes, Device, ErrorAction, FileKind, Locking, Model,
    NetBackend, NetDevice, RngDevice, RngSource, Script, Tap as TapOptions, TapSource,
};
use crate::qmp::CharInfo;
use crate::run::Failure;

/// What QEMU's `-netdev tap` runs unless told.
const DEFAULT_SCRIPT: &str = "/etc/qemu-ifup";
/// What it runs in the end.
const DEFAULT_DOWN_SCRIPT: &str = "/etc/qemu-ifdown";
/// How long a tap may be busy before that is an error, and how often it is tried.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
/// Queues that a disk has at most unless told: each takes a thread and buffers.
const MAX_DEFAULT_QUEUES: u32 = 4;
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
    /// The interface on the host.
    pub end: Interface,
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
    /// The chardevs of ports, as `query-chardev` shows them.
    pub chardevs: Vec<CharInfo>,
}

impl Devices {
    /// Opens every device's files and taps, in command-line order. `vcpus` is how many vCPUs the guest has
    /// at most.
    ///
    /// # Errors
    /// The first that cannot be had, as `-option …: why`.
    pub fn open(config: &Config, memory: &GuestMemory, domain: &SharedDomain) -> Result<Devices, Failure> {
        let mut devices =
            Devices { functions: Vec::new(), drives: Vec::new(), nics: Vec::new(), chardevs: Vec::new() };
        for device in &config.devices {
            devices.add(config, device, memory, domain).map_err(|error| at(config, &device.typed, error))?;
        }
        // Bridges and scripts come when everything is open: what fails above leaves no trace on the host.
        for nic in &mut devices.nics {
            let netdev = config.netdev(&nic.netdev);
            if let Some((typed, NetBackend::Tap(tap))) = netdev.map(|netdev| (&netdev.typed, &netdev.backend))
            {
                nic.connect(tap).map_err(|error| at(config, typed, error))?;
            }
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
            Model::Serial(options) => Arc::new(serial::open(config, options, &mut self.chardevs)?),
        };
        let name = if device.id.is_empty() { device.driver } else { &device.id };
        let placement = Placement {
            vectors: device.vectors,
            with: transport::with(&device.transport),
            without: without(&device.model) | transport::without(&device.transport),
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
                queues: options.num_queues.unwrap_or(cpus.min(MAX_DEFAULT_QUEUES) as u16),
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
        let end = taps.first().ok_or("a tap without queues")?.interface();
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
            end,
            net: net.clone(),
            down_script: None,
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

    /// Has the host write to the disks what it keeps in memory of them. To be called at the end, when the
    /// functions were reset.
    pub fn flush(&self) {
        for Drive { node, disk, .. } in &self.drives {
            if !disk.is_read_only()
                && !node.cache.no_flush
                && let Err(error) = rustix::fs::fdatasync(disk)
            {
                log::warn!("{}: cannot be flushed: {error}", node.filename.display());
            }
        }
    }
}

impl Nic {
    /// Makes the tap a port of the bridge it is for, has its script run, and brings it up.
    fn connect(&mut self, options: &TapOptions) -> Result<(), Failure> {
        if let TapSource::Fds(_) = options.source {
            return Ok(());
        }
        if let Some(bridge) = &options.bridge {
            self.end.join_bridge(bridge)?;
        }
        self.down_script = script(&options.downscript, DEFAULT_DOWN_SCRIPT);
        if let Some(script) = script(&options.script, DEFAULT_SCRIPT) {
            run_script(&script, self.end.name())?;
        }
        Ok(self.end.bring_up()?)
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if let Some(script) = &self.down_script
            && let Err(error) = run_script(script, self.end.name())
        {
            log::warn!("{error}");
        }
    }
}

/// Says which option a failure is about, unless it says so already.
fn at(config: &Config, typed: &str, failure: Failure) -> Failure {
    if failure.is::<cli::Error>() { failure } else { config.error(typed, &failure.to_string()).into() }
}

/// Feature bits that the user turned off (virtio 1.3 §5.1.3, §5.2.3, §5.3.3).
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
        Model::Serial(serial) => &[(serial.emergency_write, FEATURE_EMERGENCY_WRITE)],
    };
    let off = off.iter().filter(|(on, _)| !on).fold(0, |all, (_, bit)| all | bit);
    match model {
        Model::Net(_) => NET_NEEDS
            .iter()
            .fold(off, |off, (needed, by)| if off & needed == *needed { off | by } else { off }),
        _ => off,
    }
}

/// Features of a NIC that are of no use, and that drivers stumble over, if all of others are missing (virtio
/// 1.3 §5.1.3.1): the others, and then those.
const NET_NEEDS: [(u64, u64); 5] = [
    (1 << 17, 1 << 2 | 1 << 18 | 1 << 19 | 1 << 22 | 1 << 23),
    (1 << 0, 1 << 11 | 1 << 12 | 1 << 13 | 1 << 56),
    (1 << 1, 1 << 7 | 1 << 8 | 1 << 9 | 1 << 54 | 1 << 55),
    (1 << 7 | 1 << 8, 1 << 9),
    (1 << 11 | 1 << 12, 1 << 13),
];

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
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file.map_err(|error| format!("Could not open '{}': {error}", path.display()).into())
}

/// Opens a tap. libxl starts the process of a restarted guest before the old one has ended, so a tap that is
/// busy may be free in a moment.
fn open_tap(options: &TapOptions) -> Result<Vec<Tap>, Failure> {
    let name = match &options.source {
        TapSource::Name(name) => name,
        TapSource::Fds(fds) => {
            return Ok(fds.iter().map(|fd| Tap::from_number(*fd)).collect::<Result<_, _>>()?);
        }
    };
    let start = Instant::now();
    loop {
        match Tap::open(name, options.queues.into()) {
            Err(error) if error.is_busy() && start.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(BUSY_INTERVAL)
            }
            taps => return Ok(taps?),
        }
    }
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
