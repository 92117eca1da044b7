//! The slot through which a vCPU's accesses arrive: any contents, torn, and changing while it is read.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use domain::{Access, Direction, Ioreq, IoreqPage, PAGE_SIZE, RAW_IOREQ_SIZE, SLOTS_PER_PAGE};
use pci::{Bdf, Bus, HostBridge};
use virtio::{Placement, Rng, VirtioPci};
use xenpvh::layout::Layout;
use xenpvh::machine::Machine;

use crate::guest::Guest;

const RAM: u64 = 1 << 20;
const FLAGS: usize = 30;
const KIND: usize = 31;
const READY: u8 = 1;
const IN_PROCESS: u8 = 2;
const ANSWERED: u8 = 3;

#[derive(Arbitrary, Debug)]
enum Step {
    /// What Xen would write, more or less.
    Post {
        access: u8,
        read: bool,
        pointer: bool,
        down: bool,
        size: u8,
        count: u16,
        place: Place,
        data: u64,
    },
    Raw([u8; RAW_IOREQ_SIZE]),
    Poke(u8, u8),
    Serve,
    /// Some bytes change between taking and answering.
    ServeTorn(Vec<(u8, u8)>),
    /// Some bytes change all the time while requests are taken and answered.
    ServeRaced(Vec<(u8, u8)>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Ecam(u16),
    Bar(u16),
    Port(u16),
    Any(u64),
}

impl Place {
    fn get(self) -> u64 {
        match self {
            Place::Ecam(at) => 0xfc80_0000 + u64::from(at),
            Place::Bar(at) => (4 << 30) + u64::from(at),
            Place::Port(port) => port.into(),
            Place::Any(at) => at,
        }
    }
}

#[repr(C, align(4096))]
struct Page([AtomicU8; PAGE_SIZE]);

struct Bench {
    page: &'static Page,
    slots: IoreqPage,
    machine: Machine,
    _guest: Guest,
}

/// Plays Xen, and others who can write the page, to one slot.
pub fn run(data: &[u8]) {
    // A slot may be used for the rest of the process, so its page must be there as long.
    thread_local! {
        static PAGE: &'static Page = Box::leak(Box::new(Page([const { AtomicU8::new(0) }; PAGE_SIZE])));
    }
    let mut input = Unstructured::new(data);
    let page = PAGE.with(|page| *page);
    page.0.iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
    // SAFETY: a leaked page is there for ever, and it is accessed through atomics only.
    let slots = unsafe { IoreqPage::from_raw(NonNull::from(page).cast()) };
    assert!(slots.slot(SLOTS_PER_PAGE).is_none());
    let bench = Bench::new(page, slots);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        bench.play(&step);
    }
    assert!(page.0[RAW_IOREQ_SIZE..].iter().all(|byte| byte.load(Ordering::Relaxed) == 0));
}

impl Bench {
    fn new(page: &'static Page, slots: IoreqPage) -> Bench {
        let guest = Guest::new(RAM);
        let layout = Layout::stock(RAM, 40);
        let bus = Arc::new(Bus::new(layout.buses()));
        let source = File::open("/dev/urandom").expect("a source of randomness");
        let rng = VirtioPci::new(
            Arc::new(Rng::new(source)),
            "rng",
            Placement::default(),
            guest.memory.clone(),
            guest.sim.clone(),
        );
        bus.insert(Bdf::default(), Arc::new(HostBridge::new())).expect("a free place");
        let place = Bdf::new(0, 1, 0).expect("a place");
        bus.insert(place, Arc::new(rng.expect("a function"))).expect("a free place");
        bus.config_write(place, 0x14, 4, 1);
        bus.config_write(place, 4, 2, 6);
        let machine = Machine::new(layout, bus, guest.memory.clone());
        Bench { page, slots, machine, _guest: guest }
    }

    fn poke(&self, at: u8, value: u8) {
        self.page.0[usize::from(at) % RAW_IOREQ_SIZE].store(value, Ordering::SeqCst);
    }

    fn play(&self, step: &Step) {
        let slot = self.slots.slot(0).expect("a slot");
        match step {
            Step::Post { access, read, pointer, down, size, count, place, data } => {
                let request = Ioreq {
                    access: match access % 6 {
                        0 => Access::Port,
                        1 | 2 => Access::Memory,
                        3 => Access::Config,
                        4 => Access::Invalidate,
                        _ => Access::Other(9),
                    },
                    direction: if *read { Direction::Read } else { Direction::Write },
                    address: place.get(),
                    data: *data,
                    count: (*count).into(),
                    size: 1 << (size % 5),
                    data_is_pointer: *pointer,
                    downwards: *down,
                };
                slot.post(&request);
                assert!(slot.is_ready());
                assert_eq!(slot.take(), Some(request), "what was posted is taken");
                assert!(!slot.is_ready());
                // Taken and not answered: it is there to be taken again.
                assert_eq!(slot.take(), Some(request));
                let data = self.machine.handle(&request);
                assert_eq!(slot.answer(), None);
                slot.finish(data);
                assert_eq!(slot.take(), None);
                assert_eq!(slot.answer(), Some(data));
                assert_eq!((slot.take(), slot.answer()), (None, None));
            }
            Step::Raw(bytes) => (0..).zip(bytes).for_each(|(at, byte)| self.poke(at, *byte)),
            Step::Poke(at, value) => self.poke(*at, *value),
            Step::Serve => self.serve(&[]),
            Step::ServeTorn(pokes) => self.serve(pokes),
            Step::ServeRaced(pokes) => self.race(pokes),
        }
    }

    fn serve(&self, pokes: &[(u8, u8)]) {
        let slot = self.slots.slot(0).expect("a slot");
        let state = |at: usize| self.page.0[at].load(Ordering::SeqCst) & 0xf;
        let (before, kind) = (state(FLAGS), self.page.0[KIND].load(Ordering::SeqCst));
        let taken = slot.take();
        assert_eq!(taken.is_some(), matches!(before, READY | IN_PROCESS));
        let Some(request) = taken else { return };
        assert_eq!(state(FLAGS), IN_PROCESS);
        assert_eq!(matches!(request.access, Access::Other(_)), !matches!(kind, 0 | 1 | 2 | 8));
        for (at, value) in pokes {
            self.poke(*at, *value);
        }
        slot.finish(self.machine.handle(&request));
        assert_eq!(state(FLAGS), ANSWERED);
    }

    fn race(&self, pokes: &[(u8, u8)]) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for (at, value) in pokes {
                        self.poke(*at, *value);
                    }
                    self.poke(FLAGS as u8, READY);
                }
            });
            let slot = self.slots.slot(0).expect("a slot");
            for _ in 0..20 {
                if let Some(request) = slot.take() {
                    // Copied once: what is acted on cannot change any more.
                    slot.finish(self.machine.handle(&Ioreq { count: request.count % 64, ..request }));
                }
                let _ = slot.answer();
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
