//! Runs every target without libFuzzer: over the seeds, and over pseudo-random bytes that are the same each time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What one input may take. Far more than any does, for machines that are busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Memory that may be left behind by all inputs together, in KiB.
const GROWTH: usize = 128 << 10;

/// Xorshift (Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A seed with something changed, or nothing but noise.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let len = self.below(400);
        let mut input = match seeds.get(self.below(seeds.len() + 1)) {
            Some(seed) => seed.clone(),
            None => return self.bytes(len),
        };
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(4) {
                0 if !input.is_empty() => input[at] = self.next() as u8,
                1 => input.truncate(at),
                2 => {
                    let piece = self.bytes(len % 16);
                    input.splice(at..at, piece);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    input.extend(&other[self.below(other.len())..]);
                }
            }
        }
        input
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no seeds");
    files.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Resident memory of the process, in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap()
}

/// Runs one target over its seeds and `count` more inputs.
fn replay(name: &str, count: usize) {
    let (_, run) = targets::ALL.iter().find(|(target, _)| *target == name).unwrap();
    let seeds = seeds(name);
    let once = |input: &[u8]| {
        let start = Instant::now();
        if let Err(panic) = std::panic::catch_unwind(|| run(input)) {
            eprintln!("{name} failed on {} bytes: {input:?}", input.len());
            std::panic::resume_unwind(panic);
        }
        assert!(start.elapsed() < PATIENCE, "{name} took {:?} for {input:?}", start.elapsed());
    };
    seeds.iter().for_each(|seed| once(seed));
    let before = resident();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..count {
        once(&random.input(&seeds));
    }
    let after = resident();
    assert!(after < before + GROWTH, "{name} grew from {before} to {after} KiB");
}

macro_rules! replays {
    ($($name:ident: $count:expr,)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name), $count);
            }
        )*

        /// No target is forgotten.
        #[test]
        fn all() {
            let here = [$(stringify!($name)),*];
            assert!(targets::ALL.iter().map(|(name, _)| *name).eq(here));
        }
    };
}

replays! {
    acpi_tables: 1500,
    blk_request: 500,
    bus: 300,
    command_line: 3000,
    config_space: 3000,
    console: 500,
    ioreq_slot: 500,
    msix_table: 3000,
    net_control: 500,
    packed_ring: 2000,
    qmp_stream: 700,
    split_ring: 2000,
    xenstore_wire: 3000,
}
