//! The ACPI hand-over, on tables of all kinds.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use domain::{Gfn, Gpa, PAGE_SIZE, SharedDomain};
use sim::SimDomain;
use xenpvh::acpi::{self, Outcome};
use xenpvh::layout::{ACPI_AREA, Layout};

const RSDP: u64 = 0x6000;
const XSDT: u64 = 0x58d0;
const FADT: u64 = 0x5000;
const DSDT: u64 = 0x1040;
const MADT: u64 = 0x5200;
const HEADER: usize = 36;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Begin with tables such as libxl makes.
    usual: bool,
    pages: u8,
    memory: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Bytes {
        at: u32,
        bytes: Vec<u8>,
    },
    /// A table, right in all but what its body says.
    Table {
        at: u16,
        signature: Signature,
        body: Vec<u8>,
        ours: bool,
    },
    /// A root, right in itself, that names these.
    Root {
        at: u16,
        entries: Vec<u16>,
        rsdp: u16,
    },
    /// A byte changed, and the checksum of the table that it is in put right.
    Field {
        table: u8,
        at: u8,
        value: u8,
    },
    Punch(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Signature {
    Fadt,
    Dsdt,
    Ssdt,
    Mcfg,
    Other([u8; 4]),
}

struct Guest {
    sim: Arc<SimDomain>,
    pages: u64,
    missing: Vec<u64>,
}

impl Guest {
    fn has(&self, at: u64, len: usize) -> bool {
        let end = at.saturating_add(len as u64);
        let gone = |page: &u64| page * 4096 < end && at < (page + 1) * 4096;
        end <= self.pages << 12 && !self.missing.iter().any(gone)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        if self.has(at, bytes.len()) {
            self.sim.ram_write(Gpa(ACPI_AREA.start + at), bytes);
        }
    }

    fn get(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.has(at, len).then(|| {
            self.sim.ram_read(Gpa(ACPI_AREA.start + at), &mut bytes);
            bytes
        })
    }

    /// All there is, page by page.
    fn all(&self) -> Vec<Option<Vec<u8>>> {
        (0..self.pages).map(|page| self.get(page << 12, PAGE_SIZE)).collect()
    }

    fn table(&self, at: u64) -> Option<Vec<u8>> {
        let header = self.get(at, HEADER)?;
        let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        (length as usize <= ACPI_AREA.size as usize).then(|| self.get(at, length as usize)).flatten()
    }

    /// Every table that the root names, by where it is.
    fn tables(&self) -> Option<Vec<(u64, Vec<u8>)>> {
        let rsdp = self.all().into_iter().enumerate().find_map(|(page, bytes)| {
            let bytes = bytes?;
            let found = bytes.chunks_exact(16).position(|chunk| chunk.starts_with(b"RSD PTR "));
            found.map(|at| at * 16).filter(|at| at + 36 <= PAGE_SIZE).map(|at| ((page << 12) + at) as u64)
        })?;
        let rsdp = self.get(rsdp, 36)?;
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let place = |bytes: &[u8]| {
            u64::from_le_bytes(bytes.try_into().expect("eight bytes")).checked_sub(ACPI_AREA.start)
        };
        let xsdt = self.table(place(&rsdp[24..32])?)?;
        assert_eq!(sum(&xsdt), 0);
        let entries = xsdt[HEADER..].chunks_exact(8);
        entries.map(|entry| place(entry).and_then(|at| Some((at, self.table(at)?)))).collect()
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn table(signature: &[u8; 4], body: &[u8], ours: bool) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(signature);
    if ours {
        bytes[10..16].copy_from_slice(b"XENPVH");
        bytes[16..24].copy_from_slice(b"PCIHOST ");
    }
    bytes.extend(body);
    finish(bytes)
}

fn finish(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = 0;
    bytes[9] = sum(&bytes).wrapping_neg();
    bytes
}

fn rsdp(xsdt: u64) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[15] = 2;
    bytes[20] = 36;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = sum(&bytes[..20]).wrapping_neg();
    bytes[32] = sum(&bytes).wrapping_neg();
    bytes
}

fn root(guest: &Guest, at: u64, entries: &[u64], pointer: u64) {
    let body: Vec<u8> = entries.iter().flat_map(|entry| (ACPI_AREA.start + entry).to_le_bytes()).collect();
    guest.put(at, &table(b"XSDT", &body, false));
    guest.put(pointer, &rsdp(ACPI_AREA.start + at));
}

fn usual(guest: &Guest) {
    guest.put(0, &[1; 40]);
    guest.put(DSDT, &table(b"DSDT", &[0x5b, 0x82], false));
    let mut fadt = vec![0; 244 - HEADER];
    fadt[140 - HEADER..148 - HEADER].copy_from_slice(&(ACPI_AREA.start + DSDT).to_le_bytes());
    guest.put(FADT, &table(b"FACP", &fadt, false));
    guest.put(MADT, &table(b"APIC", &[0; 20], false));
    root(guest, XSDT, &[FADT, MADT], RSDP);
}

/// Lays tables out, hands over, and looks at what became of them.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    // libxl's pages, and sometimes fewer of them.
    let pages = if input.pages > 18 { 7 } else { input.pages.max(1) };
    let sim = SimDomain::new(1, &[(Gpa(ACPI_AREA.start), u64::from(pages) << 12)]).expect("a domain");
    let mut guest = Guest { sim, pages: pages.into(), missing: Vec::new() };
    if input.usual {
        usual(&guest);
    }
    for step in input.steps {
        match step {
            Step::Bytes { at, bytes } => guest.put(at.into(), &bytes),
            Step::Table { at, signature, body, ours } => {
                let signature = match signature {
                    Signature::Fadt => b"FACP",
                    Signature::Dsdt => b"DSDT",
                    Signature::Ssdt => b"SSDT",
                    Signature::Mcfg => b"MCFG",
                    Signature::Other(ref other) => other,
                };
                guest.put(u64::from(at) << 4, &table(signature, &body, ours));
            }
            Step::Root { at, entries, rsdp } => {
                let entries: Vec<u64> = entries.iter().map(|at| u64::from(*at) << 4).collect();
                root(&guest, u64::from(at) << 4, &entries, u64::from(rsdp) << 4);
            }
            Step::Field { table, at, value } => {
                let place = [DSDT, FADT, MADT, XSDT][usize::from(table) % 4];
                guest.put(place + u64::from(at), &[value]);
                if let Some(mut bytes) = guest.table(place).filter(|bytes| bytes.len() > HEADER) {
                    bytes[9] = 0;
                    bytes[9] = sum(&bytes).wrapping_neg();
                    guest.put(place, &bytes);
                }
            }
            Step::Punch(page) => {
                let page = u64::from(page) % guest.pages;
                if !guest.missing.contains(&page) {
                    guest.missing.push(page);
                    guest.sim.punch(Gfn((ACPI_AREA.start >> 12) + page));
                }
            }
        }
    }
    let layout = Layout::stock(u64::from(input.memory).max(32) << 20, 40);
    check(&guest, &layout);
}

