//! All options together: what they say about each other.

use std::path::PathBuf;

use super::about;
use super::blockdevs::{self, Node};
use super::chardevs;
use super::config::{Config, Incoming, Machine, User};
use super::devices::{self, Builder, References};
use super::drivers::{self, Global, Request};
use super::drives;
use super::keyval::{self, Grammar, Pairs};
use super::machine;
use super::netdevs;
use super::number;
use super::objects;
use super::options::{Given, Name};
use super::slots::Slots;

/// First domain id that is not a domain's (xen/include/public/xen.h, `DOMID_FIRST_RESERVED`).
const FIRST_RESERVED: u64 = 0x7ff0;

/// What was read and waits for the other options.
#[derive(Default)]
struct Pending<'a> {
    machine: Pairs,
    memory: Pairs,
    smp: Option<Pairs>,
    memory_given: Option<&'a Given>,
    nodes: Vec<(&'a Given, Node)>,
    requests: Vec<(&'a Given, Request)>,
    globals: Vec<Global>,
    monitor_ids: Vec<String>,
    monitors: Vec<&'a Given>,
    unnamed_drives: usize,
}

/// Makes a configuration of all that was given.
pub(super) fn config(program: &str, given: &[Given]) -> Result<Config, String> {
    let mut config = empty(program);
    let mut pending = Pending::default();
    for option in given {
        about(option, read(&mut config, &mut pending, option))?;
    }
    config.machine = machine::machine(std::mem::take(&mut pending.machine))?;
    if let Some(option) = pending.memory_given {
        config.memory = about(option, machine::memory(&mut pending.memory))?;
    }
    config.smp = pending.smp.take().map(machine::smp).transpose()?;
    if config.domid.is_none() && config.machine != Machine::Probe {
        return Err("-xen-domid is missing: which domain is to be served?".to_owned());
    }
    for (index, (option, monitor)) in pending.monitors.iter().zip(&config.monitors).enumerate() {
        let earlier = config.monitors.get(..index).unwrap_or_default();
        about(option, chardevs::check_monitor(monitor, earlier, &config.chardevs))?;
    }
    let covered = blocks(&mut config, &pending)?;
    devices(&mut config, pending, &covered)?;
    Ok(config)
}

fn empty(program: &str) -> Config {
    Config {
        program: program.to_owned(),
        domid: None,
        name: String::new(),
        machine: Machine::Xenpv,
        memory: None,
        smp: None,
        chardevs: Vec::new(),
        monitors: Vec::new(),
        netdevs: Vec::new(),
        blocks: Vec::new(),
        rngs: Vec::new(),
        devices: Vec::new(),
        incoming: None,
        paused: false,
        no_shutdown: false,
        restrict: false,
        chroot: None,
        user: None,
        log_file: None,
        pid_file: None,
        acpi_only: false,
        warnings: Vec::new(),
    }
}

/// Reads one option.
fn read<'a>(config: &mut Config, pending: &mut Pending<'a>, given: &'a Given) -> Result<(), String> {
    let value = given.value.as_str();
    let switches = |implied| keyval::parse(value, Grammar::Switches, Some(implied));
    match given.option {
        Name::Help | Name::Version => {}
        Name::Machine => pending.machine.merge(machine::read(value)?),
        Name::Accel => machine::accelerator(value)?,
        Name::Memory => {
            pending.memory.merge(switches("size")?);
            pending.memory_given = Some(given);
        }
        Name::Smp => {
            pending.smp.get_or_insert_default().merge(keyval::parse(value, Grammar::Tree, Some("cpus"))?)
        }
        Name::Title => {
            let mut pairs = switches("guest")?;
            if let Some(name) = pairs.text("guest")? {
                config.name = name;
            }
            pairs.text("process")?;
            pairs.switch("debug-threads")?;
            pairs.finish()?;
        }
        Name::Chardev => {
            let mut chardev = chardevs::chardev(value)?;
            chardev.typed.clone_from(&given.typed);
            unique("chardev", &chardev.id, config.chardevs.iter().map(|other| other.id.as_str()))?;
            config.chardevs.push(chardev);
        }
        Name::Mon => {
            let (id, monitor) = chardevs::monitor(value)?;
            if let Some(id) = id {
                unique("mon", &id, pending.monitor_ids.iter().map(String::as_str))?;
                pending.monitor_ids.push(id);
            }
            config.monitors.push(monitor);
            pending.monitors.push(given);
        }
        Name::Qmp | Name::QmpPretty => {
            let pretty = given.option == Name::QmpPretty;
            let (mut chardev, monitor) = chardevs::qmp(value, config.monitors.len(), pretty)?;
            chardev.typed.clone_from(&given.typed);
            unique("chardev", &chardev.id, config.chardevs.iter().map(|other| other.id.as_str()))?;
            config.chardevs.push(chardev);
            config.monitors.push(monitor);
            pending.monitors.push(given);
        }
        Name::Monitor => nothing(value, "the human monitor is not served, use -qmp")?,
        Name::Display if value.split(',').next() == Some("none") => {}
        Name::Display => return Err(format!("Parameter 'type' does not accept value '{value}'")),
        Name::Vnc | Name::Vga if value == "none" => {}
        Name::Vnc | Name::Vga => {
            return Err("there is no display here, only 'none' is accepted".to_owned());
        }
        Name::Netdev => {
            let mut netdev = netdevs::netdev(value)?;
            netdev.typed.clone_from(&given.typed);
            unique("netdev", &netdev.id, config.netdevs.iter().map(|other| other.id.as_str()))?;
            config.netdevs.push(netdev);
        }
        Name::Net if value == "none" => {}
        Name::Net => {
            return Err("only 'none' is supported, use -netdev and -device virtio-net-pci".to_owned());
        }
        Name::Drive => read_drive(config, pending, given)?,
        Name::Blockdev => {
            let node = blockdevs::blockdev(value)?;
            let names = node.names();
            for (index, name) in names.iter().enumerate() {
                let earlier = pending.nodes.iter().any(|(_, other)| other.names().contains(name));
                if earlier || names.iter().take(index).any(|other| other == name) {
                    return Err(format!("Duplicate nodes with node-name='{name}'"));
                }
            }
            pending.nodes.push((given, node));
        }
        Name::Object => {
            let mut rng = objects::object(value)?;
            rng.typed.clone_from(&given.typed);
            unique("object", &rng.id, config.rngs.iter().map(|other| other.id.as_str()))?;
            config.rngs.push(rng);
        }
        Name::Device => {
            let request = drivers::request(value)?;
            if !request.id.is_empty() {
                let ids = pending.requests.iter().map(|(_, other)| other.id.as_str());
                unique("device", &request.id, ids)?;
            }
            pending.requests.push((given, request));
        }
        Name::Global => pending.globals.push(Global::read(value)?),
        Name::Domid => config.domid = Some(domid(value)?),
        Name::DomidRestrict => config.restrict = true,
        Name::Paused => config.paused = true,
        Name::NoShutdown => config.no_shutdown = true,
        Name::Action => {
            let mut pairs = keyval::parse(value, Grammar::Switches, None)?;
            if let Some(pause) = pairs.choice("shutdown", &[("pause", true), ("poweroff", false)])? {
                config.no_shutdown = pause;
            }
            for other in ["reboot", "panic", "watchdog"] {
                pairs.text(other)?;
            }
            pairs.finish()?;
        }
        Name::Incoming => config.incoming = Some(incoming(value)?),
        Name::RunWith => {
            let mut pairs = keyval::parse(value, Grammar::Switches, None)?;
            if let Some(dir) = pairs.text("chroot")? {
                config.chroot = Some(directory(&dir)?);
            }
            if let Some(name) = pairs.text("user")? {
                config.user = Some(user(&name)?);
            }
            pairs.switch("async-teardown")?;
            pairs.finish()?;
        }
        Name::Chroot => config.chroot = Some(directory(value)?),
        Name::Runas => config.user = Some(user(value)?),
        Name::LogFile => config.log_file = Some(directory(value)?),
        Name::PidFile => config.pid_file = Some(directory(value)?),
        Name::AcpiOnly => config.acpi_only = true,
    }
    Ok(())
}

