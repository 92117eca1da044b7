//! `-chardev`, `-mon` and `-qmp`.

use std::path::PathBuf;

use super::config::{CharBackend, Chardev, Monitor, SocketAddress, SocketChardev};
use super::keyval::{self, Grammar, Pairs};

/// Longest path of a Unix socket, and one byte for its end (`struct sockaddr_un`).
const MAX_PATH: usize = 108;

/// Kinds of chardev that are taken and never opened, each with the keys it knows.
const UNUSED: &[(&str, &[&str])] = &[
    ("file", &["path", "append", "input-path"]),
    ("memory", &["size"]),
    ("pty", &["path"]),
    ("ringbuf", &["size"]),
    ("stdio", &["signal"]),
];

/// Keys that any chardev has: what they set up is not there.
const COMMON: &[&str] = &["logfile", "logappend", "mux"];

/// The names of the kinds of chardev there are.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    ["socket", "null"].into_iter().chain(UNUSED.iter().map(|(name, _)| *name))
}

/// Reads one `-chardev` argument.
pub(super) fn chardev(argument: &str) -> Result<Chardev, String> {
    let mut pairs = keyval::parse(argument, Grammar::Switches, Some("backend"))?;
    let id = pairs.optional_id()?.ok_or("chardev: no id specified")?;
    let Some(kind) = pairs.text("backend")? else {
        return Err(format!("chardev: \"{id}\" missing backend"));
    };
    for key in COMMON {
        pairs.take(key);
    }
    let backend = match kind.as_str() {
        "socket" => CharBackend::Socket(socket(&mut pairs)?),
        "null" => CharBackend::Null,
        _ => match UNUSED.iter().find(|(name, _)| *name == kind) {
            Some((name, keys)) => {
                for key in *keys {
                    pairs.take(key);
                }
                CharBackend::Unused(name)
            }
            None => return Err(format!("'{kind}' is not a valid char driver name")),
        },
    };
    pairs.finish()?;
    Ok(Chardev { typed: String::new(), id, backend })
}

/// Reads one `-qmp` argument.
pub(super) fn qmp(argument: &str, index: usize, pretty: bool) -> Result<(Chardev, Monitor), String> {
    let id = format!("compat_monitor{index}");
    let backend = match argument.strip_prefix("unix:") {
        Some(socket_argument) => {
            let mut pairs = keyval::parse(socket_argument, Grammar::Switches, Some("path"))?;
            let socket = socket(&mut pairs)?;
            pairs.finish()?;
            CharBackend::Socket(socket)
        }
        None if matches!(argument, "none" | "null" | "/dev/null") => CharBackend::Null,
        None => return Err("only unix:PATH,server=on,wait=off is supported".to_owned()),
    };
    Ok((Chardev { typed: String::new(), id: id.clone(), backend }, Monitor { chardev: id, pretty }))
}

fn socket(pairs: &mut Pairs) -> Result<SocketChardev, String> {
    let path = pairs.text("path")?;
    let fd = pairs.text("fd")?;
    let server = pairs.switch("server")?.unwrap_or(false);
    let wait = pairs.switch("wait")?;
    for key in ["host", "port", "tls-creds", "telnet", "tn3270", "websocket", "abstract", "reconnect"] {
        if pairs.has(key) {
            return Err(format!("'{key}' is not supported, only Unix sockets with path= or fd="));
        }
    }
    pairs.take("tight");
    let address = match (path, fd) {
        (Some(_), Some(_)) => {
            return Err("None or one of 'path', 'fd' or 'host' option required.".to_owned());
        }
        (Some(path), None) if path.len() >= MAX_PATH => {
            return Err(format!(
                "UNIX socket path '{path}' is too long\nPath must be less than {MAX_PATH} bytes"
            ));
        }
        (Some(path), None) if path.is_empty() => return Err("Parameter 'path' is empty".to_owned()),
        (Some(path), None) => SocketAddress::Path(PathBuf::from(path)),
        (None, fd) => {
            let text = fd.unwrap_or_default();
            match text.parse() {
                Ok(fd) if fd >= 0 => SocketAddress::Fd(fd),
                _ => return Err(format!("Unable to parse FD number {text}")),
            }
        }
    };
    if !server {
        return Err(if wait.is_some() {
            "'wait' option is incompatible with socket in client connect mode".to_owned()
        } else {
            "client sockets are not supported, use server=on".to_owned()
        });
    }
    Ok(SocketChardev { address, wait: wait.unwrap_or(true) })
}

/// Reads one `-mon` argument: its id, and the monitor.
pub(super) fn monitor(argument: &str) -> Result<(Option<String>, Monitor), String> {
    let mut pairs = keyval::parse(argument, Grammar::Switches, Some("chardev"))?;
    let id = pairs.optional_id()?;
    let chardev = pairs.text("chardev")?.ok_or("Parameter 'chardev' is missing")?;
    let control = pairs.choice("mode", &[("control", true), ("readline", false)])?;
    let pretty = pairs.switch("pretty")?.unwrap_or(false);
    pairs.finish()?;
    if control != Some(true) {
        return Err("only mode=control is supported (QMP has human-monitor-command)".to_owned());
    }
    Ok((id, Monitor { chardev, pretty }))
}

/// Checks that each monitor has a chardev to itself that it can talk over.
pub(super) fn check_monitor(
    monitor: &Monitor,
    earlier: &[Monitor],
    chardevs: &[Chardev],
) -> Result<(), String> {
    let name = &monitor.chardev;
    let Some(chardev) = chardevs.iter().find(|chardev| chardev.id == *name) else {
        return Err(format!("chardev \"{name}\" not found"));
    };
    if earlier.iter().any(|other| other.chardev == *name) {
        return Err(format!("chardev '{name}' is already in use"));
    }
    match &chardev.backend {
        CharBackend::Socket(_) | CharBackend::Null => Ok(()),
        CharBackend::Unused(kind) => {
            Err(format!("chardev '{name}' is a {kind}, only a socket is supported here"))
        }
    }
}
