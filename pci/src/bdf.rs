//! Where a function is: bus, device, function.

use std::fmt;

/// A function's address: bus (8 bits), device (5) and function (3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// The address, or `None` if `device` is above 31 or `function` above 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Bdf> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Bdf((bus as u16) << 8 | (device as u16) << 3 | function as u16))
    }

    /// From the 16 bits of a PCI requester id; every value is an address.
    pub const fn from_bits(bits: u16) -> Bdf {
        Bdf(bits)
    }

    /// The 16 bits of the requester id.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Bus, 0 to 255.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device (slot), 0 to 31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// Function, 0 to 7.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_text() {
        let bdf = Bdf::new(0x12, 0x1f, 7).unwrap();
        assert_eq!((bdf.bus(), bdf.device(), bdf.function(), bdf.bits()), (0x12, 0x1f, 7, 0x12ff));
        assert_eq!(bdf.to_string(), "12:1f.7");
        assert_eq!(Bdf::new(0, 1, 0).unwrap().to_string(), "00:01.0");
        assert_eq!((Bdf::new(0, 32, 0), Bdf::new(0, 0, 8)), (None, None));
    }
}
