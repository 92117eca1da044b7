//! The device's end of a queue of either kind, as targets drive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arbitrary::Arbitrary;
use virtio::{Chain, ChainError, FEATURE_EVENT_IDX, FEATURE_IN_ORDER, FEATURE_INDIRECT};
use virtio::{Layout, Queue, QueueError, QueueState};

use crate::guest::Guest;

/// What a device does, or what happens to the guest's memory meanwhile.
#[derive(Arbitrary, Debug)]
pub enum DeviceStep {
    Pop,
    /// Gives back one that is held.
    Push {
        nth: u8,
        written: u32,
    },
    /// Gives back what may not be held.
    PushAny(u16),
    Flush,
    Disable,
    Enable,
    Rewind(u8),
    Punch(u16),
    Refill(u16),
    Invalidate,
    /// Stops the queue and goes on where it was.
    Restart,
}

/// The features of queues that a driver may or may not accept.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Features {
    event_idx: bool,
    indirect: bool,
    in_order: bool,
}

impl Features {
    pub fn bits(self) -> u64 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.event_idx, FEATURE_EVENT_IDX)
            | bit(self.indirect, FEATURE_INDIRECT)
            | bit(self.in_order, FEATURE_IN_ORDER)
    }
}

/// A queue that runs, and what we know of it.
pub struct DeviceEnd {
    layout: Layout,
    features: u64,
    queue: Queue,
    /// Heads taken, the last one taken at the end.
    held: Vec<u16>,
    interrupts: Arc<AtomicUsize>,
    /// The ring broke while something was given back: a device stops then.
    pub over: bool,
}

fn start(
    guest: &Guest,
    layout: Layout,
    features: u64,
    state: QueueState,
    interrupts: &Arc<AtomicUsize>,
) -> Result<Queue, QueueError> {
    let counter = interrupts.clone();
    let interrupt = Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    Queue::new(guest.memory.clone(), layout, features, state, interrupt)
}

impl DeviceEnd {
    pub fn new(
        guest: &Guest,
        layout: Layout,
        features: u64,
        state: QueueState,
    ) -> Result<DeviceEnd, QueueError> {
        let interrupts = Arc::default();
        let queue = start(guest, layout, features, state, &interrupts)?;
        Ok(DeviceEnd { layout, features, queue, held: Vec::new(), interrupts, over: false })
    }

    pub fn play(&mut self, guest: &mut Guest, step: DeviceStep) {
        match step {
            DeviceStep::Pop => self.pop(guest),
            DeviceStep::Push { nth, written } => self.push(guest, nth.into(), written),
            DeviceStep::PushAny(head) => {
                if self.held.contains(&head) {
                    return;
                }
                let result = self.queue.push(head, 0);
                assert!(matches!(result, Err(QueueError::NotInFlight { .. })), "{result:?}");
            }
            DeviceStep::Flush => {
                let (before, interrupts) = (self.queue.state(), self.interrupts.load(Ordering::SeqCst));
                if let Err(error) = self.queue.flush() {
                    assert!(!guest.is_whole(), "{error}");
                    self.over = true;
                }
                assert_eq!(self.queue.state(), before);
                assert!(self.interrupts.load(Ordering::SeqCst) <= interrupts + 1);
            }
            DeviceStep::Disable => {
                let _ = self.queue.disable_notification();
            }
            DeviceStep::Enable => {
                if self.queue.enable_notification().is_ok_and(|more| !more) {
                    // Nothing more: as long as the driver does nothing, there is nothing to take.
                    assert!(!matches!(self.queue.pop(&mut Chain::new()), Ok(true)));
                }
            }
            DeviceStep::Rewind(count) => {
                let done = usize::from(self.queue.rewind(count.into()));
                assert!(done <= usize::from(count) && done <= self.held.len());
                self.held.truncate(self.held.len() - done);
            }
            DeviceStep::Punch(page) => guest.punch(page.into()),
            DeviceStep::Refill(page) => guest.refill(page.into()),
            DeviceStep::Invalidate => guest.memory.invalidate(),
            DeviceStep::Restart => self.restart(guest),
        }
        assert_eq!(usize::from(self.queue.in_flight()), self.held.len());
        assert!(self.queue.in_flight() <= self.queue.size());
    }

    fn pop(&mut self, guest: &Guest) {
        let mut chain = Chain::new();
        let before = self.queue.state();
        match self.queue.pop(&mut chain) {
            Ok(true) => {
                let head = chain.head();
                assert!(head < self.queue.size() && !self.held.contains(&head));
                self.held.push(head);
                look_at(guest, &chain);
            }
            Ok(false) => assert_eq!(self.queue.state(), before),
            Err(error) => {
                assert_eq!(self.queue.state(), before, "{error}");
                assert!(!error.to_string().is_empty());
            }
        }
    }

    fn push(&mut self, guest: &Guest, nth: usize, written: u32) {
        let Some(nth) = nth.checked_rem(self.held.len()) else { return };
        match self.queue.push(self.held[nth], written) {
            Ok(()) => {
                self.held.remove(nth);
            }
            Err(error) => {
                assert!(!guest.is_whole(), "{error}");
                self.over = true;
            }
        }
    }

    /// As after a migration: nothing is in flight.
    fn restart(&mut self, guest: &mut Guest) {
        guest.refill_all();
        guest.memory.invalidate();
        for head in self.held.drain(..) {
            self.queue.push(head, 0).expect("a chain that is held");
        }
        self.queue.flush().expect("a ring that is there");
        let state = self.queue.state();
        self.queue = start(guest, self.layout, self.features, state, &self.interrupts)
            .expect("a ring that was good is good");
        assert_eq!(self.queue.state(), state);
    }

    /// Ends the queue; nothing may be left of it.
    pub fn end(self, guest: &Guest) {
        drop(self);
        guest.memory.invalidate();
        assert_eq!(guest.sim.mapped_frames(), 0, "mappings are left over");
    }
}

/// A chain that came out is sound: it can be read and written from end to end.
fn look_at(guest: &Guest, chain: &Chain) {
    let (readable, writable) = (chain.readable_len(), chain.writable_len());
    assert!(readable + writable <= u64::from(u32::MAX));
    let mut reader = chain.reader(&guest.memory);
    assert_eq!(reader.remaining(), readable);
    let mut some = vec![0; readable.min(5000) as usize];
    match reader.read(&mut some) {
        Ok(()) => {
            reader.skip(readable - some.len() as u64).expect("what is left can be skipped");
            assert!(reader.read(&mut [0]).is_err());
        }
        Err(ChainError::Short { .. }) => panic!("a chain is shorter than it says"),
        Err(ChainError::Memory(error)) => assert!(!guest.is_whole(), "{error}"),
    }
    let mut writer = chain.writer(&guest.memory);
    assert_eq!(writer.remaining(), writable);
    writer.skip(writable).expect("all of it can be skipped");
    assert_eq!(u64::from(writer.written()), writable);
    assert!(writer.write(&[0]).is_err());
    // Gigabytes can be pinned, at some cost: a little is enough.
    let mut pinned = memory::Pinned::new();
    let len = writable.min(1 << 20);
    match chain.writer(&guest.memory).pin(len, &mut pinned) {
        Ok(()) => assert_eq!(pinned.len() as u64, len),
        Err(error) => assert!(!guest.is_whole(), "{error}"),
    }
    pinned.truncate(0);
    pinned.clear();
}
