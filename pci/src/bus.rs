//! The address map: which function an access is for.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{Bdf, Function, width};

/// Why a function cannot be added to a bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another function is there.
    #[error(
        "PCI: slot {} function {} not available for {name}, in use by {by}", at.device(), at.function()
    )]
    Taken {
        /// Where.
        at: Bdf,
        /// What was to go there.
        name: String,
        /// What is there.
        by: String,
    },
    /// The machine does not have this bus.
    #[error("PCI: no bus {} for {name}", at.bus())]
    NoSuchBus {
        /// Where.
        at: Bdf,
        /// What was to go there.
        name: String,
    },
}

struct Slot {
    bdf: Bdf,
    function: Arc<dyn Function>,
}

/// What a memory address is decoded to.
#[derive(Clone)]
pub struct Decoded {
    /// The function.
    pub function: Arc<dyn Function>,
    /// Number of the BAR, 0 to 5.
    pub bar: u8,
    /// Offset in the BAR, in bytes.
    pub offset: u64,
}

/// All functions, and the way to them.
///
/// Many vCPUs look up at once, on every doorbell; functions come and go rarely. So the list is
/// replaced as a whole and read without a lock, and so are the addresses in [`Bars`](crate::Bars). A scan over
/// the few functions there are beats a tree that must be kept in step with BARs as the guest moves them.
pub struct Bus {
    buses: u16,
    /// In order of address.
    slots: ArcSwap<Vec<Slot>>,
    /// Held while the list is replaced.
    change: Mutex<()>,
}

impl Bus {
    /// `buses` (1 to 256) buses without functions.
    pub fn new(buses: u16) -> Bus {
        Bus { buses: buses.clamp(1, 256), slots: ArcSwap::default(), change: Mutex::new(()) }
    }

    /// Adds a function.
    ///
    /// # Errors
    /// The place is taken, or on a bus that does not exist.
    pub fn insert(&self, at: Bdf, function: Arc<dyn Function>) -> Result<(), BusError> {
        let name = function.name().to_owned();
        if u16::from(at.bus()) >= self.buses {
            return Err(BusError::NoSuchBus { at, name });
        }
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.slots.load();
        match old.binary_search_by_key(&at, |slot| slot.bdf) {
            Ok(index) => {
                let by = old.get(index).map(|slot| slot.function.name().to_owned()).unwrap_or_default();
                Err(BusError::Taken { at, name, by })
            }
            Err(index) => {
                let copy = |slot: &Slot| Slot { bdf: slot.bdf, function: slot.function.clone() };
                let mut new: Vec<Slot> = old.iter().map(copy).collect();
                new.insert(index, Slot { bdf: at, function });
                self.slots.store(Arc::new(new));
                Ok(())
            }
        }
    }

    /// The function at `at`.
    pub fn get(&self, at: Bdf) -> Option<Arc<dyn Function>> {
        self.with(at, Arc::clone)
    }

    /// All functions, in order of address.
    pub fn functions(&self) -> Vec<(Bdf, Arc<dyn Function>)> {
        self.slots.load().iter().map(|slot| (slot.bdf, slot.function.clone())).collect()
    }

    /// The first place on bus 0 whose device has no function at all.
    pub fn first_free_slot(&self) -> Option<Bdf> {
        let slots = self.slots.load();
        (0..32)
            .filter_map(|device| Bdf::new(0, device, 0))
            .find(|free| !slots.iter().any(|slot| slot.bdf.bus() == 0 && slot.bdf.device() == free.device()))
    }

    /// Reads configuration space: `size` bytes at `offset`. What is not naturally aligned or longer than
    /// 4 bytes reads as all ones, as does an absent function.
    pub fn config_read(&self, at: Bdf, offset: u16, size: u8) -> u32 {
        let absent = width::low32(width::absent(size));
        if !is_register_access(offset, size) {
            return absent;
        }
        self.with(at, |function| function.config_read(offset, size)).unwrap_or(absent)
    }

    /// Writes configuration space; ignored where [`Bus::config_read`] gives all ones.
    pub fn config_write(&self, at: Bdf, offset: u16, size: u8, value: u32) {
        if is_register_access(offset, size) {
            let _ = self.with(at, |function| function.config_write(offset, size, value));
        }
    }

    /// The BAR in which an access to `size` bytes at `address` wholly lies. Of BARs that overlap, that of
    /// the lowest function and number.
    pub fn mmio(&self, address: u64, size: u8) -> Option<Decoded> {
        self.decode(address, size, |function, bar, offset| Decoded {
            function: function.clone(),
            bar,
            offset,
        })
    }

    /// Reads `size` bytes (1, 2, 4 or 8) of memory at `address`. `None` if no BAR answers.
    pub fn mmio_read(&self, address: u64, size: u8) -> Option<u64> {
        self.decode(address, size, |function, bar, offset| {
            function.bar_read(bar, offset, size) & width::mask(size)
        })
    }

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at `address`. False if no BAR answers.
    pub fn mmio_write(&self, address: u64, size: u8, value: u64) -> bool {
        self.decode(address, size, |function, bar, offset| {
            function.bar_write(bar, offset, size, value & width::mask(size));
        })
        .is_some()
    }

    /// Resets every function.
    pub fn reset(&self) {
        for slot in self.slots.load_full().iter() {
            slot.function.reset();
        }
    }

    fn with<T>(&self, at: Bdf, use_it: impl FnOnce(&Arc<dyn Function>) -> T) -> Option<T> {
        let slots = self.slots.load();
        let index = slots.binary_search_by_key(&at, |slot| slot.bdf).ok()?;
        slots.get(index).map(|slot| use_it(&slot.function))
    }

    fn decode<T>(
        &self,
        address: u64,
        size: u8,
        use_it: impl FnOnce(&Arc<dyn Function>, u8, u64) -> T,
    ) -> Option<T> {
        if !matches!(size, 1 | 2 | 4 | 8) {
            return None;
        }
        let slots = self.slots.load();
        slots
            .iter()
            .find_map(|slot| {
                let (bar, offset) = slot.function.bars().decode(address, size)?;
                Some((slot, bar, offset))
            })
            .map(|(slot, bar, offset)| use_it(&slot.function, bar, offset))
    }
}

/// Whether an access is one that configuration space has: a byte, a word or a dword, aligned.
fn is_register_access(offset: u16, size: u8) -> bool {
    matches!(size, 1 | 2 | 4) && offset < 4096 && offset.is_multiple_of(size.into())
}

#[cfg(test)]
mod tests;
