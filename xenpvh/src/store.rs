//! What libxl leaves in xenstore for a device model, and what it waits for.

use xen::{DomId, Store, StoreError};

/// Frontends that only make libxl start a device model. Nobody serves them, and a guest that finds them
/// waits half a minute for somebody to.
const TRIGGERS: [&str; 2] = ["vfb", "vkbd"];

/// The most memory that the domain may have, in bytes, if the toolstack wrote it down.
///
/// # Errors
/// xenstored failed.
pub fn most_memory(store: &mut Store, domid: DomId) -> Result<Option<u64>, StoreError> {
    let kibibytes = store.read_text(&format!("/local/domain/{domid}/memory/static-max"))?;
    Ok(kibibytes.and_then(|text| text.parse::<u64>().ok()).and_then(|kib| kib.checked_mul(1024)))
}

/// Takes the trigger devices back before the guest sees them.
///
/// # Errors
/// xenstored failed.
pub fn withdraw_triggers(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    for kind in TRIGGERS {
        let path = format!("/local/domain/{domid}/device/{kind}");
        match store.rm(&path) {
            Ok(()) => log::info!("withdrew {path}, which nobody serves"),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tells the toolstack that the guest may run.
///
/// # Errors
/// xenstored failed.
pub fn announce_running(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    store.write(&format!("device-model/{domid}/state"), "running")
}
