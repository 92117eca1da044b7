//! What reading and writing the common configuration (virtio 1.3 §4.1.4.3) does, and what runs because of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::Gpa;
use memory::GuestMemory;
use pci::width::{self, low8, low16, low32};

use crate::device::Device;
use crate::doorbell::Doorbell;
use crate::queue::{
    FEATURE_RING_PACKED, FEATURE_VERSION_1, Layout, Queue, QueueError, QueueSize, QueueState,
};
use crate::registers::{FIELDS, Phase, QueuePhase, Register};
use crate::ring;
use crate::state::{NO_VECTOR, State, status};
use crate::worker::Thread;

/// The registers of a queue.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    layout: Layout,
    enabled: bool,
}

impl QueueRegisters {
    fn new(size: QueueSize) -> QueueRegisters {
        let nowhere = Gpa(0);
        let layout = Layout { size, descriptors: nowhere, available: nowhere, used: nowhere };
        QueueRegisters { layout, enabled: false }
    }
}

/// A queue as its device made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) max_size: QueueSize,
    pub(crate) worker: usize,
}

/// The feature bits that a device can offer.
const OFFERABLE: u128 = u64::MAX as u128;

/// What the driver sets, and what runs because of it.
#[derive(Debug)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    /// Wider than what we offer, so that a driver that accepts what nobody offered is seen to.
    driver_features: u128,
    queue_select: u16,
    queues: Box<[QueueRegisters]>,
    /// The threads that run, by number of the worker.
    threads: Box<[Option<Thread>]>,
}

impl Registers {
    /// What the driver accepts. Once it was agreed to, that is all of it: what we offer fits.
    fn features(&self) -> u64 {
        (self.driver_features & OFFERABLE) as u64
    }
}

/// The common configuration of a device.
pub(crate) struct CommonConfig {
    device: Arc<dyn Device>,
    memory: GuestMemory,
    state: Arc<State>,
    features: u64,
    limits: Box<[QueueLimits]>,
    /// One a worker.
    doorbells: Box<[Arc<Doorbell>]>,
    /// Held while workers are waited for, so no worker may ever take it.
    registers: Mutex<Registers>,
}

