//! Telling the guest about its PCI host bridge: the ACPI hand-over.
//!
//! Stock libxl builds tables for a PVH guest that know no PCI. While the domain is still paused we add an
//! SSDT (and an MCFG) and make the root tables name them. Nothing that is there is changed but the RSDP's
//! pointer to the XSDT and its extended checksum (ACPI 6.5 §5.2.5.3). Tables are checked before anything is
//! written: if they are not what we understand, the guest's memory stays as it was.

mod aml;

use domain::{Gpa, PAGE_SIZE, SharedDomain};
use memory::{GuestMemory, MemoryError, Region};
use thiserror::Error;

use crate::layout::{ACPI_AREA, Layout};

const RSDP_SIGNATURE: [u8; 8] = *b"RSD PTR ";
const RSDP_LENGTH: usize = 36;
/// Bytes of an RSDP that its first checksum covers.
const RSDP_V1_LENGTH: usize = 20;
/// libxl gives the RSDP 64 bytes.
const RSDP_ROOM: u64 = 64;
const RSDP_XSDT: usize = 24;
const RSDP_EXTENDED_CHECKSUM: usize = 32;
const HEADER: usize = 36;
/// No table of a guest is larger than the area that libxl has for them all.
const MAX_TABLE: usize = ACPI_AREA.size as usize;
/// Bytes of libxl's info page that its AML and ours may read; the rest is free (its
/// `acpi_info` is 40 bytes).
const INFO_ROOM: u64 = 0x200;
const FADT_DSDT: usize = 40;
const FADT_X_DSDT: usize = 140;

/// What the hand-over found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Our tables were added.
    Added,
    /// Our tables, for the same layout, were there.
    Present,
    /// Whoever built the domain describes a PCI host bridge already; nothing was added.
    Foreign,
}

/// Why the guest's tables were left alone. Nothing was written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// The guest's memory cannot be read or written there.
    #[error("cannot reach the guest's ACPI tables: {0}")]
    Memory(#[from] MemoryError),
    /// No table root.
    #[error("found no ACPI tables at {ACPI_AREA}: is this a PVH domain built by libxl, and still paused?")]
    NotFound,
    /// A table that is not understood.
    #[error("the guest's ACPI {table} at {at} is not as expected ({what}); its tables are left as they are")]
    Unknown {
        /// Which table.
        table: &'static str,
        /// Where it is.
        at: Gpa,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No zeroed room for the new tables.
    #[error("no free room for {0} bytes beside the guest's ACPI tables; they are left as they are")]
    NoRoom(usize),
    /// The guest has our tables for other windows.
    #[error(
        "the guest already has ACPI tables of xenpvh for another address layout: use the options it was started with"
    )]
    OtherLayout,
}

/// Describes the layout's PCI host bridge to the guest, unless somebody has.
///
/// # Errors
/// See [`AcpiError`]; in every case the guest's memory is as it was.
pub fn hand_over(domain: &SharedDomain, layout: &Layout) -> Result<Outcome, AcpiError> {
    let area = Region { start: Gpa(ACPI_AREA.start), size: ACPI_AREA.size };
    let memory = GuestMemory::new(domain.clone(), &[area])?;
    let tables = Tables::find(&memory)?;
    if let Some(found) = tables.bridge(&memory, aml::revision(layout))? {
        return Ok(found);
    }
    tables.add(&memory, &[Some(aml::ssdt(layout)), aml::mcfg(layout)])?;
    Ok(Outcome::Added)
}

/// The root of the guest's tables.
struct Tables {
    rsdp: Gpa,
    xsdt: Vec<u8>,
    /// Every table's place: none of it is free.
    taken: Vec<(Gpa, u64)>,
}

