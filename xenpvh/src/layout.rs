//! Where things are in the guest's physical address space.

use std::fmt;

use crate::cli::XenpvhLayout;

/// Start of the first address that stock libxl never gives to RAM below 4 GiB: its ACPI tables
/// (`ACPI_INFO_PHYSICAL_ADDRESS` in libacpi), so also the end of low RAM.
pub const LOW_RAM_LIMIT: u64 = 0xfc00_0000;
/// What libxl's tables may take at most: the info page, 16 pages of tables, and the RSDP's page.
pub const ACPI_AREA: Window = Window { name: "ACPI tables", start: LOW_RAM_LIMIT, size: 18 << 12 };
/// The end of what 32 bits address.
pub const FOUR_GIB: u64 = 1 << 32;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// What every guest has, whatever the command line says.
const RESERVED: [Window; 3] = [
    ACPI_AREA,
    Window { name: "local APIC", start: 0xfee0_0000, size: MIB },
    Window { name: "Xen special pages", start: 0xfeff_8000, size: 0x8000 },
];

/// A named range of guest-physical addresses, in bytes. A size of 0 means that it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it is, as a user would call it.
    pub name: &'static str,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Window {
    /// The address behind the last one.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether an access of `size` bytes at `address` lies in it whole.
    pub fn contains(&self, address: u64, size: u64) -> bool {
        self.offset(address, size).is_some()
    }

    /// At which byte of it an access of `size` bytes at `address` begins, if it lies in it whole.
    pub fn offset(&self, address: u64, size: u64) -> Option<u64> {
        let offset = address.checked_sub(self.start)?;
        self.size.checked_sub(offset).filter(|room| *room > 0 && *room >= size).map(|_| offset)
    }

    /// The last address. Only of one that exists.
    pub fn last(&self) -> u64 {
        self.end().saturating_sub(1)
    }

    fn overlaps(&self, other: &Window) -> bool {
        self.size != 0 && other.size != 0 && self.start < other.end() && other.start < self.end()
    }

    /// Whether it has any size.
    pub fn exists(&self) -> bool {
        self.size != 0
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{:#x}-{:#x}]", self.name, self.start, self.last())
    }
}

/// Why a layout cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// Two ranges share addresses.
    #[error("{0} overlaps {1}")]
    Overlap(Window, Window),
    /// A range wraps around the end of the address space, or reaches addresses no guest can have.
    #[error("{0} reaches beyond the {1} bits of a guest-physical address")]
    TooHigh(Window, u32),
    /// A base or size that is no multiple of what it must be.
    #[error("{0}: base and size must be multiples of {1:#x} bytes")]
    Misaligned(Window, u64),
    /// The 32-bit window must be addressable with 32 bits.
    #[error("{0} must lie below 4 GiB")]
    NotBelow4G(Window),
    /// The ECAM holds 1 to 256 buses of 1 MiB.
    #[error("{0}: pci-ecam-size must be 1 MiB a bus, for 1 to 256 buses")]
    EcamSize(Window),
    /// The RAM options do not hold what `-m` says.
    #[error("-m says {0:#x} bytes of RAM, but ram-low-size and ram-high-size hold {1:#x}")]
    RamSize(u64, u64),
}

/// The guest's address space: RAM, ECAM and the two windows for BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM below 4 GiB.
    pub ram_low: Window,
    /// RAM above it, if any.
    pub ram_high: Window,
    /// PCI Express configuration space, 1 MiB a bus.
    pub ecam: Window,
    /// Window for 32-bit BARs.
    pub mmio: Window,
    /// Window for 64-bit BARs.
    pub mmio_high: Window,
}

impl Layout {
    /// The layout for a domain that stock libxl built with `memory` bytes of RAM.
    ///
    /// RAM is where libxl puts it: up to 0xfc000000, the rest from 4 GiB. The ECAM is below 4 GiB since
    /// Linux takes an MCFG for no other on a guest without DMI, and without an MCFG it does not ask for
    /// native PCIe hot plug. The hole that libxl always leaves there has room for 8 buses. `address_bits`
    /// is the width of a physical address of this host.
    pub fn stock(memory: u64, address_bits: u32) -> Layout {
        let low = memory.min(LOW_RAM_LIMIT);
        let high = memory.saturating_sub(low);
        // RAM that reaches too high is found by `check`.
        let high_start = FOUR_GIB.saturating_add(high).checked_next_multiple_of(GIB).unwrap_or(u64::MAX);
        let room = (1u64 << address_bits.clamp(36, 48)).saturating_sub(high_start);
        Layout {
            ram_low: Window { name: "low RAM", start: 0, size: low },
            ram_high: Window { name: "high RAM", start: FOUR_GIB, size: high },
            ecam: Window { name: "ECAM", start: 0xfc80_0000, size: 8 * MIB },
            mmio: Window { name: "32-bit PCI window", start: 0xfd00_0000, size: 28 * MIB },
            mmio_high: Window { name: "64-bit PCI window", start: high_start, size: room.min(32 * GIB) },
        }
    }

    /// The layout that `-machine xenpvh` spells out, for `memory` bytes of RAM: the first `ram-low-size` of it
    /// are low, the rest is high.
    ///
    /// # Errors
    /// The two do not hold the memory.
    pub fn from_options(options: &XenpvhLayout, memory: u64) -> Result<Layout, LayoutError> {
        let low = memory.min(options.ram_low_size);
        let high = memory.saturating_sub(low);
        if high > options.ram_high_size {
            return Err(LayoutError::RamSize(
                memory,
                options.ram_low_size.saturating_add(options.ram_high_size),
            ));
        }
        let window = |name, start, size| Window { name, start, size };
        Ok(Layout {
            ram_low: window("low RAM", options.ram_low_base, low),
            ram_high: window("high RAM", options.ram_high_base, high),
            ecam: window("ECAM", options.ecam_base, options.ecam_size),
            mmio: window("32-bit PCI window", options.mmio_base, options.mmio_size),
            mmio_high: window("64-bit PCI window", options.mmio_high_base, options.mmio_high_size),
        })
    }

