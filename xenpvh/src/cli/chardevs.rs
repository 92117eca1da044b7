//! `-chardev`, `-mon` and `-qmp`.

use std::path::PathBuf;

use super::config::{CharBackend, Chardev, Monitor, SocketAddress, SocketChardev};
use super::keyval::{self, Grammar, Pairs};

/// Longest path of a Unix socket, and one byte for its end (`struct sockaddr_un`).
const MAX_PATH: usize = 108;

/// Kinds of chardev that are taken and never opened, each with the keys it knows.
const UNUSED: &[(&str, &[&str])] = &[("memory", &["size"]), ("ringbuf", &["size"])];

/// Keys that any chardev has: what they set up is not there.
const COMMON: &[&str] = &["logfile", "logappend", "mux"];

/// The names of the kinds of chardev there are.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    ["file", "null", "pty", "socket", "stdio"].into_iter().chain(UNUSED.iter().map(|(name, _)| *name))
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
        "socket" => socket(&mut pairs)?,
        "null" => CharBackend::Null,
        "file" => file(&mut pairs)?,
        "pty" => CharBackend::Pty,
        "stdio" => CharBackend::Stdio { signals: pairs.switch("signal")?.unwrap_or(true) },
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
            socket
        }
        None if matches!(argument, "none" | "null" | "/dev/null") => CharBackend::Null,
        None => return Err("only unix:PATH,server=on,wait=off is supported".to_owned()),
    };
    Ok((Chardev { typed: String::new(), id: id.clone(), backend }, Monitor { chardev: id, pretty }))
}

fn file(pairs: &mut Pairs) -> Result<CharBackend, String> {
    let path = pairs.text("path")?.ok_or("chardev: file: no filename given")?;
    if pairs.has("input-path") {
        return Err("'input-path' is not supported: a file is written to only".to_owned());
    }
    Ok(CharBackend::File { path: PathBuf::from(path), append: pairs.switch("append")?.unwrap_or(false) })
}

fn socket(pairs: &mut Pairs) -> Result<CharBackend, String> {
    let server = pairs.switch("server")?.unwrap_or(false);
    let wait = pairs.switch("wait")?;
    let refused =
        ["tls-creds", "tls-authz", "telnet", "tn3270", "websocket", "abstract", "reconnect", "reconnect-ms"];
    for key in refused {
        if pairs.has(key) {
            return Err(format!("'{key}' is not supported"));
        }
    }
    // Delays, address families and the like, which are as they are.
    for key in ["tight", "nodelay", "delay", "ipv4", "ipv6"] {
        pairs.take(key);
    }
    let address = address(pairs)?;
    match (server, wait) {
        (true, wait) => Ok(CharBackend::Socket(SocketChardev { address, wait: wait.unwrap_or(true) })),
        (false, None) => Ok(CharBackend::Client(address)),
        (false, Some(_)) => {
            Err("'wait' option is incompatible with socket in client connect mode".to_owned())
        }
    }
}

fn address(pairs: &mut Pairs) -> Result<SocketAddress, String> {
    let (path, host, fd) = (pairs.text("path")?, pairs.text("host")?, pairs.text("fd")?);
    let port = pairs.text("port")?;
    match (path, host, fd) {
        (Some(path), None, None) if path.len() >= MAX_PATH => {
            Err(format!("UNIX socket path '{path}' is too long\nPath must be less than {MAX_PATH} bytes"))
        }
        (Some(path), None, None) if path.is_empty() => Err("Parameter 'path' is empty".to_owned()),
        (Some(path), None, None) => Ok(SocketAddress::Path(PathBuf::from(path))),
        (None, Some(host), None) => {
            let port = port.ok_or("chardev: socket: no port given")?;
            let number =
                port.parse().map_err(|_| format!("port '{port}' is not a number from 0 to 65535"))?;
            // None in particular: all that this host has.
            let host = if host.is_empty() { "0.0.0.0".to_owned() } else { host };
            Ok(SocketAddress::Tcp(host, number))
        }
        (None, None, fd) => {
            let text = fd.unwrap_or_default();
            match text.parse() {
                Ok(fd) if fd >= 0 => Ok(SocketAddress::Fd(fd)),
                _ => Err(format!("Unable to parse FD number {text}")),
            }
        }
        _ => Err("None or one of 'path', 'fd' or 'host' option required.".to_owned()),
    }
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
        CharBackend::Client(_) => Err("client sockets are not supported, use server=on".to_owned()),
        other => Err(format!("chardev '{name}' is a {}, only a socket is supported here", other.kind())),
    }
}
