//! Guest memory against the simulated domain.

mod model;
mod pinned;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use domain::{Domain, Extent, Frames, Gfn, Gpa, IoreqChannel, Msi, PAGE_SIZE, Shutdown};
use sim::SimDomain;

use crate::{GuestMemory, MemoryError, Pin, Pinned, Region};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 2 * MIB;
/// Low RAM: two chunks and a half.
const LOW: u64 = 5 * MIB;
const HIGH: Gpa = Gpa(1 << 32);
/// High RAM: one page.
const HIGH_SIZE: u64 = PAGE_SIZE as u64;

fn guest() -> (Arc<SimDomain>, GuestMemory) {
    let regions = [(Gpa(0), LOW), (HIGH, HIGH_SIZE)];
    let sim = SimDomain::new(1, &regions).unwrap();
    let memory = GuestMemory::new(sim.clone(), &regions.map(|(start, size)| Region { start, size })).unwrap();
    (sim, memory)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

fn pages(extents: &[Extent]) -> Vec<(u64, u32)> {
    extents.iter().map(|extent| (extent.first.0, extent.count)).collect()
}

#[test]
fn regions_are_sorted_and_checked() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap();
    let new = |regions: &[(u64, u64)]| {
        let regions: Vec<_> =
            regions.iter().map(|(start, size)| Region { start: Gpa(*start), size: *size }).collect();
        GuestMemory::new(sim.clone(), &regions)
    };
    let sorted = new(&[(1 << 32, MIB), (0, MIB), (MIB, MIB)]).unwrap();
    assert_eq!(sorted.regions().iter().map(|region| region.start.0).collect::<Vec<_>>(), [0, MIB, 1 << 32]);
    assert!(new(&[]).unwrap().check(Gpa(0), 0).is_err());
    for bad in [
        &[(0, 0)][..],
        &[(1, 4096)],
        &[(0, 4095)],
        &[(0, 8192), (4096, 8192)],
        &[(0, 8192), (0, 4096)],
        &[(1 << 52, 4096)],
        &[((1 << 52) - 4096, 8192)],
        &[(u64::MAX - 4095, 4096)],
    ] {
        assert!(matches!(new(bad), Err(MemoryError::BadRegion { .. })), "{bad:?}");
    }
    assert!(new(&[((1 << 52) - 4096, 4096)]).is_ok());
    assert!(format!("{sorted:?}").contains("0x100000"));
}

#[test]
fn check_wants_the_whole_range_in_one_region() {
    let (sim, memory) = guest();
    for (addr, len) in [(0, LOW), (LOW - 1, 1), (LOW - 1, 0), (HIGH.0, HIGH_SIZE), (HIGH.0 + 4095, 1)] {
        assert_eq!(memory.check(Gpa(addr), len), Ok(()), "{addr:#x} {len:#x}");
    }
    for (addr, len) in [
        (LOW, 0),
        (LOW, 1),
        (LOW - 1, 2),
        (0, LOW + 1),
        (1, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX, 0),
        (HIGH.0 - 1, 2),
        (HIGH.0, HIGH_SIZE + 1),
        (1 << 63, 1),
        (1 << 63 | 0x1000, 16),
    ] {
        let error = MemoryError::OutOfRange { addr: Gpa(addr), len };
        assert_eq!(memory.check(Gpa(addr), len), Err(error), "{addr:#x} {len:#x}");
    }
    assert_eq!(sim.maps(), 0);
}

#[test]
fn adjacent_regions_are_not_one() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB), (Gpa(MIB), MIB)]).unwrap();
    let regions = [0, MIB].map(|start| Region { start: Gpa(start), size: MIB });
    let memory = GuestMemory::new(sim.clone(), &regions).unwrap();
    assert!(memory.check(Gpa(MIB - 1), 2).is_err());
    memory.write_u8(Gpa(MIB - 1), 1).unwrap();
    memory.write_u8(Gpa(MIB), 2).unwrap();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(255, 1), (256, 1)]);
}

#[test]
fn nothing_is_mapped_before_use_and_chunks_only_once() {
    let (sim, memory) = guest();
    assert_eq!((sim.maps(), sim.mapped_frames()), (0, 0));
    memory.read_u8(Gpa(CHUNK)).unwrap();
    memory.read_u8(Gpa(2 * CHUNK - 1)).unwrap();
    assert_eq!((sim.maps(), sim.mapped_frames()), (1, 512));
    // The last chunk of a region is as long as there is RAM.
    memory.read_u8(Gpa(LOW - 1)).unwrap();
    assert_eq!((sim.maps(), sim.mapped_frames()), (2, 512 + 256));
    memory.read_u8(HIGH).unwrap();
    assert_eq!((sim.maps(), sim.mapped_frames()), (3, 512 + 256 + 1));
    drop(memory);
    assert_eq!(sim.mapped_frames(), 0);
}

