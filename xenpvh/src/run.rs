//! One guest's life with us, in order: everything that can be wrong with the start is found before
//! anything is written to the domain; then the hand-over, the server, and last of all `running`.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::SharedDomain;
use memory::{GuestMemory, Region};
use pci::{Bdf, Bus, HostBridge};
use xen::{DomId, IoRange, Space, Store, Xen};

use crate::acpi::{self, Outcome};
use crate::cli::{self, Config, Machine as MachineKind};
use crate::control::{Control, End, Served};
use crate::devices::Devices;
use crate::layout::Layout;
use crate::machine::{CONFIG_ADDRESS, Machine, TIMER_CHANNEL_2};
use crate::signals::{self, Signals};
use crate::{ioreq, logging, privileges, qmp, store, survey};

/// How long requests may take to end when the process does.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// What libxl calls the chardev by which it speaks to a device model that it started.
const LIBXL_CHARDEV: &str = "libxl-cmd";

/// How long a probe run that was told to quit waits to be killed.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// What stops a start: one line for the user.
pub type Failure = Box<dyn Error>;

/// Serves the guest that `config` names until it or its toolstack is done with us.
///
/// # Errors
/// The start failed. Unless the message is of Xen itself, nothing was written to the domain.
pub fn run(config: &Config) -> Result<(), cli::Error> {
    begin(config).map_err(|failure| match failure.downcast::<cli::Error>() {
        Ok(error) => *error,
        Err(failure) => cli::Error { program: config.program.clone(), message: failure.to_string() },
    })
}

fn begin(config: &Config) -> Result<(), Failure> {
    signals::ignore_file_size_limit();
    start_log(config)?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    match config.machine {
        MachineKind::Probe => probe(config),
        _ => serve(config),
    }
}

/// libxl's question what we can do: QMP until it says quit, and no domain.
fn probe(config: &Config) -> Result<(), Failure> {
    let mut qmp = qmp::listen(config, &[])?;
    let signals = Signals::new()?;
    if Control::new(config, None).run(&signals, &mut qmp)? == End::Quit {
        // libxl sends a signal next, and complains if nobody is there to get it.
        signals.wait(PROBE_PATIENCE);
    }
    Ok(())
}

fn serve(config: &Config) -> Result<(), Failure> {
    let domid: DomId = config.domid.unwrap_or_default().to_string().parse()?;
    let layout = layout(config)?;
    let xen = Arc::new(Xen::open(domid)?);
    let mut store = Store::open()?;
    if let Some(id) = xen.existing_servers()?.first() {
        return Err(
            format!("domain {domid} is already served by another device model (ioreq server {id})").into()
        );
    }
    let domain: SharedDomain = xen.clone();
    let most = store::most_memory(&mut store, domid)?;
    survey::survey(&*xen, &layout, most)?;
    if config.acpi_only {
        return hand_over(&domain, &layout);
    }

    let memory = GuestMemory::new(domain.clone(), &ram(&layout))?;
    let devices = Devices::open(config, &memory, &domain)?;
    let bus = Arc::new(Bus::new(layout.buses().max(1)));
    bus.insert(Bdf::default(), Arc::new(HostBridge::new()))?;
    devices.insert(&bus)?;
    let mut qmp = qmp::listen(config, &devices.chardevs)?;
    let signals = Signals::new()?;
    write_pid(config.pid_file.as_deref())?;

    if layout.ecam.exists() {
        hand_over(&domain, &layout)?;
    }
    let machine = Arc::new(Machine::new(layout, bus.clone(), memory.clone()));
    let mut server = xen.create_server()?;
    server.map_ranges(&ranges(&layout))?;
    server.enable()?;
    if config.chardev(LIBXL_CHARDEV).is_some() {
        store::withdraw_triggers(&mut store, domid)?;
    }
    store.watch("@releaseDomain", "gone")?;
    // Before the first thread: what is given up here, every thread is to be without.
    privileges::drop(config, &xen)?;
    let vcpus = ioreq::serve(&*domain, &machine)?;
    log::info!("serving domain {domid}: {} vCPUs, {} functions", vcpus.len(), bus.functions().len());

    let served = Served { domid, server, store: Some(store), memory, bus, devices, complained: false };
    let mut control = Control::new(config, Some(served));
    if !config.paused {
        control.start()?;
    }
    let end = control.run(&signals, &mut qmp);
    log::info!("no longer serving domain {domid}: {}", end.as_ref().map_or("failure", |end| end.reason()));
    signals.exit_on_next()?;
    end_within(END_PATIENCE)?;
    control.close();
    end.map(drop)
}

