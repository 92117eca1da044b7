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
const MAX_TABLE: u64 = ACPI_AREA.size;
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
        if le_u32(&bytes, 20) as usize != RSDP_LENGTH {
            return Err(unknown("its length is not 36"));
        }
        if sum(&bytes[..RSDP_V1_LENGTH]) != 0 || sum(&bytes) != 0 {
            return Err(unknown("its checksum is wrong"));
        }
        let at = Gpa(le_u64(&bytes, RSDP_XSDT));
        let xsdt = read_table(memory, at, "XSDT", Some(*b"XSDT"))?;
        if !entries(&xsdt).len().is_multiple_of(8) {
            return Err(AcpiError::Unknown { table: "XSDT", at, what: "its length is odd" });
        }
        Ok(Tables { rsdp, taken: vec![(rsdp, RSDP_ROOM), (at, xsdt.len() as u64)], xsdt })
    }

    fn entries(&self) -> impl Iterator<Item = Gpa> + '_ {
        entries(&self.xsdt).as_chunks().0.iter().map(|entry| Gpa(u64::from_le_bytes(*entry)))
    }

    /// Reads every table and looks for a PCI host bridge.
    fn bridge(&self, memory: &GuestMemory, revision: u32) -> Result<Option<Outcome>, AcpiError> {
        let (mut foreign, mut ours) = (false, None);
        for at in self.entries() {
            let table = read_table(memory, at, "table", None)?;
            if has(&table, 10, &aml::OEM_ID) && has(&table, 16, &aml::TABLE_ID) {
                ours = Some(le_u32(&table, 24));
                continue;
            }
            foreign |= match table.first_chunk() {
                Some(b"SSDT") => aml::has_host_bridge(&table),
                Some(b"FACP") => {
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
        let new: Vec<&Vec<u8>> = new.iter().flatten().collect();
        let xsdt_length = self.xsdt.len().saturating_add(new.len().saturating_mul(8));
        let lengths = new.iter().map(|table| table.len());
        let needed = lengths.fold(aligned(xsdt_length), |sum, length| sum.saturating_add(aligned(length)));
        let start = self.room(memory, needed)?;

        let mut xsdt = self.xsdt.clone();
        // `room` found that all of it fits.
        let mut at = start.0.saturating_add(aligned(xsdt_length) as u64);
        for table in new {
            memory.write(Gpa(at), table)?;
            xsdt.extend(at.to_le_bytes());
            at = at.saturating_add(aligned(table.len()) as u64);
        }
        let length = u32::try_from(xsdt_length).map_err(|_| AcpiError::NoRoom(needed))?;
        put(&mut xsdt, 4, &length.to_le_bytes());
        settle(&mut xsdt, 9);
        memory.write(start, &xsdt)?;

        let mut rsdp = [0u8; RSDP_LENGTH];
        memory.read(self.rsdp, &mut rsdp)?;
        put(&mut rsdp, RSDP_XSDT, &start.0.to_le_bytes());
        settle(&mut rsdp, RSDP_EXTENDED_CHECKSUM);
        memory.write(self.rsdp, &rsdp)?;
        Ok(())
    }

    /// Finds `needed` bytes that are zero, in no table, and in a page that libxl gave to its tables: the rest
    /// of the RSDP's page, or else of the info page.
    fn room(&self, memory: &GuestMemory, needed: usize) -> Result<Gpa, AcpiError> {
        for (before, used) in [(self.rsdp, RSDP_ROOM), (Gpa(ACPI_AREA.start), INFO_ROOM)] {
            let start = before.0.saturating_add(used).next_multiple_of(16);
            let page_end = before.frame().address().0.saturating_add(PAGE_SIZE as u64);
            let end = start.saturating_add(needed as u64);
            if end > page_end {
                continue;
            }
            let touches = |(at, length): &(Gpa, u64)| at.0 < end && start < at.0.saturating_add(*length);
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
    (ACPI_AREA.start..ACPI_AREA.end()).step_by(PAGE_SIZE).find_map(|at| {
        memory.read(Gpa(at), &mut page).ok()?;
        // At a multiple of 16, and whole in the page.
        let places = page.windows(RSDP_LENGTH).step_by(16).zip((at..).step_by(16));
        places.into_iter().find(|(bytes, _)| bytes.starts_with(&RSDP_SIGNATURE)).map(|(_, place)| Gpa(place))
    })
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
    if signature.is_some_and(|signature| !header.starts_with(&signature)) {
        return Err(unknown("its signature is wrong"));
    }
    let length = le_u32(&header, 4);
    // The FACS has no checksum; no XSDT lists it.
    if !(HEADER as u64..=MAX_TABLE).contains(&length.into()) || !ACPI_AREA.contains(at.0, length.into()) {
        return Err(unknown("its length is wrong"));
    }
    let mut bytes = vec![0u8; length as usize];
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

/// The entries of an XSDT, 8 bytes each.
fn entries(xsdt: &[u8]) -> &[u8] {
    xsdt.get(HEADER..).unwrap_or_default()
}

fn aligned(length: usize) -> usize {
    length.checked_next_multiple_of(16).unwrap_or(usize::MAX)
}

/// Whether `bytes` have `field` at `at`.
fn has(bytes: &[u8], at: usize, field: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(field))
}

/// Puts `field` at `at`.
fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
}

/// Sets the byte at `at` so that the sum of all of them is 0.
fn settle(bytes: &mut [u8], at: usize) {
    put(bytes, at, &[0]);
    let rest = sum(bytes);
    put(bytes, at, &[rest.wrapping_neg()]);
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The number at `at`, 0 where that is past the end.
fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |field| u32::from_le_bytes(*field))
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |field| u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests;
