//! Configuration space: registers of four bytes, each with a mask of the bits that the guest may write.

use std::sync::Arc;

use crate::{Bars, width};

/// Offsets of the registers of a type 0 header (PCI 3.0 §6.1), in bytes.
pub mod register {
    /// Vendor id; the device id follows.
    pub const VENDOR: u16 = 0x00;
    /// Command; the status follows.
    pub const COMMAND: u16 = 0x04;
    /// Revision id; the class code follows.
    pub const REVISION: u16 = 0x08;
    /// Cache line size; latency timer, header type and BIST follow.
    pub const CACHE_LINE: u16 = 0x0c;
    /// BAR0; the others follow, four bytes each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor id; the subsystem id follows.
    pub const SUBSYSTEM: u16 = 0x2c;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line; the pin follows.
    pub const INTERRUPT: u16 = 0x3c;
}

/// Bits of the command register.
pub mod command {
    /// BARs are decoded.
    pub const MEMORY: u32 = 1 << 1;
    /// The function may access memory and send messages.
    pub const BUS_MASTER: u32 = 1 << 2;
    /// Parity error response: kept, of no effect.
    pub const PARITY: u32 = 1 << 6;
    /// SERR# enable: kept, of no effect.
    pub const SERR: u32 = 1 << 8;
    /// INTx is not to be asserted: kept; there is none.
    pub const INTX_DISABLE: u32 = 1 << 10;
}

/// In the status register (the upper half of COMMAND): there are capabilities.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Where the first capability goes.
const FIRST_CAPABILITY: usize = 0x40;
/// Bytes of the configuration space of a conventional function.
const SIZE: usize = 256;
const REGISTERS: usize = SIZE / 4;

/// What never changes in a function's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

#[derive(Clone, Copy, Debug, Default)]
struct Register {
    value: u32,
    /// Bits that the guest may write.
    writable: u32,
    /// Value after reset.
    initial: u32,
}

/// What a write did, for the function to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Offset of the register (a multiple of 4).
    pub register: u16,
    /// Its value before.
    pub before: u32,
    /// Its value after.
    pub after: u32,
}

/// The configuration space of a conventional function: 256 bytes, type 0 header, no interrupt pin.
#[derive(Debug)]
pub struct ConfigSpace {
    registers: [Register; REGISTERS],
    bars: Arc<Bars>,
    /// Offset of the register whose second byte is to point at the next capability.
    last_capability: usize,
    /// Where the next capability goes.
    free: usize,
}

impl ConfigSpace {
    /// A configuration space with this header and these BARs, and no capabilities yet.
    pub fn new(header: Header, bars: Bars) -> ConfigSpace {
        let mut space = ConfigSpace {
            registers: [Register::default(); REGISTERS],
            bars: Arc::new(bars),
            last_capability: 0,
            free: FIRST_CAPABILITY,
        };
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        space.define(register::VENDOR, pair(header.vendor, header.device), 0);
        space.define(register::REVISION, u32::from(header.revision) | header.class << 8, 0);
        space.define(register::SUBSYSTEM, pair(header.subsystem_vendor, header.subsystem), 0);
        let mut writable = command::BUS_MASTER | command::PARITY | command::SERR | command::INTX_DISABLE;
        for (index, at) in (0u8..6).zip((register::BAR0..).step_by(4)) {
            let Some((kind, size)) = space.bars.get(index) else { continue };
            writable |= command::MEMORY;
            let mask = !size.wrapping_sub(1);
            space.define(at, kind.flags(), width::low32(mask));
            if kind.is_64() {
                space.define(at.wrapping_add(4), 0, (mask >> 32) as u32);
            }
        }
        space.define(register::COMMAND, 0, writable);
        // Cache line size and interrupt line are scratch bytes for the operating system.
        space.define(register::CACHE_LINE, 0, 0xff);
        space.define(register::INTERRUPT, 0, 0xff);
        space
    }

