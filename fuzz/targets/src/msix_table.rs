//! The MSI-X table and its pending bits against a plain model.

use arbitrary::{Arbitrary, Unstructured};
use domain::{Gpa, Msi};
use pci::Msix;
use sim::SimDomain;

#[derive(Arbitrary, Debug)]
enum Step {
    Table {
        offset: u16,
        size: u8,
        value: u64,
    },
    /// A whole entry, as a driver writes it.
    Entry {
        vector: u8,
        address: u32,
        data: u8,
        masked: bool,
    },
    Mask {
        vector: u8,
        masked: bool,
    },
    Read {
        offset: u16,
        size: u8,
        pending: bool,
    },
    Fire(u16),
    Control {
        enabled: bool,
        masked: bool,
    },
    BusMaster(bool),
    ClearPending,
    Reset,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

const FRESH: Entry = Entry { address: 0, data: 0, control: 1, pending: false };

struct Model {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
    bus_master: bool,
    sent: Vec<Msi>,
}

impl Model {
    fn can_send(&self, vector: usize) -> bool {
        let entry = &self.entries[vector];
        let deliverable = entry.control & 1 == 0 && entry.data & 0xff != 0;
        deliverable && self.enabled && !self.masked && self.bus_master
    }

    fn send(&mut self, vector: usize) {
        let Entry { address, data, .. } = self.entries[vector];
        if address >> 20 == 0xfee {
            self.sent.push(Msi { address, data });
        }
    }

    fn fire(&mut self, vector: usize) {
        if vector >= self.entries.len() || !self.enabled {
            return;
        }
        if self.can_send(vector) {
            self.send(vector);
        } else {
            self.entries[vector].pending = true;
        }
    }

    fn settle(&mut self) {
        for vector in 0..self.entries.len() {
            if !self.enabled {
                self.entries[vector].pending = false;
            } else if self.entries[vector].pending && self.can_send(vector) {
                self.entries[vector].pending = false;
                self.send(vector);
            }
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            return;
        }
        let Some(entry) = self.entries.get_mut((offset / 16) as usize) else { return };
        for dword in 0..u64::from(size) / 4 {
            let value = (value >> (32 * dword)) as u32;
            match offset % 16 / 4 + dword {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
                1 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.data = value,
                _ => entry.control = value & 1,
            }
        }
        self.settle();
    }

    fn bytes(&self) -> Vec<u8> {
        let raw = |entry: &Entry| {
            u128::from(entry.address) | u128::from(entry.data) << 64 | u128::from(entry.control) << 96
        };
        self.entries.iter().flat_map(|entry| raw(entry).to_le_bytes()).collect()
    }

    fn pending(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.entries.len().div_ceil(64) * 8];
        for vector in self.entries.iter().enumerate().filter(|(_, entry)| entry.pending).map(|(at, _)| at) {
            bytes[vector / 8] |= 1 << (vector % 8);
        }
        bytes
    }
}

/// Plays accesses and interrupts to a table.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    // The most there can be is rare, since it is slow.
    let vectors = if *first == 0xff { pci::MAX_VECTORS } else { u16::from(*first % 80) };
    let sim = SimDomain::new(1, &[(Gpa(0), 4096)]).expect("a domain");
    let msix = Msix::new(vectors, sim.clone());
    assert_eq!(msix.vectors(), vectors.max(1));
    let mut model = Model {
        entries: vec![FRESH; usize::from(msix.vectors())],
        enabled: false,
        masked: false,
        bus_master: false,
        sent: Vec::new(),
    };
    let mut input = Unstructured::new(rest);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        play(&msix, &mut model, &step);
        assert_eq!(sim.messages(), std::mem::take(&mut model.sent), "{step:?}");
        assert_eq!(msix.enabled(), model.enabled);
    }
    let read_all = |len: usize, read: &dyn Fn(u64, u8) -> u64| -> Vec<u8> {
        (0..len as u64 / 8).flat_map(|at| read(at * 8, 8).to_le_bytes()).collect()
    };
    let table = model.bytes();
    assert_eq!(read_all(table.len(), &|at, size| msix.table_read(at, size)), table);
    let pending = model.pending();
    assert_eq!(read_all(pending.len(), &|at, size| msix.pba_read(at, size)), pending);
    msix.reset();
    msix.set_control(true, false);
    msix.set_bus_master(true);
    assert_eq!(sim.messages(), [], "a reset forgets what is pending");
}

fn play(msix: &Msix, model: &mut Model, step: &Step) {
    match *step {
        Step::Table { offset, size, value } => {
            let (offset, size) = (u64::from(offset), 1 << (size % 4));
            msix.table_write(offset, size, value);
            model.write(offset, size, value);
        }
        Step::Entry { vector, address, data, masked } => {
            let at = u64::from(vector) * 16;
            let address = 0xfee0_0000 | u64::from(address & 0xf_ffff);
            let rest = u64::from(data) | u64::from(masked) << 32;
            for (at, value) in [(at, address), (at + 8, rest)] {
                msix.table_write(at, 8, value);
                model.write(at, 8, value);
            }
        }
        Step::Mask { vector, masked } => {
            let at = u64::from(vector) * 16 + 12;
            msix.table_write(at, 4, masked.into());
            model.write(at, 4, masked.into());
        }
        Step::Read { offset, size, pending } => {
            let (offset, size) = (u64::from(offset), 1u8 << (size % 4));
            let (value, bytes) = match pending {
                true => (msix.pba_read(offset, size), model.pending()),
                false => (msix.table_read(offset, size), model.bytes()),
            };
            assert_eq!(value & !pci::width::mask(size), 0);
            // Naturally aligned reads are the bytes; what others give is nobody's business.
            if offset.is_multiple_of(size.into()) {
                for (byte, at) in (offset..offset + u64::from(size)).enumerate() {
                    let expected = bytes.get(at as usize).copied().unwrap_or(0);
                    assert_eq!((value >> (8 * byte)) as u8, expected, "{step:?}");
                }
            }
        }
        Step::Fire(vector) => {
            msix.fire(vector);
            model.fire(vector.into());
        }
        Step::Control { enabled, masked } => {
            msix.set_control(enabled, masked);
            (model.enabled, model.masked) = (enabled, masked);
            model.settle();
        }
        Step::BusMaster(on) => {
            msix.set_bus_master(on);
            model.bus_master = on;
            model.settle();
        }
        Step::ClearPending => {
            msix.clear_pending();
            model.entries.iter_mut().for_each(|entry| entry.pending = false);
        }
        Step::Reset => {
            msix.reset();
            model.entries.fill(FRESH);
            (model.enabled, model.masked, model.bus_master) = (false, false, false);
        }
    }
}