impl Tables {
    fn find(memory: &GuestMemory) -> Result<Tables, AcpiError> {
        let rsdp = find_rsdp(memory).ok_or(AcpiError::NotFound)?;
        let unknown = |what| AcpiError::Unknown { table: "RSDP", at: rsdp, what };
        let mut bytes = [0u8; RSDP_LENGTH];
        memory.read(rsdp, &mut bytes)?;
        if bytes[15] < 2 {
            return Err(unknown("its revision is below 2"));
        }
        if le_u32(&bytes, 20) != RSDP_LENGTH as u32 {
            return Err(unknown("its length is not 36"));
        }
        if sum(&bytes[..RSDP_V1_LENGTH]) != 0 || sum(&bytes) != 0 {
            return Err(unknown("its checksum is wrong"));
        }
        let at = Gpa(le_u64(&bytes, RSDP_XSDT));
        let xsdt = read_table(memory, at, "XSDT", Some(*b"XSDT"))?;
        if !(xsdt.len() - HEADER).is_multiple_of(8) {
            return Err(AcpiError::Unknown { table: "XSDT", at, what: "its length is odd" });
        }
        Ok(Tables { rsdp, taken: vec![(rsdp, RSDP_ROOM), (at, xsdt.len() as u64)], xsdt })
    }

    fn entries(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.xsdt[HEADER..].chunks_exact(8).map(|entry| Gpa(le_u64(entry, 0)))
    }

    /// Reads every table and looks for a PCI host bridge.
    fn bridge(&self, memory: &GuestMemory, revision: u32) -> Result<Option<Outcome>, AcpiError> {
        let (mut foreign, mut ours) = (false, None);
        for at in self.entries() {
            let table = read_table(memory, at, "table", None)?;
            if table[10..16] == aml::OEM_ID && table[16..24] == aml::TABLE_ID {
                ours = Some(le_u32(&table, 24));
                continue;
            }
            foreign |= match &table[..4] {
                b"SSDT" => aml::has_host_bridge(&table),
                b"FACP" => {
                    aml::has_host_bridge(&read_table(memory, dsdt(&table, at)?, "DSDT", Some(*b"DSDT"))?)
                }
                _ => false,
            };
        }
        match ours {
            Some(found) if found == revision => Ok(Some(Outcome::Present)),
            Some(_) => Err(AcpiError::OtherLayout),
            None => Ok(foreign.then_some(Outcome::Foreign)),
        }
    }

    /// Writes the new tables and a new XSDT into free room, and only then the RSDP.
    fn add(mut self, memory: &GuestMemory, new: &[Option<Vec<u8>>]) -> Result<(), AcpiError> {
        for at in self.entries().collect::<Vec<_>>() {
            let table = read_table(memory, at, "table", None)?;
            self.taken.push((at, table.len() as u64));
            if table.starts_with(b"FACP") {
                let at = dsdt(&table, at)?;
                let length = read_table(memory, at, "DSDT", Some(*b"DSDT"))?.len();
                self.taken.push((at, length as u64));
            }
        }
        let aligned = |length: usize| length.next_multiple_of(16);
        let new: Vec<&Vec<u8>> = new.iter().flatten().collect();
        let xsdt_length = self.xsdt.len() + 8 * new.len();
        let needed = aligned(xsdt_length) + new.iter().map(|table| aligned(table.len())).sum::<usize>();
        let start = self.room(memory, needed)?;

        let mut xsdt = self.xsdt.clone();
        let mut at = start.0 + aligned(xsdt_length) as u64;
        for table in new {
            memory.write(Gpa(at), table)?;
            xsdt.extend(at.to_le_bytes());
            at += aligned(table.len()) as u64;
        }
        xsdt[4..8].copy_from_slice(&(xsdt_length as u32).to_le_bytes());
        xsdt[9] = 0;
        xsdt[9] = sum(&xsdt).wrapping_neg();
        memory.write(start, &xsdt)?;

        let mut rsdp = [0u8; RSDP_LENGTH];
        memory.read(self.rsdp, &mut rsdp)?;
        rsdp[RSDP_XSDT..RSDP_XSDT + 8].copy_from_slice(&start.0.to_le_bytes());
        rsdp[RSDP_EXTENDED_CHECKSUM] = 0;
        rsdp[RSDP_EXTENDED_CHECKSUM] = sum(&rsdp).wrapping_neg();
        memory.write(self.rsdp, &rsdp)?;
        Ok(())
    }

