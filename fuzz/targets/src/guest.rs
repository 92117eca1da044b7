//! A guest without Xen, whose pages come and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use domain::{Gfn, Gpa, PAGE_SIZE};
use memory::{GuestMemory, Region};
use sim::SimDomain;

const PAGE: u64 = PAGE_SIZE as u64;

/// RAM from 0 on, and the device model's view of it.
pub struct Guest {
    pub sim: Arc<SimDomain>,
    pub memory: GuestMemory,
    size: u64,
    missing: BTreeSet<u64>,
}

impl Guest {
    /// A guest with `size` bytes of RAM.
    pub fn new(size: u64) -> Guest {
        let sim = SimDomain::new(1, &[(Gpa(0), size)]).expect("a domain");
        let memory = GuestMemory::new(sim.clone(), &[Region { start: Gpa(0), size }]).expect("guest memory");
        Guest { sim, memory, size, missing: BTreeSet::new() }
    }

    /// Whether the guest itself can touch all of it.
    fn has(&self, at: u64, len: usize) -> bool {
        let end = at.checked_add(len as u64).filter(|end| *end <= self.size);
        end.is_some_and(|end| self.missing.range(at / PAGE..end.div_ceil(PAGE)).next().is_none())
    }

    /// Writes RAM as the guest, if it is there.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        if self.has(at, bytes.len()) {
            self.sim.ram_write(Gpa(at), bytes);
        }
    }

    /// Reads RAM as the guest; `None` if it is not there.
    pub fn get<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.has(at, N).then(|| {
            self.sim.ram_read(Gpa(at), &mut bytes);
            bytes
        })
    }

    /// Reads `len` bytes of RAM; `None` if they are not there.
    pub fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        self.has(at, len).then(|| {
            let mut bytes = vec![0; len];
            self.sim.ram_read(Gpa(at), &mut bytes);
            bytes
        })
    }

    /// Takes a page away.
    pub fn punch(&mut self, page: u64) {
        let page = page % (self.size / PAGE);
        if self.missing.insert(page) {
            self.sim.punch(Gfn(page));
        }
    }

    /// Gives a page back, if it was taken away.
    pub fn refill(&mut self, page: u64) {
        let page = page % (self.size / PAGE);
        if self.missing.remove(&page) {
            self.sim.refill(Gfn(page));
        }
    }

    /// Gives all pages back.
    pub fn refill_all(&mut self) {
        for page in std::mem::take(&mut self.missing) {
            self.sim.refill(Gfn(page));
        }
    }

    /// Whether no page is away.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}