#[test]
fn chunks_grow_with_the_guest() {
    // 64 GiB in chunks of 2 MiB would be 32768. A memfd costs nothing until it is touched.
    let size = 64 << 30;
    let sim = SimDomain::new(1, &[(Gpa(0), size)]).unwrap();
    let memory = GuestMemory::new(sim.clone(), &[Region { start: Gpa(0), size }]).unwrap();
    memory.write_u8(Gpa(size - 1), 9).unwrap();
    assert_eq!(sim.mapped_frames(), (8 * MIB as usize) / PAGE_SIZE);
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(size / 4096 - 1, 1)]);
}

#[test]
fn copies_cross_chunks() {
    let (sim, memory) = guest();
    let data = pattern(2 * CHUNK as usize - 100);
    let addr = Gpa(CHUNK / 2 + 3);
    memory.write(addr, &data).unwrap();
    let mut seen = vec![0; data.len()];
    sim.ram_read(addr, &mut seen);
    assert!(seen == data);
    seen.fill(0);
    memory.read(addr, &mut seen).unwrap();
    assert!(seen == data);
    assert_eq!(sim.maps(), 3);
}

#[test]
fn a_range_out_of_ram_changes_nothing() {
    let (sim, memory) = guest();
    let mut buf = [7; 16];
    assert!(memory.read(Gpa(LOW - 8), &mut buf).is_err());
    assert_eq!(buf, [7; 16]);
    assert!(memory.write(Gpa(LOW - 8), &buf).is_err());
    assert!(memory.write_u64(Gpa(LOW - 4), 1).is_err());
    assert!(memory.write_u64(Gpa(LOW), 1).is_err());
    assert!(memory.read_u32(Gpa(LOW)).is_err());
    assert!(memory.view(Gpa(LOW - 8), 16).is_err());
    assert_eq!(sim.maps(), 0);
    memory.read(Gpa(LOW - 8), &mut buf[..8]).unwrap();
    assert_eq!(buf[..8], [0; 8]);
}

#[test]
fn integers_are_little_endian_aligned_or_not() {
    let (sim, memory) = guest();
    let boundary = CHUNK;
    sim.ram_write(Gpa(boundary - 8), &(1..=16).collect::<Vec<_>>());
    assert_eq!(memory.read_u8(Gpa(boundary)), Ok(9));
    assert_eq!(memory.read_u16(Gpa(boundary)), Ok(0x0a09));
    assert_eq!(memory.read_u16(Gpa(boundary - 1)), Ok(0x0908));
    assert_eq!(memory.read_u32(Gpa(boundary)), Ok(0x0c0b_0a09));
    assert_eq!(memory.read_u32(Gpa(boundary - 2)), Ok(0x0a09_0807));
    assert_eq!(memory.read_u64(Gpa(boundary - 8)), Ok(0x0807_0605_0403_0201));
    assert_eq!(memory.read_u64(Gpa(boundary - 4)), Ok(0x0c0b_0a09_0807_0605));

    memory.write_u8(Gpa(boundary + 100), 0xaa).unwrap();
    memory.write_u16(Gpa(boundary - 1), 0xbbcc).unwrap();
    memory.write_u32(Gpa(boundary + 4), 0x1122_3344).unwrap();
    memory.write_u64(Gpa(boundary - 12), 0x99).unwrap();
    let mut bytes = [0; 20];
    sim.ram_read(Gpa(boundary - 12), &mut bytes);
    let expected = [0x99, 0, 0, 0, 0, 0, 0, 0, 5, 6, 7, 0xcc, 0xbb, 10, 11, 12, 0x44, 0x33, 0x22, 0x11];
    assert_eq!(bytes, expected);
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(511, 2)]);
}