    /// How many buses the ECAM holds, 0 without one.
    pub fn buses(&self) -> u16 {
        (self.ecam.size / MIB).min(256) as u16
    }

    /// RAM and windows, those that exist.
    pub fn windows(&self) -> impl Iterator<Item = Window> + Clone {
        [self.ram_low, self.ram_high, self.ecam, self.mmio, self.mmio_high].into_iter().filter(Window::exists)
    }

    /// Checks that the layout can be.
    ///
    /// # Errors
    /// See [`LayoutError`]; both ranges are named where two collide.
    pub fn check(&self, address_bits: u32) -> Result<(), LayoutError> {
        for window in self.windows() {
            let end = window.start.checked_add(window.size);
            if end.is_none_or(|end| end > 1 << address_bits) {
                return Err(LayoutError::TooHigh(window, address_bits));
            }
            if (window.start | window.size) & 0xfff != 0 {
                return Err(LayoutError::Misaligned(window, 0x1000));
            }
        }
        if self.ecam.exists() {
            if !self.ecam.size.is_multiple_of(MIB) || self.ecam.size > 256 * MIB {
                return Err(LayoutError::EcamSize(self.ecam));
            }
            if !self.ecam.start.is_multiple_of(MIB) {
                return Err(LayoutError::Misaligned(self.ecam, MIB));
            }
        }
        if self.mmio.exists() && self.mmio.end() > FOUR_GIB {
            return Err(LayoutError::NotBelow4G(self.mmio));
        }
        let mut ours = self.windows();
        while let Some(one) = ours.next() {
            let mut others = ours.clone().chain(RESERVED);
            if let Some(other) = others.find(|other| one.overlaps(other)) {
                return Err(LayoutError::Overlap(one, other));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(name: &'static str, start: u64, size: u64) -> Window {
        Window { name, start, size }
    }

    /// The numbers of QEMU's documentation.
    fn documented() -> Layout {
        Layout {
            ram_low: window("low RAM", 0, 2 * GIB),
            ram_high: window("high RAM", FOUR_GIB, 2 * GIB),
            ecam: window("ECAM", 824633720832, 268435456),
            mmio: window("32-bit PCI window", 4026531840, 33554432),
            mmio_high: window("64-bit PCI window", 824902156288, 68719476736),
        }
    }

    #[test]
    fn the_documented_layout_is_good() {
        assert_eq!(documented().check(40), Ok(()));
        assert_eq!(documented().buses(), 256);
    }

    #[test]
    fn stock_layouts_fit_any_memory_size() {
        assert!(matches!(Layout::stock(u64::MAX, 40).check(40), Err(LayoutError::TooHigh(..))));
        for memory in [128 * MIB, 512 * MIB, 4032 * MIB, 4096 * MIB, 5 * GIB, 200 * GIB] {
            for bits in [39, 40, 46, 52] {
                let layout = Layout::stock(memory, bits);
                assert_eq!(layout.check(bits), Ok(()), "{memory:#x} {bits}");
                assert_eq!(layout.ram_low.size + layout.ram_high.size, memory);
                assert!(layout.ecam.end() <= FOUR_GIB && layout.mmio_high.size >= GIB);
            }
        }
    }

    #[test]
    fn overlaps_name_both_ranges() {
        let mut layout = documented();
        layout.ecam.start = 3 * GIB + 768 * MIB;
        let text = layout.check(40).unwrap_err().to_string();
        assert_eq!(text, "ECAM [0xf0000000-0xffffffff] overlaps 32-bit PCI window [0xf0000000-0xf1ffffff]");
        let mut layout = documented();
        layout.mmio.start = GIB;
        let text = layout.check(40).unwrap_err().to_string();
        assert_eq!(text, "low RAM [0x0-0x7fffffff] overlaps 32-bit PCI window [0x40000000-0x41ffffff]");
        let mut layout = documented();
        layout.mmio.start = 0xfb00_0000;
        assert!(layout.check(40).unwrap_err().to_string().ends_with("ACPI tables [0xfc000000-0xfc011fff]"));
    }

    #[test]
    fn bad_sizes_are_refused() {
        let mut layout = documented();
        layout.ecam.size = 512 * MIB;
        assert!(matches!(layout.check(40), Err(LayoutError::EcamSize(_))));
        let mut layout = documented();
        layout.mmio_high.start = u64::MAX - 0xfff;
        assert!(matches!(layout.check(40), Err(LayoutError::TooHigh(..))));
        assert!(matches!(documented().check(39), Err(LayoutError::TooHigh(..))));
        let mut layout = documented();
        layout.mmio.size = 0x1001;
        assert!(matches!(layout.check(40), Err(LayoutError::Misaligned(..))));
    }

    #[test]
    fn accesses_lie_in_a_window_whole() {
        let window = window("w", 0x1000, 0x1000);
        assert!(window.contains(0x1000, 8) && window.contains(0x1ff8, 8));
        assert!(!window.contains(0x1ffc, 8) && !window.contains(0xfff, 1) && !window.contains(u64::MAX, 8));
    }
}
