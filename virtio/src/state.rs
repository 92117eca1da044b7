//! What the transport and the workers of a device share. All of it is atomic: a worker never waits for
//! the transport's lock, since the transport waits for workers while holding it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pci::Msix;

/// Bits of the device status (virtio 1.3 §2.1).
pub(crate) mod status {
    /// The guest knows that the device is there.
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub(crate) const DRIVER: u8 = 2;
    /// The driver drives it.
    pub(crate) const DRIVER_OK: u8 = 4;
    /// Negotiation is over.
    pub(crate) const FEATURES_OK: u8 = 8;
    /// The device cannot go on. Ours to set.
    pub(crate) const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub(crate) const FAILED: u8 = 128;
    /// The bits that a driver may set.
    pub(crate) const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// No vector, in the vector registers (virtio 1.3 §4.1.5.1.2, VIRTIO_MSI_NO_VECTOR).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// In the ISR status (virtio 1.3 §4.1.4.5): a queue has used chains.
const ISR_QUEUE: u8 = 1;
/// In the ISR status: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// How often a device may say in the log what its guest did wrong.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(5);

/// What a device says to its driver: status and interrupts.
#[derive(Debug)]
pub(crate) struct State {
    /// What the user calls the device.
    pub(crate) name: String,
    pub(crate) msix: Msix,
    status: AtomicU8,
    /// Bus Master Enable: whether the device may look at the guest's memory at all.
    bus_master: AtomicBool,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    /// Queues that were reset and are not back yet.
    stopping: Box<[AtomicBool]>,
    last_complaint: Mutex<Option<Instant>>,
}

impl State {
    pub(crate) fn new(name: &str, msix: Msix, queues: usize) -> State {
        State {
            name: name.to_owned(),
            msix,
            status: AtomicU8::new(0),
            bus_master: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            stopping: (0..queues).map(|_| AtomicBool::new(false)).collect(),
            last_complaint: Mutex::new(None),
        }
    }

    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets bits; only `reset` clears any.
    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    pub(crate) fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::SeqCst)
    }

    pub(crate) fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::SeqCst);
        self.msix.set_bus_master(on);
    }

    /// Whether a worker still has to let go of queue `index`, which was reset.
    pub(crate) fn is_stopping(&self, index: usize) -> bool {
        self.stopping.get(index).is_some_and(|stopping| stopping.load(Ordering::SeqCst))
    }

    pub(crate) fn set_stopping(&self, index: usize, stopping: bool) {
        if let Some(slot) = self.stopping.get(index) {
            slot.store(stopping, Ordering::SeqCst);
        }
    }

    /// The device cannot go on: says so to the driver (virtio 1.3 §2.1.2) and to the log.
    pub(crate) fn needs_reset(&self, why: fmt::Arguments) {
        self.add_status(status::NEEDS_RESET);
        self.config_interrupt();
        self.complain(format_args!("{why}; the device needs a reset"));
    }

    /// Logs what the guest, or the host on its behalf, did wrong, but not as often as a guest might like.
    pub(crate) fn complain(&self, what: fmt::Arguments) {
        let mut last = self.last_complaint.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_PERIOD) {
            *last = Some(now);
            log::warn!("{}: {what}", self.name);
        }
    }

    /// Says that queue `index` has used chains. With MSI-X the ISR status is not used (§4.1.5.3.1).
    pub(crate) fn queue_interrupt(&self, index: usize) {
        if self.msix.enabled() {
            self.fire(self.queue_vectors.get(index));
        } else {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        }
    }

    /// Says that the configuration or the status changed, to a driver that drives the device.
    pub(crate) fn config_interrupt(&self) {
        if self.status() & status::DRIVER_OK == 0 {
            return;
        }
        if self.msix.enabled() {
            self.fire(Some(&self.config_vector));
        } else {
            self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        }
    }

    fn fire(&self, vector: Option<&AtomicU16>) {
        // NO_VECTOR is beyond any table.
        if let Some(vector) = vector {
            self.msix.fire(vector.load(Ordering::SeqCst));
        }
    }

    /// The ISR status; reading clears it.
    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::SeqCst);
    }

    /// The vector of queue `index`, or none where there is no such queue.
    pub(crate) fn queue_vector(&self, index: usize) -> u16 {
        self.queue_vectors.get(index).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(crate) fn set_queue_vector(&self, index: usize, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(index) {
            slot.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    /// A vector that cannot be had reads back as none, which is how the driver learns (§4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// The state of a device just reset (virtio 1.3 §2.4, §4.1.4.3.1); no worker may be running.
    pub(crate) fn reset(&self) {
        self.isr.store(0, Ordering::SeqCst);
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        for stopping in &self.stopping {
            stopping.store(false, Ordering::SeqCst);
        }
        self.msix.clear_pending();
        self.status.store(0, Ordering::SeqCst);
    }
}