    /// Appends a capability (PCI 3.0 §6.7): its id, then `body` from its third byte on, of which the
    /// guest may write the bits set in `writable` (missing ones count as zero). Returns its offset, or
    /// `None` if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = self.free;
        let end = at.checked_add(2)?.checked_add(body.len())?.checked_next_multiple_of(4)?;
        if end > SIZE {
            return None;
        }
        let offset = u8::try_from(at).ok()?;
        let bytes = [id, 0].into_iter().chain(body.iter().copied());
        let masks = [0, 0].into_iter().chain(writable.iter().copied()).chain(std::iter::repeat(0));
        for ((byte, mask), position) in bytes.zip(masks).zip(at..) {
            let register = self.registers.get_mut(position / 4)?;
            let shift = u32::try_from((position % 4).wrapping_mul(8)).unwrap_or_default();
            register.initial |= u32::from(byte) << shift;
            register.writable |= u32::from(mask) << shift;
            register.value = register.initial;
        }
        let (link, shift) = match self.last_capability {
            0 => (usize::from(register::CAPABILITIES), 0),
            last => (last, 8),
        };
        for (position, bits) in
            [(link, u32::from(offset) << shift), (usize::from(register::COMMAND), STATUS_CAPABILITIES)]
        {
            let register = self.registers.get_mut(position / 4)?;
            register.initial |= bits;
            register.value = register.initial;
        }
        self.last_capability = at;
        self.free = end;
        Some(offset)
    }

    /// The BARs, moved by writes to this configuration space.
    pub fn bars(&self) -> Arc<Bars> {
        self.bars.clone()
    }

    /// Reads `size` bytes, 1, 2 or 4 within one dword. All ones past the end.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        match self.registers.get(usize::from(offset / 4)) {
            Some(register) => {
                width::low32(width::extract(register.value.into(), u32::from(offset % 4), size))
            }
            None => width::low32(width::absent(size)),
        }
    }

    /// Writes the low `size` bytes of `value`, 1, 2 or 4 within one dword: bits that are not writable
    /// stay. `None` past the end.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) -> Option<Written> {
        let register = self.registers.get_mut(usize::from(offset / 4))?;
        let before = register.value;
        let wanted = width::insert(before.into(), u32::from(offset % 4), size, value.into());
        let after = before & !register.writable | width::low32(wanted) & register.writable;
        register.value = after;
        let written = Written { register: offset & !3, before, after };
        if before != after && matches!(written.register, register::COMMAND | register::BAR0..0x28) {
            self.place_bars();
        }
        Some(written)
    }

    /// Stores a register's value, writable or not: for registers that show a device's state.
    pub fn set(&mut self, register: u16, value: u32) {
        if let Some(register) = self.registers.get_mut(usize::from(register / 4)) {
            register.value = value;
        }
    }

    /// Says in the header that the slot has more functions than this one (PCI 3.0 §6.1, header type).
    pub fn set_multifunction(&mut self) {
        const MULTIFUNCTION: u32 = 0x80 << 16;
        if let Some(register) = self.registers.get_mut(usize::from(register::CACHE_LINE / 4)) {
            register.value |= MULTIFUNCTION;
            register.initial |= MULTIFUNCTION;
        }
    }

    /// Puts every register back to its value after power-on. No BAR is decoded then.
    pub fn reset(&mut self) {
        for register in &mut self.registers {
            register.value = register.initial;
        }
        self.place_bars();
    }

    fn define(&mut self, offset: u16, initial: u32, writable: u32) {
        if let Some(register) = self.registers.get_mut(usize::from(offset / 4)) {
            *register = Register { value: initial, writable, initial };
        }
    }

    fn place_bars(&self) {
        let decoding = self.read(register::COMMAND, 4) & command::MEMORY != 0;
        for (index, at) in (0u8..6).zip((register::BAR0..).step_by(4)) {
            let Some((kind, _)) = self.bars.get(index) else { continue };
            let low = u64::from(self.read(at, 4) & !0xf);
            let high = if kind.is_64() { u64::from(self.read(at.wrapping_add(4), 4)) << 32 } else { 0 };
            self.bars.place(index, decoding.then_some(high | low));
        }
    }
}

#[cfg(test)]
mod tests;
