//! What a device is, to the transport: a [`Device`] that makes [`Worker`]s, and a [`Worker`] that serves queues.
//!
//! The transport owns registers, negotiation, threads and interrupts. A device says what it is
//! ([`Spec`]), holds its configuration bytes ([`Config`]) and makes a worker when the driver starts a
//! queue; the worker sees nothing but queues and the host file it works on.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use memory::GuestMemory;
use rustix::event::{PollFd, PollFlags};

use crate::queue::{Queue, QueueError};

/// One queue that a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Largest number of entries, which the driver may lower: a power of two, 1 to 32768.
    pub max_size: u16,
    /// Which worker serves it. Workers are numbered from 0 without a gap.
    pub worker: usize,
}

/// What a device is. A pure function of the command line, so that a restored guest finds it the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Virtio device id (virtio 1.3 §5), 1 to 63. The PCI device id is 0x1040 more.
    pub id: u16,
    /// PCI class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// The device's own feature bits (0 to 23 and 50 to 63). The transport adds those of queues and
    /// transport (24 to 49) itself.
    pub features: u64,
    /// The queues, in the order that the device type gives them: 1 to 1024.
    pub queues: Vec<QueueSpec>,
}

/// A virtio device.
pub trait Device: Send + Sync {
    /// What it is. Never changes.
    fn spec(&self) -> &Spec;

    /// Its configuration bytes, which the driver reads.
    fn config(&self) -> &Config;

    /// The driver writes `data` at `offset` of the configuration; the range lies within [`Config::len`].
    /// Called on a vCPU's thread: must not block. What is not writable is ignored.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Makes worker `index`, when the first of its queues starts. `features` are those negotiated.
    ///
    /// # Errors
    /// The host refused something (a file, a ring): the device then needs a reset.
    fn worker(&self, index: usize, features: u64, memory: &GuestMemory) -> io::Result<Box<dyn Worker>>;

    /// The driver reset the device; all queues have stopped and the workers are gone. Put back what
    /// the driver could change.
    fn reset(&self) {}
}

/// What a worker waits for before it looks at a queue again: the result of [`Worker::serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The queue was worked until [`Queue::pop`] said false: the driver must say when there is more.
    Kick,
    /// Whatever the driver adds is of no use until one of [`Worker::sources`] is ready (a tap without
    /// packets, a full engine). The driver is not asked to notify.
    Source,
    /// Serve it again at once.
    Again,
}

/// Serves some queues of a device, on a thread of its own.
///
/// The caller does what all devices need: it holds off notifications while `serve` runs and asks for
/// them before sleeping, and it stops a queue whose `serve` fails, telling the driver that the device
/// needs a reset. Nothing here may panic, whatever the guest does.
pub trait Worker: Send {
    /// Works queue `index` (counted over the whole device) until nothing is left to do now, then
    /// flushes it. Takes completions from the host as well.
    ///
    /// [`Queue::pop`] says false too when the queue has had its share; answering [`Wake::Kick`] is right
    /// then as well, since the caller finds that there is more.
    ///
    /// # Errors
    /// The driver broke the ring. Requests that merely make no sense are answered, not failed.
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError>;

    /// Adds the descriptors to wait for besides the driver's notifications. Asked before each sleep,
    /// so only what is of use now need be added. When one is ready every queue is served.
    fn sources<'fd>(&'fd self, queues: &Queues, out: &mut Sources<'fd>) {
        let _ = (queues, out);
    }

    /// The caller waited, or asked without waiting: `ready` says which of the sources added last are, in their
    /// order. For a worker that can save itself a look at one that is not.
    fn woken(&mut self, ready: &[bool]) {
        let _ = ready;
    }

    /// Queue `index` is about to stop or to pause: finishes everything of it that is in flight, waiting
    /// for the host if need be, or gives it back ([`Queue::rewind`]). Afterwards nothing may touch the
    /// guest's memory on its behalf, until `serve` is called for it again. Called as well after `serve`
    /// failed.
    ///
    /// # Errors
    /// The driver broke the ring. The queue stops all the same.
    fn drain(&mut self, queues: &mut Queues, index: usize) -> Result<(), QueueError> {
        let _ = (queues, index);
        Ok(())
    }
}

