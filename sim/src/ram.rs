//! The guest's RAM: a memfd, and which of its pages is which frame.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use domain::{Frames, Gfn, Gpa, PAGE_SIZE};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::lock;

const PAGE: u64 = PAGE_SIZE as u64;

#[derive(Debug)]
pub(crate) struct Ram {
    file: File,
    /// The memfd's name, unlike that of any other domain in this process.
    name: String,
    regions: Vec<Region>,
    /// The guest's own mapping of everything, with a page that cannot be touched on either side.
    own: NonNull<u8>,
    own_len: usize,
    moved: Mutex<Moved>,
}

// SAFETY: the mapping belongs to the process, and is accessed by atomics and pointers only.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

#[derive(Debug)]
struct Region {
    start: u64,
    size: u64,
    /// Where the region is in the memfd.
    offset: u64,
}

/// Frames that are not where they were at first.
#[derive(Debug)]
struct Moved {
    /// Where the page of a frame is in the memfd, or `None` while it has none.
    frames: BTreeMap<u64, Option<u64>>,
    /// Size of the memfd.
    end: u64,
}

impl Ram {
    pub(crate) fn new(regions: &[(Gpa, u64)]) -> io::Result<Ram> {
        static COUNT: AtomicU64 = AtomicU64::new(0);

        let mut end = 0;
        let mut sorted = regions.to_vec();
        sorted.sort();
        let mut free_from = 0;
        let mut placed = Vec::new();
        for (Gpa(start), size) in sorted {
            let region_end = start.checked_add(size).filter(|end| *end < 1 << 52);
            let whole = start % PAGE == 0 && size % PAGE == 0 && size > 0;
            let Some(region_end) = region_end.filter(|_| whole && start >= free_from) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            placed.push(Region { start, size, offset: end });
            end += size;
            free_from = region_end;
        }

        let name = format!("sim-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let file = File::from(rustix::fs::memfd_create(&name, MemfdFlags::CLOEXEC)?);
        file.set_len(end)?;
        let own_len = end as usize + 2 * PAGE_SIZE;
        let own = reserve(own_len)?;
        let moved = Mutex::new(Moved { frames: BTreeMap::new(), end });
        let ram = Ram { file, name, regions: placed, own, own_len, moved };
        // SAFETY: inside the reservation just made.
        unsafe { ram.map_file(own.add(PAGE_SIZE), end as usize, 0)? };
        Ok(ram)
    }

    /// The memfd's offset of a frame's first page, whatever became of it since.
    fn home(&self, frame: u64) -> Option<u64> {
        let addr = frame.checked_mul(PAGE)?;
        let region =
            self.regions.iter().find(|region| addr >= region.start && addr - region.start < region.size)?;
        Some(region.offset + (addr - region.start))
    }

    /// Whether all of `count` frames are in regions, present or not.
    pub(crate) fn is_ram(&self, first: Gfn, count: u64) -> bool {
        (first.0..first.0.saturating_add(count)).all(|frame| self.home(frame).is_some())
    }

    pub(crate) fn map(&self, first: Gfn, count: usize) -> io::Result<Frames> {
        /// Pages in a row in the memfd.
        struct Run {
            index: usize,
            count: usize,
            offset: u64,
        }

        let last = first.0.checked_add(count as u64).filter(|_| count > 0);
        let last = last.ok_or(io::ErrorKind::InvalidInput)?;
        // Held to the end, so that a frame is not taken away between the look and the mapping.
        let moved = lock(&self.moved);
        let mut runs: Vec<Run> = Vec::new();
        let mut missing = Vec::new();
        for (index, frame) in (first.0..last).enumerate() {
            let offset = moved.frames.get(&frame).copied().unwrap_or_else(|| self.home(frame));
            match (offset, runs.last_mut()) {
                (None, _) => missing.push(index),
                (Some(offset), Some(run))
                    if run.index + run.count == index && run.offset + run.count as u64 * PAGE == offset =>
                {
                    run.count += 1;
                }
                (Some(offset), _) => runs.push(Run { index, count: 1, offset }),
            }
        }

        let base = reserve(count * PAGE_SIZE)?;
        // SAFETY: a reservation of our own, whose pages but the missing are made accessible below, or it is
        // dropped before anybody sees it.
        let frames = unsafe { Frames::from_raw(base, count, missing) };
        for run in runs {
            // SAFETY: inside the reservation.
            unsafe { self.map_file(base.add(run.index * PAGE_SIZE), run.count * PAGE_SIZE, run.offset)? };
        }
        Ok(frames)
    }

    #[track_caller]
    pub(crate) fn punch(&self, frame: Gfn) {
        let own = self.own_page(frame);
        let mut moved = lock(&self.moved);
        moved.frames.insert(frame.0, None);
        // The page itself stays in the memfd: it is what older mappings go on to see.
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: a page of our own mapping; who has a pointer to it was told (`ram_ptr`).
        unsafe { rustix::mm::mmap_anonymous(own.as_ptr().cast(), PAGE_SIZE, ProtFlags::empty(), flags) }
            .expect("take a page away");
    }

    #[track_caller]
    pub(crate) fn refill(&self, frame: Gfn) {
        let own = self.own_page(frame);
        let mut moved = lock(&self.moved);
        let offset = moved.end;
        self.file.set_len(offset + PAGE).expect("extend the memfd");
        moved.end += PAGE;
        moved.frames.insert(frame.0, Some(offset));
        // SAFETY: a page of our own mapping.
        unsafe { self.map_file(own, PAGE_SIZE, offset) }.expect("map the new page");
    }

    #[track_caller]
    fn own_page(&self, frame: Gfn) -> NonNull<u8> {
        let home = self.home(frame.0).unwrap_or_else(|| panic!("frame {:#x} is not RAM", frame.0));
        // SAFETY: the own mapping covers every home, after the first page.
        unsafe { self.own.add(PAGE_SIZE + home as usize) }
    }

    #[track_caller]
    pub(crate) fn pointer(&self, addr: Gpa, len: usize) -> NonNull<u8> {
        let end = addr.0.checked_add(len as u64);
        let region = self.regions.iter().find(|region| {
            addr.0 >= region.start && end.is_some_and(|end| end - region.start <= region.size)
        });
        let Some(region) = region else { panic!("{len} bytes at {addr} are not RAM") };
        {
            let moved = lock(&self.moved);
            let mut frames = moved.frames.range(addr.0 / PAGE..(addr.0 + len as u64).div_ceil(PAGE));
            assert!(frames.all(|(_, page)| page.is_some()), "{len} bytes at {addr} touch a missing page");
        }
        // SAFETY: inside the own mapping, by the check above.
        unsafe { self.own.add(PAGE_SIZE + (region.offset + (addr.0 - region.start)) as usize) }
    }

    #[track_caller]
    pub(crate) fn read(&self, addr: Gpa, buf: &mut [u8]) {
        let from = self.pointer(addr, buf.len()).as_ptr();
        // SAFETY: `pointer` gives as many mapped bytes; atomics, since the device model writes there too.
        // The larger ones are aligned.
        unsafe {
            match buf.len() {
                2 if addr.0.is_multiple_of(2) => {
                    buf.copy_from_slice(
                        &AtomicU16::from_ptr(from.cast()).load(Ordering::Acquire).to_ne_bytes(),
                    );
                }
                4 if addr.0.is_multiple_of(4) => {
                    buf.copy_from_slice(
                        &AtomicU32::from_ptr(from.cast()).load(Ordering::Acquire).to_ne_bytes(),
                    );
                }
                8 if addr.0.is_multiple_of(8) => {
                    buf.copy_from_slice(
                        &AtomicU64::from_ptr(from.cast()).load(Ordering::Acquire).to_ne_bytes(),
                    );
                }
                _ => {
                    for (index, byte) in buf.iter_mut().enumerate() {
                        *byte = AtomicU8::from_ptr(from.add(index)).load(Ordering::Relaxed);
                    }
                    fence(Ordering::Acquire);
                }
            }
        }
    }

    #[track_caller]
    pub(crate) fn write(&self, addr: Gpa, bytes: &[u8]) {
        let to = self.pointer(addr, bytes.len()).as_ptr();
        // SAFETY: as in `read`.
        unsafe {
            match *bytes {
                [a, b] if addr.0.is_multiple_of(2) => {
                    AtomicU16::from_ptr(to.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Release);
                }
                [a, b, c, d] if addr.0.is_multiple_of(4) => {
                    let value = u32::from_ne_bytes([a, b, c, d]);
                    AtomicU32::from_ptr(to.cast()).store(value, Ordering::Release);
                }
                [a, b, c, d, e, f, g, h] if addr.0.is_multiple_of(8) => {
                    let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                    AtomicU64::from_ptr(to.cast()).store(value, Ordering::Release);
                }
                _ => {
                    fence(Ordering::Release);
                    for (index, byte) in bytes.iter().enumerate() {
                        AtomicU8::from_ptr(to.add(index)).store(*byte, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Counts the pages of the memfd in the process's mappings, but for our own.
    pub(crate) fn mapped_frames(&self) -> usize {
        let own = self.own.as_ptr() as usize;
        let own = own..own + self.own_len;
        let maps = fs::read_to_string("/proc/self/maps").expect("read /proc/self/maps");
        let file = format!("/memfd:{} (deleted)", self.name);
        let sizes = maps.lines().filter(|line| line.ends_with(&file)).map(|line| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let (start, end) = range.expect("a range of addresses");
            let address = |text| usize::from_str_radix(text, 16).expect("an address");
            if own.contains(&address(start)) { 0 } else { address(end) - address(start) }
        });
        sizes.sum::<usize>() / PAGE_SIZE
    }

    /// Maps part of the memfd at `at`.
    ///
    /// # Safety
    /// `len` bytes at `at` are in a mapping of ours that may be replaced.
    unsafe fn map_file(&self, at: NonNull<u8>, len: usize, offset: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the caller's promise.
        unsafe { rustix::mm::mmap(at.as_ptr().cast(), len, access, flags, &self.file, offset)? };
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and whoever has a pointer into it was told that it ends here.
        let _ = unsafe { rustix::mm::munmap(self.own.as_ptr().cast::<c_void>(), self.own_len) };
    }
}

/// Address space that cannot be touched.
fn reserve(len: usize) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping where the kernel finds room disturbs nothing.
    let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags)? };
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
