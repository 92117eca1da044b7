//! A test device, and a driver's hand on it.

mod packed;
mod queue_reset;
mod running;
mod shape;
mod states;
mod traffic;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use domain::Gpa;
use rustix::event::PollFlags;
use sim::SimDomain;

use super::*;
use crate::device::{Config, QueueSpec, Queues, Sources, Wake, Worker};
use crate::queue::{Chain, Layout, QueueError};
use crate::rng::Rng;
use crate::state::{NO_VECTOR, status};
use crate::testing::{AnyRing, RAM, Ring, guest};

const FEATURE_SELECT: u64 = 0x00;
const FEATURE: u64 = 0x04;
const DRIVER_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const COUNT: u64 = 0x12;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const SELECT: u64 = 0x16;
const SIZE: u64 = 0x18;
const VECTOR: u64 = 0x1a;
const ENABLE: u64 = 0x1c;
const NOTIFY_OFFSET: u64 = 0x1e;
const DESCRIPTORS: u64 = 0x20;
const AVAILABLE: u64 = 0x28;
const USED: u64 = 0x30;
const RESET: u64 = 0x3a;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;

const MESSAGE: u64 = 0xfee0_0000;
const DATA: u64 = 0x80_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a test device does with the chains that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Uses them.
    Use,
    /// Uses them, and wants to be called again at once, always.
    Spin,
    /// Keeps them until the queue is drained.
    Keep,
    /// Rewinds them when the queue is drained.
    GiveBack,
    /// Keeps them, and cannot be drained before its source is readable.
    Stuck,
    /// Uses them only when its source is readable.
    AtSource,
    /// Has no worker to give.
    NoWorker,
}

struct Probe {
    spec: Spec,
    config: Config,
    habit: Habit,
    source: OwnedFd,
    bell: OwnedFd,
    workers: AtomicUsize,
    resets: AtomicUsize,
    drained: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
}

/// Queues 0 and 1 have worker 0, queue 2 has worker 1.
const QUEUES: [QueueSpec; 3] = [
    QueueSpec { max_size: 8, worker: 0 },
    QueueSpec { max_size: 256, worker: 0 },
    QueueSpec { max_size: 16, worker: 1 },
];

impl Probe {
    fn new(habit: Habit) -> Arc<Probe> {
        let (source, bell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        Arc::new(Probe {
            spec: Spec { id: 42, class: 0x00ff00, features: 1 << 3 | 1 << 63, queues: QUEUES.to_vec() },
            config: Config::new((1..=10).collect()),
            habit,
            source,
            bell,
            workers: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            drained: Arc::default(),
            taken: Arc::default(),
            live: Arc::default(),
        })
    }
}

impl Device for Probe {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.modify(|bytes| bytes[offset..][..data.len()].copy_from_slice(data));
    }
    fn worker(&self, _index: usize, _features: u64, _memory: &GuestMemory) -> io::Result<Box<dyn Worker>> {
        if self.habit == Habit::NoWorker {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.workers.fetch_add(1, Ordering::SeqCst);
        self.live.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(ProbeWorker {
            habit: self.habit,
            source: self.source.try_clone()?,
            chain: Chain::new(),
            kept: Vec::new(),
            drained: self.drained.clone(),
            taken: self.taken.clone(),
            live: self.live.clone(),
        }))
    }
    fn reset(&self) {
        assert_eq!(self.live.load(Ordering::SeqCst), 0, "workers go first");
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct ProbeWorker {
    habit: Habit,
    source: OwnedFd,
    chain: Chain,
    kept: Vec<(usize, u16)>,
    drained: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
}

impl Worker for ProbeWorker {
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError> {
        if self.habit == Habit::AtSource {
            // Two workers share the pipe.
            if rustix::io::read(&self.source, &mut [0u8; 64]).is_err() {
                return Ok(Wake::Source);
            }
        }
        let queue = queues.get(index).unwrap();
        while queue.pop(&mut self.chain)? {
            self.taken.fetch_add(1, Ordering::SeqCst);
            match self.habit {
                Habit::Keep | Habit::GiveBack | Habit::Stuck => self.kept.push((index, self.chain.head())),
                _ => queue.push(self.chain.head(), 1)?,
            }
        }
        queue.flush()?;
        Ok(if self.habit == Habit::Spin { Wake::Again } else { Wake::Kick })
    }
    fn sources<'fd>(&'fd self, _queues: &Queues, out: &mut Sources<'fd>) {
        if self.habit == Habit::AtSource {
            assert!(out.add(self.source.as_fd(), PollFlags::IN));
        }
    }
    fn drain(&mut self, queues: &mut Queues, index: usize) -> Result<(), QueueError> {
        if self.habit == Habit::Stuck {
            let mut source = [rustix::event::PollFd::new(&self.source, PollFlags::IN)];
            rustix::event::poll(&mut source, None).unwrap();
        }
        self.drained.fetch_add(1, Ordering::SeqCst);
        let queue = queues.get(index).unwrap();
        let (mine, others): (Vec<_>, _) = self.kept.drain(..).partition(|(of, _)| *of == index);
        self.kept = others;
        if self.habit == Habit::GiveBack {
            queue.rewind(mine.len() as u16);
        } else {
            for (_, head) in mine {
                queue.push(head, 2)?;
            }
        }
        Ok(())
    }
}

impl Drop for ProbeWorker {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A function, and a driver's hand on it.
struct Rig {
    sim: Arc<SimDomain>,
    memory: GuestMemory,
    function: Arc<VirtioPci>,
}

impl Rig {
    fn new(device: Arc<dyn Device>) -> Rig {
        Rig::with(device, Placement::default())
    }

