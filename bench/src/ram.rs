//! The guest's RAM as a driver sees it: in this process, whosever it is.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use domain::Gpa;
use rustix::mm::{MapFlags, ProtFlags};
use sim::SimDomain;

/// RAM from address 0 on.
pub struct Ram {
    base: NonNull<u8>,
    len: usize,
    /// The domain that the mapping belongs to; without one it is ours.
    owner: Option<Arc<SimDomain>>,
}

impl Ram {
    /// The RAM of a simulated domain.
    pub fn of_domain(sim: &Arc<SimDomain>, len: u64) -> Ram {
        let len = len as usize;
        Ram { base: sim.ram_ptr(Gpa(0), len), len, owner: Some(sim.clone()) }
    }

    /// RAM that is a file shared with another process.
    pub fn of_file(file: &File, len: u64) -> io::Result<Ram> {
        let len = len as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel finds room disturbs nothing.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ram { base, len, owner: None })
    }

    /// A pointer to `size` aligned bytes.
    #[inline]
    fn at(&self, address: u64, size: usize) -> *mut u8 {
        let at = address as usize;
        assert!(at.is_multiple_of(size) && at < self.len && size <= self.len - at, "{address:#x} is not RAM");
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// Writes bytes of no particular size.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            self.store8(at, *byte);
        }
    }
}

macro_rules! accessors {
    ($int:ty, $atomic:ty, $($load:ident)?, $store:ident) => {
        impl Ram {
            $(
                /// Loads it; what the device wrote before is seen after.
                #[inline]
                pub fn $load(&self, address: u64) -> $int {
                    // SAFETY: mapped and aligned; whoever else is there writes it by accesses of its own.
                    unsafe { <$atomic>::from_ptr(self.at(address, size_of::<$int>()).cast()) }
                        .load(Ordering::Acquire)
                }
            )?

            /// Stores it; what was stored before is seen by who sees it.
            #[inline]
            pub fn $store(&self, address: u64, value: $int) {
                // SAFETY: as above.
                unsafe { <$atomic>::from_ptr(self.at(address, size_of::<$int>()).cast()) }
                    .store(value, Ordering::Release);
            }
        }
    };
}

accessors!(u8, AtomicU8, load8, store8);
accessors!(u16, AtomicU16, load16, store16);
accessors!(u32, AtomicU32, load32, store32);
accessors!(u64, AtomicU64, , store64);

impl Drop for Ram {
    fn drop(&mut self) {
        if self.owner.is_none() {
            // SAFETY: our own mapping, into which nobody has a pointer any more.
            let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}
