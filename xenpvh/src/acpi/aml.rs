//! The tables that describe our PCI host bridge: an SSDT and, below 4 GiB, an MCFG.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, If,
    Method, Name, ONE, Or, Path, ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::layout::{FOUR_GIB, Layout, Window};

/// Who made the tables. With [`TABLE_ID`], how we know them again.
pub const OEM_ID: [u8; 6] = *b"XENPVH";
/// Our tables' OEM table id.
pub const TABLE_ID: [u8; 8] = *b"PCIHOST ";

/// The tables' OEM revision: says for which layout they are, so that a later version of us, whose tables may
/// differ, knows a guest that was restored.
pub fn revision(layout: &Layout) -> u32 {
    // FNV-1a, of the numbers that the guest is told.
    let numbers = [layout.ecam, layout.mmio, layout.mmio_high].map(|window| [window.start, window.size]);
    let bytes = numbers.iter().flatten().flat_map(|number| number.to_le_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// `_OSC` of a PCI host bridge (PCI Firmware 3.3 §4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What `_OSC` grants of what is asked: native hot plug (bit 0) and the PCIe capability structure (bit 4),
/// which Linux wants with it.
const OSC_GRANTED: u32 = 1 << 0 | 1 << 4;
/// `_OSC` status: the UUID is not known.
const OSC_BAD_UUID: u32 = 1 << 2;

/// Serializes a table or an AML object.
pub fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes as &mut dyn AmlSink);
    bytes
}

/// A range of memory as a QWord address space descriptor, which holds any range.
fn memory(window: &Window, cacheable: AddressSpaceCacheable) -> AddressSpace<u64> {
    AddressSpace::new_memory(cacheable, true, window.start, window.last(), None)
}

/// The SSDT: the ECAM reserved as a motherboard resource, and the host bridge.
pub fn ssdt(layout: &Layout) -> Vec<u8> {
    let motherboard_hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"));
    let motherboard_uid = Name::new(Path::new("_UID"), &77u8);
    let ecam = memory(&layout.ecam, AddressSpaceCacheable::NotCacheable);
    let motherboard_crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam]));
    let motherboard =
        Device::new(Path::new("ECM0"), vec![&motherboard_hid, &motherboard_uid, &motherboard_crs]);

    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A08"));
    let cid = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let segment = Name::new(Path::new("_SEG"), &ZERO);
    let first_bus = Name::new(Path::new("_BBN"), &ZERO);
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let coherent = Name::new(Path::new("_CCA"), &ONE);
    let base = Name::new(Path::new("_CBA"), &layout.ecam.start);

    let buses = AddressSpace::new_bus_number(0u16, layout.buses().saturating_sub(1));
    let low = layout.mmio.exists().then(|| memory(&layout.mmio, AddressSpaceCacheable::NotCacheable));
    let high =
        layout.mmio_high.exists().then(|| memory(&layout.mmio_high, AddressSpaceCacheable::PreFetchable));
    let mut windows: Vec<&dyn Aml> = vec![&buses];
    windows.extend(low.iter().chain(&high).map(|window| window as &dyn Aml));
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(windows));

    // Arg0 is the UUID, Arg3 the capabilities buffer: status, support, control.
    let control = Path::new("CTRL");
    let status = Path::new("STAT");
    let control_field = CreateDWordField::new(&control, &Arg(3), &8u8);
    let grant = And::new(&control, &control, &OSC_GRANTED);
    let status_field = CreateDWordField::new(&status, &Arg(3), &ZERO);
    let refuse = Or::new(&status, &status, &OSC_BAD_UUID);
    let uuid = Uuid::new(OSC_UUID);
    let known = Equal::new(&Arg(0), &uuid);
    let accept = If::new(&known, vec![&control_field, &grant]);
    let reject = Else::new(vec![&status_field, &refuse]);
    let answer = Return::new(&Arg(3));
    let osc = Method::new(Path::new("_OSC"), 4, true, vec![&accept, &reject, &answer]);

    let bridge = Device::new(
        Path::new("PCI0"),
        vec![&hid, &cid, &segment, &first_bus, &uid, &coherent, &base, &resources, &osc],
    );
    let scope = Scope::new(Path::new("\\_SB_"), vec![&motherboard, &bridge]);
    let mut table = Sdt::new(*b"SSDT", 36, 2, OEM_ID, TABLE_ID, revision(layout));
    table.append_slice(&bytes(&scope));
    table.update_checksum();
    table.as_slice().to_vec()
}

/// The MCFG, where Linux takes it: on a guest without DMI it ignores one for an ECAM above 4 GiB, and
/// uses the host bridge's `_CBA`. Below, having it makes extended configuration space known before `_OSC`
/// is evaluated, without which Linux does not ask for native hot plug.
pub fn mcfg(layout: &Layout) -> Option<Vec<u8>> {
    let last_bus = u8::try_from(layout.buses().checked_sub(1)?).ok()?;
    if layout.ecam.end() > FOUR_GIB {
        return None;
    }
    let mut table = MCFG::new(OEM_ID, TABLE_ID, revision(layout));
    table.add_ecam(layout.ecam.start, 0, 0, last_bus);
    Some(bytes(&table))
}

/// Whether AML declares a PCI host bridge: an `EISAID` of PNP0A03 or PNP0A08 (as a DWord constant) or the
/// same as a string.
pub fn has_host_bridge(aml: &[u8]) -> bool {
    const ENCODED: [&[u8]; 4] =
        [&[0x0c, 0x41, 0xd0, 0x0a, 0x03], &[0x0c, 0x41, 0xd0, 0x0a, 0x08], b"PNP0A03\0", b"PNP0A08\0"];
    ENCODED.iter().any(|id| aml.windows(id.len()).any(|window| window == *id))
}