    /// Finds `needed` bytes that are zero, in no table, and in a page that libxl gave to its tables: the rest
    /// of the RSDP's page, or else of the info page.
    fn room(&self, memory: &GuestMemory, needed: usize) -> Result<Gpa, AcpiError> {
        let rsdp_page_end = self.rsdp.frame().address().0 + PAGE_SIZE as u64;
        let info_page_end = ACPI_AREA.start + PAGE_SIZE as u64;
        let candidates =
            [(self.rsdp.0 + RSDP_ROOM, rsdp_page_end), (ACPI_AREA.start + INFO_ROOM, info_page_end)];
        for (start, end) in candidates {
            let start = start.next_multiple_of(16);
            if end.saturating_sub(start) < needed as u64 {
                continue;
            }
            let touches = |(at, length): &(Gpa, u64)| at.0 < start + needed as u64 && start < at.0 + length;
            let mut bytes = vec![0u8; needed];
            memory.read(Gpa(start), &mut bytes)?;
            if !self.taken.iter().any(touches) && bytes.iter().all(|byte| *byte == 0) {
                return Ok(Gpa(start));
            }
        }
        Err(AcpiError::NoRoom(needed))
    }
}

/// Finds the RSDP: page by page, since pages behind it are not there.
fn find_rsdp(memory: &GuestMemory) -> Option<Gpa> {
    let mut page = [0u8; PAGE_SIZE];
    let mut at = ACPI_AREA.start;
    while at < ACPI_AREA.start + ACPI_AREA.size {
        if memory.read(Gpa(at), &mut page).is_ok() {
            let found = page.chunks_exact(16).position(|chunk| chunk[..8] == RSDP_SIGNATURE);
            if let Some(index) = found.filter(|index| index * 16 + RSDP_LENGTH <= PAGE_SIZE) {
                return Some(Gpa(at + index as u64 * 16));
            }
        }
        at += PAGE_SIZE as u64;
    }
    None
}

/// Reads a whole table, its length bounded and its checksum right.
fn read_table(
    memory: &GuestMemory,
    at: Gpa,
    table: &'static str,
    signature: Option<[u8; 4]>,
) -> Result<Vec<u8>, AcpiError> {
    let unknown = |what| AcpiError::Unknown { table, at, what };
    if !ACPI_AREA.contains(at.0, HEADER as u64) {
        return Err(unknown("it is outside libxl's ACPI pages"));
    }
    let mut header = [0u8; HEADER];
    memory.read(at, &mut header)?;
    if signature.is_some_and(|signature| header[..4] != signature) {
        return Err(unknown("its signature is wrong"));
    }
    let length = le_u32(&header, 4) as usize;
    // The FACS has no checksum; no XSDT lists it.
    if !(HEADER..=MAX_TABLE).contains(&length) || !ACPI_AREA.contains(at.0, length as u64) {
        return Err(unknown("its length is wrong"));
    }
    let mut bytes = vec![0u8; length];
    memory.read(at, &mut bytes)?;
    if sum(&bytes) != 0 {
        return Err(unknown("its checksum is wrong"));
    }
    Ok(bytes)
}

/// Where a FADT says that the DSDT is.
fn dsdt(fadt: &[u8], at: Gpa) -> Result<Gpa, AcpiError> {
    let wide = if fadt.len() >= FADT_X_DSDT + 8 { le_u64(fadt, FADT_X_DSDT) } else { 0 };
    match wide {
        0 if fadt.len() >= FADT_DSDT + 4 => Ok(Gpa(le_u32(fadt, FADT_DSDT).into())),
        0 => Err(AcpiError::Unknown { table: "FADT", at, what: "it names no DSDT" }),
        wide => Ok(Gpa(wide)),
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests;
