//! MSI-X (PCIe 6.1 §6.1.4, §7.7.2): the vector table and the pending bits, kept here because Xen knows
//! nothing of them; it is given messages only.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use domain::{Msi, SharedDomain};

use crate::{ConfigSpace, width};

/// Most vectors that a function can have.
pub const MAX_VECTORS: u16 = 2048;
/// Bytes of a table entry.
const ENTRY_SIZE: u64 = 16;
/// In an entry's vector control: the vector is masked.
const MASKED: u32 = 1;
/// The capability's id.
const CAPABILITY: u8 = 0x11;

/// A table entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

const AFTER_RESET: Entry = Entry { address: 0, data: 0, control: MASKED };

impl Entry {
    /// What its dwords are.
    fn dword(&self, index: u64) -> u32 {
        match index {
            0 => width::low32(self.address),
            1 => (self.address >> 32) as u32,
            2 => self.data,
            _ => self.control,
        }
    }

    fn set_dword(&mut self, index: u64, value: u32) {
        match index {
            // The low two bits are reserved: a message is a dword store.
            0 => self.address = width::insert(self.address, 0, 4, (value & !3).into()),
            1 => self.address = width::insert(self.address, 4, 4, value.into()),
            2 => self.data = value,
            _ => self.control = value & MASKED,
        }
    }

    /// Whether the vector is masked, or holds no message yet: Xen takes vector 0 for something that a
    /// PVH guest does not have, so it is never sent.
    fn is_masked(&self) -> bool {
        self.control & MASKED != 0 || self.data & 0xff == 0
    }
}

/// The MSI-X state of a function.
///
/// Each entry has its own lock, held while its message is sent: so a guest that masks a vector, or
/// rewrites its message, gets no message of before afterwards (§6.1.4.4), while the queues of a
/// device, which use different vectors, never wait for each other. Sending takes no other lock.
pub struct Msix {
    domain: SharedDomain,
    entries: Box<[Mutex<Entry>]>,
    /// A bit a vector; changed only under its entry's lock.
    pending: Box<[AtomicU64]>,
    /// These three are written first and looked at under an entry's lock; whoever changes them then
    /// goes through all the locks, after which nobody acts on the old value.
    enabled: AtomicBool,
    function_mask: AtomicBool,
    bus_master: AtomicBool,
}

