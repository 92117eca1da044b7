//! `-netdev`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use super::config::{NetBackend, Netdev, Script, Tap, TapSource};
use super::keyval::{self, Grammar, Pairs};

/// Most queue pairs a tap has (Linux, `MAX_TAP_QUEUES`).
const MAX_QUEUES: u64 = 256;

/// Kinds of netdev that QEMU has and we have not.
const UNSUPPORTED: &[&str] = &[
    "bridge",
    "dgram",
    "hubport",
    "l2tpv3",
    "passt",
    "socket",
    "stream",
    "user",
    "vde",
    "vhost-user",
    "vhost-vdpa",
];

/// Reads one `-netdev` argument.
pub(super) fn netdev(argument: &str) -> Result<Netdev, String> {
    let mut pairs = keyval::parse_or_json(argument, Grammar::Switches, "type")?;
    let kind = pairs.text("type")?.ok_or("Parameter 'type' is missing")?;
    if UNSUPPORTED.contains(&kind.as_str()) {
        return Err(format!("network backend '{kind}' is not supported, use a tap"));
    }
    if kind != "tap" {
        return Err(format!("Parameter 'type' does not accept value '{kind}'"));
    }
    let id = pairs.id()?;
    let tap = tap(&mut pairs)?;
    pairs.finish()?;
    Ok(Netdev { typed: String::new(), id, backend: NetBackend::Tap(tap) })
}

fn tap(pairs: &mut Pairs) -> Result<Tap, String> {
    let given = |pairs: &Pairs, keys: &[&str]| keys.iter().any(|key| pairs.has(key));
    if pairs.has("fd")
        && given(
            pairs,
            &["ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds"],
        )
    {
        return Err("ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, \
                    and vhostfds= are invalid with fd="
            .to_owned());
    }
    if pairs.has("fds")
        && given(pairs, &["ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "vhostfd"])
    {
        return Err("ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, \
                    and vhostfd= are invalid with fds="
            .to_owned());
    }
    if pairs.has("helper") {
        return Err("helper= is not supported, use ifname= with br=".to_owned());
    }
    // vhost works on memory that it shares with us, and a domain's memory can not be shared on.
    if pairs.switch("vhost")?.unwrap_or(false) || pairs.switch("vhostforce")?.unwrap_or(false) {
        return Err("vhost=on is not supported: a Xen domain's memory can not be given to vhost".to_owned());
    }
    if given(pairs, &["vhostfd", "vhostfds"]) {
        return Err("vhostfd= and vhostfds= are not supported".to_owned());
    }
    pairs.unsigned("poll-us", "a uint32 value")?;
    let source = match (pairs.text("fd")?, pairs.text("fds")?) {
        (Some(list), _) => TapSource::Fds(vec![descriptor(&list)?]),
        (None, Some(list)) => TapSource::Fds(list.split(':').map(descriptor).collect::<Result<_, _>>()?),
        (None, None) => TapSource::Name(interface("ifname", pairs)?.unwrap_or_else(|| "tap%d".to_owned())),
    };
    let queues = pairs.unsigned("queues", "a uint64 value")?.unwrap_or(1);
    if queues == 0 || queues > MAX_QUEUES {
        return Err(format!("Parameter 'queues' expects a number between 1 and {MAX_QUEUES}"));
    }
    let queues = match &source {
        TapSource::Name(_) => u16::try_from(queues).unwrap_or(1),
        TapSource::Fds(fds) if fds.len() as u64 > MAX_QUEUES => {
            return Err(format!("fds= holds more than {MAX_QUEUES} descriptors"));
        }
        TapSource::Fds(fds) => u16::try_from(fds.len()).unwrap_or(1),
    };
    Ok(Tap {
        source,
        queues,
        vnet_hdr: pairs.switch("vnet_hdr")?.unwrap_or(true),
        bridge: interface("br", pairs)?,
        script: script("script", pairs)?,
        downscript: script("downscript", pairs)?,
        sndbuf: pairs.size("sndbuf", "a size value")?.filter(|bytes| *bytes != 0),
    })
}

fn descriptor(text: &str) -> Result<RawFd, String> {
    match text.parse() {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(format!("Invalid file descriptor number '{text}'")),
    }
}

/// Takes the name of a network interface, which Linux keeps in 16 bytes (`IFNAMSIZ`).
fn interface(key: &str, pairs: &mut Pairs) -> Result<Option<String>, String> {
    let Some(name) = pairs.text(key)? else { return Ok(None) };
    if name.is_empty()
        || name.len() > 15
        || name.contains(|c: char| c == '/' || c == '\0' || c.is_whitespace())
    {
        return Err(format!("{key}={name} is not the name of a network interface (1 to 15 characters)"));
    }
    Ok(Some(name))
}

fn script(key: &str, pairs: &mut Pairs) -> Result<Script, String> {
    Ok(match pairs.text(key)?.as_deref() {
        None => Script::Default,
        Some("no" | "") => Script::No,
        Some(path) => Script::Path(PathBuf::from(path)),
    })
}