/// Where a FADT says that the DSDT is.
fn dsdt(table: &[u8]) -> Option<u64> {
    if !table.starts_with(b"FACP") {
        return None;
    }
    let word = |at: usize, len: usize| {
        let bytes = table.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let at = word(140, 8).filter(|at| *at != 0).or(word(40, 4))?;
    at.checked_sub(ACPI_AREA.start)
}

fn check(guest: &Guest, layout: &Layout) {
    let domain: SharedDomain = guest.sim.clone();
    let before = guest.all();
    let tables = |guest: &Guest| guest.tables().expect("tables that were understood");
    match acpi::hand_over(&domain, layout) {
        Ok(Outcome::Added) => {
            let after = tables(guest);
            // The old ones first, as they were.
            for (at, table) in &after[..after.len() - 2] {
                let page = |at: u64| before[at as usize / PAGE_SIZE].as_ref().expect("a page that was there");
                let old: Vec<u8> =
                    (*at..at + table.len() as u64).map(|at| page(at)[at as usize % PAGE_SIZE]).collect();
                assert!(old == *table, "a table was overwritten");
            }
            for (_, table) in &after {
                assert_eq!(sum(table), 0);
                if let Some(at) = dsdt(table) {
                    let dsdt = guest.table(at).expect("a DSDT that was understood");
                    assert_eq!(sum(&dsdt), 0, "a DSDT was overwritten");
                }
            }
            let now = guest.all();
            let again = acpi::hand_over(&domain, layout);
            assert!(matches!(again, Ok(Outcome::Present)), "{again:?}");
            assert!(guest.all() == now, "the second time changed something");
        }
        Ok(Outcome::Present | Outcome::Foreign) => {
            tables(guest);
            assert!(guest.all() == before, "memory was changed for nothing");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(guest.all() == before, "memory was changed in spite of: {error}");
        }
    }
    assert_eq!(guest.sim.mapped_frames(), 0, "mappings are left over");
}
