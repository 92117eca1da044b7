//! A fast driver's end of a split ring with indirect descriptors and event indices, as Linux has it.

use std::sync::atomic::{Ordering, fence};

use proofs::driver::{
    Function, NEXT, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_ENABLE, QUEUE_NOTIFY_OFF,
};
use proofs::driver::{QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, TABLE, WRITE};

use crate::machine::Machine;
use crate::ram::Ram;

/// Bytes of RAM that a ring of [`SIZE`] takes.
pub const BYTES: u64 = 0x4000;
/// Entries of each ring: what both device models have unless told.
pub const SIZE: u16 = 256;

const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A piece of a buffer: address, length, whether the device writes it.
pub type Piece = (u64, u32, bool);

pub struct Ring {
    queue: u16,
    at: u64,
    /// Where the device hears of new chains.
    doorbell: u64,
    available: u16,
    /// The index that the device was shown.
    shown: u16,
    used: u16,
    /// Times that the device was notified.
    pub kicks: u64,
}

impl Ring {
    /// Makes queue `queue` of a function with [`BYTES`] of RAM at `at`. It interrupts by vector 0.
    pub fn new(machine: &mut Machine, function: &Function, queue: u16, at: u64) -> Ring {
        for word in (0..BYTES).step_by(8) {
            machine.ram.store64(at + word, 0);
        }
        let subject = machine.subject();
        for (register, value) in [
            (QUEUE_SELECT, queue.into()),
            (QUEUE_SIZE, SIZE.into()),
            (QUEUE_VECTOR, 0),
            (QUEUE_DESC, at),
            (QUEUE_DRIVER, at + AVAILABLE),
            (QUEUE_DEVICE, at + USED),
            (QUEUE_ENABLE, 1),
        ] {
            function.set(subject, register, value);
        }
        let doorbell = function.notify + function.get(subject, QUEUE_NOTIFY_OFF) * function.multiplier;
        Ring { queue, at, doorbell, available: 0, shown: 0, used: 0, kicks: 0 }
    }

    /// Makes descriptor `head` one for these pieces: by a table at `table`, or the one piece itself.
    pub fn describe(&self, ram: &Ram, head: u16, table: u64, pieces: &[Piece]) {
        let put = |at: u64, address: u64, len: u32, flags: u16, next: u16| {
            ram.store64(at, address);
            ram.store32(at + 8, len);
            ram.store16(at + 12, flags);
            ram.store16(at + 14, next);
        };
        let flag = |writable| if writable { WRITE } else { 0 };
        let own = self.at + u64::from(head) * 16;
        if let [(address, len, writable)] = *pieces {
            return put(own, address, len, flag(writable), 0);
        }
        for (index, &(address, len, writable)) in (0u16..).zip(pieces) {
            let more = usize::from(index) + 1 < pieces.len();
            let flags = flag(writable) | if more { NEXT } else { 0 };
            put(table + u64::from(index) * 16, address, len, flags, if more { index + 1 } else { 0 });
        }
        put(own, table, pieces.len() as u32 * 16, TABLE, 0);
    }

    /// Adds chain `head`. The device sees it after [`Ring::show`].
    #[inline]
    pub fn add(&mut self, ram: &Ram, head: u16) {
        ram.store16(self.at + AVAILABLE + 4 + u64::from(self.available % SIZE) * 2, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was added, and notifies it if it wants that.
    #[inline]
    pub fn show(&mut self, machine: &mut Machine) {
        if self.shown == self.available {
            return;
        }
        machine.ram.store16(self.at + AVAILABLE + 2, self.available);
        fence(Ordering::SeqCst);
        let event = machine.ram.load16(self.at + USED + 4 + u64::from(SIZE) * 8);
        let (old, new) = (self.shown, self.available);
        self.shown = new;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick(machine);
        }
    }

    /// Notifies the device.
    pub fn kick(&mut self, machine: &mut Machine) {
        self.kicks += 1;
        machine.subject().write(self.doorbell, 2, self.queue.into());
    }

    /// The next chain that came back, and its length.
    #[inline]
    pub fn take(&mut self, ram: &Ram) -> Option<(u16, u32)> {
        if ram.load16(self.at + USED + 2) == self.used {
            return None;
        }
        let element = self.at + USED + 4 + u64::from(self.used % SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        Some((ram.load32(element) as u16, ram.load32(element + 4)))
    }

    /// Asks for an interrupt when the next chain comes back.
    #[inline]
    pub fn listen(&self, ram: &Ram) {
        ram.store16(self.at + AVAILABLE + 4 + u64::from(SIZE) * 2, self.used);
    }

    /// Asks for none for as long as that is possible.
    #[inline]
    pub fn do_not_listen(&self, ram: &Ram) {
        ram.store16(self.at + AVAILABLE + 4 + u64::from(SIZE) * 2, self.used.wrapping_sub(1));
    }
}
