//! `-drive`.

use std::path::PathBuf;

use super::config::{BlockNode, BlockOrigin, Cache, DetectZeroes, ErrorAction, FileKind, Locking};
use super::keyval::{self, Grammar, Pairs};
use super::number;

pub(super) const DISCARD: &[(&str, bool)] =
    &[("ignore", false), ("off", false), ("unmap", true), ("on", true)];
pub(super) const DETECT_ZEROES: &[(&str, DetectZeroes)] =
    &[("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];
pub(super) const LOCKING: &[(&str, Locking)] =
    &[("auto", Locking::Auto), ("on", Locking::On), ("off", Locking::Off)];
pub(super) const AIO: &[(&str, bool)] = &[("threads", false), ("native", true), ("io_uring", false)];
pub(super) const ERROR_ACTIONS: &[(&str, ErrorAction)] = &[
    ("report", ErrorAction::Report),
    ("ignore", ErrorAction::Ignore),
    ("stop", ErrorAction::Stop),
    ("enospc", ErrorAction::Enospc),
];

/// Image formats that QEMU has and we have not.
pub(super) const OTHER_FORMATS: &[&str] = &[
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

const CACHE_MODES: &[(&str, Cache)] = &[
    ("writeback", Cache { writeback: true, direct: false, no_flush: false }),
    ("writethrough", Cache { writeback: false, direct: false, no_flush: false }),
    ("none", Cache { writeback: true, direct: true, no_flush: false }),
    ("off", Cache { writeback: true, direct: true, no_flush: false }),
    ("directsync", Cache { writeback: false, direct: true, no_flush: false }),
    ("unsafe", Cache { writeback: true, direct: false, no_flush: true }),
];

/// What is said when asynchronous I/O of the old kind is asked for without direct I/O.
pub(super) const NATIVE_NEEDS_DIRECT: &str =
    "aio=native was specified, but it requires cache.direct=on, which was not specified.";

/// What is said when zeroes are to be discarded, but nothing is to be discarded.
pub(super) const UNMAP_NEEDS_DISCARD: &str =
    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";

/// A drive, and whether it comes with a device (`if=virtio`).
pub(super) struct Drive {
    pub node: BlockNode,
    pub with_device: bool,
}

/// Reads one `-drive` argument, the `index`th without an id.
pub(super) fn drive(argument: &str, index: usize) -> Result<Drive, String> {
    let mut pairs = keyval::parse(argument, Grammar::Switches, Some("file"))?;
    let id = pairs.optional_id()?;
    let with_device = match pairs.text("if")?.as_deref() {
        Some("none") => false,
        Some("virtio") => true,
        Some(bus @ ("ide" | "scsi" | "floppy" | "pflash" | "mtd" | "sd" | "xen")) => return Err(no_bus(bus)),
        Some(other) => return Err(format!("unsupported bus type '{other}'")),
        None => return Err(no_bus("ide")),
    };
    let kind = if with_device { "virtio" } else { "none" };
    let name = id.unwrap_or_else(|| format!("{kind}{index}"));
    // Where QEMU's old buses put the drive; there are none.
    for key in ["index", "bus", "unit"] {
        pairs.unsigned(key, "a number")?;
    }

    let cdrom = match pairs.text("media")?.as_deref() {
        None | Some("disk") => false,
        Some("cdrom") => true,
        Some(other) => return Err(format!("'{other}' invalid media")),
    };
    if pairs.switch("snapshot")?.unwrap_or(false) {
        return Err("snapshot=on is not supported".to_owned());
    }
    if pairs.switch("copy-on-read")?.unwrap_or(false) {
        return Err("copy-on-read=on is not supported".to_owned());
    }
    let mut cache =
        word(&mut pairs, "cache", CACHE_MODES, |_| "invalid cache option".to_owned())?.unwrap_or_default();
    cache_switches(&mut pairs, &mut cache)?;
    let mut read_only = pairs.switch("readonly")?;
    read_only = pairs.switch("read-only")?.or(read_only);
    let discard = word(&mut pairs, "discard", DISCARD, |_| "Invalid discard option".to_owned())?;
    let detect_zeroes = word(&mut pairs, "detect-zeroes", DETECT_ZEROES, invalid_value)?.unwrap_or_default();
    if detect_zeroes == DetectZeroes::Unmap && discard != Some(true) {
        return Err(UNMAP_NEEDS_DISCARD.to_owned());
    }
    let action = |what: &'static str| move |word: &str| format!("'{word}' invalid {what} error action");
    let write_error = word(&mut pairs, "werror", ERROR_ACTIONS, action("write"))?;
    let read_error = word(&mut pairs, "rerror", ERROR_ACTIONS.get(..3).unwrap_or_default(), action("read"))?;
    let mut native = false;
    for key in ["aio", "file.aio"] {
        native |= word(&mut pairs, key, AIO, |_| "invalid aio option".to_owned())?.unwrap_or(false);
    }
    if native && !cache.direct {
        return Err(NATIVE_NEEDS_DIRECT.to_owned());
    }
    let locking = word(&mut pairs, "file.locking", LOCKING, invalid_value)?.unwrap_or_default();

    let (filename, kind) = file(&mut pairs)?;
    let format = pairs.text("driver")?;
    let format = pairs.text("format")?.or(format);
    match format.as_deref() {
        Some("raw") => {}
        // Guessing lets a guest that writes a header into a raw image read any file of the host.
        None => return Err("format=raw is required: the format of an image is never guessed".to_owned()),
        Some(other) if OTHER_FORMATS.contains(&other) => {
            return Err(format!("format '{other}' is not supported, only raw"));
        }
        Some(other) => return Err(format!("Unknown driver '{other}'")),
    }
    let auto_read_only = pairs.switch("auto-read-only")?.unwrap_or(false);
    if let Some(key) = pairs.leftover() {
        return Err(format!("Block format 'raw' does not support the option '{key}'"));
    }
    let node = BlockNode {
        typed: String::new(),
        name,
        origin: BlockOrigin::Drive,
        filename,
        kind,
        cache,
        read_only: read_only.unwrap_or(cdrom),
        auto_read_only,
        discard: discard.unwrap_or(false),
        detect_zeroes,
        write_error: write_error.unwrap_or(ErrorAction::Enospc),
        read_error: read_error.unwrap_or(ErrorAction::Report),
        locking,
    };
    Ok(Drive { node, with_device })
}

/// Takes `cache.direct`, `cache.no-flush` and `cache.writeback`.
fn cache_switches(pairs: &mut Pairs, cache: &mut Cache) -> Result<(), String> {
    for (key, field) in [
        ("cache.direct", &mut cache.direct),
        ("cache.no-flush", &mut cache.no_flush),
        ("cache.writeback", &mut cache.writeback),
    ] {
        if let Some(on) = pairs.switch(key)? {
            *field = on;
        }
    }
    Ok(())
}

/// Takes what names the file: `file=`, or `file.driver=` with `file.filename=`.
fn file(pairs: &mut Pairs) -> Result<(PathBuf, FileKind), String> {
    let kind = match pairs.text("file.driver")?.as_deref() {
        None => FileKind::Any,
        Some("file") => FileKind::Regular,
        Some("host_device") => FileKind::HostDevice,
        Some(other) => return Err(format!("Unknown driver '{other}'")),
    };
    let path = match (pairs.text("file.filename")?, pairs.text("file")?) {
        (Some(path), _) => path,
        (None, Some(name)) => {
            // A word and a colon before any slash name a protocol.
            let head = name.split('/').next().unwrap_or_default();
            match head.split_once(':') {
                Some(("file" | "host_device", _)) => {
                    name.split_once(':').map_or("", |(_, path)| path).to_owned()
                }
                Some((protocol, _)) => return Err(format!("Unknown protocol '{protocol}'")),
                None => name,
            }
        }
        (None, None) => String::new(),
    };
    if path.is_empty() {
        return Err("Device needs media, but drive is empty".to_owned());
    }
    Ok((PathBuf::from(path), kind))
}

fn no_bus(bus: &str) -> String {
    format!("machine type does not support if={bus}, use if=none with -device virtio-blk-pci, or if=virtio")
}

fn invalid_value(word: &str) -> String {
    format!("invalid parameter value: {word}")
}

fn word<T: Copy>(
    pairs: &mut Pairs,
    key: &str,
    words: &[(&str, T)],
    complaint: impl Fn(&str) -> String,
) -> Result<Option<T>, String> {
    let Some(text) = pairs.text(key)? else { return Ok(None) };
    match words.iter().find(|(name, _)| *name == text) {
        Some((_, value)) => Ok(Some(*value)),
        None => Err(complaint(&text)),
    }
}

/// Checks the name of a block node.
pub(super) fn check_node_name(name: &str) -> Result<(), String> {
    if number::is_identifier(name) && name.len() < 32 {
        Ok(())
    } else {
        Err(format!("Invalid node-name: '{name}'"))
    }
}