/// The queues of one worker that run, by their number in the device.
#[derive(Debug, Default)]
pub struct Queues {
    slots: Vec<Option<Queue>>,
}

impl Queues {
    /// No queues.
    pub fn new() -> Queues {
        Queues::default()
    }

    /// Queue `index`, if it runs and is this worker's.
    pub fn get(&mut self, index: usize) -> Option<&mut Queue> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Whether queue `index` runs and is this worker's.
    pub fn contains(&self, index: usize) -> bool {
        self.slots.get(index).is_some_and(Option::is_some)
    }

    /// Numbers of the queues that run, in order.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().enumerate().filter_map(|(index, slot)| slot.as_ref().map(|_| index))
    }

    /// One more than the highest number a queue here ever had.
    pub fn end(&self) -> usize {
        self.slots.len()
    }

    /// Adds a queue, replacing one of the same number.
    pub fn insert(&mut self, index: usize, queue: Queue) {
        if self.slots.len() <= index {
            self.slots.resize_with(index.saturating_add(1), || None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(queue);
        }
    }

    /// Takes a queue out.
    pub fn remove(&mut self, index: usize) -> Option<Queue> {
        self.slots.get_mut(index)?.take()
    }
}

/// Most descriptors that a worker can wait for besides its doorbell.
pub const MAX_SOURCES: usize = 7;

/// Descriptors to wait for. Of fixed size, so that going to sleep allocates nothing.
#[derive(Debug)]
pub struct Sources<'fd> {
    fds: [PollFd<'fd>; MAX_SOURCES + 1],
    count: usize,
}

impl<'fd> Sources<'fd> {
    /// Waits for `doorbell` to be readable and nothing else yet.
    pub(crate) fn new(doorbell: BorrowedFd<'fd>) -> Sources<'fd> {
        let fds = std::array::from_fn(|_| PollFd::from_borrowed_fd(doorbell, PollFlags::IN));
        Sources { fds, count: 1 }
    }

    /// Waits for `flags` on `fd` as well. False, and logged, beyond [`MAX_SOURCES`].
    pub fn add(&mut self, fd: BorrowedFd<'fd>, flags: PollFlags) -> bool {
        match self.fds.get_mut(self.count) {
            Some(slot) => {
                *slot = PollFd::from_borrowed_fd(fd, flags);
                self.count = self.count.saturating_add(1);
                true
            }
            None => {
                log::error!("a worker waits for more than {MAX_SOURCES} descriptors");
                false
            }
        }
    }

    /// What to poll; the doorbell is first.
    pub(crate) fn as_poll(&mut self) -> &mut [PollFd<'fd>] {
        self.fds.get_mut(..self.count).unwrap_or_default()
    }
}

type Hook = Box<dyn Fn() + Send + Sync>;

/// A device's configuration bytes (virtio 1.3 §2.5), shared by the device and the transport.
#[derive(Default)]
pub struct Config {
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU8,
    changed: OnceLock<Hook>,
}

impl Config {
    /// A configuration of these bytes; its length never changes. At most 4096 are seen by the driver.
    pub fn new(bytes: Vec<u8>) -> Config {
        Config { bytes: Mutex::new(bytes), ..Config::default() }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are no configuration bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from `offset` on. Past the end there are zeros.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        out.fill(0);
        let bytes = self.lock();
        let rest = bytes.get(offset..).unwrap_or_default();
        for (to, from) in out.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    /// Changes the configuration on the device's side: the driver sees a new generation, and is
    /// interrupted if it drives the device.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        {
            let mut bytes = self.lock();
            change(&mut bytes);
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(changed) = self.changed.get() {
            changed();
        }
    }

    /// Changes the configuration on the driver's behalf ([`Device::write_config`], [`Device::reset`]):
    /// no new generation, no interrupt.
    pub fn modify(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut self.lock());
    }

    /// Changes each time the device changes the configuration (virtio 1.3 §2.5.1).
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says what `update` calls. Only the first call counts: a device has one transport.
    pub(crate) fn on_change(&self, hook: Hook) {
        let _ = self.changed.set(hook);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("bytes", &self.lock()).field("generation", &self.generation).finish()
    }
}