#[test]
fn a_missing_page_is_an_error_and_its_neighbours_are_not() {
    let (sim, memory) = guest();
    sim.punch(Gfn(5));
    let hole = Gpa(0x5000);
    assert_eq!(memory.read_u64(hole), Err(MemoryError::Missing { addr: hole }));
    let mut buf = [0; 0x3000];
    assert_eq!(memory.read(Gpa(0x4ff0), &mut buf), Err(MemoryError::Missing { addr: hole }));
    assert_eq!(memory.write(Gpa(0x5123), &buf[..1]), Err(MemoryError::Missing { addr: Gpa(0x5123) }));
    assert!(memory.view(Gpa(0x4000), 0x1001).is_err());
    memory.view(Gpa(0x4000), 0x1000).unwrap();
    memory.write_u64(Gpa(0x4ff8), 1).unwrap();
    memory.write_u64(Gpa(0x6000), 1).unwrap();
}

#[test]
fn a_page_that_came_back_is_used_at_once() {
    let (sim, memory) = guest();
    sim.punch(Gfn(5));
    memory.write_u8(Gpa(0), 1).unwrap();
    let view = memory.view(Gpa(0), 16).unwrap();
    sim.refill(Gfn(5));
    assert_eq!(sim.maps(), 1);
    memory.write_u64(Gpa(0x5000), 0x55).unwrap();
    assert_eq!(sim.maps(), 2);
    let mut seen = [0; 8];
    sim.ram_read(Gpa(0x5000), &mut seen);
    assert_eq!(u64::from_le_bytes(seen), 0x55);
    // The first mapping lives on in the view.
    assert_eq!(sim.mapped_frames(), 511 + 512);
    assert_eq!(view.read_u8(0), Ok(1));
    drop(view);
    assert_eq!(sim.mapped_frames(), 512);
    // A slot that was renewed is dropped like any other.
    memory.invalidate();
    assert_eq!(sim.mapped_frames(), 0);
}

#[test]
fn hammering_a_hole_does_not_map_each_time() {
    let (sim, memory) = guest();
    sim.punch(Gfn(5));
    for _ in 0..1000 {
        assert!(matches!(memory.read_u8(Gpa(0x5000)), Err(MemoryError::Missing { .. })));
    }
    // The first mapping, one more in the hope that the page came back, and some for every 10 ms since.
    assert!(sim.maps() < 20, "{} maps", sim.maps());
    let maps = sim.maps();
    sim.refill(Gfn(5));
    thread::sleep(Duration::from_millis(11));
    assert_eq!(memory.read_u8(Gpa(0x5000)), Ok(0));
    assert_eq!(sim.maps(), maps + 1);
}

#[test]
fn a_map_that_fails_is_tried_again() {
    let (sim, memory) = guest();
    sim.fail_next_map();
    let error = memory.read_u8(Gpa(CHUNK + 7)).unwrap_err();
    assert_eq!(error, MemoryError::Map { addr: Gpa(CHUNK), errno: libc::ENOMEM });
    assert!(error.to_string().starts_with("cannot map guest memory at 0x200000: "), "{error}");
    assert_eq!(memory.read_u8(Gpa(CHUNK + 7)), Ok(0));
}

#[test]
fn invalidate_spares_what_is_in_use() {
    let (sim, memory) = guest();
    sim.ram_write(Gpa(0x5000), b"old!");
    let view = memory.view(Gpa(0x5000), 4).unwrap();
    let mut pinned = Pinned::new();
    memory.pin(Gpa(0x5000), 4, Pin::Read, &mut pinned).unwrap();
    memory.read_u8(Gpa(CHUNK)).unwrap();
    assert!(!view.is_stale(&memory));
    assert_eq!(sim.mapped_frames(), 1024);

    sim.punch(Gfn(5));
    sim.refill(Gfn(5));
    let generation = memory.generation();
    memory.invalidate();
    assert_ne!(memory.generation(), generation);
    assert!(view.is_stale(&memory));
    assert_eq!(sim.mapped_frames(), 512);

    sim.ram_write(Gpa(0x5000), b"new!");
    let mut seen = [0; 4];
    view.read_bytes(0, &mut seen).unwrap();
    assert_eq!(&seen, b"old!");
    assert_eq!(pinned.copy_to(0, &mut seen), 4);
    assert_eq!(&seen, b"old!");
    memory.read(Gpa(0x5000), &mut seen).unwrap();
    assert_eq!(&seen, b"new!");

    let again = memory.view(Gpa(0x5000), 4).unwrap();
    assert!(!again.is_stale(&memory));
    assert_eq!(again.read_u32(0).map(u32::to_le_bytes).as_ref(), Ok(b"new!"));
    assert_eq!(sim.mapped_frames(), 1024);
    drop(view);
    assert_eq!(sim.mapped_frames(), 1024);
    pinned.clear();
    assert_eq!(sim.mapped_frames(), 512);
    memory.invalidate();
    drop(again);
    assert_eq!(sim.mapped_frames(), 0);
}

