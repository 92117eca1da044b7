//! PCI functions by way of sysfs, and the ECAM itself.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::mapping::Mapping;

const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// Bytes of a function's configuration space.
pub const CONFIG_LEN: u64 = 4096;

pub const COMMAND: u64 = 0x04;
pub const BAR: u64 = 0x10;
/// In the command register.
pub const MEMORY: u64 = 1 << 1;
pub const BUS_MASTER: u64 = 1 << 2;

const CAPABILITIES: u64 = 0x34;
/// The id of the MSI-X capability.
const MSIX: u8 = 0x11;

/// A function that no driver of the kernel has any more.
pub struct Function {
    pub name: String,
    pub number: u64,
    config: File,
    pub bar: Mapping,
    /// Where the guest's kernel put the BAR, whatever its registers say by now.
    place: u64,
    /// Offset of the MSI-X capability.
    pub msix: u64,
}

fn open(path: &Path) -> Result<File> {
    // Uncached, for /dev/mem.
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// The hexadecimal number that a text begins with.
fn first_number(text: &str) -> Result<u64> {
    let word = text.split_whitespace().next().context("a number is missing")?;
    Ok(u64::from_str_radix(word.trim_start_matches("0x"), 16)?)
}

fn number(directory: &Path, file: &str) -> Result<u64> {
    first_number(&fs::read_to_string(directory.join(file))?)
}

/// The folders of all functions of this vendor, in their order on the bus.
pub fn of_vendor(vendor: u64) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(FUNCTIONS)? {
        let path = entry?.path();
        if number(&path, "vendor")? == vendor {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What the function is.
pub fn device_id(directory: &Path) -> Result<u64> {
    number(directory, "device")
}

impl Function {
    /// Takes the function from its driver.
    pub fn take(directory: &Path) -> Result<Self> {
        let name = directory.file_name().context("no name")?.to_string_lossy().into_owned();
        let driver = directory.join("driver");
        if driver.exists() {
            fs::write(driver.join("unbind"), &name).with_context(|| format!("unbinding {name}"))?;
        }
        // Domain 0000, then bus, slot and function.
        let parts: Vec<u64> =
            name.split([':', '.']).map(|part| u64::from_str_radix(part, 16)).collect::<Result<_, _>>()?;
        ensure!(parts.len() == 4, "{name} is no function's name");
        let config = open(&directory.join("config"))?;
        let file = open(&directory.join("resource0"))?;
        let len = file.metadata()?.len() as usize;
        let mut function = Self {
            number: parts[1] << 8 | parts[2] << 3 | parts[3],
            name,
            config,
            bar: Mapping::of(&file, 0, len).context("the BAR")?,
            place: first_number(&fs::read_to_string(directory.join("resource"))?)?,
            msix: 0,
        };
        let msix = function.capabilities().into_iter().find(|(id, _)| *id == MSIX);
        function.msix = msix.context("no MSI-X")?.1;
        function.restore();
        Ok(function)
    }

    /// One access; by sysfs it is an aligned one of 1, 2 or 4 bytes.
    pub fn config_read(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        let read = self.config.read_at(&mut bytes[..size.into()], offset);
        assert_eq!(read.ok(), Some(size.into()), "reading the configuration space of {}", self.name);
        u64::from_le_bytes(bytes)
    }

    pub fn config_write(&self, offset: u64, size: u8, value: u64) {
        // The kernel may refuse a register that it keeps for itself.
        let _ = self.config.write_at(&value.to_le_bytes()[..size.into()], offset);
    }

    /// Id and offset of each capability.
    pub fn capabilities(&self) -> Vec<(u8, u64)> {
        let mut found = Vec::new();
        let mut at = self.config_read(CAPABILITIES, 1);
        while at != 0 && found.len() < 48 {
            found.push((self.config_read(at, 1) as u8, at));
            at = self.config_read(at + 1, 1);
        }
        found
    }

    /// Sets right what the device needs to be found: BAR, command, no MSI-X.
    pub fn restore(&self) {
        self.config_write(COMMAND, 2, 0);
        self.config_write(BAR, 4, self.place & 0xffff_ffff);
        self.config_write(BAR + 4, 4, self.place >> 32);
        self.set_msix(0);
        self.config_write(COMMAND, 2, MEMORY | BUS_MASTER);
    }

    pub fn set_msix(&self, control: u64) {
        self.config_write(self.msix + 2, 2, control);
    }

    /// Offset in the BAR and length of the MSI-X table, and the offset of the pending bits.
    pub fn msix_table(&self) -> (u64, u64, u64) {
        let entries = (self.config_read(self.msix + 2, 2) & 0x7ff) + 1;
        let offset = |at| self.config_read(self.msix + at, 4) & !7;
        (offset(4), entries * 16, offset(8))
    }

    /// Where the BAR is for the guest.
    pub fn bar_gpa(&self) -> u64 {
        self.place
    }
}

/// Address and length of the ECAM, as the guest's kernel knows it.
pub fn ecam() -> Result<(u64, u64)> {
    let map = fs::read_to_string("/proc/iomem")?;
    let line = map.lines().find(|line| line.contains("ECAM") || line.contains("MMCONFIG"));
    let range = line.and_then(|line| line.trim().split_once(" : ")?.0.split_once('-'));
    let (start, last) = range.context("no ECAM in /proc/iomem")?;
    let (start, last) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(last, 16)?);
    ensure!(last > start, "the ECAM's address is hidden");
    Ok((start, last - start + 1))
}

/// The whole ECAM, mapped.
pub fn map_ecam() -> Result<Mapping> {
    let (start, len) = ecam()?;
    let memory = open(Path::new("/dev/mem"))?;
    Mapping::of(&memory, start, len as usize).context("mapping the ECAM by /dev/mem (iomem=relaxed?)")
}
