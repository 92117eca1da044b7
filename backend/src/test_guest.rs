//! A few MiB of guest memory for tests.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use domain::{Domain, Extent, Frames, Gfn, Gpa, IoreqChannel, Msi, PAGE_SIZE, Shutdown};
use memory::{GuestMemory, Pin, Pinned, Region};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

struct Ram(OwnedFd);

impl Domain for Ram {
    fn vcpus(&self) -> u32 {
        1
    }

    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>> {
        Vec::new()
    }

    fn map(&self, first: Gfn, count: usize) -> io::Result<Frames> {
        // SAFETY: a new mapping at an address of the kernel's choice; `Frames` takes it over.
        unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let len = count * PAGE_SIZE;
            let none = std::ptr::null_mut::<c_void>();
            let base = rustix::mm::mmap(none, len, protection, MapFlags::SHARED, &self.0, first.address().0)?;
            Ok(Frames::from_raw(NonNull::new(base.cast()).unwrap(), count, []))
        }
    }

    fn inject_msi(&self, _: Msi) -> io::Result<()> {
        Ok(())
    }

    fn mark_dirty(&self, _: &[Extent]) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _: Shutdown) -> io::Result<()> {
        Ok(())
    }
}

/// Memory of `size` bytes from address 0.
pub(crate) fn memory(size: u64) -> GuestMemory {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    GuestMemory::new(Arc::new(Ram(file)), &[Region { start: Gpa(0), size }]).unwrap()
}

/// These ranges of `memory`, pinned.
pub(crate) fn pin(memory: &GuestMemory, direction: Pin, ranges: &[(u64, usize)]) -> Pinned {
    let mut pinned = Pinned::new();
    for (start, len) in ranges {
        memory.pin(Gpa(*start), *len, direction, &mut pinned).unwrap();
    }
    pinned
}

/// Bytes that look random and depend on `seed`.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
