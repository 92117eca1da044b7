//! What libxl leaves in xenstore for a device model, and what it waits for.

use xen::{DomId, Store, StoreError};

/// Frontends that only make libxl start a device model. Nobody serves them, and a guest that finds them
/// waits half a minute for somebody to.
const TRIGGERS: [&str; 2] = ["vfb", "vkbd"];

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
