//! Memory that somebody else looks at too: a BAR, the ECAM, pages that a device was told of.
//!
//! Each access is one instruction of exactly the width asked for, aligned or not, as no compiler promises.

use std::arch::asm;
use std::fs::File;
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

const PAGE: u64 = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Addresses of ours that mean something to the machine.
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping lives as long as the value, and all access is by single instructions that no compiler
// sees into: there is nothing that threads could be told wrong about.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A string instruction's way through memory.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Up,
    Down,
}

impl Mapping {
    /// `len` bytes of a file from `offset` on.
    pub fn of(file: &File, offset: u64, len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is there.
        let base = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, offset)
        };
        Ok(Self { base: base.context("mmap")?.cast(), len })
    }

    /// Ordinary memory with its pages there, huge ones if asked.
    pub fn anonymous(len: usize, huge: bool) -> Result<Self> {
        let flags = if huge { MapFlags::HUGETLB } else { MapFlags::empty() };
        let flags = flags | MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: as in `of`.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
        Ok(Self { base: base.context("mmap of memory")?.cast(), len })
    }

    pub fn len(&self) -> u64 {
        self.len as u64
    }

    fn at(&self, offset: u64, len: u64) -> *mut u8 {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(inside, "{len} bytes at {offset:#x} of a mapping of {:#x}", self.len);
        self.base.wrapping_add(offset as usize)
    }

    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let from = self.at(offset, size.into());
        let value: u64;
        // SAFETY: `at` has checked that the bytes are ours.
        unsafe {
            match size {
                1 => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) from),
                2 => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) from),
                4 => asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) from),
                8 => asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) from),
                _ => panic!("no instruction reads {size} bytes"),
            }
        }
        value
    }

    pub fn write(&self, offset: u64, size: u8, value: u64) {
        let to = self.at(offset, size.into());
        // SAFETY: `at` has checked that the bytes are ours; who else sees them expects the worst.
        unsafe {
            match size {
                1 => asm!("mov byte ptr [{}], {}", in(reg) to, in(reg_byte) value as u8),
                2 => asm!("mov word ptr [{}], {:x}", in(reg) to, in(reg) value),
                4 => asm!("mov dword ptr [{}], {:e}", in(reg) to, in(reg) value),
                8 => asm!("mov qword ptr [{}], {}", in(reg) to, in(reg) value),
                _ => panic!("no instruction writes {size} bytes"),
            }
        }
    }

    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.write(at, 1, (*byte).into());
        }
    }

    pub fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        (offset..offset + len).map(|at| self.read(at, 1) as u8).collect()
    }

    /// A 16-byte vector load and store in one instruction each.
    pub fn vector(&self, offset: u64) {
        let at = self.at(offset, 16);
        // SAFETY: `at` has checked that the bytes are ours.
        unsafe { asm!("movups xmm0, [{0}]", "movups [{0}], xmm0", in(reg) at, out("xmm0") _) }
    }

    /// A locked read-modify-write that changes nothing.
    pub fn locked(&self, offset: u64) {
        let at = self.at(offset, 4);
        // SAFETY: `at` has checked that the bytes are ours.
        unsafe { asm!("lock or dword ptr [{}], 0", in(reg) at) }
    }

    /// `rep movs` of `count` items of `size` bytes from here to `target`; with [`Way::Down`] the last item goes
    /// first.
    pub fn copy_to(&self, offset: u64, target: &Mapping, to: u64, size: u8, count: u64, way: Way) {
        let len = count * u64::from(size);
        let last = if way == Way::Down { len - u64::from(size) } else { 0 };
        let (from, to) = (self.at(offset, len), target.at(to, len));
        let (from, to) = (from.wrapping_add(last as usize), to.wrapping_add(last as usize));
        // SAFETY: `at` has checked both ranges; the direction flag is as it was when the block ends.
        macro_rules! string {
            ($instruction:literal) => {
                match way {
                    Way::Up => asm!($instruction, inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _),
                    Way::Down => asm!("std", $instruction, "cld", inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _),
                }
            };
        }
        // SAFETY: see above.
        unsafe {
            match size {
                1 => string!("rep movsb"),
                2 => string!("rep movsw"),
                4 => string!("rep movsd"),
                8 => string!("rep movsq"),
                _ => panic!("no string instruction moves {size} bytes"),
            }
        }
    }

    /// The guest-physical address of each 4 KiB page.
    pub fn gpas(&self) -> Result<Vec<u64>> {
        use std::os::unix::fs::FileExt;
        let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
        let first = self.base as u64 / PAGE;
        (0..self.len() / PAGE)
            .map(|page| {
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, (first + page) * 8)?;
                let entry = u64::from_le_bytes(entry);
                ensure!(entry >> 63 == 1, "page {page} is not there");
                Ok((entry & ((1 << 55) - 1)) * PAGE)
            })
            .collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody can have an address from us any more.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// Memory of ours that is in one piece for devices as well: a huge page.
pub struct Memory {
    mapping: Mapping,
    gpa: u64,
}

impl Memory {
    pub const LEN: u64 = HUGE_PAGE as u64;

    pub fn new() -> Result<Self> {
        let mapping = Mapping::anonymous(HUGE_PAGE, true).context("a huge page")?;
        let gpa = mapping.gpas()?[0];
        Ok(Self { mapping, gpa })
    }

    /// What a device calls the byte at `offset`.
    pub fn gpa(&self, offset: u64) -> u64 {
        self.gpa + offset
    }
}

impl std::ops::Deref for Memory {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}
