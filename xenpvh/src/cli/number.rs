//! Numbers, sizes and switches as QEMU writes them.

/// `on` and `off` and their other spellings.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, `0x` hexadecimal or, with a leading zero, octal.
pub(super) fn unsigned(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => match text.strip_prefix('0') {
            Some(octal) if !octal.is_empty() => (octal, 8),
            _ => (text, 10),
        },
    };
    // from_str_radix would take a sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A whole number that may be negative.
pub(super) fn signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(magnitude) => unsigned(magnitude).and_then(|n| 0i64.checked_sub_unsigned(n)),
        None => unsigned(text).and_then(|n| i64::try_from(n).ok()),
    }
}

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotASize {
    /// Not a number at all.
    Malformed,
    /// A number, but negative or not below 2^64.
    OutOfRange,
}

/// A number of bytes. Decimals may have a fraction and a suffix (B, K, M, G, T, P, E, powers of
/// 1024); hexadecimal numbers have neither. `default_suffix` is used when there is none.
pub(super) fn size(text: &str, default_suffix: char) -> Result<u64, NotASize> {
    if text.starts_with("0x") || text.starts_with("0X") {
        return unsigned(text).ok_or(NotASize::Malformed);
    }
    if let Some(magnitude) = text.strip_prefix('-') {
        size(magnitude, default_suffix)?;
        return Err(NotASize::OutOfRange);
    }
    let suffix = text.chars().last().filter(char::is_ascii_alphabetic);
    let number = suffix.and_then(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    let shift = match suffix.unwrap_or(default_suffix).to_ascii_uppercase() {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return Err(NotASize::Malformed),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(NotASize::Malformed);
    }
    // A fraction of a byte, or of an unsaid unit, is nothing that anyone means.
    if number.contains('.') && (shift == 0 || suffix.is_none()) {
        return Err(NotASize::Malformed);
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| NotASize::OutOfRange)? };
    // 18 digits are finer than a byte of an exabyte; more would overflow.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let fraction: u128 = fraction.parse().unwrap_or(0);
    whole
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add((fraction << shift).checked_div(scale)?))
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or(NotASize::OutOfRange)
}

/// Whether QEMU would take `text` as an id.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("1.5G", 3 << 29),
            (".5M", 1 << 19),
            ("1.M", 1 << 20),
            ("15E", 15 << 60),
            ("0x1000", 4096),
            ("18446744073709551615", u64::MAX),
            ("0.1k", 102),
        ] {
            assert_eq!(size(text, 'B'), Ok(bytes), "{text}");
        }
        assert_eq!(size("512", 'M'), Ok(512 << 20));
        assert_eq!(size("0x10", 'M'), Ok(16));
        for text in
            ["", "x", "k", ".", "1.5", "1e3", "0x10G", "0x", "0x1.8", "4kk", "1.5B", "+1", "1 ", "é", "1é"]
        {
            assert_eq!(size(text, 'B'), Err(NotASize::Malformed), "{text}");
        }
        for text in ["-1", "16E", "18446744073709551616", "99999999999999999999999999999999999999999999"] {
            assert_eq!(size(text, 'B'), Err(NotASize::OutOfRange), "{text}");
        }
    }

    #[test]
    fn integers() {
        assert_eq!(unsigned("10"), Some(10));
        assert_eq!(unsigned("010"), Some(8));
        assert_eq!(unsigned("0x10"), Some(16));
        assert_eq!(unsigned("0"), Some(0));
        assert_eq!(signed("-5"), Some(-5));
        assert_eq!(signed("-9223372036854775808"), Some(i64::MIN));
        for text in ["", "-", "+1", "1x", "0x", "0x-1", "08", "18446744073709551616", " 1"] {
            assert_eq!(unsigned(text), None, "{text}");
        }
        assert_eq!(signed("9223372036854775808"), None);
        assert_eq!(signed("--1"), None);
    }
}