#[test]
fn views_reach_over_chunks_and_no_further() {
    let (sim, memory) = guest();
    let start = Gpa(CHUNK - 0x1000);
    let view = memory.view(start, 0x2000).unwrap();
    assert_eq!((view.address(), view.len(), view.is_empty()), (start, 0x2000, false));

    view.write_u8(0, 1).unwrap();
    view.write_u16(0xffe, 0x0302).unwrap();
    view.store_u32_release(0x1000, 0x0706_0504).unwrap();
    view.store_u64_release(0x1ff8, 8).unwrap();
    view.store_u16_release(0x1004, 0x0908).unwrap();
    view.store_u8_release(0x1006, 10).unwrap();
    let mut seen = [0; 9];
    sim.ram_read(Gpa(CHUNK - 2), &mut seen);
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    view.read_bytes(0xffe, &mut seen).unwrap();
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(view.load_u8_acquire(0), Ok(1));
    assert_eq!(view.load_u16_acquire(0xffe), Ok(0x0302));
    assert_eq!(view.load_u32_acquire(0x1000), Ok(0x0706_0504));
    assert_eq!(view.load_u64_acquire(0x1ff8), Ok(8));
    assert_eq!((view.read_u8(0), view.read_u32(0x1000)), (Ok(1), Ok(0x0706_0504)));
    assert_eq!((view.read_u16(0x1004), view.read_u64(0x1ff8)), (Ok(0x0908), Ok(8)));

    // Unaligned, over the boundary.
    assert_eq!(view.read_u32(0xffe), Ok(0x0504_0302));
    assert_eq!(view.load_u64_acquire(0xfff), Ok(0x0a09_0807_0605_0403_u64));
    view.store_u32_release(0xfff, 0xddcc_bbaa).unwrap();
    view.write_u64(0xffd, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(memory.read_u64(Gpa(CHUNK - 3)), Ok(0x1122_3344_5566_7788));
    view.write_bytes(0xff0, &pattern(32)).unwrap();
    let mut seen = [0; 32];
    sim.ram_read(Gpa(CHUNK - 16), &mut seen);
    assert_eq!(seen[..], pattern(32));

    let outside = |offset: u64, len| Err(MemoryError::OutOfRange { addr: Gpa(start.0 + offset), len });
    assert_eq!(view.read_u8(0x2000), outside(0x2000, 1).map(|()| 0));
    assert_eq!(view.read_u16(0x1fff), outside(0x1fff, 2).map(|()| 0));
    assert_eq!(view.write_u64(0x1ff9, 0), outside(0x1ff9, 8));
    assert_eq!(view.write_u16(0x2000, 0), outside(0x2000, 2));
    assert!(view.read_u32(usize::MAX).is_err());
    assert!(view.write_u16(usize::MAX - 1, 0).is_err());
    assert!(view.read_bytes(0x1000, &mut [0; 0x1001]).is_err());
    assert!(view.write_bytes(usize::MAX, &[0; 2]).is_err());
    assert_eq!(view.read_bytes(0x2000, &mut []), Ok(()));
    assert!(view.read_bytes(0x2001, &mut []).is_err());
}

#[test]
fn the_end_of_a_view_is_its_own_not_its_chunks() {
    let (_sim, memory) = guest();
    let view = memory.view(Gpa(6), 6).unwrap();
    assert_eq!(view.read_u16(4), Ok(0));
    assert!(view.read_u32(4).is_err());
    let empty = memory.view(Gpa(6), 0).unwrap();
    assert!(empty.is_empty());
    assert!(empty.read_u8(0).is_err());
    assert!(memory.view(Gpa(LOW), 0).is_err());
}

#[test]
fn dirty_pages_come_in_runs() {
    let (sim, memory) = guest();
    let view = memory.view(Gpa(0x10000), 0x3000).unwrap();
    view.write_u16(0, 1).unwrap();
    view.write_bytes(0x1fff, &[1, 2]).unwrap();
    view.read_u16(0x1000).unwrap();
    memory.write(Gpa(60 * 0x1000), &[0; 8 * PAGE_SIZE]).unwrap();
    memory.write_u8(HIGH, 1).unwrap();
    memory.write(Gpa(0), &[]).unwrap();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(16, 3), (60, 8), (1 << 20, 1)]);
    view.write_u16(0, 1).unwrap();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(16, 1)]);
}

