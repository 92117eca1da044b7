//! The little of ELF the images need: which libraries a program wants, and what a kernel module says about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RUNPATH: u64 = 29;

/// Where Debian keeps libraries that need no run path.
pub const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

fn int(bytes: &[u8], at: u64, size: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn text(bytes: &[u8], at: u64) -> Option<String> {
    let tail = bytes.get(usize::try_from(at).ok()?..)?;
    let end = tail.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&tail[..end]).into_owned())
}

pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

#[derive(Debug, Default, PartialEq)]
pub struct Dynamic {
    pub needed: Vec<String>,
    pub runpath: Vec<String>,
}

/// The dynamic section of a 64-bit little-endian ELF file; empty for a static one.
pub fn dynamic(elf: &[u8]) -> Option<Dynamic> {
    let (table, size, count) = (int(elf, 32, 8)?, int(elf, 54, 2)?, int(elf, 56, 2)?);
    let mut loads = Vec::new();
    let mut section = None;
    for header in (0..count).map(|index| table + index * size) {
        let (offset, address, length) =
            (int(elf, header + 8, 8)?, int(elf, header + 16, 8)?, int(elf, header + 32, 8)?);
        match int(elf, header, 4)? as u32 {
            PT_LOAD => loads.push((address, offset, length)),
            PT_DYNAMIC => section = Some((offset, length)),
            _ => {}
        }
    }
    let Some((offset, length)) = section else { return Some(Dynamic::default()) };
    let mut strings = None;
    let (mut needed, mut runpath) = (Vec::new(), Vec::new());
    for at in (offset..offset + length).step_by(16) {
        let value = int(elf, at + 8, 8)?;
        match int(elf, at, 8)? {
            0 => break,
            DT_NEEDED => needed.push(value),
            DT_STRTAB => strings = Some(value),
            DT_RUNPATH => runpath.push(value),
            _ => {}
        }
    }
    let strings = strings?;
    let (address, file, _) =
        *loads.iter().find(|(address, _, length)| (*address..address + length).contains(&strings))?;
    let name = |at: &u64| text(elf, strings - address + file + at);
    let runpath = runpath.iter().filter_map(name).flat_map(|path| split_path(&path)).collect();
    Some(Dynamic { needed: needed.iter().map(name).collect::<Option<_>>()?, runpath })
}

fn split_path(path: &str) -> Vec<String> {
    path.split(':').filter(|part| part.starts_with('/')).map(String::from).collect()
}

/// The `key=value` strings of a kernel module's `.modinfo` section.
pub fn modinfo(elf: &[u8]) -> Option<Vec<(String, String)>> {
    let (table, size) = (int(elf, 40, 8)?, int(elf, 58, 2)?);
    let (count, names) = (int(elf, 60, 2)?, int(elf, 62, 2)?);
    let names = int(elf, table + names * size + 24, 8)?;
    for header in (0..count).map(|index| table + index * size) {
        if text(elf, names + int(elf, header, 4)?)? == ".modinfo" {
            let start = usize::try_from(int(elf, header + 24, 8)?).ok()?;
            let length = usize::try_from(int(elf, header + 32, 8)?).ok()?;
            let section = elf.get(start..start.checked_add(length)?)?;
            return Some(
                section
                    .split(|byte| *byte == 0)
                    .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect(),
            );
        }
    }
    None
}

/// All shared libraries that `programs` (paths below `tree`) need, as path in the image to file on this machine.
///
/// This is how the images stay small: nothing but named programs and what they load goes in.
pub fn libraries(tree: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut queue: Vec<PathBuf> = programs.to_vec();
    while let Some(path) = queue.pop() {
        let file = tree.join(&path);
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        if !is_elf(&bytes) {
            continue;
        }
        let dynamic = dynamic(&bytes).with_context(|| format!("{} is a damaged ELF file", file.display()))?;
        for library in dynamic.needed {
            if !seen.insert(library.clone()) {
                continue;
            }
            let places = dynamic.runpath.iter().map(|path| path.trim_start_matches('/')).chain([LIBRARIES]);
            let Some(place) =
                places.map(|place| format!("{place}/{library}")).find(|place| tree.join(place).exists())
            else {
                bail!("{} needs {library}, which no downloaded package holds", file.display());
            };
            found.insert(place.clone(), tree.join(&place));
            queue.push(place.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_libc() {
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(dynamic(&me).unwrap().needed.iter().any(|library| library.starts_with("libc.so")));
    }

    #[test]
    fn damage_is_no_panic() {
        let mut me = fs::read(std::env::current_exe().unwrap()).unwrap();
        me.truncate(5000);
        let _ = (dynamic(&me), modinfo(&me));
        assert_eq!(dynamic(b"\x7fELF\x02\x01"), None);
    }
}
