//! Where the guest's RAM is.

use domain::Gpa;

use crate::MemoryError;

/// One past the highest guest-physical address there can be (x86-64 has at most 52 bits).
const LIMIT: u64 = 1 << 52;

/// A run of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address, page-aligned.
    pub start: Gpa,
    /// Size in bytes, a multiple of the page size and not 0.
    pub size: u64,
}

impl Region {
    /// Offset of `addr` in the region, if `len` bytes from there are all inside it and `addr` is.
    pub(crate) fn offset_of(&self, addr: Gpa, len: u64) -> Option<u64> {
        let offset = addr.0.checked_sub(self.start.0)?;
        let left = self.size.checked_sub(offset)?;
        (left > 0 && len <= left).then_some(offset)
    }
}

/// Sorts the regions by address, and checks that each is whole pages and that none overlap.
pub(crate) fn sorted(regions: &[Region]) -> Result<Vec<Region>, MemoryError> {
    let mut regions = regions.to_vec();
    regions.sort_by_key(|region| region.start);
    let mut free_from = 0;
    for region in &regions {
        let end = region.start.checked_add(region.size).filter(|end| end.0 <= LIMIT);
        match end {
            Some(end)
                if region.size > 0
                    && region.start.page_offset() == 0
                    && end.page_offset() == 0
                    && region.start.0 >= free_from =>
            {
                free_from = end.0;
            }
            _ => return Err(MemoryError::BadRegion { addr: region.start, size: region.size }),
        }
    }
    Ok(regions)
}
