//! Domain ids.

use std::fmt;
use std::str::FromStr;

/// The id of a domain that a device model can serve: 1 to 32751. Domain 0 is the host's own, and from
/// 0x7ff0 on the ids have special meanings (xen/include/public/xen.h, `DOMID_FIRST_RESERVED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(u16);

/// A number or text that is not a domain id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad domain id '{0}': it is a number from 1 to {max}", max = DomId::MAX.0)]
pub struct DomIdError(String);

impl DomId {
    /// The greatest id.
    pub const MAX: DomId = DomId(0x7fef);

    /// The id as Xen takes it.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for DomId {
    type Error = DomIdError;

    fn try_from(id: u32) -> Result<DomId, DomIdError> {
        match u16::try_from(id) {
            Ok(id) if (1..=DomId::MAX.0).contains(&id) => Ok(DomId(id)),
            _ => Err(DomIdError(id.to_string())),
        }
    }
}

impl FromStr for DomId {
    type Err = DomIdError;

    fn from_str(text: &str) -> Result<DomId, DomIdError> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = text.parse::<u32>().ok().filter(|_| digits);
        id.and_then(|id| DomId::try_from(id).ok()).ok_or_else(|| DomIdError(text.to_owned()))
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_domains() {
        assert_eq!("1".parse::<DomId>().unwrap().get(), 1);
        assert_eq!("32751".parse::<DomId>().unwrap(), DomId::MAX);
        for bad in ["", "0", "32752", "65536", "4294967297", "-1", "+1", "0x7", " 7", "7 ", "guest"] {
            let error = bad.parse::<DomId>().unwrap_err();
            assert_eq!(error.to_string(), format!("bad domain id '{bad}': it is a number from 1 to 32751"));
        }
        assert!(DomId::try_from(0).is_err());
        assert!(DomId::try_from(65537).is_err());
    }
}
