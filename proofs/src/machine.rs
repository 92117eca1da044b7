//! The device model under test, whole but for Xen: command line, devices, bus, machine and ioreq loop.

use std::ffi::OsString;
use std::sync::Arc;
use std::thread::JoinHandle;

use domain::{Gpa, SharedDomain};
use memory::{GuestMemory, Region};
use pci::{Bdf, Bus, HostBridge};
use sim::{SimDomain, Vcpu};
use xenpvh::cli::{self, Outcome};
use xenpvh::devices::Devices;
use xenpvh::layout::Layout;
use xenpvh::machine::Machine;

/// Bytes of RAM, from address 0.
pub const RAM: u64 = 64 << 20;
/// Where configuration space is: as on QEMU's machine `microvm`, and so are the windows.
pub const ECAM: u64 = 0xe000_0000;
/// Its size: 256 buses.
pub const ECAM_SIZE: u64 = 256 << 20;
/// Where 32-bit BARs go.
pub const MMIO: u64 = 0xc000_0000;
/// Where 64-bit BARs go.
pub const MMIO_HIGH: u64 = 0xc0_0000_0000;

const MMIO_SIZE: u64 = 0x2000_0000;
const MMIO_HIGH_SIZE: u64 = 32 << 30;

/// A running machine of ours.
pub struct Ours {
    /// The guest's side of it.
    pub sim: Arc<SimDomain>,
    /// Its one vCPU.
    pub vcpu: Vcpu,
    bus: Arc<Bus>,
    threads: Vec<JoinHandle<()>>,
    /// Keeps taps and disks open.
    _devices: Devices,
}

impl Ours {
    /// Starts a machine with the devices that these arguments ask for (`-device`, `-drive`, …).
    ///
    /// # Panics
    /// If the arguments make no sense, or what they name cannot be had.
    #[must_use]
    pub fn new(arguments: &[String]) -> Ours {
        let machine = format!(
            "xenpvh,ram-low-base=0,ram-low-size={RAM},pci-ecam-base={ECAM},pci-ecam-size={ECAM_SIZE},\
             pci-mmio-base={MMIO},pci-mmio-size={MMIO_SIZE},\
             pci-mmio-high-base={MMIO_HIGH},pci-mmio-high-size={MMIO_HIGH_SIZE}"
        );
        let megabytes = (RAM >> 20).to_string();
        let line = ["xenpvh", "-xen-domid", "1", "-machine", &machine, "-m", &megabytes];
        let line = line.into_iter().chain(arguments.iter().map(String::as_str)).map(OsString::from);
        let config = match cli::parse(line).expect("the command line") {
            Outcome::Run(config) => config,
            Outcome::Print(text) => panic!("the command line only asks for help: {text}"),
        };
        let cli::Machine::Xenpvh(options) = &config.machine else { panic!("{:?}", config.machine) };
        let layout = Layout::from_options(options, config.memory.unwrap_or_default()).expect("the layout");
        layout.check(48).expect("the layout");

        let sim = SimDomain::new(1, &[(Gpa(0), RAM)]).expect("a domain");
        let domain: SharedDomain = sim.clone();
        let memory =
            GuestMemory::new(domain.clone(), &[Region { start: Gpa(0), size: RAM }]).expect("memory");
        let devices = Devices::open(&config, &memory, &domain).unwrap_or_else(|error| panic!("{error}"));
        let bus = Arc::new(Bus::new(layout.buses()));
        bus.insert(Bdf::default(), Arc::new(HostBridge::new())).expect("slot 0");
        devices.insert(&bus).unwrap_or_else(|error| panic!("{error}"));
        let machine = Arc::new(Machine::new(layout, bus.clone(), memory));
        let threads = xenpvh::ioreq::serve(&*sim, &machine).expect("threads");
        Ours { vcpu: sim.vcpu(0), sim, bus, threads, _devices: devices }
    }

    /// Puts every function back to its state after power-on, as a guest's reboot does.
    pub fn reset(&self) {
        self.bus.reset();
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.bus.reset();
        self.sim.stop();
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a vCPU's thread panicked");
        }
    }
}