    /// One that is offered these features too.
    fn offering(device: Arc<dyn Device>, with: u64) -> Rig {
        Rig::with(device, Placement { with, ..Placement::default() })
    }

    fn with(device: Arc<dyn Device>, placement: Placement) -> Rig {
        let (sim, memory) = guest();
        let function = VirtioPci::new(device, "probe0", placement, memory.clone(), sim.clone()).unwrap();
        Rig { sim, memory, function: Arc::new(function) }
    }

    fn get(&self, offset: u64, size: u8) -> u64 {
        self.function.bar_read(0, offset, size)
    }

    fn set(&self, offset: u64, size: u8, value: u64) {
        self.function.bar_write(0, offset, size, value);
    }

    fn status(&self) -> u8 {
        self.get(STATUS, 1) as u8
    }

    fn set_status(&self, value: u8) {
        self.set(STATUS, 1, value.into());
    }

    /// Bus mastering, and MSI-X with message 0x30 + n for vector n.
    fn pci_setup(&self) {
        self.function.config_write(register::COMMAND, 2, command::BUS_MASTER | command::MEMORY);
        for vector in 0..u64::from(self.function.state.msix.vectors()) {
            let entry = u64::from(TABLE) + vector * 16;
            self.set(entry, 8, MESSAGE);
            self.set(entry + 8, 4, 0x30 + vector);
            self.set(entry + 12, 4, 0);
        }
        self.function.config_write(self.function.msix_at + 2, 2, 0x8000);
    }

    /// Up to FEATURES_OK, accepting `features`.
    fn negotiate(&self, features: u64) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(DRIVER_SELECT, 4, select);
            self.set(DRIVER_FEATURE, 4, word.into());
        }
        self.set_status(11);
        assert_eq!(self.status(), 11);
    }

    fn ring(&self, index: u64, size: u16) -> Ring {
        Ring::new(&self.sim, 0x10_0000 * (index + 1), size)
    }

    /// Sets queue `index` up over `ring`, with vector `index` + 1, and enables it.
    fn enable(&self, index: u64, ring: &Ring) {
        self.enable_at(index, &ring.layout);
    }

    fn enable_at(&self, index: u64, layout: &Layout) {
        self.set(SELECT, 2, index);
        self.set(SIZE, 2, layout.size.get().into());
        self.set(VECTOR, 2, index + 1);
        self.set(DESCRIPTORS, 8, layout.descriptors.0);
        // In halves, as Linux does.
        self.set(AVAILABLE, 4, layout.available.0 & 0xffff_ffff);
        self.set(AVAILABLE + 4, 4, layout.available.0 >> 32);
        self.set(USED + 4, 4, layout.used.0 >> 32);
        self.set(USED, 4, layout.used.0 & 0xffff_ffff);
        self.set(ENABLE, 2, 1);
    }

    /// A ring for queue `index` of the kind that `features` say, enabled.
    fn any_ring(&self, index: u64, size: u16, features: u64) -> AnyRing {
        let ring = AnyRing::new(&self.sim, 0x10_0000 * (index + 1), size, features);
        self.enable_at(index, &ring.layout());
        assert_eq!(self.get(ENABLE, 2), 1);
        ring
    }

    /// All of it: three queues that run.
    fn start(&self, features: u64) -> [Ring; 3] {
        self.pci_setup();
        self.negotiate(features | FEATURE_VERSION_1);
        self.set(CONFIG_VECTOR, 2, 0);
        let rings = [self.ring(0, 8), self.ring(1, 256), self.ring(2, 16)];
        for (index, ring) in (0..).zip(&rings) {
            self.enable(index, ring);
            assert_eq!(self.get(ENABLE, 2), 1);
        }
        self.set_status(15);
        assert_eq!(self.status(), 15);
        rings
    }

    fn kick(&self, index: u64) {
        self.set(NOTIFY + index * 4, 2, index);
    }

    /// The data of the next message.
    fn message(&self) -> Option<u32> {
        self.sim.wait_message(PATIENCE).map(|message| message.data)
    }

    /// Offers chain 0 of one byte in `ring`, notifies queue `index` and sees it used.
    fn round(&self, index: u64, ring: &mut Ring) {
        ring.chain(0, &[(DATA, 1, true)]);
        ring.offer(0);
        self.kick(index);
        assert_eq!(self.message(), Some(0x31 + index as u32));
        assert!(ring.take_used().is_some());
    }
}

fn wait_until(mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}
