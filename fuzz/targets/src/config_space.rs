//! Configuration space and BARs against a plain model.

use arbitrary::{Arbitrary, Unstructured};
use pci::{BarIndex, BarKind, Bars, ConfigSpace, Header, command, register};

#[derive(Arbitrary, Debug)]
struct Input {
    bars: Vec<Bar>,
    capabilities: Vec<Capability>,
    multifunction: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Bar {
    index: u8,
    wide: bool,
    prefetch: bool,
    order: u8,
}

#[derive(Arbitrary, Debug)]
struct Capability {
    id: u8,
    body: Vec<u8>,
    writable: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u16, Width),
    Write(u16, Width, u32),
    /// A BAR and the command register, where things happen.
    Place(u8, u32),
    Command(u16),
    Decode(u64, u8),
    Reset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    One,
    Two,
    Four,
}

impl Width {
    fn bytes(self) -> u8 {
        match self {
            Width::One => 1,
            Width::Two => 2,
            Width::Four => 4,
        }
    }
}

/// Builds a configuration space and plays accesses to it.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut bars = Bars::none();
    for Bar { index, wide, prefetch, order } in input.bars {
        let kind = if wide { BarKind::Memory64 { prefetch } } else { BarKind::Memory32 { prefetch } };
        let Some(index) = BarIndex::new(index) else { continue };
        let size = 1u64 << (order % 64);
        let (before, fits) =
            (bars.get(index.get()), (12..=if wide { 62 } else { 31 }).contains(&(order % 64)));
        match bars.with(index, kind, size) {
            Ok(more) => {
                assert!(before.is_none() && fits);
                bars = more;
            }
            // It took the others with it.
            Err(_) => bars = Bars::none(),
        }
    }
    let header =
        Header { vendor: 0x1af4, device: 0x1042, class: 0x01_0000, revision: 1, ..Header::default() };
    let mut space = ConfigSpace::new(header, bars);
    for Capability { id, body, writable } in &input.capabilities {
        if let Some(at) = space.add_capability(*id, body, writable) {
            assert!(at >= 0x40 && at.is_multiple_of(4));
            assert_eq!(space.read(at.into(), 1), u32::from(*id));
        }
    }
    if input.multifunction {
        space.set_multifunction();
    }
    walk_capabilities(&space);
    let initial = bytes(&space);
    // Which bits can be written is found out by writing, on each register alone.
    let writable = masks(&mut space);
    let mut model = initial;
    for step in input.steps {
        match step {
            Step::Read(at, width) => read(&space, &model, at, width.bytes()),
            Step::Write(at, width, value) => {
                write(&mut space, &mut model, &writable, at, width.bytes(), value);
            }
            Step::Place(index, value) => {
                let at = register::BAR0 + u16::from(index % 6) * 4;
                write(&mut space, &mut model, &writable, at, 4, value);
            }
            Step::Command(value) => {
                write(&mut space, &mut model, &writable, register::COMMAND, 2, value.into());
            }
            Step::Decode(address, size) => {
                let bars = space.bars();
                if let Some((index, offset)) = bars.decode(address, size) {
                    let (_, length) = bars.get(index).expect("a BAR that is there");
                    let base = bars.base(index).expect("a BAR that is decoded");
                    assert_eq!(base + offset, address);
                    assert!(offset < length && bars.contains(index, offset, size));
                }
            }
            Step::Reset => {
                space.reset();
                model = initial;
            }
        }
        check_bars(&space, &model);
    }
    assert_eq!(bytes(&space), model);
    walk_capabilities(&space);
    space.reset();
    assert_eq!(bytes(&space), initial);
}

fn bytes(space: &ConfigSpace) -> [u8; 256] {
    std::array::from_fn(|at| space.read(at as u16, 1) as u8)
}

fn masks(space: &mut ConfigSpace) -> [u8; 256] {
    let mut ones = [0; 256];
    for at in (0..256u16).step_by(4) {
        let before = space.read(at, 4);
        space.write(at, 4, u32::MAX);
        let high = space.read(at, 4);
        space.write(at, 4, 0);
        let low = space.read(at, 4);
        assert_eq!((high | before, low & before), (high, low), "bits that are not writable stay");
        ones[usize::from(at)..][..4].copy_from_slice(&(high & !low).to_le_bytes());
        space.write(at, 4, before);
        assert_eq!(space.read(at, 4), before);
    }
    ones
}

/// Accesses are what the bus makes of them: aligned.
fn align(at: u16, size: u8) -> u16 {
    (at % 4096) & !(u16::from(size) - 1)
}

fn read(space: &ConfigSpace, model: &[u8; 256], at: u16, size: u8) {
    let at = align(at, size);
    let expected = (0..u16::from(size)).fold(0u32, |value, byte| {
        let here = model.get(usize::from(at + byte)).copied().unwrap_or(0xff);
        value | u32::from(here) << (8 * byte)
    });
    assert_eq!(space.read(at, size), expected, "{size} bytes at {at:#x}");
}

fn write(
    space: &mut ConfigSpace,
    model: &mut [u8; 256],
    writable: &[u8; 256],
    at: u16,
    size: u8,
    value: u32,
) {
    let at = align(at, size);
    let written = space.write(at, size, value);
    assert_eq!(written.is_some(), at < 256);
    for (byte, value) in (usize::from(at)..).zip(&value.to_le_bytes()[..usize::from(size)]) {
        if let (Some(old), Some(mask)) = (model.get_mut(byte), writable.get(byte)) {
            *old = *old & !mask | value & mask;
        }
    }
    if let Some(written) = written {
        assert_eq!(space.read(written.register, 4), written.after);
    }
}

fn check_bars(space: &ConfigSpace, model: &[u8; 256]) {
    let bars = space.bars();
    let dword = |at: usize| u64::from(u32::from_le_bytes(model[at..at + 4].try_into().expect("four bytes")));
    let decoding = dword(4) & u64::from(command::MEMORY) != 0;
    for index in 0..6u8 {
        let Some((kind, size)) = bars.get(index) else {
            assert_eq!(bars.base(index), None);
            continue;
        };
        let at = 0x10 + usize::from(index) * 4;
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let high = if wide { dword(at + 4) << 32 } else { 0 };
        let wanted = high | dword(at) & !0xf;
        let limit = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let fits = wanted != 0 && wanted.checked_add(size).is_some_and(|end| end <= limit);
        assert_eq!(bars.base(index), (decoding && fits).then_some(wanted));
        assert_eq!(wanted % size, 0);
    }
}

/// The list of capabilities ends, and lies where capabilities may be.
fn walk_capabilities(space: &ConfigSpace) {
    let mut at = space.read(register::CAPABILITIES, 1) as u16;
    assert_eq!(at != 0, space.read(6, 2) & 0x10 != 0);
    for _ in 0..=48 {
        if at == 0 {
            return;
        }
        assert!((0x40..0x100).contains(&at) && at.is_multiple_of(4));
        at = space.read(at + 1, 1) as u16;
    }
    panic!("the list of capabilities does not end");
}
