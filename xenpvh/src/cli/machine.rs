//! `-machine`, `-accel`, `-m` and `-smp`.

use super::config::{Machine, Smp, XenpvhLayout};
use super::keyval::{self, Grammar, Pairs};
use super::number::{self, NotASize};

/// Most vCPUs that an ioreq page has room for.
const MAX_CPUS: u32 = 128;

/// What QEMU calls a number of bytes among a machine's properties.
const SIZE: &str = "size";

/// One kind of machine.
pub(super) struct Type {
    /// As given to `-machine`.
    pub name: &'static str,
    /// One line about it.
    pub help: &'static str,
}

/// The machines there are.
pub(super) const TYPES: &[Type] = &[
    Type { name: "none", help: "empty machine, answers QMP only" },
    Type { name: "xenpv", help: "Xen PVH x86 machine, addresses chosen to suit the domain (default)" },
    Type { name: "xenpvh", help: "Xen PVH x86 machine, addresses as given" },
];

/// A property of `xenpvh`.
pub(super) struct Property {
    pub name: &'static str,
    pub help: &'static str,
    field: fn(&mut XenpvhLayout) -> &mut u64,
}

/// The sizes and addresses that `-machine xenpvh` takes.
pub(super) const PROPERTIES: &[Property] = &[
    Property { name: "pci-ecam-base", help: "Set base address for pci-ecam", field: |l| &mut l.ecam_base },
    Property {
        name: "pci-ecam-size",
        help: "Set memory range size for pci-ecam",
        field: |l| &mut l.ecam_size,
    },
    Property { name: "pci-mmio-base", help: "Set base address for pci-mmio", field: |l| &mut l.mmio_base },
    Property {
        name: "pci-mmio-high-base",
        help: "Set base address for pci-mmio-high",
        field: |l| &mut l.mmio_high_base,
    },
    Property {
        name: "pci-mmio-high-size",
        help: "Set memory range size for pci-mmio-high",
        field: |l| &mut l.mmio_high_size,
    },
    Property {
        name: "pci-mmio-size",
        help: "Set memory range size for pci-mmio",
        field: |l| &mut l.mmio_size,
    },
    Property {
        name: "ram-high-base",
        help: "Set base address for ram-high",
        field: |l| &mut l.ram_high_base,
    },
    Property {
        name: "ram-high-size",
        help: "Set memory range size for ram-high",
        field: |l| &mut l.ram_high_size,
    },
    Property { name: "ram-low-base", help: "Set base address for ram-low", field: |l| &mut l.ram_low_base },
    Property {
        name: "ram-low-size",
        help: "Set memory range size for ram-low",
        field: |l| &mut l.ram_low_size,
    },
];

/// Reads one `-machine` argument; several are merged.
pub(super) fn read(argument: &str) -> Result<Pairs, String> {
    keyval::parse(argument, Grammar::Tree, Some("type"))
}

/// Makes a machine of all that `-machine` said.
pub(super) fn machine(mut pairs: Pairs) -> Result<Machine, String> {
    let name = pairs.text("type")?.unwrap_or_else(|| "xenpv".to_owned());
    if !TYPES.iter().any(|kind| kind.name == name) {
        return Err(format!(
            "unsupported machine type: \"{name}\"\nUse -machine help to list supported machines"
        ));
    }
    if let Some(accelerators) = pairs.text("accel")? {
        accelerator(&accelerators)?;
    }
    // Settings of QEMU's own process and of devices that no PVH guest has.
    for key in ["dump-guest-core", "graphics", "igd-passthru", "mem-merge", "suppress-vmdesc", "usb"] {
        pairs.switch(key)?;
    }
    let mut layout = XenpvhLayout::default();
    if name == "xenpvh" {
        for property in PROPERTIES {
            if let Some(value) = pairs.size(property.name, SIZE)? {
                *(property.field)(&mut layout) = value;
            }
        }
        // No interrupt lines here, but a wrong number is still a wrong number.
        let irq_base = pairs.unsigned("pci-intx-irq-base", "integer")?.unwrap_or(16);
        if u32::try_from(irq_base).is_err() {
            return Err("Parameter 'pci-intx-irq-base' expects uint32_t".to_owned());
        }
        if layout.ecam_size != 0 && irq_base == 0 {
            return Err("PCI enabled but pci-intx-irq-base not set".to_owned());
        }
    }
    if let Some(key) = pairs.leftover() {
        return Err(format!("Property '{name}-machine.{key}' not found"));
    }
    Ok(match name.as_str() {
        "none" => Machine::Probe,
        "xenpvh" => Machine::Xenpvh(layout),
        _ => Machine::Xenpv,
    })
}

