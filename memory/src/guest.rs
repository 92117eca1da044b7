//! The guest's RAM as a whole.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use domain::{Extent, Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE, SharedDomain};

use crate::chunk::Chunk;
use crate::copy::{self, Scalar};
use crate::dirty::{self, DirtyLog};
use crate::pinned::{Pin, Pinned};
use crate::view::{Part, View};
use crate::{MemoryError, Region, region};

/// log2 of the smallest chunk: 2 MiB.
const MIN_CHUNK_SHIFT: u32 = 21;
/// Chunks grow rather than become more than this: each is a mapping, of which Linux allows 65 530.
const MAX_CHUNKS: u64 = 8192;
/// How long an access to a missing page fails without another look, after a look that found it missing
/// still. A driver that uses pages it gave away must not make us map a chunk for every access.
const QUIET: Duration = Duration::from_millis(10);
/// Most extents a report: as many as Xen takes in a call without being asked to continue.
const MAX_EXTENTS: usize = 256;

/// The guest's RAM. Cheap to clone; clones are the same memory.
#[derive(Clone)]
pub struct GuestMemory(Arc<Inner>);

struct Inner {
    domain: SharedDomain,
    regions: Box<[Region]>,
    areas: Box<[Area]>,
    chunk_shift: u32,
    generation: AtomicU64,
    /// (area, slot) of every slot that holds a chunk. The lock orders putting chunks in against
    /// [`GuestMemory::invalidate`], so that a chunk mapped before it cannot appear after it.
    mapped: Mutex<Vec<(usize, usize)>>,
    /// Held over a whole flush: who flushes second returns after the first one's report. The vector is
    /// kept for its capacity.
    flush: Mutex<Vec<Extent>>,
}

/// What belongs to a region.
struct Area {
    slots: Box<[Slot]>,
    log: Arc<DirtyLog>,
}

/// One chunk's place. Readers load `chunk` and take no lock.
#[derive(Default)]
struct Slot {
    chunk: ArcSwapOption<Chunk>,
    /// Held while the chunk is mapped: when a mapping was last renewed in vain.
    fruitless: Mutex<Option<Instant>>,
}

/// A range inside one region.
#[derive(Clone, Copy)]
struct Place<'a> {
    area: &'a Area,
    area_index: usize,
    region: &'a Region,
    /// Offset in the region.
    offset: u64,
}

impl GuestMemory {
    /// The RAM of `domain`, at `regions` in any order. Maps nothing yet.
    ///
    /// # Errors
    /// [`MemoryError::BadRegion`] for a region that is empty, is not whole pages, ends above 2^52 or
    /// overlaps another.
    pub fn new(domain: SharedDomain, regions: &[Region]) -> Result<GuestMemory, MemoryError> {
        let regions = region::sorted(regions)?;
        let total = regions.iter().fold(0u64, |sum, region| sum.saturating_add(region.size));
        let chunk_shift = chunk_shift(total);
        let areas = regions
            .iter()
            .map(|region| Area {
                slots: (0..region.size.div_ceil(1 << chunk_shift)).map(|_| Slot::default()).collect(),
                log: Arc::new(DirtyLog::new((region.size >> PAGE_SHIFT) as usize)),
            })
            .collect();
        dirty::prepare_settle();
        Ok(GuestMemory(Arc::new(Inner {
            domain,
            regions: regions.into(),
            areas,
            chunk_shift,
            generation: AtomicU64::new(0),
            mapped: Mutex::default(),
            flush: Mutex::new(Vec::with_capacity(MAX_EXTENTS)),
        })))
    }