impl Msix {
    /// A table of `vectors` (1 to [`MAX_VECTORS`]; what is outside is taken to the nearest).
    pub fn new(vectors: u16, domain: SharedDomain) -> Msix {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        Msix {
            domain,
            entries: (0..vectors).map(|_| Mutex::new(AFTER_RESET)).collect(),
            pending: (0..vectors.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            enabled: AtomicBool::new(false),
            function_mask: AtomicBool::new(false),
            bus_master: AtomicBool::new(false),
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        // At most MAX_VECTORS.
        u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS)
    }

    /// Adds the capability, with table and pending bits at these offsets (multiples of 8) of `bar`. When
    /// the guest writes its first dword, give that to [`Msix::control_written`].
    pub fn add_capability(&self, config: &mut ConfigSpace, bar: u8, table: u32, pending: u32) -> Option<u8> {
        let size = self.vectors().wrapping_sub(1);
        let mut body = [0; 10];
        let fields = size.to_le_bytes().into_iter();
        let fields = fields.chain((table & !7 | u32::from(bar & 7)).to_le_bytes());
        let fields = fields.chain((pending & !7 | u32::from(bar & 7)).to_le_bytes());
        for (to, from) in body.iter_mut().zip(fields) {
            *to = from;
        }
        config.add_capability(CAPABILITY, &body, &[0x00, 0xc0])
    }

    /// The guest wrote the capability's first dword, which is now `value`.
    pub fn control_written(&self, value: u32) {
        self.set_control(value & 1 << 31 != 0, value & 1 << 30 != 0);
    }

    /// Sets MSI-X Enable and Function Mask. What is pending is sent if that is possible now, and
    /// forgotten when MSI-X is disabled.
    pub fn set_control(&self, enabled: bool, function_mask: bool) {
        self.function_mask.store(function_mask, Ordering::SeqCst);
        self.enabled.store(enabled, Ordering::SeqCst);
        self.settle();
    }

    /// Sets whether the function may send at all (Bus Master Enable in the command register). If not,
    /// messages stay pending.
    pub fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::SeqCst);
        self.settle();
    }

    /// Whether MSI-X is enabled.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::SeqCst)
    }

    /// Sends the message of `vector`: now, or when it is unmasked. Nothing happens while MSI-X is
    /// disabled, or for a vector that does not exist.
    pub fn fire(&self, vector: u16) {
        if let Some(mut entry) = self.entry(vector.into()) {
            if self.can_send(&entry) {
                self.send(&mut entry);
            } else if self.enabled() {
                self.set_pending(vector.into(), true);
            }
        }
    }

    /// Forgets what is pending: the device was reset.
    pub fn clear_pending(&self) {
        for vector in 0..self.entries.len() as u64 {
            let _entry = self.entry(vector);
            self.set_pending(vector, false);
        }
    }

    /// Goes back to the state after power-on.
    pub fn reset(&self) {
        self.set_control(false, false);
        self.set_bus_master(false);
        for mut entry in (0..self.entries.len() as u64).filter_map(|vector| self.entry(vector)) {
            *entry = AFTER_RESET;
        }
        self.clear_pending();
    }

    /// Reads `size` bytes at `offset` of the table. Zeros beyond its end.
    pub fn table_read(&self, offset: u64, size: u8) -> u64 {
        read_dwords(offset, size, |at| {
            self.entry(at / ENTRY_SIZE).map_or(0, |entry| entry.dword(at % ENTRY_SIZE / 4))
        })
    }

    /// Writes at `offset` of the table: aligned dwords and qwords. Others are undefined (§7.7.2) and ignored here.
    pub fn table_write(&self, offset: u64, size: u8, value: u64) {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            return;
        }
        let vector = offset / ENTRY_SIZE;
        let Some(mut entry) = self.entry(vector) else { return };
        for (at, size, start) in width::pieces(offset, size, 4) {
            entry.set_dword(at % ENTRY_SIZE / 4, width::low32(width::extract(value, start, size)));
        }
        self.settle_entry(vector, &mut entry);
    }

    /// Reads `size` bytes at `offset` of the pending bits. Zeros beyond the end.
    pub fn pba_read(&self, offset: u64, size: u8) -> u64 {
        read_dwords(offset, size, |at| {
            let word = usize::try_from(at / 8).ok().and_then(|word| self.pending.get(word));
            let word = word.map_or(0, |word| word.load(Ordering::SeqCst));
            width::low32(width::extract(word, (at % 8) as u32, 4))
        })
    }

    fn entry(&self, vector: u64) -> Option<MutexGuard<'_, Entry>> {
        let entry = self.entries.get(usize::try_from(vector).ok()?)?;
        Some(entry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn can_send(&self, entry: &Entry) -> bool {
        !entry.is_masked()
            && self.enabled.load(Ordering::SeqCst)
            && !self.function_mask.load(Ordering::SeqCst)
            && self.bus_master.load(Ordering::SeqCst)
    }

    fn send(&self, entry: &mut Entry) {
        // A message is a store, and only stores to this range are interrupts (Intel SDM vol. 3 §11.11).
        if entry.address >> 20 != 0xfee {
            log::debug!("message to {:#x}, which is no interrupt, dropped", entry.address);
            return;
        }
        if let Err(error) = self.domain.inject_msi(Msi { address: entry.address, data: entry.data }) {
            log::debug!("message {:#x} to {:#x}: {error}", entry.data, entry.address);
        }
    }

    /// Does what changed conditions ask for, vector by vector.
    fn settle(&self) {
        for vector in 0..self.entries.len() as u64 {
            if let Some(mut entry) = self.entry(vector) {
                self.settle_entry(vector, &mut entry);
            }
        }
    }

    fn settle_entry(&self, vector: u64, entry: &mut Entry) {
        if self.is_pending(vector) {
            if self.can_send(entry) {
                self.set_pending(vector, false);
                self.send(entry);
            } else if !self.enabled() {
                self.set_pending(vector, false);
            }
        }
    }

    fn pending_word(&self, vector: u64) -> Option<&AtomicU64> {
        self.pending.get(usize::try_from(vector / 64).ok()?)
    }

    fn is_pending(&self, vector: u64) -> bool {
        self.pending_word(vector).is_some_and(|word| word.load(Ordering::SeqCst) >> (vector % 64) & 1 != 0)
    }

    fn set_pending(&self, vector: u64, pending: bool) {
        if let Some(word) = self.pending_word(vector) {
            let bit = 1 << (vector % 64);
            match pending {
                true => word.fetch_or(bit, Ordering::SeqCst),
                false => word.fetch_and(!bit, Ordering::SeqCst),
            };
        }
    }
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("vectors", &self.vectors())
            .field("enabled", &self.enabled)
            .field("function_mask", &self.function_mask)
            .field("bus_master", &self.bus_master)
            .finish_non_exhaustive()
    }
}

/// Puts a read of any width together from aligned dwords.
fn read_dwords(offset: u64, size: u8, dword: impl Fn(u64) -> u32) -> u64 {
    width::pieces(offset, size, 4).fold(0, |value, (at, size, start)| {
        let piece = width::extract(dword(at & !3).into(), (at % 4) as u32, size);
        width::insert(value, start, size, piece)
    })
}

#[cfg(test)]
mod tests;
