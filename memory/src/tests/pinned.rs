//! What is pinned for the kernel.

use std::io;

use domain::{Gfn, Gpa};

use super::{CHUNK, HIGH, LOW, guest, pages, pattern};
use crate::{Pin, Pinned};

/// The sum of lengths, and the number, of a list of iovecs.
fn shape(pinned: &Pinned) -> (usize, usize) {
    (pinned.iovecs().iter().map(|iovec| iovec.iov_len).sum(), pinned.iovecs().len())
}

#[test]
fn pins_join_within_a_chunk_only() {
    let (sim, memory) = guest();
    let mut pinned = Pinned::new();
    assert!(pinned.is_empty());
    memory.pin(Gpa(0x1000), 0x1000, Pin::Read, &mut pinned).unwrap();
    memory.pin(Gpa(0x2000), 0x800, Pin::Read, &mut pinned).unwrap();
    assert_eq!(shape(&pinned), (0x1800, 1));
    memory.pin(Gpa(0x3000), 0x10, Pin::Read, &mut pinned).unwrap();
    assert_eq!(shape(&pinned), (0x1810, 2));
    memory.pin(Gpa(CHUNK - 8), 16, Pin::Read, &mut pinned).unwrap();
    assert_eq!(shape(&pinned), (0x1820, 4));
    memory.pin(Gpa(CHUNK + 8), 0, Pin::Read, &mut pinned).unwrap();
    assert_eq!((pinned.len(), pinned.is_empty(), pinned.iovecs().len()), (0x1820, false, 4));
    pinned.clear();
    assert_eq!((shape(&pinned), pinned.len()), ((0, 0), 0));
    // Read-only pins make nothing dirty.
    memory.flush_dirty().unwrap();
    assert_eq!(sim.dirty(), []);
}

#[test]
fn a_failing_pin_leaves_what_was_there() {
    let (sim, memory) = guest();
    sim.punch(Gfn(512));
    let mut pinned = Pinned::new();
    memory.pin(Gpa(0x1000), 0x10, Pin::Write, &mut pinned).unwrap();
    memory.pin(Gpa(CHUNK - 8), 16, Pin::Write, &mut pinned).unwrap_err();
    memory.pin(Gpa(LOW), 0, Pin::Write, &mut pinned).unwrap_err();
    assert_eq!((shape(&pinned), pinned.len()), ((0x10, 1), 0x10));
    memory.pin(Gpa(0x1010), 0x10, Pin::Write, &mut pinned).unwrap();
    assert_eq!(pinned.len(), 0x20);
    pinned.clear();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(1, 1)]);
}

#[test]
fn pinned_memory_is_one_stream() {
    let (sim, memory) = guest();
    let mut pinned = Pinned::new();
    for (addr, len) in [(0x1000, 5), (0x2003, 7), (CHUNK - 2, 4), (HIGH.0, 100)] {
        memory.pin(Gpa(addr), len, Pin::Write, &mut pinned).unwrap();
    }
    let data = pattern(116);
    assert_eq!(pinned.copy_from(0, &data), 116);
    assert_eq!(pinned.copy_from(116, &data), 0);
    assert_eq!(pinned.copy_from(110, &data), 6);
    pinned.copy_from(110, &data[110..]);
    let mut seen = vec![0; 200];
    assert_eq!(pinned.copy_to(0, &mut seen), 116);
    assert_eq!(seen[..116], data);
    assert_eq!(pinned.copy_to(4, &mut seen[..9]), 9);
    assert_eq!(seen[..9], data[4..13]);
    assert_eq!(pinned.copy_to(200, &mut seen), 0);
    let mut high = [0; 100];
    sim.ram_read(HIGH, &mut high);
    assert_eq!(high[..], data[16..]);

    // The kernel sees the same.
    let mut file = io::Cursor::new(Vec::new());
    for iovec in pinned.iovecs() {
        // SAFETY: pinned, and nobody writes it now.
        let bytes = unsafe { std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len) };
        io::Write::write_all(&mut file, bytes).unwrap();
    }
    assert_eq!(file.into_inner(), data);
}

#[test]
fn a_pin_may_be_consumed_and_cut() {
    let (sim, memory) = guest();
    let mut pinned = Pinned::new();
    memory.pin(Gpa(0x1000), 0x3000, Pin::Write, &mut pinned).unwrap();
    memory.pin(Gpa(0x8000), 0x2000, Pin::Write, &mut pinned).unwrap();
    memory.pin(Gpa(0x20000), 0x1000, Pin::Read, &mut pinned).unwrap();
    memory.write(Gpa(0x8ff0), &pattern(32)).unwrap();
    memory.flush_dirty().unwrap();
    sim.dirty();

    pinned.truncate(0x10000);
    assert_eq!(shape(&pinned), (0x6000, 3));
    pinned.advance(0x2800);
    assert_eq!((shape(&pinned), pinned.len()), ((0x3800, 3), 0x3800));
    pinned.advance(0x800);
    assert_eq!((shape(&pinned), pinned.len()), ((0x3000, 2), 0x3000));
    pinned.truncate(0x1008);
    assert_eq!((shape(&pinned), pinned.len()), ((0x1008, 1), 0x1008));
    let mut seen = [0; 32];
    assert_eq!(pinned.copy_to(0xff0, &mut seen), 24);
    assert_eq!(seen[..24], pattern(24));
    // What comes next counts from there.
    memory.pin(Gpa(0x9008), 8, Pin::Write, &mut pinned).unwrap();
    memory.pin(Gpa(0x30000), 8, Pin::Write, &mut pinned).unwrap();
    pinned.truncate(0x1010);
    assert_eq!((shape(&pinned), pinned.len()), ((0x1010, 1), 0x1010));
    pinned.clear();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(1, 3), (8, 2)]);

    // All of it.
    memory.pin(Gpa(0x1000), 0x3000, Pin::Write, &mut pinned).unwrap();
    pinned.advance(usize::MAX);
    assert_eq!((shape(&pinned), pinned.len()), ((0, 0), 0));
    memory.pin(Gpa(0x4000), 0x10, Pin::Read, &mut pinned).unwrap();
    assert_eq!(shape(&pinned), (0x10, 1));
    pinned.truncate(0);
    assert_eq!(shape(&pinned), (0, 0));
    drop(pinned);
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(1, 3)]);
}

#[test]
fn pinned_for_write_is_dirty_when_it_is_done() {
    let (sim, memory) = guest();
    let mut pinned = Pinned::new();
    memory.pin(Gpa(CHUNK - 0x1001), 0x1002, Pin::Write, &mut pinned).unwrap();
    memory.flush_dirty().unwrap();
    assert_eq!(sim.dirty(), []);
    pinned.truncate(0x1001);
    pinned.clear();
    pinned.clear();
    memory.flush_dirty().unwrap();
    assert_eq!(pages(&sim.dirty()), [(510, 2)]);
    memory.flush_dirty().unwrap();
    assert_eq!(sim.dirty(), []);
}