impl CommonConfig {
    /// The registers after power-on. `features` is all that is offered.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        memory: GuestMemory,
        state: Arc<State>,
        features: u64,
        limits: Box<[QueueLimits]>,
        doorbells: Box<[Arc<Doorbell>]>,
    ) -> CommonConfig {
        let registers = Registers {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: limits.iter().map(|limits| QueueRegisters::new(limits.max_size)).collect(),
            threads: doorbells.iter().map(|_| None).collect(),
        };
        CommonConfig { device, memory, state, features, limits, doorbells, registers: Mutex::new(registers) }
    }

    /// Reads `size` bytes at `offset`, whatever registers they fall in.
    pub(crate) fn read(&self, offset: u64, size: u8) -> u64 {
        let registers = self.lock();
        let mut result = 0;
        for (at, size, start) in width::pieces(offset, size, 8) {
            let end = at.saturating_add(size.into());
            for field in &FIELDS {
                let field_end = field.offset.saturating_add(field.width.into());
                if field.offset >= end || field_end <= at {
                    continue;
                }
                // Both shifts are below 64 bits, since field and piece overlap and neither is longer than 8 bytes.
                let value = self.get(&registers, field.register);
                let shifted = match at.checked_sub(field.offset) {
                    Some(inside) => width::extract(value, low32(inside), size),
                    None => {
                        let before = low32(field.offset.wrapping_sub(at));
                        width::insert(0, before, field.width, value)
                    }
                };
                result |= width::insert(0, start, size, shifted);
            }
        }
        result
    }

    /// Writes a register: with its own width, or half of a 64-bit one (§4.1.3.1). Other writes do nothing.
    pub(crate) fn write(&self, offset: u64, size: u8, value: u64) {
        let found = FIELDS.iter().find_map(|field| {
            let at = offset.checked_sub(field.offset)?;
            let whole = at == 0 && size == field.width;
            let half = field.width == 8 && size == 4 && (at == 0 || at == 4);
            (whole || half).then_some((field, low32(at)))
        });
        let Some((field, at)) = found else {
            log::debug!(
                "{}: write of {size} bytes at {offset:#x} of the common configuration",
                self.state.name
            );
            return;
        };
        let mut registers = self.lock();
        let (phase, queue) = (Phase::of(self.state.status()), self.queue_phase(&registers));
        if !field.writable.allows(phase, queue, registers.features()) {
            log::debug!("{}: {:?} written in {phase:?}, queue {queue:?}", self.state.name, field.register);
            return;
        }
        self.set(&mut registers, field.register, |old| width::insert(old, at, size, value));
    }

    /// Resets the device. When this returns, no worker runs.
    pub(crate) fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }

    /// Has every worker finish what it has in flight, and waits for that. Bus mastering was turned off
    /// before, so that nothing is started.
    pub(crate) fn pause(&self) {
        let registers = self.lock();
        // All at once, as in a reset.
        let paused: Vec<_> = registers.threads.iter().flatten().map(Thread::pause).collect();
        for done in paused {
            // An error is that the thread ended, which will do as well.
            let _ = done.recv();
        }
    }

    /// Where the selected queue is.
    fn queue_phase(&self, registers: &Registers) -> QueuePhase {
        let selected = usize::from(registers.queue_select);
        match registers.queues.get(selected) {
            None => QueuePhase::Absent,
            Some(queue) if queue.enabled => QueuePhase::Enabled,
            Some(_) if self.state.is_stopping(selected) => QueuePhase::Resetting,
            Some(_) => QueuePhase::SettingUp,
        }
    }

    fn get(&self, registers: &Registers, register: Register) -> u64 {
        let selected = usize::from(registers.queue_select);
        let queue = registers.queues.get(selected);
        let address = |of: fn(&Layout) -> Gpa| queue.map_or(0, |queue| of(&queue.layout).0);
        match register {
            Register::DeviceFeatureSelect => registers.device_feature_select.into(),
            Register::DeviceFeature => word(self.features.into(), registers.device_feature_select).into(),
            Register::DriverFeatureSelect => registers.driver_feature_select.into(),
            Register::DriverFeature => {
                word(registers.driver_features, registers.driver_feature_select).into()
            }
            Register::ConfigVector => self.state.config_vector().into(),
            Register::QueueCount => registers.queues.len() as u64,
            Register::DeviceStatus => self.state.status().into(),
            Register::ConfigGeneration => self.device.config().generation().into(),
            Register::QueueSelect => registers.queue_select.into(),
            // A queue that is not there has size 0 (§4.1.4.3.1).
            Register::QueueSize => queue.map_or(0, |queue| queue.layout.size.get().into()),
            Register::QueueVector => self.state.queue_vector(selected).into(),
            Register::QueueEnable => queue.is_some_and(|queue| queue.enabled).into(),
            Register::QueueNotifyOffset => queue.map_or(0, |_| registers.queue_select.into()),
            Register::QueueDescriptors => address(|layout| layout.descriptors),
            Register::QueueAvailable => address(|layout| layout.available),
            Register::QueueUsed => address(|layout| layout.used),
            Register::QueueReset => self.state.is_stopping(selected).into(),
        }
    }

    /// Sets a register to what `change` makes of its value.
    fn set(&self, registers: &mut Registers, register: Register, change: impl Fn(u64) -> u64) {
        let value = change(0);
        let selected = usize::from(registers.queue_select);
        let features = registers.features();
        let queue = registers.queues.get_mut(selected);
        let address = |old: &mut Gpa| old.0 = change(old.0);
        match (register, queue) {
            (Register::DeviceFeatureSelect, _) => registers.device_feature_select = low32(value),
            (Register::DriverFeatureSelect, _) => registers.driver_feature_select = low32(value),
            (Register::DriverFeature, _) => {
                if let Some(shift) =
                    registers.driver_feature_select.checked_mul(32).filter(|shift| *shift < 128)
                {
                    let others = registers.driver_features & !(u128::from(u32::MAX) << shift);
                    registers.driver_features = others | u128::from(low32(value)) << shift;
                }
            }
            (Register::ConfigVector, _) => self.state.set_config_vector(low16(value)),
            (Register::DeviceStatus, _) => self.set_status(registers, low8(value)),
            (Register::QueueSelect, _) => registers.queue_select = low16(value),
            (Register::QueueVector, _) => self.state.set_queue_vector(selected, low16(value)),
            (Register::QueueSize, Some(queue)) => self.set_size(selected, queue, low16(value), features),
            (Register::QueueEnable, Some(_)) if value == 1 => self.enable(registers, selected),
            (Register::QueueReset, Some(_)) if value == 1 => self.reset_queue(registers, selected),
            (Register::QueueDescriptors, Some(queue)) => address(&mut queue.layout.descriptors),
            (Register::QueueAvailable, Some(queue)) => address(&mut queue.layout.available),
            (Register::QueueUsed, Some(queue)) => address(&mut queue.layout.used),
            // Read-only, a queue that is not there, or an enable or a reset that is none.
            _ => {}
        }
    }

    /// A size that no queue can have, or more than we offered, changes nothing (§4.1.4.3.2).
    fn set_size(&self, index: usize, queue: &mut QueueRegisters, entries: u16, features: u64) {
        let largest = self.limits.get(index).map_or(0, |limits| limits.max_size.get());
        let is_packed = features & FEATURE_RING_PACKED != 0;
        let size = if is_packed { QueueSize::packed(entries) } else { QueueSize::new(entries) };
        if let Some(size) = size.filter(|size| size.get() <= largest) {
            queue.layout.size = size;
        }
    }

    /// The driver writes the device status (§2.1, §3.1.1).
    fn set_status(&self, registers: &mut Registers, value: u8) {
        if value == 0 {
            return self.reset_locked(registers);
        }
        let old = self.state.status();
        let wanted = value & status::DRIVERS;
        if old & status::FAILED != 0 {
            // The driver gave up: nothing starts any more.
            return;
        }
        if old & status::DRIVERS & !wanted != 0 {
            log::debug!("{}: status {old:#x} cannot become {value:#x} without a reset", self.state.name);
            return;
        }
        let mut now = old & status::DRIVERS;
        // Each bit may be set only upon the one before; FEATURES_OK only if we agree.
        let steps = [
            (status::ACKNOWLEDGE, 0),
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::DRIVER),
            (status::DRIVER_OK, status::FEATURES_OK),
            (status::FAILED, 0),
        ];
        for (bit, before) in steps {
            let asked = wanted & !now & bit != 0 && now & before == before;
            if asked && (bit != status::FEATURES_OK || self.agrees(registers)) {
                now |= bit;
            }
        }
        self.state.add_status(now);
        if now & !old & status::DRIVER_OK != 0 {
            if old & status::NEEDS_RESET != 0 {
                // What went wrong before could not be told until now.
                self.state.config_interrupt();
            }
            for index in 0..registers.queues.len() {
                self.start(registers, index);
            }
        }
    }

    /// Whether the driver accepted only what we offer, and what we insist on.
    fn agrees(&self, registers: &Registers) -> bool {
        let accepted = registers.driver_features;
        let unknown = accepted & !u128::from(self.features);
        let agrees = unknown == 0 && accepted & u128::from(FEATURE_VERSION_1) != 0;
        if !agrees {
            self.state.complain(format_args!(
                "the driver accepts features {accepted:#x}, of {:#x} offered, VERSION_1 required",
                self.features
            ));
        }
        agrees
    }

    fn enable(&self, registers: &mut Registers, index: usize) {
        let features = registers.features();
        let Some(queue) = registers.queues.get_mut(index) else { return };
        if let Err(error) = ring::check_layout(&self.memory, &queue.layout, features) {
            self.state.needs_reset(format_args!("queue {index}: {error}"));
            return;
        }
        queue.enabled = true;
        self.start(registers, index);
    }

    /// Starts queue `index` if it is enabled and the driver drives the device.
    fn start(&self, registers: &mut Registers, index: usize) {
        let enabled = registers.queues.get(index).filter(|queue| queue.enabled);
        let (Some(queue), Some(limits)) = (enabled, self.limits.get(index)) else { return };
        if Phase::of(self.state.status()) != Phase::Running {
            return;
        }
        let features = registers.features();
        let layout = queue.layout;
        if let Err(error) = self.start_on(registers, index, limits.worker, layout, features) {
            self.state.needs_reset(format_args!("queue {index}: {error}"));
        }
    }

    fn start_on(
        &self,
        registers: &mut Registers,
        index: usize,
        worker: usize,
        layout: Layout,
        features: u64,
    ) -> Result<(), StartError> {
        let state = self.state.clone();
        let interrupt = Box::new(move || state.queue_interrupt(index));
        let start = QueueState::initial(features);
        let queue = Queue::new(self.memory.clone(), layout, features, start, interrupt)?;
        let (Some(slot), Some(doorbell)) = (registers.threads.get_mut(worker), self.doorbells.get(worker))
        else {
            return Ok(());
        };
        let thread = match slot {
            Some(thread) => thread,
            None => {
                let made = self.device.worker(worker, features, &self.memory).map_err(StartError::Worker)?;
                let thread = Thread::spawn(worker, made, doorbell.clone(), self.state.clone());
                slot.insert(thread.map_err(StartError::Thread)?)
            }
        };
        thread.start(index, queue);
        Ok(())
    }

    /// Gives queue `index` back to the driver (§2.6.1): at once if it does not run, and otherwise when its
    /// worker has nothing of it in flight, until when the register reads as 1.
    fn reset_queue(&self, registers: &mut Registers, index: usize) {
        let (Some(queue), Some(limits)) = (registers.queues.get_mut(index), self.limits.get(index)) else {
            return;
        };
        *queue = QueueRegisters::new(limits.max_size);
        self.state.set_queue_vector(index, NO_VECTOR);
        if let Some(thread) = registers.threads.get(limits.worker).and_then(Option::as_ref) {
            self.state.set_stopping(index, true);
            thread.stop(index);
        }
    }

    fn reset_locked(&self, registers: &mut Registers) {
        // All at once, so that they drain side by side; then wait for each.
        for thread in registers.threads.iter().flatten() {
            thread.quit();
        }
        registers.threads.fill_with(|| None);
        self.device.reset();
        // Guests reset their devices before they are suspended, and this is the last that Xen hears of
        // what the devices wrote.
        if let Err(error) = self.memory.flush_dirty() {
            self.state.complain(format_args!("cannot report dirty memory: {error}"));
        }
        registers.device_feature_select = 0;
        registers.driver_feature_select = 0;
        registers.driver_features = 0;
        registers.queue_select = 0;
        for (queue, limits) in registers.queues.iter_mut().zip(&self.limits) {
            *queue = QueueRegisters::new(limits.max_size);
        }
        self.state.reset();
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a queue that the driver enabled does not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot make the worker: {0}")]
    Worker(std::io::Error),
    #[error("cannot start the worker's thread: {0}")]
    Thread(std::io::Error),
}

/// The 32 bits of `features` that a feature select register selects.
fn word(features: u128, select: u32) -> u32 {
    let shifted = select.checked_mul(32).and_then(|shift| features.checked_shr(shift)).unwrap_or_default();
    (shifted & 0xffff_ffff) as u32
}