    /// The regions of RAM, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.0.regions
    }

    /// Checks that `len` bytes at `addr` are inside one region. Maps nothing, and so does not know of
    /// missing pages. A `len` of 0 needs `addr` to be in RAM all the same.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn check(&self, addr: Gpa, len: u64) -> Result<(), MemoryError> {
        self.0.place(addr, len).map(|_| ())
    }

    /// Copies `buf.len()` bytes at `addr` out of guest memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] before anything was copied; [`MemoryError::Missing`] and
    /// [`MemoryError::Map`] with `buf` filled in part.
    pub fn read(&self, addr: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = buf;
        self.0.each_piece(addr, rest.len(), |_, pointer, _, len| {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: `each_piece` gives a pointer to `len` mapped bytes.
            unsafe { copy::load_bytes(pointer, piece) };
            rest = tail;
        })
    }

    /// Copies `buf` into guest memory at `addr` and logs the pages as dirty.
    ///
    /// # Errors
    /// As [`GuestMemory::read`]; the part before the page that failed was written.
    pub fn write(&self, addr: Gpa, buf: &[u8]) -> Result<(), MemoryError> {
        let mut rest = buf;
        self.0.each_piece(addr, rest.len(), |chunk, pointer, offset, len| {
            let (piece, tail) = rest.split_at(len);
            // SAFETY: as in `read`.
            unsafe { copy::store_bytes(pointer, piece) };
            chunk.mark(offset, len);
            rest = tail;
        })
    }

    fn read_scalar<S: Scalar>(&self, addr: Gpa) -> Result<S, MemoryError> {
        if !is_aligned::<S>(addr) {
            let mut bytes = S::Bytes::default();
            self.read(addr, bytes.as_mut())?;
            return Ok(S::from_le(bytes));
        }
        let place = self.0.place(addr, size_of::<S>() as u64)?;
        // SAFETY: mapped, and aligned in the guest as in the page-aligned chunk.
        self.0.with(place, size_of::<S>(), |_, pointer, _| unsafe { S::load(pointer, Ordering::Relaxed) })
    }

    fn write_scalar<S: Scalar>(&self, addr: Gpa, value: S) -> Result<(), MemoryError> {
        if !is_aligned::<S>(addr) {
            return self.write(addr, value.to_le().as_ref());
        }
        let place = self.0.place(addr, size_of::<S>() as u64)?;
        self.0.with(place, size_of::<S>(), |chunk, pointer, offset| {
            // SAFETY: as in `read_scalar`.
            unsafe { value.store(pointer, Ordering::Relaxed) };
            chunk.mark(offset, size_of::<S>());
        })
    }

    /// A byte. Errors as [`GuestMemory::read`].
    pub fn read_u8(&self, addr: Gpa) -> Result<u8, MemoryError> {
        self.read_scalar(addr)
    }

    /// A little-endian u16, in one access if it is aligned. Errors as [`GuestMemory::read`].
    pub fn read_u16(&self, addr: Gpa) -> Result<u16, MemoryError> {
        self.read_scalar(addr)
    }

    /// A little-endian u32, in one access if it is aligned. Errors as [`GuestMemory::read`].
    pub fn read_u32(&self, addr: Gpa) -> Result<u32, MemoryError> {
        self.read_scalar(addr)
    }

    /// A little-endian u64, in one access if it is aligned. Errors as [`GuestMemory::read`].
    pub fn read_u64(&self, addr: Gpa) -> Result<u64, MemoryError> {
        self.read_scalar(addr)
    }

    /// Stores a byte. Errors as [`GuestMemory::write`].
    pub fn write_u8(&self, addr: Gpa, value: u8) -> Result<(), MemoryError> {
        self.write_scalar(addr, value)
    }

    /// Stores a little-endian u16, in one access if it is aligned. Errors as [`GuestMemory::write`].
    pub fn write_u16(&self, addr: Gpa, value: u16) -> Result<(), MemoryError> {
        self.write_scalar(addr, value)
    }

    /// Stores a little-endian u32, in one access if it is aligned. Errors as [`GuestMemory::write`].
    pub fn write_u32(&self, addr: Gpa, value: u32) -> Result<(), MemoryError> {
        self.write_scalar(addr, value)
    }

    /// Stores a little-endian u64, in one access if it is aligned. Errors as [`GuestMemory::write`].
    pub fn write_u64(&self, addr: Gpa, value: u64) -> Result<(), MemoryError> {
        self.write_scalar(addr, value)
    }

    /// Holds `len` bytes at `addr` mapped for typed access over a long time.
    ///
    /// # Errors
    /// As [`GuestMemory::read`]. Every page of the range is there when this succeeds, and stays usable
    /// by way of the view.
    pub fn view(&self, addr: Gpa, len: usize) -> Result<View, MemoryError> {
        // Before any chunk is looked up: if the map changes meanwhile, the view is born stale.
        let generation = self.generation();
        let mut parts = Vec::new();
        let mut first = None;
        self.0.each_piece(addr, len, |chunk, _, offset, _| {
            first.get_or_insert(offset);
            parts.push(Part::new(chunk));
        })?;
        Ok(View::new(addr, len, generation, parts.into(), first.unwrap_or(0), self.0.chunk_shift))
    }

    /// Appends `len` bytes at `addr` to `out`, for the kernel to read or write (`direction`).
    ///
    /// # Errors
    /// As [`GuestMemory::read`]; `out` is then as it was before.
    pub fn pin(&self, addr: Gpa, len: usize, direction: Pin, out: &mut Pinned) -> Result<(), MemoryError> {
        let before = out.len();
        let result = self.0.each_piece(addr, len, |chunk, pointer, offset, len| {
            out.push(chunk, pointer, offset, len, direction);
        });
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    /// A number that changes with each [`GuestMemory::invalidate`]. See [`View::is_stale`].
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Forgets every mapping: the next access to each chunk maps it afresh. When this returns, no access
    /// that starts later uses a mapping made before. Mappings in use stay until their users are done.
    pub fn invalidate(&self) {
        let mut mapped = lock(&self.0.mapped);
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        let dropped: Vec<_> = mapped
            .drain(..)
            .filter_map(|(area, slot)| self.0.areas.get(area)?.slots.get(slot)?.chunk.swap(None))
            .collect();
        // Unmapping takes long: let others map meanwhile.
        drop(mapped);
        drop(dropped);
    }

    /// Reports every page written since the last flush to the domain, and forgets it.
    ///
    /// When this returns, all writes that were done before it was called are reported, by this call or by
    /// one that ran at the same time.
    ///
    /// # Errors
    /// The first error of the domain. Pages whose report failed stay marked for the next flush.
    pub fn flush_dirty(&self) -> io::Result<()> {
        let inner = &*self.0;
        let mut batch = lock(&inner.flush);
        let mut result = Ok(());
        for (area, region) in inner.areas.iter().zip(&inner.regions) {
            let base = region.start.frame().0;
            area.log.drain(|first, count| {
                let first = Gfn(base.saturating_add(first as u64));
                let extent = Extent { first, count };
                if batch.last_mut().is_some_and(|last| extend(last, extent)) {
                    return;
                }
                if batch.len() >= MAX_EXTENTS {
                    inner.report(area, base, &mut batch, &mut result);
                }
                batch.push(extent);
            });
            inner.report(area, base, &mut batch, &mut result);
        }
        result
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMemory")
            .field("regions", &self.0.regions)
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Finds the region that holds all of a range.
    fn place(&self, addr: Gpa, len: u64) -> Result<Place<'_>, MemoryError> {
        self.regions
            .iter()
            .zip(&self.areas)
            .enumerate()
            .find_map(|(area_index, (region, area))| {
                let offset = region.offset_of(addr, len)?;
                Some(Place { area, area_index, region, offset })
            })
            .ok_or(MemoryError::OutOfRange { addr, len })
    }

    /// Calls `act` with each piece of a range that lies in one chunk, mapped: the chunk, a pointer to the
    /// piece, its offset in the chunk, and its length. Ends at the first piece that is not there.
    fn each_piece(
        &self,
        addr: Gpa,
        len: usize,
        mut act: impl FnMut(&Arc<Chunk>, NonNull<u8>, usize, usize),
    ) -> Result<(), MemoryError> {
        let mut place = self.place(addr, len as u64)?;
        let mut left = len;
        while left > 0 {
            let to_boundary = self.chunk_size().saturating_sub(self.in_chunk(place.offset));
            let here = left.min(to_boundary);
            self.with(place, here, |chunk, pointer, offset| act(chunk, pointer, offset, here))?;
            left = left.saturating_sub(here);
            place.offset = place.offset.saturating_add(here as u64);
        }
        Ok(())
    }

    /// Calls `act` with the chunk that holds `len` bytes at `place`, a pointer to them, and their offset
    /// in the chunk. The pointer is good for `len` bytes while the chunk is held.
    fn with<R>(
        &self,
        place: Place<'_>,
        len: usize,
        act: impl FnOnce(&Arc<Chunk>, NonNull<u8>, usize) -> R,
    ) -> Result<R, MemoryError> {
        let index = usize::try_from(place.offset >> self.chunk_shift).unwrap_or(usize::MAX);
        let offset = self.in_chunk(place.offset);
        let slot = place.area.slots.get(index);
        if let Some(chunk) = slot.map(|slot| slot.chunk.load()).as_deref().and_then(Option::as_ref)
            && let Some(pointer) = chunk.pointer(offset, len)
        {
            return Ok(act(chunk, pointer, offset));
        }
        let chunk = self.map(place, index, offset, len)?;
        match chunk.pointer(offset, len) {
            Some(pointer) => Ok(act(&chunk, pointer, offset)),
            None => Err(MemoryError::OutOfRange { addr: place.addr(), len: len as u64 }),
        }
    }

    /// Maps the chunk at `index` for an access to `len` bytes at `offset` that did not find it, or found
    /// pages missing. All of the access is there in the chunk returned.
    #[cold]
    fn map(
        &self,
        place: Place<'_>,
        index: usize,
        offset: usize,
        len: usize,
    ) -> Result<Arc<Chunk>, MemoryError> {
        let out_of_range = MemoryError::OutOfRange { addr: place.addr(), len: len as u64 };
        let slot = place.area.slots.get(index).ok_or(out_of_range)?;
        let mut fruitless = lock(&slot.fruitless);
        let current = slot.chunk.load_full();
        if let Some(chunk) = &current {
            // Another thread may have mapped it while we waited for the lock.
            let Some(addr) = chunk.missing(offset, len) else { return Ok(Arc::clone(chunk)) };
            if fruitless.is_some_and(|at| at.elapsed() < QUIET) {
                return Err(MemoryError::Missing { addr });
            }
        }

        let generation = self.generation.load(Ordering::Acquire);
        let start = (index as u64).checked_shl(self.chunk_shift).ok_or(out_of_range)?;
        let size = place.region.size.saturating_sub(start).min(self.chunk_size() as u64);
        let addr = place.region.start.checked_add(start).ok_or(out_of_range)?;
        let frames = self
            .domain
            .map(addr.frame(), (size >> PAGE_SHIFT) as usize)
            .map_err(|error| MemoryError::map(addr, &error))?;
        let first_page = (start >> PAGE_SHIFT) as usize;
        let chunk = Arc::new(Chunk::new(frames, addr, first_page, Arc::clone(&place.area.log)));
        let replaced = self.publish(slot, (place.area_index, index), &chunk, generation);

        let result = match chunk.missing(offset, len) {
            None => Ok(chunk),
            Some(addr) => {
                if current.is_some() {
                    *fruitless = Some(Instant::now());
                }
                Err(MemoryError::Missing { addr })
            }
        };
        drop(fruitless);
        drop(replaced);
        result
    }

    /// Puts a chunk in its slot, unless the memory map changed since `generation`: then the chunk is for
    /// the access that mapped it, which began before the change, and for nobody else.
    fn publish(
        &self,
        slot: &Slot,
        key: (usize, usize),
        chunk: &Arc<Chunk>,
        generation: u64,
    ) -> Option<Arc<Chunk>> {
        let mut mapped = lock(&self.mapped);
        if self.generation.load(Ordering::Acquire) != generation {
            return None;
        }
        let replaced = slot.chunk.swap(Some(Arc::clone(chunk)));
        if replaced.is_none() {
            mapped.push(key);
        }
        replaced
    }

    /// Reports and empties `batch`; its pages are marked again if that fails.
    fn report(&self, area: &Area, base: u64, batch: &mut Vec<Extent>, result: &mut io::Result<()>) {
        if batch.is_empty() {
            return;
        }
        dirty::settle();
        if let Err(error) = self.domain.mark_dirty(batch) {
            for extent in batch.iter() {
                let first = usize::try_from(extent.first.0.saturating_sub(base)).unwrap_or(usize::MAX);
                area.log.mark(first, extent.count as usize);
            }
            if result.is_ok() {
                *result = Err(error);
            }
        }
        batch.clear();
    }

    fn chunk_size(&self) -> usize {
        1usize.checked_shl(self.chunk_shift).unwrap_or(PAGE_SIZE)
    }

    /// Offset in its chunk of an offset in the region.
    fn in_chunk(&self, offset: u64) -> usize {
        // Its low bits, so nothing is lost.
        usize::try_from(offset).unwrap_or_default() & self.chunk_size().saturating_sub(1)
    }
}

impl Place<'_> {
    fn addr(&self) -> Gpa {
        Gpa(self.region.start.0.saturating_add(self.offset))
    }
}

/// log2 of the chunk size for `total` bytes of RAM.
fn chunk_shift(total: u64) -> u32 {
    let mut shift = MIN_CHUNK_SHIFT;
    while total.checked_shr(shift).unwrap_or(0) > MAX_CHUNKS {
        shift = shift.saturating_add(1);
    }
    shift
}

/// Appends `next` to `last` if it starts where that ends.
fn extend(last: &mut Extent, next: Extent) -> bool {
    let count = last.count.checked_add(next.count);
    match count {
        Some(count) if last.first.0.saturating_add(last.count.into()) == next.first.0 => {
            last.count = count;
            true
        }
        _ => false,
    }
}

fn is_aligned<S>(addr: Gpa) -> bool {
    addr.0.is_multiple_of(size_of::<S>() as u64)
}

/// Locks; a panic of another thread left nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