fn read_drive<'a>(config: &mut Config, pending: &mut Pending<'a>, given: &'a Given) -> Result<(), String> {
    let mut drive = drives::drive(&given.value, pending.unnamed_drives)?;
    drive.node.typed.clone_from(&given.typed);
    pending.unnamed_drives = pending.unnamed_drives.saturating_add(1);
    let name = &drive.node.name;
    unique("drive", name, config.blocks.iter().map(|other| other.name.as_str()))?;
    if drive.with_device {
        let request = drivers::request(&format!("virtio-blk-pci,drive={}", name.replace(',', ",,")))?;
        pending.requests.push((given, request));
    }
    config.blocks.push(drive.node);
    Ok(())
}

/// Adds block nodes to the drives. Gives the names of those that lie under others, each with the
/// name of the one above.
fn blocks(config: &mut Config, pending: &Pending<'_>) -> Result<Vec<(String, String)>, String> {
    let nodes: Vec<&Node> = pending.nodes.iter().map(|(_, node)| node).collect();
    let mut covered = Vec::new();
    for (given, node) in &pending.nodes {
        let mut block = about(given, blockdevs::resolve(&nodes, node))?;
        block.typed.clone_from(&given.typed);
        if config.blocks.iter().any(|other| other.name == block.name) {
            return about(given, Err(format!("node-name={} is conflicting with a device id", block.name)));
        }
        for name in node.names() {
            match blockdevs::user_of(&nodes, name) {
                Some(user) => covered.push((name.to_owned(), user.to_owned())),
                None => config.blocks.push(block.clone()),
            }
        }
    }
    Ok(covered)
}