#[test]
fn many_extents_take_several_reports() {
    let (sim, memory) = guest();
    for page in 0..600 {
        memory.write_u8(Gpa(page * 2 * 0x1000), 1).unwrap();
    }
    sim.fail_next_dirty();
    let error = memory.flush_dirty().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    let first = pages(&sim.dirty());
    assert_eq!((first.len(), first[0]), (600 - sim::MAX_EXTENTS, (512, 1)));
    // What failed comes the next time, together with what is new.
    memory.write_u8(Gpa(0x1000), 1).unwrap();
    memory.flush_dirty().unwrap();
    let second = pages(&sim.dirty());
    assert_eq!(second[0], (0, 3));
    assert_eq!((second.len(), second.last()), (sim::MAX_EXTENTS - 1, Some(&(510, 1))));
}

/// A simulated domain in which something happens while a chunk is being mapped.
struct Meanwhile {
    sim: Arc<SimDomain>,
    action: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Domain for Meanwhile {
    fn vcpus(&self) -> u32 {
        self.sim.vcpus()
    }
    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>> {
        self.sim.take_channels()
    }
    fn map(&self, first: Gfn, count: usize) -> io::Result<Frames> {
        let frames = self.sim.map(first, count);
        if let Some(action) = self.action.lock().unwrap().take() {
            action();
        }
        frames
    }
    fn inject_msi(&self, msi: Msi) -> io::Result<()> {
        self.sim.inject_msi(msi)
    }
    fn mark_dirty(&self, extents: &[Extent]) -> io::Result<()> {
        self.sim.mark_dirty(extents)
    }
    fn shutdown(&self, reason: Shutdown) -> io::Result<()> {
        self.sim.shutdown(reason)
    }
}

#[test]
fn a_chunk_mapped_before_an_invalidate_does_not_appear_after_it() {
    let sim = SimDomain::new(1, &[(Gpa(0), LOW)]).unwrap();
    let domain = Arc::new(Meanwhile { sim: sim.clone(), action: Mutex::default() });
    let memory = GuestMemory::new(domain.clone(), &[Region { start: Gpa(0), size: LOW }]).unwrap();
    let (sim_too, memory_too) = (sim.clone(), memory.clone());
    *domain.action.lock().unwrap() = Some(Box::new(move || {
        sim_too.punch(Gfn(0));
        sim_too.refill(Gfn(0));
        memory_too.invalidate();
    }));
    let view = memory.view(Gpa(0), 8).unwrap();
    assert!(view.is_stale(&memory));
    memory.write_u8(Gpa(0), 7).unwrap();
    assert_eq!(sim.maps(), 2);
    let mut seen = [0];
    sim.ram_read(Gpa(0), &mut seen);
    assert_eq!(seen, [7]);
    assert_eq!(view.read_u8(0), Ok(0));
}

#[test]
fn threads_use_memory_while_another_invalidates() {
    let (sim, memory) = guest();
    let done = AtomicBool::new(false);
    let addr = Gpa(CHUNK - 64);
    thread::scope(|scope| {
        for thread in 0..3u8 {
            let (memory, done) = (&memory, &done);
            scope.spawn(move || {
                let addr = Gpa(addr.0 + u64::from(thread) * 32);
                let mut pinned = Pinned::new();
                let mut value = 0u32;
                while !done.load(Ordering::Relaxed) {
                    value += 1;
                    memory.write_u32(addr, value).unwrap();
                    let view = memory.view(Gpa(CHUNK - 4096), 8192).unwrap();
                    memory.pin(addr, 4, Pin::Write, &mut pinned).unwrap();
                    let mut seen = [0; 4];
                    pinned.copy_to(0, &mut seen);
                    pinned.clear();
                    assert_eq!(u32::from_le_bytes(seen), value);
                    assert_eq!(view.read_u32((addr.0 + 4096 - CHUNK) as usize), Ok(value));
                }
            });
        }
        for _ in 0..500 {
            memory.invalidate();
            memory.flush_dirty().unwrap();
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    memory.invalidate();
    assert_eq!(sim.mapped_frames(), 0);
    memory.flush_dirty().unwrap();
    assert!(
        pages(&sim.dirty()).iter().all(|(first, count)| *first >= 511 && first + u64::from(*count) <= 513)
    );
}
