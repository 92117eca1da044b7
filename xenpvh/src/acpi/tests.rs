//! The hand-over against tables laid out as libxl lays them out.

use std::sync::Arc;

use domain::{Gpa, SharedDomain};
use sim::SimDomain;

use super::*;
use crate::layout::Window;

const DSDT: u64 = 0xfc00_1040;
const FADT: u64 = 0xfc00_5000;
const MADT: u64 = 0xfc00_5200;
const XSDT: u64 = 0xfc00_58d0;
const RSDP: u64 = 0xfc00_6000;

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    bytes[..4].copy_from_slice(signature);
    bytes[10..16].copy_from_slice(b"Xen\0\0\0");
    bytes[16..24].copy_from_slice(b"HVM\0\0\0\0\0");
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
    let mut bytes = [0u8; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[15] = 2;
    bytes[20] = 36;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = sum(&bytes[..20]).wrapping_neg();
    bytes[32] = sum(&bytes).wrapping_neg();
    bytes
}

/// A guest as stock libxl leaves it: seven pages of tables, the RSDP alone on the last.
struct Guest(Arc<SimDomain>);

impl Guest {
    fn new() -> Guest {
        Guest::with(&[0x5b, 0x82], &[])
    }

    fn with(dsdt: &[u8], extra: &[(u64, Vec<u8>)]) -> Guest {
        let domain = SimDomain::new(1, &[(Gpa(0xfc00_0000), 7 << 12)]).unwrap();
        let guest = Guest(domain);
        guest.write(0xfc00_0000, &[1; 40]);
        guest.write(DSDT, &table(b"DSDT", dsdt));
        let mut fadt = vec![0u8; 244 - HEADER];
        fadt[140 - HEADER..148 - HEADER].copy_from_slice(&DSDT.to_le_bytes());
        guest.write(FADT, &table(b"FACP", &fadt));
        guest.write(MADT, &table(b"APIC", &[0; 20]));
        let mut entries: Vec<u64> = vec![FADT, MADT];
        for (at, bytes) in extra {
            guest.write(*at, bytes);
            entries.push(*at);
        }
        let body: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        guest.write(XSDT, &table(b"XSDT", &body));
        guest.write(RSDP, &rsdp(XSDT));
        guest
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.0.ram_write(Gpa(at), bytes);
    }

    fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.ram_read(Gpa(at), &mut bytes);
        bytes
    }

    fn all(&self) -> Vec<u8> {
        self.read(0xfc00_0000, 7 << 12)
    }

    fn hand_over(&self, layout: &Layout) -> Result<Outcome, AcpiError> {
        let domain: SharedDomain = self.0.clone();
        super::hand_over(&domain, layout)
    }

    /// The tables that the guest's firmware code would find, checked as it would.
    fn tables(&self) -> Vec<Vec<u8>> {
        let rsdp = self.read(RSDP, 36);
        assert_eq!(sum(&rsdp[..20]), 0);
        assert_eq!(sum(&rsdp), 0);
        let read = |at: u64| {
            let length = le_u32(&self.read(at, 8), 4) as usize;
            let bytes = self.read(at, length);
            assert_eq!(sum(&bytes), 0, "checksum of the table at {at:#x}");
            bytes
        };
        let xsdt = read(le_u64(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        xsdt[HEADER..].chunks(8).map(|entry| read(le_u64(entry, 0))).collect()
    }
}

fn layout() -> Layout {
    Layout::stock(512 << 20, 40)
}

#[test]
fn zeros_in_the_dsdt_are_no_free_room() {
    let guest = Guest::new();
    let dsdt = table(b"DSDT", &[0; 3000]);
    let at = 0xfc00_0040u64;
    guest.write(at, &dsdt);
    guest.write(RSDP + 100, &[1]);
    let mut fadt = vec![0u8; 244 - HEADER];
    fadt[140 - HEADER..148 - HEADER].copy_from_slice(&at.to_le_bytes());
    guest.write(FADT, &table(b"FACP", &fadt));
    assert!(matches!(guest.hand_over(&layout()), Err(AcpiError::NoRoom(_))));
    assert_eq!(guest.read(at, dsdt.len()), dsdt);
}

#[test]
fn tables_are_added_and_the_old_ones_stay() {
    let guest = Guest::new();
    let before = guest.read(0xfc00_0000, 6 << 12);
    assert_eq!(guest.hand_over(&layout()).unwrap(), Outcome::Added);
    assert_eq!(guest.read(0xfc00_0000, 6 << 12), before, "only the RSDP's page is written");
    let tables = guest.tables();
    let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"SSDT", b"MCFG"]);
    assert!(aml::has_host_bridge(&tables[2]));
    let mcfg = &tables[3];
    assert_eq!((le_u64(mcfg, 44), mcfg[54], mcfg[55]), (0xfc80_0000, 0, 7));
}