/// Ends the process after `patience` whatever hangs: nobody ends it otherwise, and while it lives the domain
/// cannot go either.
fn end_within(patience: Duration) -> io::Result<()> {
    std::thread::Builder::new()
        .name("patience".to_owned())
        .spawn(move || {
            std::thread::sleep(patience);
            log::error!("the host's disks do not answer: ending without them");
            std::process::exit(1);
        })
        .map(drop)
}

fn start_log(config: &Config) -> Result<(), Failure> {
    let open = |path: &Path| {
        OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
            format!("-D {}: Could not open '{}': {}", path.display(), path.display(), reason(&error))
        })
    };
    logging::start(&config.program, config.log_file.as_deref().map(open).transpose()?);
    Ok(())
}

fn write_pid(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
        writeln!(file, "{}", std::process::id())
    };
    write().map_err(|error| format!("cannot create PID file: {}: {}", path.display(), reason(&error)).into())
}

/// An error without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn layout(config: &Config) -> Result<Layout, Failure> {
    let memory = config.memory.unwrap_or_default();
    if memory == 0 {
        return Err("the guest's RAM size is not given: add -m with its memory in MiB".into());
    }
    let bits = physical_address_bits();
    let layout = match &config.machine {
        MachineKind::Xenpvh(line) => Layout::from_options(line, memory)?,
        _ => Layout::stock(memory, bits),
    };
    layout.check(bits)?;
    if !layout.ecam.exists() && !config.devices.is_empty() {
        let driver = config.devices.first().map(|device| device.driver).unwrap_or_default();
        return Err(format!("-device {driver}: No 'PCI' bus found for device '{driver}'").into());
    }
    Ok(layout)
}

/// Width of a physical address of this host, which no guest's is above.
fn physical_address_bits() -> u32 {
    // CPUID leaf 0x80000008 exists on every CPU that can run a PVH guest.
    let width = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    width.clamp(36, 52)
}

fn ram(layout: &Layout) -> Vec<Region> {
    [layout.ram_low, layout.ram_high]
        .iter()
        .filter(|window| window.exists())
        .map(|window| Region { start: domain::Gpa(window.start), size: window.size })
        .collect()
}

/// What Xen sends to us: everything that is not RAM and could be ours, once and whole. BARs move inside of
/// the windows without Xen hearing of it.
fn ranges(layout: &Layout) -> Vec<IoRange> {
    let ports =
        |first: u16, last: u16| IoRange { space: Space::Port, first: first.into(), last: last.into() };
    let mut ranges = vec![ports(CONFIG_ADDRESS, CONFIG_ADDRESS + 3), ports(TIMER_CHANNEL_2, TIMER_CHANNEL_2)];
    for window in [layout.ecam, layout.mmio, layout.mmio_high].iter().filter(|window| window.exists()) {
        ranges.push(IoRange { space: Space::Memory, first: window.start, last: window.last() });
    }
    if let Some(last_bus) = layout.buses().checked_sub(1) {
        ranges.push(IoRange { space: Space::Pci, first: 0, last: u64::from(last_bus) << 8 | 0xff });
    }
    ranges
}

fn hand_over(domain: &SharedDomain, layout: &Layout) -> Result<(), Failure> {
    match acpi::hand_over(domain, layout)? {
        Outcome::Added => log::info!("told the guest about its PCI host bridge: {}", layout.ecam),
        Outcome::Present => log::info!("the guest knows its PCI host bridge from us already"),
        Outcome::Foreign => log::info!("the toolstack told the guest about its PCI host bridge"),
    }
    Ok(())
}
