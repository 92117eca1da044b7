//! From the command line's devices to PCI functions: opens what they need on the host.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backend::block::{Disk, DiskOptions};
use backend::tap::Tap;
use domain::SharedDomain;
use memory::GuestMemory;
use pci::{Bdf, Bus};
use virtio::blk::{Blk, BlkConfig};
use virtio::net::{Net, NetConfig};

use virtio::{Device as VirtioDevice, Rng, VirtioPci};

use crate::cli::{
    BlkDevice, BlockNode, Config, Device, Model, NetBackend, NetDevice, RngSource, Script, Tap as TapOptions, TapSource,
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

/// All devices of a command line, open and ready.
pub struct Devices {
    functions: Vec<(Bdf, &'static str, Arc<VirtioPci>)>,
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
    /// The first that cannot be had, as `-device …: why`.
    pub fn open(config: &Config, memory: &GuestMemory, domain: &SharedDomain) -> Result<Devices, Failure> {
        let mut devices = Devices { functions: Vec::new(), drives: Vec::new(), nics: Vec::new() };
        for device in &config.devices {
            let add = devices.add(config, device, memory, domain);
            add.map_err(|error| format!("-device {}: {error}", described(device)))?;
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
            Model::Rng(options) => Arc::new(Rng::new(random_source(&options.source)?)),
        };
        let name = if device.id.is_empty() { device.driver } else { &device.id };
        let function = VirtioPci::new(virtio, name, device.vectors, memory.clone(), domain.clone())?;
        let at = Bdf::new(0, device.addr.device, device.addr.function).ok_or("no such PCI address")?;
        self.functions.push((at, device.driver, Arc::new(function)));
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
        let disk = Disk::open(&DiskOptions {
            read_only: node.read_only,
            direct: node.cache.direct,
            no_flush: node.cache.no_flush,
            write_back: node.cache.writeback,
            discard: node.discard,
            ..DiskOptions::new(&node.filename)
        })?;
        let cpus = config.smp.map_or(vcpus, |smp| smp.cpus);
        let blk = Blk::new(
            &BlkConfig {
                serial: options.serial.clone(),
                queues: options.num_queues.unwrap_or(cpus.try_into().unwrap_or(u16::MAX)),
                queue_size: options.queue_size,
                write_cache: Some(options.write_cache),
                discard: options.discard,
                write_zeroes: options.write_zeroes,
            },
            disk.clone(),
        );
        self.drives.push(Drive { node: node.clone(), disk, device: device.id.clone() });
        Ok(Arc::new(blk))
    }

    fn net(&mut self, config: &Config, device: &Device, options: &NetDevice) -> Result<Arc<dyn VirtioDevice>, Failure> {
        let id = options.netdev.as_deref().ok_or("a NIC needs a netdev= to be of use")?;
        let netdev = config.netdev(id).ok_or("a NIC needs a netdev= to be of use")?;
        let NetBackend::Tap(tap) = &netdev.backend;
        let mut taps = open_tap(tap)?;
        if !options.mq {
            taps.truncate(1);
        }
        let name = taps.first().map(|tap| tap.name().to_owned()).unwrap_or_default();
        let net = NetConfig {
            mac: options.mac,
            mtu: options.host_mtu,
            rx_queue_size: options.rx_queue_size,
            tx_queue_size: options.tx_queue_size,
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
        for (at, _, function) in &self.functions {
            bus.insert(*at, function.clone())?;
        }
        Ok(())
    }

    /// Address and device model of every function.
    pub fn functions(&self) -> impl Iterator<Item = (Bdf, &'static str)> + '_ {
        self.functions.iter().map(|(at, driver, _)| (*at, *driver))
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

/// A device as its option names it.
fn described(device: &Device) -> String {
    match device.id.as_str() {
        "" => device.driver.to_owned(),
        id => format!("{},id={id}", device.driver),
    }
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
        TapSource::Fds(fds) => return Ok(fds.iter().map(|fd| Tap::from_number(*fd)).collect::<Result<_, _>>()?),
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
        false => Err(format!("network script {script} failed with status {}", status.code().unwrap_or(-1)).into()),
    }
}
