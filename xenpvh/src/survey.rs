//! Does the domain look as the command line says? Asked before anything is written to it.

use std::io;

use domain::{Domain, Gpa};
use thiserror::Error;

use crate::layout::{FOUR_GIB, LOW_RAM_LIMIT, Layout, Window};

/// How the options and the domain disagree.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// Where the options say RAM is, there is none.
    #[error("the domain has no RAM at {0:#x}, where the options say that {1} starts")]
    NoRam(u64, Window),
    /// There is RAM where the options say is none: an access to the window would never reach us.
    #[error("the domain has RAM at {0:#x}, inside {1}: -m and the -machine addresses must be the domain's")]
    RamInWindow(u64, Window),
    /// There is more RAM than the options say: devices could not reach it.
    #[error("the domain has RAM at {0:#x}, behind {1}: -m and the ram-* options must be the domain's")]
    MoreRam(u64, Window),
    /// The options say more RAM than the domain may ever have.
    #[error("-m says {0} MiB of RAM, but the domain has {1} MiB at most")]
    TooMuch(u64, u64),
    /// Xen did not let us look.
    #[error("cannot look at the domain's memory: {0}")]
    Map(#[from] io::Error),
}

/// Compares RAM and windows of `layout` with the frames that the domain has.
///
/// Looking at a frame of a populate-on-demand guest populates it, so only the frames at the ends of ranges
/// are looked at: RAM and windows are each in one piece. The end of RAM may have been ballooned away, so a
/// hole there proves nothing; RAM just behind it does. `most` is what the toolstack says the domain may have, in
/// bytes.
///
/// # Errors
/// See [`SurveyError`].
pub fn survey(domain: &dyn Domain, layout: &Layout, most: Option<u64>) -> Result<(), SurveyError> {
    let memory = layout.ram_low.size.saturating_add(layout.ram_high.size);
    if let Some(most) = most.filter(|most| *most < memory) {
        return Err(SurveyError::TooMuch(memory >> 20, most >> 20));
    }
    let has = |address: u64| -> Result<bool, SurveyError> {
        Ok(domain.map(Gpa(address).frame(), 1)?.is_present(0))
    };
    if !has(layout.ram_low.start)? {
        return Err(SurveyError::NoRam(layout.ram_low.start, layout.ram_low));
    }
    for window in [layout.ecam, layout.mmio, layout.mmio_high].into_iter().filter(Window::exists) {
        for address in [window.start, Gpa(window.last()).frame().address().0] {
            if has(address)? {
                return Err(SurveyError::RamInWindow(address, window));
            }
        }
    }
    // Behind a full low RAM are libxl's ACPI tables, which are RAM to Xen. Without high RAM, none may be at 4 GiB.
    let behind_high = if layout.ram_high.exists() {
        layout.ram_high
    } else {
        Window { start: FOUR_GIB, ..layout.ram_high }
    };
    for (behind, ram) in [(layout.ram_low.end(), layout.ram_low), (behind_high.end(), layout.ram_high)] {
        if behind != LOW_RAM_LIMIT && has(behind)? {
            return Err(SurveyError::MoreRam(behind, ram));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use domain::Gpa;
    use sim::SimDomain;

    use super::*;

    fn complaint(ram: &[(Gpa, u64)], layout: &Layout) -> String {
        let domain = SimDomain::new(1, ram).unwrap();
        survey(&*domain, layout, None).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_domain_of_the_right_size_passes() {
        assert_eq!(complaint(&[(Gpa(0), 64 << 20)], &Layout::stock(64 << 20, 40)), "");
    }

    #[test]
    fn too_little_memory_is_said() {
        let text = complaint(&[(Gpa(0), 64 << 20)], &Layout::stock(32 << 20, 40));
        assert!(text.contains("has RAM at 0x2000000, behind low RAM"), "{text}");
    }

    #[test]
    fn too_much_memory_is_said() {
        let domain = SimDomain::new(1, &[(Gpa(0), 64 << 20)]).unwrap();
        let error = survey(&*domain, &Layout::stock(128 << 20, 40), Some(64 << 20)).unwrap_err();
        assert_eq!(error.to_string(), "-m says 128 MiB of RAM, but the domain has 64 MiB at most");
        assert!(survey(&*domain, &Layout::stock(64 << 20, 40), Some(64 << 20)).is_ok());
    }

    #[test]
    fn a_window_over_ram_is_said() {
        let mut layout = Layout::stock(64 << 20, 40);
        layout.mmio.start = 0xf000_0000;
        let text = complaint(&[(Gpa(0), 64 << 20), (Gpa(0xf000_0000), 4096)], &layout);
        assert!(text.contains("has RAM at 0xf0000000, inside 32-bit PCI window"), "{text}");
    }

    #[test]
    fn a_domain_without_ram_is_said() {
        let text = complaint(&[(Gpa(1 << 20), 1 << 20)], &Layout::stock(2 << 20, 40));
        assert!(text.contains("has no RAM at 0x0"), "{text}");
    }
}
