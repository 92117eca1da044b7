//! The options there are, as a table, and the split of argv into them.

/// Options that do something, or that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Accel,
    AcpiOnly,
    Action,
    Blockdev,
    Chardev,
    Chroot,
    Device,
    Display,
    Domid,
    DomidRestrict,
    Drive,
    Global,
    Help,
    Incoming,
    LogFile,
    Machine,
    Memory,
    Mon,
    Monitor,
    Title,
    Net,
    Netdev,
    NoShutdown,
    Object,
    Paused,
    PidFile,
    Qmp,
    QmpPretty,
    Runas,
    RunWith,
    Smp,
    Version,
    Vga,
    Vnc,
}

/// What becomes of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is used.
    Used(Name),
    /// People and tools pass it to QEMU by habit. It means nothing here and is taken in silence.
    Habit,
    /// QEMU has it and we can not do what it asks for; the text says why or what to do instead.
    Refused(&'static str),
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Its name, without dashes.
    pub name: &'static str,
    /// How its argument is shown; empty when it takes none.
    pub argument: &'static str,
    /// What becomes of it.
    pub kind: Kind,
    /// One line about it; empty for those that `-help` does not show.
    pub help: &'static str,
}

const fn used(name: &'static str, argument: &'static str, option: Name, help: &'static str) -> Spec {
    Spec { name, argument, kind: Kind::Used(option), help }
}

const fn habit(name: &'static str, argument: &'static str) -> Spec {
    Spec { name, argument, kind: Kind::Habit, help: "" }
}

const fn refused(name: &'static str, argument: &'static str, why: &'static str) -> Spec {
    Spec { name, argument, kind: Kind::Refused(why), help: "" }
}

const NO_SCREEN: &str = "there is no display, keyboard or sound here";
const USE_DRIVE: &str =
    "not supported, use -drive file=PATH,format=raw,if=none,id=ID and -device virtio-blk-pci,drive=ID";
const NO_CONFIG: &str = "not supported, give options on the command line";

/// Every option, in the order in which `-help` shows them.
pub(super) const OPTIONS: &[Spec] = &[
    used("help", "", Name::Help, "show this and exit"),
    used("h", "", Name::Help, ""),
    used("version", "", Name::Version, "show the version and exit"),
    used(
        "machine",
        "[type=]name[,prop=value,...]",
        Name::Machine,
        "what to build ('-machine help' lists them)",
    ),
    used("M", "[type=]name[,prop=value,...]", Name::Machine, "short for -machine"),
    used("accel", "xen", Name::Accel, "who runs the guest: xen, and nothing else"),
    used("m", "[size=]megs", Name::Memory, "guest memory, in MiB unless it has a suffix"),
    used("smp", "[cpus=]n[,maxcpus=n]", Name::Smp, "number of vCPUs"),
    used("name", "string", Name::Title, "name of the guest"),
    used(
        "device",
        "driver[,prop=value,...]",
        Name::Device,
        "add a device ('-device help', '-device driver,help')",
    ),
    used("global", "driver.prop=value", Name::Global, "set a default for a property of a device"),
    used("drive", "file=path,format=raw,if=none,id=name[,...]", Name::Drive, "a disk image"),
    used("blockdev", "[driver=]driver,node-name=name[,...]", Name::Blockdev, "a disk image"),
    used("netdev", "tap,id=name[,ifname=name][,...]", Name::Netdev, "the host end of a NIC"),
    used("net", "none", Name::Net, "no network"),
    used("nic", "none", Name::Net, ""),
    used("object", "rng-random|rng-builtin,id=name[,...]", Name::Object, "a source of randomness"),
    used(
        "chardev",
        "socket,id=name,path=path,server=on,wait=off",
        Name::Chardev,
        "a socket for -mon or a port",
    ),
    used("mon", "[chardev=]name,mode=control", Name::Mon, "QMP over a chardev"),
    used("qmp", "unix:path,server=on,wait=off", Name::Qmp, "QMP over a socket"),
    used("qmp-pretty", "unix:path,server=on,wait=off", Name::QmpPretty, "the same, with answers indented"),
    used("monitor", "none", Name::Monitor, "no human monitor (QMP has human-monitor-command)"),
    used("S", "", Name::Paused, "do not run until told to by QMP"),
    used("incoming", "defer|fd:n", Name::Incoming, "wait for QMP, or for what was saved"),
    used("no-shutdown", "", Name::NoShutdown, "stop when the guest shuts down, instead of exiting"),
    used("action", "shutdown=pause|poweroff", Name::Action, "what to do when the guest shuts down"),
    used("run-with", "[chroot=dir][,user=name|uid:gid]", Name::RunWith, "give up privileges once started"),
    used("chroot", "dir", Name::Chroot, "the same as -run-with chroot=dir"),
    used("runas", "user", Name::Runas, "the same as -run-with user=user"),
    used("D", "path", Name::LogFile, "log to a file instead of standard error"),
    used("pidfile", "path", Name::PidFile, "write the process id to a file"),
    used("display", "none", Name::Display, "no display"),
    used("vnc", "none", Name::Vnc, "no display"),
    used("vga", "none", Name::Vga, "no display"),
    used("xen-domid", "id", Name::Domid, "the domain to serve"),
    used("xen-domid-restrict", "", Name::DomidRestrict, "give up all power over other domains"),
    used("x-acpi-only", "", Name::AcpiOnly, ""),
    habit("L", "path"),
    habit("append", "string"),
    habit("boot", "options"),
    habit("cpu", "model"),
    habit("d", "items"),
    habit("initrd", "file"),
    habit("k", "language"),
    habit("kernel", "file"),
    habit("msg", "options"),
    habit("no-reboot", ""),
    habit("no-user-config", ""),
    habit("nodefaults", ""),
    habit("nographic", ""),
    habit("overcommit", "options"),
    habit("parallel", "device"),
    habit("rtc", "options"),
    habit("sandbox", "options"),
    habit("serial", "device"),
    habit("trace", "options"),
    habit("uuid", "uuid"),
    habit("xen-attach", ""),
    refused("audio", "options", NO_SCREEN),
    refused("audiodev", "options", NO_SCREEN),
    refused("cdrom", "file", USE_DRIVE),
    refused("daemonize", "", "not supported, let the shell or the service manager put it in the background"),
    refused("enable-kvm", "", "invalid accelerator kvm"),
    refused("fsdev", "options", "not supported"),
    refused("gdb", "device", "not supported, the guest's vCPUs belong to Xen"),
    refused("hda", "file", USE_DRIVE),
    refused("hdb", "file", USE_DRIVE),
    refused("hdc", "file", USE_DRIVE),
    refused("hdd", "file", USE_DRIVE),
    refused("mem-path", "path", "-mem-path not supported with Xen"),
    refused("readconfig", "file", NO_CONFIG),
    refused("sdl", "", NO_SCREEN),
    refused("set", "group.id.arg=value", NO_CONFIG),
    refused("spice", "options", NO_SCREEN),
    refused("tpmdev", "options", "not supported"),
    refused("usb", "", "there is no USB here"),
    refused("usbdevice", "name", "there is no USB here"),
    refused("virtfs", "options", "not supported"),
];