fn devices(
    config: &mut Config,
    mut pending: Pending<'_>,
    covered: &[(String, String)],
) -> Result<(), String> {
    let no_bus = match &config.machine {
        Machine::Probe => true,
        Machine::Xenpv => false,
        Machine::Xenpvh(layout) => layout.ecam_size == 0,
    };
    // A drive's own device comes after those that were asked for by name.
    pending.requests.sort_by_key(|(given, _)| given.option == Name::Drive);
    let mut builder = Builder {
        references: References {
            netdevs: &config.netdevs,
            blocks: &config.blocks,
            covered,
            rngs: &config.rngs,
            chardevs: &config.chardevs,
            monitors: &config.monitors,
        },
        globals: &mut pending.globals,
        slots: Slots::new(),
        devices: Vec::new(),
    };
    for (given, request) in pending.requests {
        if no_bus && !request.driver.is_port() {
            return about(given, Err(format!("No 'PCI' bus found for device '{}'", request.driver.name)));
        }
        about(given, builder.add(request, &given.typed))?;
    }
    config.devices = builder.devices;
    devices::number_nics(&mut config.devices);
    config.warnings.extend(pending.globals.iter().filter_map(Global::warning));
    Ok(())
}

fn unique<'a>(what: &str, id: &str, mut others: impl Iterator<Item = &'a str>) -> Result<(), String> {
    if others.any(|other| other == id) { Err(format!("Duplicate ID '{id}' for {what}")) } else { Ok(()) }
}

fn nothing(value: &str, otherwise: &str) -> Result<(), String> {
    if matches!(value, "none" | "null" | "/dev/null") { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn domid(text: &str) -> Result<u16, String> {
    match number::unsigned(text) {
        None => Err("not a domain id, which is a number ('xl list' shows them)".to_owned()),
        Some(0) => Err("domain 0 is the host, not a guest".to_owned()),
        Some(number) if number < FIRST_RESERVED => Ok(u16::try_from(number).unwrap_or(0)),
        Some(_) => Err(format!("out of range, a guest's domain id is 1 to {}", FIRST_RESERVED - 1)),
    }
}

fn incoming(text: &str) -> Result<Incoming, String> {
    if text == "defer" {
        return Ok(Incoming::Defer);
    }
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest.parse()) {
        ("fd", Ok(fd)) if fd >= 0 => Ok(Incoming::Fd(fd)),
        ("fd", _) => Err(format!("Invalid file descriptor number '{rest}'")),
        ("tcp" | "unix" | "exec" | "file" | "rdma" | "vsock", _) => {
            Err(format!("incoming '{kind}' is not supported, only defer and fd:N"))
        }
        _ => Err(format!("Parameter 'channel-type' does not accept value '{kind}'")),
    }
}

fn user(text: &str) -> Result<User, String> {
    if let Some((uid, gid)) = text.split_once(':') {
        return match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) => Ok(User::Ids(uid, gid)),
            _ => Err(format!("User \"{text}\" doesn't exist (and is not <uid>:<gid>)")),
        };
    }
    if text.is_empty() {
        return Err("User \"\" doesn't exist (and is not <uid>:<gid>)".to_owned());
    }
    Ok(User::Name(text.to_owned()))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("an empty path names nothing".to_owned()) } else { Ok(PathBuf::from(text)) }
}
