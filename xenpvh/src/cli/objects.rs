//! `-object`.

use std::path::PathBuf;

use super::config::{RngObject, RngSource};
use super::keyval::{self, Grammar};

/// The kinds of object there are.
pub(super) const KINDS: &[&str] = &["rng-builtin", "rng-random"];

/// Reads one `-object` argument.
pub(super) fn object(argument: &str) -> Result<RngObject, String> {
    let mut pairs = keyval::parse_or_json(argument, Grammar::Tree, "qom-type")?;
    let kind = pairs.text("qom-type")?.ok_or("Parameter 'qom-type' is missing")?;
    let source = match kind.as_str() {
        "rng-builtin" => RngSource::Builtin,
        "rng-random" => RngSource::File(PathBuf::from(
            pairs.text("filename")?.unwrap_or_else(|| "/dev/urandom".to_owned()),
        )),
        other => return Err(format!("Parameter 'qom-type' does not accept value '{other}'")),
    };
    let id = pairs.id()?;
    pairs.finish()?;
    Ok(RngObject { typed: String::new(), id, source })
}
