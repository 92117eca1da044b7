//! The machine: what answers an access of the guest.
//!
//! One [`Machine`] is shared by the threads that serve the vCPUs; nothing here takes a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use domain::{Access, Direction, Gpa, Ioreq};
use memory::GuestMemory;
use pci::width::{self, low16, low32};
use pci::{Bdf, Bus};

use crate::layout::Layout;

/// The port of the PCI configuration address register; Xen turns accesses to the data register behind it
/// into [`Access::Config`] by itself.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// Channel 2 of the timer that a PC has and a PVH guest has not. Linux calibrates its clock by it: it reads
/// this port until it sees something other than all ones, up to 100,000 times. One answer saves it the rest.
pub const TIMER_CHANNEL_2: u16 = 0x42;
/// A string instruction covers at most a page of single bytes; Xen cuts longer ones up.
const MAX_REPETITIONS: u32 = 4096;

/// The guest's devices and where they are.
pub struct Machine {
    layout: Layout,
    bus: Arc<Bus>,
    memory: GuestMemory,
    config_address: AtomicU32,
}

impl Machine {
    /// A machine whose functions are those on `bus`.
    pub fn new(layout: Layout, bus: Arc<Bus>, memory: GuestMemory) -> Machine {
        Machine { layout, bus, memory, config_address: AtomicU32::new(0) }
    }

    /// Carries out one request and returns the data of its answer.
    pub fn handle(&self, request: &Ioreq) -> u64 {
        match request.access {
            Access::Memory | Access::Port | Access::Config => self.repeat(request),
            Access::Invalidate => {
                self.memory.invalidate();
                0
            }
            Access::Other(_) => 0,
        }
    }

    /// Plain and string accesses (xen/include/public/hvm/ioreq.h): the data of a string instruction is in
    /// guest memory, one item behind the other.
    fn repeat(&self, request: &Ioreq) -> u64 {
        let Some(size) = Size::new(request.size) else { return u64::MAX };
        let mut data = request.data;
        for index in 0..u64::from(request.count.min(MAX_REPETITIONS)) {
            let item = |base: u64| {
                let distance = index.wrapping_mul(size.0.into());
                if request.downwards { base.wrapping_sub(distance) } else { base.wrapping_add(distance) }
            };
            // Ports, those of configuration space too, stay where they are.
            let is_memory = request.access == Access::Memory;
            let address = if is_memory { item(request.address) } else { request.address };
            let pointer = request.data_is_pointer.then(|| Gpa(item(request.data)));
            match request.direction {
                Direction::Read => {
                    data = match request.access {
                        Access::Port => self.port_read(address, size),
                        Access::Config => self.config_read(address, size),
                        _ => self.read(address, size),
                    };
                    data &= size.mask();
                    if let Some(pointer) = pointer {
                        // A string read into memory that is not there is lost, as on a real bus.
                        let _ = self.memory.write(pointer, size.of(&mut data.to_le_bytes()));
                    }
                }
                Direction::Write => {
                    let mut value = request.data.to_le_bytes();
                    if let Some(pointer) = pointer {
                        value = [0xff; 8];
                        let _ = self.memory.read(pointer, size.of(&mut value));
                    }
                    let value = u64::from_le_bytes(value) & size.mask();
                    match request.access {
                        Access::Port => self.port_write(address, size, value),
                        Access::Config => self.config_write(address, size, value),
                        _ => self.write(address, size, value),
                    }
                }
            }
        }
        data
    }

    fn read(&self, address: u64, size: Size) -> u64 {
        if let Some(offset) = self.layout.ecam.offset(address, size.0.into()) {
            return pci::ecam::read(&self.bus, offset, size.0);
        }
        self.bus.mmio_read(address, size.0).unwrap_or(u64::MAX)
    }

    fn write(&self, address: u64, size: Size, value: u64) {
        if let Some(offset) = self.layout.ecam.offset(address, size.0.into()) {
            return pci::ecam::write(&self.bus, offset, size.0, value);
        }
        self.bus.mmio_write(address, size.0, value);
    }

    /// Xen latches the address register for itself and leaves reading it to us; Linux reads it back to find
    /// out whether there is a PCI bus. Only whole accesses count.
    fn port_read(&self, port: u64, size: Size) -> u64 {
        match (u16::try_from(port), size.0) {
            (Ok(CONFIG_ADDRESS), 4) => self.config_address.load(Ordering::Relaxed).into(),
            (Ok(TIMER_CHANNEL_2), 1) => 0,
            _ => u64::MAX,
        }
    }

    fn port_write(&self, port: u64, size: Size, value: u64) {
        if port == u64::from(CONFIG_ADDRESS) && size.0 == 4 {
            self.config_address.store(low32(value), Ordering::Relaxed);
        }
    }

    fn config_read(&self, address: u64, size: Size) -> u64 {
        match (config_place(address), size.0) {
            (Some((function, register)), 1 | 2 | 4) => {
                self.bus.config_read(function, register, size.0).into()
            }
            _ => u64::MAX,
        }
    }

    fn config_write(&self, address: u64, size: Size, value: u64) {
        if let (Some((function, register)), 1 | 2 | 4) = (config_place(address), size.0) {
            self.bus.config_write(function, register, size.0, low32(value));
        }
    }
}

/// The function and register of an [`Access::Config`], if it is of segment 0.
fn config_place(address: u64) -> Option<(Bdf, u16)> {
    let function = u16::try_from(address >> 32).ok()?;
    Some((Bdf::from_bits(function), low16(address) & 0xfff))
}

/// The size of one access: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy)]
struct Size(u8);

impl Size {
    fn new(size: u32) -> Option<Size> {
        u8::try_from(size).ok().filter(|size| matches!(size, 1 | 2 | 4 | 8)).map(Size)
    }

    /// As many bytes of `value`.
    fn of(self, value: &mut [u8; 8]) -> &mut [u8] {
        value.get_mut(..self.0.into()).unwrap_or_default()
    }

    fn mask(self) -> u64 {
        width::mask(self.0)
    }
}

#[cfg(test)]
mod tests;
