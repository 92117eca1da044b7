//! The human monitor's commands that people and scripts use, over `human-monitor-command`.

use std::fmt::Write as _;

use super::commands::{self, Context};
use super::query;
use super::types::{BlockInfo, RunState};

type Run = fn(&mut Context<'_>, &[&str]) -> String;

/// A command: its words, whether more words may follow, and what it does.
const COMMANDS: &[(&str, bool, &str, Run)] = &[
    ("cont", false, "resume emulation", |context, _| done(commands::cont(context))),
    ("info block", false, "show info of all block devices", |context, _| blocks(context)),
    ("info chardev", false, "show the character devices", |context, _| chardevs(context)),
    ("info name", false, "show the current VM name", |context, _| format!("{}\n", context.backend.name())),
    ("info network", false, "show the network state", |context, _| network(context)),
    ("info pci", false, "show PCI info", |context, _| pci(context)),
    ("info status", false, "show the current VM status", |context, _| status(context)),
    ("info version", false, "show the version", |_, _| format!("{}\n", query::version_text())),
    ("quit", false, "quit the emulator", |context, _| done(commands::quit(context))),
    ("set_link", true, "change the link status of a network adapter", set_link),
    ("stop", false, "stop emulation", |context, _| done(commands::stop(context))),
    ("system_powerdown", false, "send system power down event", |context, _| {
        done(commands::system_powerdown(context))
    }),
    ("system_reset", false, "reset the system", |context, _| done(commands::system_reset(context))),
];

/// Carries out one line; gives what a person would see, with lines that end as on a terminal.
pub(super) fn run(context: &mut Context<'_>, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let text = match words.as_slice() {
        [] => String::new(),
        ["help" | "?"] => list(""),
        ["info"] => list("info "),
        words => {
            // A command has one word, or two of which the first is info.
            let length = if words.first() == Some(&"info") { 2 } else { 1 };
            let (name, rest) = words.split_at(length.min(words.len()));
            let name = name.join(" ");
            match COMMANDS.iter().find(|(command, ..)| *command == name) {
                None => format!("unknown command: '{name}'\n"),
                Some((command, false, ..)) if !rest.is_empty() => {
                    let last = command.rsplit(' ').next().unwrap_or(command);
                    format!(
                        "{last}: extraneous characters at the end of line\n\
                         Try \"help {command}\" for more information\n"
                    )
                }
                Some((.., run)) => run(context, rest),
            }
        }
    };
    text.replace('\n', "\r\n")
}

fn list(prefix: &str) -> String {
    COMMANDS
        .iter()
        .filter(|(name, ..)| name.starts_with(prefix))
        .map(|(name, _, help, _)| format!("{name}  -- {help}\n"))
        .collect()
}

fn done(result: Result<serde_json::Value, super::Error>) -> String {
    match result {
        Ok(_) => String::new(),
        Err(error) => format!("Error: {error}\n"),
    }
}

fn status(context: &Context<'_>) -> String {
    match context.backend.status() {
        RunState::Running => "VM status: running\n".to_owned(),
        RunState::Paused => "VM status: paused\n".to_owned(),
        other => format!("VM status: paused ({})\n", other.name()),
    }
}

fn blocks(context: &Context<'_>) -> String {
    let blocks = context.backend.blocks();
    let texts: Vec<String> = blocks.iter().map(block).collect();
    texts.join("\n")
}

fn block(block: &BlockInfo) -> String {
    let node = query::node_name(block);
    let name = if block.device.is_empty() { node } else { format!("{} ({node})", block.device) };
    let mut text =
        format!("{name}: {} (raw{})\n", block.filename, if block.read_only { ", read-only" } else { "" });
    if !block.qdev.is_empty() {
        let _ = writeln!(text, "    Attached to:      {}", query::qdev(block));
    }
    let mode = if block.cache.writeback { "writeback" } else { "writethrough" };
    let direct = if block.cache.direct { ", direct" } else { "" };
    let flush = if block.cache.no_flush { ", ignore flushes" } else { "" };
    let _ = writeln!(text, "    Cache mode:       {mode}{direct}{flush}");
    text
}

fn chardevs(context: &Context<'_>) -> String {
    context
        .chardevs
        .iter()
        .map(|chardev| format!("{}: filename={}\n", chardev.label, chardev.filename))
        .collect()
}

fn network(context: &Context<'_>) -> String {
    let mut text = String::new();
    for nic in context.backend.nics() {
        let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ =
            writeln!(text, "{}: index=0,type=nic,model={},macaddr={}", nic.name, nic.model, mac.join(":"));
        if !nic.netdev.is_empty() {
            let down = if nic.link_up { "" } else { ",link=down" };
            let _ = writeln!(text, " \\ {}: index=0,{}{down}", nic.netdev, nic.netdev_about);
        }
    }
    text
}

fn pci(context: &Context<'_>) -> String {
    let mut text = String::new();
    for function in context.backend.functions() {
        let class = match query::class_name(function.class) {
            Some(name) => name.to_owned(),
            None => format!("Class {:04x}", function.class),
        };
        let _ = writeln!(
            text,
            "  Bus {:2}, device {:3}, function {}:\n    {class}: PCI device {:04x}:{:04x}\n      \
             PCI subsystem {:04x}:{:04x}",
            function.bus,
            function.slot,
            function.function,
            function.vendor,
            function.device,
            function.subsystem_vendor,
            function.subsystem
        );
        for region in &function.regions {
            let bits = if region.wide { 64 } else { 32 };
            let prefetch = if region.prefetch { " prefetchable" } else { "" };
            let place = match region.address {
                Some(at) => {
                    format!("at 0x{at:08x} [0x{:08x}]", at.saturating_add(region.size.saturating_sub(1)))
                }
                None => "(not mapped)".to_owned(),
            };
            let _ = writeln!(text, "      BAR{}: {bits} bit{prefetch} memory {place}.", region.bar);
        }
        let _ = writeln!(text, "      id \"{}\"", function.id);
    }
    text
}

fn set_link(context: &mut Context<'_>, words: &[&str]) -> String {
    let (name, up) = match words {
        [name, "on"] => (name, true),
        [name, "off"] => (name, false),
        _ => return "set_link: expected a name and 'on' or 'off'\n".to_owned(),
    };
    done(context.backend.set_link(name, up).map(|()| serde_json::Value::Null))
}