/// Checks `accel=`, a list with colons of what to try.
pub(super) fn accelerator(list: &str) -> Result<(), String> {
    let name = list.split(',').next().unwrap_or("");
    match name.split(':').find(|name| *name != "xen") {
        Some(other) if !name.split(':').any(|name| name == "xen") => {
            Err(format!("invalid accelerator {other}"))
        }
        _ => Ok(()),
    }
}

/// Makes bytes of all that `-m` said.
pub(super) fn memory(pairs: &mut Pairs) -> Result<Option<u64>, String> {
    let Some(text) = pairs.text("size")? else { return Ok(None) };
    let bytes = size_in(&text, "size", 'M')?;
    pairs.unsigned("slots", "a number")?;
    if let Some(most) = pairs.text("maxmem")? {
        let most = size_in(&most, "maxmem", 'B')?;
        if most < bytes {
            return Err(format!(
                "invalid value of maxmem: maximum memory size (0x{most:x}) \
                 must be at least the initial memory size (0x{bytes:x})"
            ));
        }
    }
    pairs.finish()?;
    // QEMU rounds up to 8 KiB, and takes 0 for nothing said.
    let bytes = bytes.checked_next_multiple_of(8192).ok_or("ram size too large")?;
    Ok((bytes != 0).then_some(bytes))
}

fn size_in(text: &str, key: &str, default_suffix: char) -> Result<u64, String> {
    number::size(text, default_suffix).map_err(|why| match why {
        NotASize::Malformed => format!(
            "Parameter '{key}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
        NotASize::OutOfRange => format!("Value '{text}' is out of range for parameter '{key}'"),
    })
}

/// Makes numbers of vCPUs of all that `-smp` said.
pub(super) fn smp(pairs: Pairs) -> Result<Smp, String> {
    let (mut cpus, mut maxcpus) = (None, None);
    // How the vCPUs are said to be arranged: only the product of these matters here.
    let mut levels: Vec<(&str, Option<u64>)> =
        ["cores", "sockets", "threads", "dies", "modules", "clusters", "books", "drawers"]
            .map(|name| (name, None))
            .into();
    for (key, value) in pairs.into_rest() {
        let number = value.unsigned(&format!("smp.{key}"), "integer")?;
        if number == 0 {
            return Err("Invalid CPU topology: CPU topology parameters must be greater than zero".to_owned());
        }
        match key.as_str() {
            "cpus" => cpus = Some(number),
            "maxcpus" => maxcpus = Some(number),
            _ => match levels.iter_mut().find(|(name, _)| *name == key) {
                Some((_, level)) => *level = Some(number),
                None => return Err(format!("Parameter 'smp.{key}' is unexpected")),
            },
        }
    }
    let product = |levels: &[(&str, Option<u64>)]| {
        levels.iter().fold(1u64, |product, (_, level)| product.saturating_mul(level.unwrap_or(1)))
    };
    // Of cores, sockets and threads, the first that was not given makes up the number.
    let known = product(&levels);
    let wanted = maxcpus.or(cpus);
    if let (Some(wanted), Some((_, missing))) =
        (wanted, levels.iter_mut().take(3).find(|(_, level)| level.is_none()))
    {
        *missing = wanted.checked_div(known);
    }
    let total = product(&levels);
    let maxcpus = wanted.unwrap_or(total);
    let cpus = cpus.unwrap_or(maxcpus);
    if total != maxcpus {
        return Err(format!(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: \
             {total} != maxcpus ({maxcpus})"
        ));
    }
    if maxcpus < cpus {
        return Err(format!(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: \
             maxcpus ({maxcpus}) < smp_cpus ({cpus})"
        ));
    }
    match (u32::try_from(cpus), u32::try_from(maxcpus)) {
        (Ok(cpus), Ok(maxcpus)) if maxcpus <= MAX_CPUS => Ok(Smp { cpus, maxcpus }),
        _ => Err(format!(
            "Invalid SMP CPUs {maxcpus}. The max CPUs supported by machine 'xenpvh' is {MAX_CPUS}"
        )),
    }
}