#[test]
fn a_second_hand_over_finds_the_first() {
    let guest = Guest::new();
    guest.hand_over(&layout()).unwrap();
    let before = guest.all();
    assert_eq!(guest.hand_over(&layout()).unwrap(), Outcome::Present);
    assert_eq!(guest.all(), before);
}

#[test]
fn another_layout_is_refused() {
    let guest = Guest::new();
    guest.hand_over(&layout()).unwrap();
    let before = guest.all();
    let other = Layout::stock(8 << 30, 40);
    assert!(matches!(guest.hand_over(&other), Err(AcpiError::OtherLayout)));
    assert_eq!(guest.all(), before);
}

#[test]
fn an_ecam_above_4_gib_gets_no_mcfg() {
    let guest = Guest::new();
    let mut layout = layout();
    layout.ecam = Window { name: "ECAM", start: 0xc0_0000_0000, size: 256 << 20 };
    assert_eq!(guest.hand_over(&layout).unwrap(), Outcome::Added);
    assert_eq!(guest.tables().len(), 3);
}

#[test]
fn a_toolstacks_own_host_bridge_is_left_alone() {
    let bridge = [0x08, b'_', b'H', b'I', b'D', 0x0c, 0x41, 0xd0, 0x0a, 0x08];
    let in_dsdt = Guest::with(&bridge, &[]);
    let in_ssdt = Guest::with(&[], &[(0xfc00_5400, table(b"SSDT", &bridge))]);
    for guest in [in_dsdt, in_ssdt] {
        let before = guest.all();
        assert_eq!(guest.hand_over(&layout()).unwrap(), Outcome::Foreign);
        assert_eq!(guest.all(), before);
    }
}

#[test]
fn what_is_not_understood_is_not_touched() {
    type Damage = (&'static str, u64, &'static [u8]);
    let cases: [Damage; 8] = [
        ("found no ACPI tables", RSDP, b"XXXXXXXX"),
        ("RSDP at 0xfc006000 is not as expected (its revision", RSDP + 15, &[0]),
        ("(its length is not 36)", RSDP + 20, &[40]),
        ("(its checksum is wrong)", RSDP + 9, &[0x55]),
        ("XSDT at 0xfc0058d0 is not as expected (its signature", XSDT, b"RSDT"),
        ("(its length is wrong)", XSDT + 4, &[0xff, 0xff, 0xff, 0xff]),
        ("(its checksum is wrong)", XSDT + 12, &[0x77]),
        ("DSDT at 0xfc001040", DSDT + 9, &[0xaa]),
    ];
    for (text, at, bytes) in cases {
        let guest = Guest::new();
        guest.write(at, bytes);
        let before = guest.all();
        let error = guest.hand_over(&layout()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert_eq!(guest.all(), before, "{text}");
    }
}

#[test]
fn pointers_out_of_the_area_are_refused() {
    for target in [0u64, 0x1000, 0xfc01_2000, u64::MAX] {
        let guest = Guest::new();
        guest.write(RSDP, &rsdp(target));
        assert!(guest.hand_over(&layout()).is_err());
        let guest = Guest::with(&[], &[]);
        guest.write(XSDT, &table(b"XSDT", &target.to_le_bytes()));
        assert!(guest.hand_over(&layout()).is_err());
    }
}

#[test]
fn without_room_beside_the_rsdp_the_info_page_serves() {
    let guest = Guest::new();
    guest.write(RSDP + 100, &[1]);
    assert_eq!(guest.hand_over(&layout()).unwrap(), Outcome::Added);
    assert_eq!(guest.tables().len(), 4);

    let guest = Guest::new();
    guest.write(RSDP + 100, &[1]);
    guest.write(0xfc00_0300, &[1]);
    assert!(matches!(guest.hand_over(&layout()), Err(AcpiError::NoRoom(_))));
}
