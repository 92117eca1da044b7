//! What `help` prints, from the same tables that parse.

use std::fmt::Write as _;

use super::chardevs;
use super::drivers::{self, DRIVERS};
use super::machine::{PROPERTIES, TYPES};
use super::objects;
use super::options::{Kind, OPTIONS};
use super::properties::Type;

/// Width of the left column.
const COLUMN: usize = 24;

/// `-version`.
pub(super) fn version() -> String {
    format!("xenpvh version {}\n", env!("CARGO_PKG_VERSION"))
}

/// `-help`.
pub(super) fn usage(program: &str) -> String {
    let mut text = format!(
        "usage: {program} -xen-domid id [options]\n\n\
         {}A device model for one Xen PVH guest, with QEMU's command line.\n\n",
        version()
    );
    for spec in OPTIONS.iter().filter(|spec| !spec.help.is_empty()) {
        let head = format!("-{} {}", spec.name, spec.argument);
        row(&mut text, head.trim_end(), spec.help);
    }
    text.push_str("\nTaken and ignored, for they mean nothing here:\n");
    let habits = OPTIONS.iter().filter(|spec| spec.kind == Kind::Habit);
    let mut line = String::new();
    for spec in habits {
        if line.len().saturating_add(spec.name.len()) > 90 {
            let _ = writeln!(text, "{}", line.trim_end());
            line.clear();
        }
        let _ = write!(line, "-{} ", spec.name);
    }
    let _ = writeln!(text, "{}", line.trim_end());
    text
}

fn row(text: &mut String, head: &str, help: &str) {
    // What would touch the right column gets a line to itself.
    if head.len() >= COLUMN {
        let _ = writeln!(text, "{head}\n{:COLUMN$}{help}", "");
    } else {
        let _ = writeln!(text, "{head:COLUMN$}{help}");
    }
}

/// The answer to `argument` of the option `name` if it asks for help.
pub(super) fn asked(name: &str, argument: &str) -> Result<Option<String>, String> {
    let words: Vec<&str> = argument.split(',').collect();
    let is_help = |word: &&str| matches!(*word, "help" | "?");
    let first = words.first().is_some_and(is_help);
    if !words.iter().any(is_help) || argument.starts_with('{') {
        return Ok(None);
    }
    let subject = words.first().map_or("", |word| word.split_once('=').map_or(*word, |(_, value)| value));
    Ok(Some(match name {
        "machine" if first => machines(),
        "machine" => machine_properties(subject),
        "accel" => list("Accelerators supported:", ["xen"]),
        "device" if first => devices(),
        "device" => device(subject)?,
        "netdev" | "net" => list("Available netdev backend types:", ["tap"]),
        "chardev" => list("Available chardev backend types:", chardevs::kinds()),
        "object" => list("List of user creatable objects:", objects::KINDS.iter().copied()),
        "drive" => list("Supported formats:", ["raw"]),
        "blockdev" => list("Supported drivers:", ["file", "host_device", "raw"]),
        _ => return Ok(None),
    }))
}

fn list<'a>(heading: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = format!("{heading}\n");
    for name in names {
        let _ = writeln!(text, "  {name}");
    }
    text
}

fn machines() -> String {
    let mut text = "Supported machines are:\n".to_owned();
    for kind in TYPES {
        let _ = writeln!(text, "{:20} {}", kind.name, kind.help);
    }
    text
}

fn machine_properties(name: &str) -> String {
    let mut text = format!("{name}-machine options:\n");
    if name == "xenpvh" {
        for property in PROPERTIES {
            let _ = writeln!(text, "  {:22} - {}", format!("{}=<size>", property.name), property.help);
        }
        let _ = writeln!(text, "  {:22} - ignored, there are no interrupt lines", "pci-intx-irq-base=<n>");
    }
    text
}

fn devices() -> String {
    let mut text = String::new();
    let mut category = "";
    for driver in DRIVERS {
        if driver.category != category {
            category = driver.category;
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{category}:");
        }
        let alias =
            if driver.alias.is_empty() { String::new() } else { format!(", alias \"{}\"", driver.alias) };
        let _ = writeln!(text, "name \"{}\", bus {}{alias}", driver.name, driver.bus);
    }
    text
}

fn device(name: &str) -> Result<String, String> {
    let driver = drivers::driver(name).map_err(|_| format!("Device '{name}' not found"))?;
    let mut text = format!("{} options:\n", driver.name);
    for property in driver.all_properties() {
        let head = format!("{}=<{}>", property.name, property.kind.name());
        let default = match (property.default, property.kind) {
            ("", _) => String::new(),
            (default, Type::Bool) => format!(" (default: {default})"),
            // The largest number of its kind stands for nothing said.
            ("4294967295" | "65535" | "9223372036854775807", _) => String::new(),
            (default, _) => format!(" (default: {default})"),
        };
        let only = match property.only {
            Some((only, why)) => format!("; can only be {only}: {why}"),
            None => String::new(),
        };
        let _ = writeln!(text, "  {head:22} - {}{default}{only}", property.help);
    }
    Ok(text)
}