/// A group of options that QMP's `query-command-line-options` tells about: its name, and the name and
/// type of each key.
pub type OptionGroup = (&'static str, &'static [(&'static str, &'static str)]);

/// What toolstacks look at to find out what they can pass.
pub const OPTION_GROUPS: &[OptionGroup] = &[
    ("action", &[("shutdown", "string"), ("reboot", "string"), ("panic", "string"), ("watchdog", "string")]),
    (
        "chardev",
        &[
            ("backend", "string"),
            ("path", "string"),
            ("host", "string"),
            ("port", "string"),
            ("fd", "string"),
            ("server", "boolean"),
            ("wait", "boolean"),
            ("signal", "boolean"),
            ("append", "boolean"),
        ],
    ),
    ("device", &[]),
    ("global", &[("driver", "string"), ("property", "string"), ("value", "string")]),
    ("memory", &[("size", "size"), ("slots", "number"), ("maxmem", "size")]),
    ("mon", &[("mode", "string"), ("chardev", "string"), ("pretty", "boolean")]),
    ("name", &[("guest", "string"), ("process", "string"), ("debug-threads", "boolean")]),
    ("netdev", &[]),
    ("object", &[]),
    ("run-with", &[("async-teardown", "boolean"), ("chroot", "string"), ("user", "string")]),
];

/// An option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// Which one.
    pub option: Name,
    /// Its argument; empty when it takes none.
    pub value: String,
    /// How it was typed, argument and all: what messages about it start with.
    pub typed: String,
}

/// Splits the arguments after `argv[0]`. The error is a whole message.
pub(super) fn split(args: &[String]) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    let mut args = args.iter();
    while let Some(typed) = args.next() {
        let Some(name) = typed.strip_prefix('-') else {
            return Err(format!("{typed}: unexpected argument, disks are given with -drive or -blockdev"));
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let Some(spec) = OPTIONS.iter().find(|spec| spec.name == name) else {
            return Err(format!("{typed}: invalid option"));
        };
        let mut typed = typed.clone();
        let mut value = String::new();
        if !spec.argument.is_empty() {
            let Some(argument) = args.next() else {
                return Err(format!("{typed}: requires an argument"));
            };
            value.clone_from(argument);
            typed = format!("{typed} {argument}");
        }
        match spec.kind {
            // Nothing after these two is looked at, so that they work on any command line.
            Kind::Used(option @ (Name::Help | Name::Version)) => {
                return Ok(vec![Given { option, value, typed }]);
            }
            Kind::Used(option) => given.push(Given { option, value, typed }),
            Kind::Habit => {}
            Kind::Refused(why) => return Err(format!("{typed}: {why}")),
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, spec) in OPTIONS.iter().enumerate() {
            assert!(!OPTIONS[..index].iter().any(|other| other.name == spec.name), "{}", spec.name);
        }
    }
}
