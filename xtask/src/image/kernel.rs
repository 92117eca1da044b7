//! The plain ELF kernel inside a bzImage.
//!
//! Whoever loads a bzImage as a PV or PVH kernel unpacks it first, with code that runs emulated here and takes
//! many seconds. Unpacked once on the machine itself, the same kernel starts sooner.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::elf;
use crate::packages::Tree;

/// Offsets in the x86 boot protocol's setup header.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Unpacks `bzimage`; its payload goes through the file `scratch`.
pub fn unpack(tree: &Tree, bzimage: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let image = fs::read(bzimage).with_context(|| format!("reading {}", bzimage.display()))?;
    let field = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let payload = || {
        let start = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512 + field(PAYLOAD_OFFSET)?;
        // The boot protocol appends the unpacked size, which a decompressor would take for garbage.
        image.get(start..start + field(PAYLOAD_LENGTH)?.checked_sub(4)?)
    };
    let payload = payload().with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    ensure!(payload.starts_with(ZSTD), "{} is not packed with zstd, as Debian's are", bzimage.display());
    fs::write(scratch, payload)?;
    let kernel = tree.run("usr/bin/zstd", &["-dc".as_ref(), scratch.as_ref()])?;
    fs::remove_file(scratch)?;
    ensure!(elf::is_elf(&kernel), "{} holds no ELF kernel", bzimage.display());
    Ok(kernel)
}
