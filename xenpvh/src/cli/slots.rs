//! Which device sits where on bus 0.

use super::device_config::Addr;

const SLOTS: u8 = 32;
const FUNCTIONS: u8 = 8;

/// Who has a function.
struct Owner {
    addr: (u8, u8),
    multifunction: bool,
    driver: &'static str,
    id: String,
}

/// The bus, with its host bridge in slot 0.
pub(super) struct Slots(Vec<Owner>);

impl Slots {
    /// A bus with nothing but the host bridge.
    pub fn new() -> Slots {
        Slots(vec![Owner { addr: (0, 0), multifunction: false, driver: "gpex-root", id: String::new() }])
    }

    /// Gives `driver` the place it wants, or the first slot whose function 0 is free.
    pub fn take(
        &mut self,
        wanted: Option<(u8, u8)>,
        multifunction: bool,
        driver: &'static str,
        id: &str,
    ) -> Result<Addr, String> {
        let (slot, function) = match wanted {
            Some(addr) => addr,
            None => (1..SLOTS).map(|slot| (slot, 0)).find(|addr| self.owner(*addr).is_none()).ok_or_else(
                || format!("PCI: no slot/function available for {driver}, all in use or reserved"),
            )?,
        };
        if let Some(owner) = self.owner((slot, function)) {
            let id = if owner.id.is_empty() { String::new() } else { format!(",id={}", owner.id) };
            return Err(format!(
                "PCI: slot {slot} function {function} not available for {driver}, in use by {}{id}",
                owner.driver
            ));
        }
        // A guest looks at functions 1 to 7 only where function 0 says that there are several.
        if function != 0 && self.owner((slot, 0)).is_some_and(|owner| !owner.multifunction) {
            return Err(format!(
                "PCI: single function device can't be populated in function {slot:x}.{function:x}"
            ));
        }
        if function == 0
            && !multifunction
            && let Some(other) = (1..FUNCTIONS).find(|function| self.owner((slot, *function)).is_some())
        {
            return Err(format!(
                "PCI: {slot:x}.0 indicates single function, but {slot:x}.{other:x} is already populated."
            ));
        }
        self.0.push(Owner { addr: (slot, function), multifunction, driver, id: id.to_owned() });
        Ok(Addr { device: slot, function })
    }

    fn owner(&self, addr: (u8, u8)) -> Option<&Owner> {
        self.0.iter().find(|owner| owner.addr == addr)
    }
}
