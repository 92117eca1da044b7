//! Random accesses, against a vector.

use std::collections::BTreeSet;
use std::mem;

use domain::Gpa;
use proptest::prelude::*;

use super::{CHUNK, HIGH, HIGH_SIZE, LOW, guest};
use crate::{Pin, Pinned};

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, usize, u8),
    Pin(u64, usize, u8),
    ViewWrite(u64, usize, u8),
    Scalar(u64, u64),
    Invalidate,
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Near every edge: chunk boundaries, the ends of regions, the top of the address space.
    let addr = prop_oneof![
        0..LOW + 64,
        CHUNK - 0x1800..CHUNK + 0x1800,
        LOW - 64..LOW + 64,
        HIGH.0 - 64..HIGH.0 + HIGH_SIZE + 64,
        u64::MAX - 64..=u64::MAX,
    ];
    let len = prop_oneof![0..40usize, 0..0x3000usize];
    let step = prop_oneof![
        (addr.clone(), len.clone()).prop_map(|(addr, len)| Step::Read(addr, len)),
        (addr.clone(), len.clone(), any::<u8>()).prop_map(|(addr, len, seed)| Step::Write(addr, len, seed)),
        (addr.clone(), len.clone(), any::<u8>()).prop_map(|(addr, len, seed)| Step::Pin(addr, len, seed)),
        (addr.clone(), len, any::<u8>()).prop_map(|(addr, len, seed)| Step::ViewWrite(addr, len, seed)),
        (addr, any::<u64>()).prop_map(|(addr, value)| Step::Scalar(addr, value)),
        Just(Step::Invalidate),
        Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..60)
}

/// RAM as two vectors.
struct Model {
    low: Vec<u8>,
    high: Vec<u8>,
    dirty: BTreeSet<u64>,
}

impl Model {
    fn range(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let (ram, start) = if addr < LOW { (&mut self.low, 0) } else { (&mut self.high, HIGH.0) };
        let from = addr.checked_sub(start)? as usize;
        if from >= ram.len() {
            return None;
        }
        ram.get_mut(from..from.checked_add(len)?)
    }

    fn write(&mut self, addr: u64, data: &[u8]) -> bool {
        let Some(range) = self.range(addr, data.len()) else { return false };
        range.copy_from_slice(data);
        if !data.is_empty() {
            self.dirty.extend(addr >> 12..=(addr + data.len() as u64 - 1) >> 12);
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_vector_would(steps in steps()) {
        let (sim, memory) = guest();
        let mut model =
            Model { low: vec![0; LOW as usize], high: vec![0; HIGH_SIZE as usize], dirty: Default::default() };
        let data = |len: usize, seed: u8| -> Vec<u8> { (0..len).map(|index| index as u8 ^ seed).collect() };
        let mut pinned = Pinned::new();
        for step in steps {
            match step {
                Step::Read(addr, len) => {
                    let mut seen = vec![0; len];
                    let expected = model.range(addr, len);
                    prop_assert_eq!(memory.check(Gpa(addr), len as u64).is_ok(), expected.is_some());
                    prop_assert_eq!(memory.read(Gpa(addr), &mut seen).is_ok(), expected.is_some());
                    prop_assert!(expected.is_none_or(|expected| *expected == seen));
                }
                Step::Write(addr, len, seed) => {
                    let data = data(len, seed);
                    prop_assert_eq!(memory.write(Gpa(addr), &data).is_ok(), model.write(addr, &data));
                }
                Step::Pin(addr, len, seed) => {
                    let data = data(len, seed);
                    let inside = memory.pin(Gpa(addr), len, Pin::Write, &mut pinned).is_ok();
                    prop_assert_eq!(inside, model.write(addr, &data));
                    prop_assert_eq!(pinned.len(), if inside { len } else { 0 });
                    prop_assert_eq!(pinned.copy_from(0, &data), pinned.len());
                    pinned.clear();
                }
                Step::ViewWrite(addr, len, seed) => {
                    let data = data(len, seed);
                    let view = memory.view(Gpa(addr), len);
                    prop_assert_eq!(view.is_ok(), model.write(addr, &data));
                    if let Ok(view) = view {
                        view.write_bytes(0, &data).unwrap();
                        let mut seen = vec![0; len];
                        view.read_bytes(0, &mut seen).unwrap();
                        prop_assert_eq!(seen, data);
                    }
                }
                Step::Scalar(addr, value) => {
                    let inside = model.write(addr, &value.to_le_bytes());
                    prop_assert_eq!(memory.write_u64(Gpa(addr), value).is_ok(), inside);
                    prop_assert_eq!(memory.read_u64(Gpa(addr)).ok(), inside.then_some(value));
                    let expected = model.range(addr, 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
                    prop_assert_eq!(memory.read_u32(Gpa(addr)).ok(), expected);
                }
                Step::Invalidate => memory.invalidate(),
                Step::Flush => {
                    memory.flush_dirty().unwrap();
                    let reported: BTreeSet<u64> = sim
                        .dirty()
                        .iter()
                        .flat_map(|extent| extent.first.0..extent.first.0 + u64::from(extent.count))
                        .collect();
                    prop_assert_eq!(reported, mem::take(&mut model.dirty));
                }
            }
        }
        // SAFETY: `sim` lives, and nobody writes now.
        let ram = unsafe { std::slice::from_raw_parts(sim.ram_ptr(Gpa(0), LOW as usize).as_ptr(), LOW as usize) };
        prop_assert!(ram == model.low);
    }
}
