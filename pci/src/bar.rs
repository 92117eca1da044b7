//! Base address registers (PCI 3.0 §6.2.5.1).

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of a BAR, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BarIndex(u8);

impl BarIndex {
    /// BAR `index`, or `None` above 5.
    pub const fn new(index: u8) -> Option<BarIndex> {
        if index < 6 { Some(BarIndex(index)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What kind of address space a BAR asks for. There are no I/O BARs: no window for them exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Anywhere below 4 GiB.
    Memory32 {
        /// Reads have no side effects, so the window may be prefetchable.
        prefetch: bool,
    },
    /// Anywhere; takes this BAR and the next.
    Memory64 {
        /// As for `Memory32`.
        prefetch: bool,
    },
}

impl BarKind {
    /// The read-only low bits of the register.
    pub(crate) const fn flags(self) -> u32 {
        match self {
            BarKind::Memory32 { prefetch } => (prefetch as u32) << 3,
            BarKind::Memory64 { prefetch } => (prefetch as u32) << 3 | 0b100,
        }
    }

    pub(crate) const fn is_64(self) -> bool {
        matches!(self, BarKind::Memory64 { .. })
    }
}

/// Why a BAR cannot be added to a function.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Its size is not a power of two of at least 4 KiB, or too large for its kind.
    #[error("BAR{index}: size {size:#x} is not a power of two from 4 KiB on that fits its kind")]
    Size {
        /// Number of the BAR.
        index: u8,
        /// Size asked for, in bytes.
        size: u64,
    },
    /// It, or the other half of a 64-bit one, is there already or does not exist.
    #[error("BAR{index}: taken, or no room for its upper half")]
    Taken {
        /// Number of the BAR.
        index: u8,
    },
}

/// A BAR that is not decoded.
const NOWHERE: u64 = u64::MAX;

#[derive(Debug)]
struct Bar {
    kind: BarKind,
    size: u64,
    base: AtomicU64,
}

/// The BARs of a function and where each is decoded now. Moved by [`ConfigSpace`](crate::ConfigSpace) as the
/// guest writes it; read without a lock.
#[derive(Debug, Default)]
pub struct Bars([Option<Bar>; 6]);

impl Bars {
    /// No BARs.
    pub fn none() -> Bars {
        Bars::default()
    }

    /// Adds a BAR of `size` bytes: a power of two, at least 4096 so that no page is shared.
    ///
    /// # Errors
    /// The size or the number will not do.
    pub fn with(mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<Bars, BarError> {
        let index = index.get();
        // A 32-bit one must leave room below it and above it.
        let largest: u64 = if kind.is_64() { 1 << 62 } else { 1 << 31 };
        if !size.is_power_of_two() || size < 4096 || size > largest {
            return Err(BarError::Size { index, size });
        }
        let at = usize::from(index);
        let below = at.checked_sub(1).and_then(|below| self.0.get(below));
        let upper_half = below.and_then(Option::as_ref).is_some_and(|bar| bar.kind.is_64());
        let room = !kind.is_64() || matches!(self.0.get(at.saturating_add(1)), Some(None));
        match self.0.get_mut(at) {
            Some(slot @ None) if !upper_half && room => {
                *slot = Some(Bar { kind, size, base: AtomicU64::new(NOWHERE) });
                Ok(self)
            }
            _ => Err(BarError::Taken { index }),
        }
    }

    /// Kind and size in bytes of BAR `index`, if there is one.
    pub fn get(&self, index: u8) -> Option<(BarKind, u64)> {
        let bar = self.0.get(usize::from(index))?.as_ref()?;
        Some((bar.kind, bar.size))
    }

    /// Guest-physical address at which BAR `index` is decoded now, if it is.
    pub fn base(&self, index: u8) -> Option<u64> {
        let bar = self.0.get(usize::from(index))?.as_ref()?;
        Some(bar.base.load(Ordering::Acquire)).filter(|base| *base != NOWHERE)
    }

    /// The BAR, and the offset in it, at which an access lies that is wholly inside a decoded BAR.
    pub fn decode(&self, address: u64, size: u8) -> Option<(u8, u64)> {
        for (index, bar) in (0u8..).zip(&self.0) {
            let Some(bar) = bar else { continue };
            let base = bar.base.load(Ordering::Acquire);
            if base == NOWHERE {
                continue;
            }
            if let Some(offset) = address.checked_sub(base)
                && offset < bar.size
                && bar.size.wrapping_sub(offset) >= u64::from(size)
            {
                return Some((index, offset));
            }
        }
        None
    }

    /// Whether an access inside BAR `index` would lie wholly in it.
    pub fn contains(&self, index: u8, offset: u64, size: u8) -> bool {
        self.get(index).is_some_and(|(_, bar)| offset.checked_add(size.into()).is_some_and(|end| end <= bar))
    }

    /// Puts BAR `index` at `base`, or nowhere if `base` is not a place: 0, or up to the end of the
    /// address space (which is what a register being sized looks like).
    pub(crate) fn place(&self, index: u8, base: Option<u64>) {
        if let Some(Some(bar)) = self.0.get(usize::from(index)) {
            let limit = if bar.kind.is_64() { u64::MAX } else { u64::from(u32::MAX) };
            let decoded = base
                .filter(|base| *base != 0)
                .filter(|base| base.checked_add(bar.size).is_some_and(|end| end <= limit));
            bar.base.store(decoded.unwrap_or(NOWHERE), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M32: BarKind = BarKind::Memory32 { prefetch: false };
    const M64: BarKind = BarKind::Memory64 { prefetch: true };

    fn index(index: u8) -> BarIndex {
        BarIndex::new(index).unwrap()
    }

    #[test]
    fn only_bars_that_can_be() {
        assert_eq!(BarIndex::new(6), None);
        for size in [0, 1, 16, 2048, 4097, 12288, 1 << 63] {
            assert_eq!(
                Bars::none().with(index(0), M64, size).unwrap_err(),
                BarError::Size { index: 0, size },
                "{size:#x}"
            );
        }
        assert!(Bars::none().with(index(0), M32, 1 << 32).is_err());
        assert!(Bars::none().with(index(0), M32, 1 << 31).is_ok());
        assert_eq!(Bars::none().with(index(5), M64, 4096).unwrap_err(), BarError::Taken { index: 5 });
        let bars = Bars::none().with(index(1), M64, 4096).unwrap();
        assert_eq!(bars.with(index(2), M32, 4096).unwrap_err(), BarError::Taken { index: 2 });
        let bars = Bars::none().with(index(1), M32, 4096).unwrap();
        assert_eq!(bars.with(index(0), M64, 4096).unwrap_err(), BarError::Taken { index: 0 });
        let bars = Bars::none().with(index(1), M32, 4096).unwrap();
        assert_eq!(bars.with(index(1), M32, 4096).unwrap_err(), BarError::Taken { index: 1 });
    }

    #[test]
    fn decodes_only_what_lies_wholly_inside() {
        let bars = Bars::none().with(index(0), M64, 0x1000).unwrap().with(index(2), M32, 0x2000).unwrap();
        assert_eq!(bars.decode(0xffff_ffff_ffff_ffff, 1), None);
        bars.place(0, Some(0x1_0000_0000));
        bars.place(2, Some(0xf000_0000));
        let table = [
            (0x1_0000_0000, 8, Some((0, 0))),
            (0x1_0000_0ff8, 8, Some((0, 0xff8))),
            (0x1_0000_0ffc, 8, None),
            (0x1_0000_0fff, 1, Some((0, 0xfff))),
            (0x1_0000_1000, 1, None),
            (0xffff_ffff, 4, None),
            (0xf000_1ffe, 4, None),
            (0xf000_1ffc, 4, Some((2, 0x1ffc))),
            (u64::MAX, 8, None),
        ];
        for (address, size, expected) in table {
            assert_eq!(bars.decode(address, size), expected, "{address:#x}/{size}");
        }
        assert!(bars.contains(0, 0xffc, 4));
        for (bar, offset) in [(0, 0xffd), (0, u64::MAX), (1, 0), (6, 0), (255, 0)] {
            assert!(!bars.contains(bar, offset, 4));
        }
    }

    #[test]
    fn places_that_are_none() {
        let bars = Bars::none().with(index(0), M64, 0x1000).unwrap().with(index(2), M32, 0x1000).unwrap();
        for base in [None, Some(0), Some(!0xfff)] {
            bars.place(0, base);
            assert_eq!(bars.base(0), None, "{base:?}");
        }
        bars.place(0, Some(!0x1fff));
        assert_eq!(bars.base(0), Some(0xffff_ffff_ffff_e000));
        bars.place(2, Some(0xffff_f000));
        assert_eq!(bars.base(2), None);
        bars.place(2, Some(0xffff_e000));
        assert_eq!(bars.base(2), Some(0xffff_e000));
        bars.place(9, Some(0x1000));
    }
}
