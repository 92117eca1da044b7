//! The PCI function around a virtio device (virtio 1.3 §4.1).
//!
//! All of it is in one BAR: the structures of virtio, the MSI-X table and the pending bits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::SharedDomain;
use memory::GuestMemory;
use pci::{
    BarError, BarIndex, BarKind, Bars, ConfigSpace, Function, Header, MAX_VECTORS, Msix, Written, command,
    register, width,
};

use crate::common_config::{CommonConfig, QueueLimits};
use crate::device::{Device, Spec};
use crate::doorbell::Doorbell;
use crate::queue::{
    FEATURE_ACCESS_PLATFORM, FEATURE_EVENT_IDX, FEATURE_IN_ORDER, FEATURE_INDIRECT,
    FEATURE_NOTIFICATION_DATA, FEATURE_RING_PACKED, FEATURE_RING_RESET, FEATURE_VERSION_1, QueueSize,
};
use crate::state::State;

/// Most queues that a device can have: as many as the notification structure has room for.
pub const MAX_QUEUES: u16 = 1024;

/// The features that queues and transport bring along, whatever the device.
const TRANSPORT_FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT | FEATURE_RING_RESET;
/// Those that they could bring along if asked to.
const OPTIONAL_FEATURES: u64 =
    FEATURE_RING_PACKED | FEATURE_IN_ORDER | FEATURE_NOTIFICATION_DATA | FEATURE_ACCESS_PLATFORM;
/// The feature bits that are a device type's own (§2.2).
const DEVICE_FEATURES: u64 = 0x00ff_ffff | !0 << 50;

const VENDOR: u16 = 0x1af4;
/// The PCI device id of virtio device id 0 (§4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

const BAR: u8 = 0;
const BAR_SIZE: u64 = 64 << 10;
/// Bytes between the places at which two queues are notified.
const NOTIFY_MULTIPLIER: u64 = 4;

/// What is where in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Common,
    Isr,
    Device,
    Notify,
    Pending,
    Table,
}

struct Place {
    start: u32,
    len: u32,
    area: Area,
    /// The type of the capability that tells of it (§4.1.4), for those of virtio.
    capability: Option<u8>,
}

const fn place(start: u32, len: u32, area: Area, capability: Option<u8>) -> Place {
    Place { start, len, area, capability }
}

const PENDING: u32 = 0x4000;
const TABLE: u32 = 0x8000;

const PLACES: [Place; 6] = [
    place(0x0000, 0x1000, Area::Common, Some(1)),
    place(0x1000, 0x1000, Area::Isr, Some(3)),
    place(0x2000, 0x1000, Area::Device, Some(4)),
    place(0x3000, 0x1000, Area::Notify, Some(2)),
    place(PENDING, 0x1000, Area::Pending, None),
    place(TABLE, 0x8000, Area::Table, None),
];

/// The id of vendor-specific capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;
/// The type of the capability that is a window on the BAR (§4.1.4.9).
const WINDOW_CAPABILITY: u8 = 5;
/// Offsets in that capability.
const WINDOW_BAR: u16 = 4;
const WINDOW_OFFSET: u16 = 8;
const WINDOW_LENGTH: u16 = 12;
const WINDOW_DATA: u16 = 16;

/// Why a device cannot be made a PCI function. Except for `Doorbell` it is the command line's fault, or
/// the device's own.
#[derive(Debug, thiserror::Error)]
pub enum VirtioPciError {
    /// Not a number of vectors.
    #[error("vectors={0}: must be 1 to {MAX_VECTORS}")]
    Vectors(u16),
    /// No queues, or too many.
    #[error("{0} queues: must be 1 to {MAX_QUEUES}")]
    Queues(usize),
    /// A queue cannot have this size.
    #[error("queue {index}: size {size} is not a power of two from 1 to 32768")]
    QueueSize {
        /// Number of the queue.
        index: usize,
        /// The size.
        size: u16,
    },
    /// Workers are not numbered from 0 without a gap.
    #[error("worker {0} has no queue")]
    IdleWorker(usize),
    /// The device id is not one.
    #[error("virtio device id {0}: must be 1 to 63")]
    Id(u16),
    /// Feature bits that are not the device's to offer.
    #[error("feature bits {0:#x} are not a device's own")]
    Features(u64),
    /// Feature bits that nobody can offer.
    #[error("feature bits {0:#x} cannot be offered")]
    Optional(u64),
    /// The BAR was refused.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// The capabilities do not fit.
    #[error("no room for capabilities")]
    Capabilities,
    /// No eventfd to be had.
    #[error("cannot make a doorbell: {0}")]
    Doorbell(#[from] io::Error),
}

/// How a device is put on the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Entries of the MSI-X table; `None` for one for each queue and one for configuration changes.
    pub vectors: Option<u16>,
    /// Feature bits that the driver is offered besides: of [`FEATURE_RING_PACKED`], [`FEATURE_IN_ORDER`],
    /// [`FEATURE_NOTIFICATION_DATA`] and [`FEATURE_ACCESS_PLATFORM`].
    pub with: u64,
    /// Feature bits that the driver is not offered although the device has them.
    pub without: u64,
    /// Function 0 of a slot that has more of them.
    pub multifunction: bool,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    device: Arc<dyn Device>,
    state: Arc<State>,
    common: CommonConfig,
    /// The doorbell of each queue's worker: a notification finds it without a lock.
    bells: Box<[Arc<Doorbell>]>,
    config: Mutex<ConfigSpace>,
    bars: Arc<Bars>,
    /// Offset of the MSI-X capability.
    msix_at: u16,
    /// Offset of the capability that is a window on the BAR.
    window_at: u16,
}

impl VirtioPci {
    /// Makes `device`, which the user calls `name`, a function on `memory` that interrupts `domain`.
    ///
    /// # Errors
    /// See [`VirtioPciError`].
    pub fn new(
        device: Arc<dyn Device>,
        name: &str,
        placement: Placement,
        memory: GuestMemory,
        domain: SharedDomain,
    ) -> Result<VirtioPci, VirtioPciError> {
        let spec = device.spec();
        let (limits, workers) = check(spec)?;
        if placement.with & !OPTIONAL_FEATURES != 0 {
            return Err(VirtioPciError::Optional(placement.with & !OPTIONAL_FEATURES));
        }
        let vectors = match placement.vectors {
            Some(vectors) if (1..=MAX_VECTORS).contains(&vectors) => vectors,
            Some(vectors) => return Err(VirtioPciError::Vectors(vectors)),
            // At most MAX_QUEUES and one.
            None => u16::try_from(limits.len()).unwrap_or(MAX_QUEUES).saturating_add(1),
        };
        let msix = Msix::new(vectors, domain);
        let (mut config, msix_at, window_at) = config_space(spec, &msix)?;
        if placement.multifunction {
            config.set_multifunction();
        }
        let doorbells =
            (0..workers).map(|_| Doorbell::new().map(Arc::new)).collect::<io::Result<Box<[_]>>>()?;
        let bells = limits.iter().filter_map(|queue| doorbells.get(queue.worker).cloned()).collect();
        let features = (spec.features | TRANSPORT_FEATURES | placement.with) & !placement.without;
        let state = Arc::new(State::new(name, msix, limits.len()));
        let hook = Arc::downgrade(&state);
        device.config().on_change(Box::new(move || {
            if let Some(state) = hook.upgrade() {
                state.config_interrupt();
            }
        }));
        Ok(VirtioPci {
            common: CommonConfig::new(device.clone(), memory, state.clone(), features, limits, doorbells),
            device,
            state,
            bells,
            bars: config.bars(),
            config: Mutex::new(config),
            msix_at,
            window_at,
        })
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has something in queue `index`. No lock, and no system call for a busy worker.
    fn notify(&self, index: u64) {
        if let Some(bell) = usize::try_from(index).ok().and_then(|index| self.bells.get(index)) {
            bell.ring();
        }
    }

    /// Does what a write to configuration space asks for. Called with the lock of configuration space
    /// held, so that two vCPUs' writes take effect in the order in which they were made.
    fn act_on(&self, written: Written) {
        if written.register == register::COMMAND {
            let is_on = |value| value & command::BUS_MASTER != 0;
            if is_on(written.before) != is_on(written.after) {
                self.state.set_bus_master(is_on(written.after));
                self.bells.iter().for_each(|bell| bell.ring());
            }
        } else if written.register == self.msix_at {
            self.state.msix.control_written(written.after);
        }
    }

    /// Where the window looks: offset in the BAR and length, if that is an access that the BAR has.
    fn window(&self, config: &ConfigSpace) -> Option<(u64, u8)> {
        let read = |offset| config.read(self.window_at.saturating_add(offset), 4);
        let bar = width::low8(read(WINDOW_BAR).into());
        let offset = u64::from(read(WINDOW_OFFSET));
        let length = u8::try_from(read(WINDOW_LENGTH)).ok().filter(|length| matches!(length, 1 | 2 | 4))?;
        let aligned = offset.is_multiple_of(length.into());
        (bar == BAR && aligned && self.bars.contains(bar, offset, length)).then_some((offset, length))
    }

    fn window_data(&self) -> u16 {
        self.window_at.saturating_add(WINDOW_DATA)
    }

    fn device_write(&self, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let data = bytes.get(..usize::from(size)).unwrap_or_default();
        let Ok(offset) = usize::try_from(offset) else { return };
        if offset.checked_add(data.len()).is_some_and(|end| end <= self.device.config().len()) {
            self.device.write_config(offset, data);
        }
    }

    fn device_read(&self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        if let (Ok(offset), Some(out)) = (usize::try_from(offset), bytes.get_mut(..usize::from(size))) {
            self.device.config().read(offset, out);
        }
        u64::from_le_bytes(bytes)
    }
}

impl Function for VirtioPci {
    fn name(&self) -> &str {
        &self.state.name
    }

    fn config_read(&self, offset: u16, size: u8) -> u32 {
        if offset & !3 == self.window_data() {
            // Not under the lock: the access may wait for workers.
            let window = self.window(&self.config());
            let value = window.map_or(0, |(at, length)| self.bar_read(BAR, at, length));
            return width::low32(width::extract(value, u32::from(offset % 4), size));
        }
        self.config().read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        let mut config = self.config();
        let Some(written) = config.write(offset, size, value) else { return };
        if written.register == self.window_data() {
            let window = self.window(&config);
            drop(config);
            if let Some((at, length)) = window {
                self.bar_write(BAR, at, length, u64::from(written.after) & width::mask(length));
            }
            return;
        }
        self.act_on(written);
        let master_off = written.register == register::COMMAND
            && written.before & !written.after & command::BUS_MASTER != 0;
        drop(config);
        if master_off {
            // Not under the lock either. When the write is over, guest memory is left alone.
            self.common.pause();
        }
    }

    fn bars(&self) -> &Bars {
        &self.bars
    }

    fn bar_read(&self, _bar: u8, offset: u64, size: u8) -> u64 {
        let Some((area, at)) = find(offset) else { return 0 };
        match area {
            Area::Common => self.common.read(at, size),
            Area::Isr if at == 0 => self.state.take_isr().into(),
            Area::Device => self.device_read(at, size),
            Area::Pending => self.state.msix.pba_read(at, size),
            Area::Table => self.state.msix.table_read(at, size),
            Area::Isr | Area::Notify => 0,
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, size: u8, value: u64) {
        let Some((area, at)) = find(offset) else { return };
        match area {
            // First, since it is the one that counts. What is written does not, NOTIFICATION_DATA or not: the
            // place tells the queue, and the ring how far the driver has got.
            Area::Notify => self.notify(at / NOTIFY_MULTIPLIER),
            Area::Common => self.common.write(at, size, value),
            Area::Device => self.device_write(at, size, value),
            Area::Table => self.state.msix.table_write(at, size, value),
            Area::Isr | Area::Pending => {}
        }
    }

    fn reset(&self) {
        {
            let mut config = self.config();
            config.reset();
            self.state.set_bus_master(false);
            self.state.msix.reset();
        }
        self.common.reset();
    }
}

/// The area that an offset in the BAR is in, and the offset in the area.
fn find(offset: u64) -> Option<(Area, u64)> {
    PLACES.iter().find_map(|place| {
        let at = offset.checked_sub(place.start.into())?;
        (at < u64::from(place.len)).then_some((place.area, at))
    })
}

/// Checks what a device says of itself. Its queues, and the number of its workers.
fn check(spec: &Spec) -> Result<(Box<[QueueLimits]>, usize), VirtioPciError> {
    if !(1..=63).contains(&spec.id) {
        return Err(VirtioPciError::Id(spec.id));
    }
    if spec.features & !DEVICE_FEATURES != 0 {
        return Err(VirtioPciError::Features(spec.features & !DEVICE_FEATURES));
    }
    if spec.queues.is_empty() || spec.queues.len() > usize::from(MAX_QUEUES) {
        return Err(VirtioPciError::Queues(spec.queues.len()));
    }
    let limits = spec.queues.iter().enumerate().map(|(index, queue)| {
        let size = queue.max_size;
        let max_size = QueueSize::new(size).ok_or(VirtioPciError::QueueSize { index, size })?;
        Ok(QueueLimits { max_size, worker: queue.worker })
    });
    let limits = limits.collect::<Result<Box<[_]>, VirtioPciError>>()?;
    // More workers than queues cannot be without a gap either.
    let last = limits.iter().map(|queue| queue.worker).max().unwrap_or_default();
    for worker in 0..=last {
        if !limits.iter().any(|queue| queue.worker == worker) {
            return Err(VirtioPciError::IdleWorker(worker));
        }
    }
    Ok((limits, last.saturating_add(1)))
}

/// Configuration space, and the offsets of the MSI-X capability and of the window in it.
fn config_space(spec: &Spec, msix: &Msix) -> Result<(ConfigSpace, u16, u16), VirtioPciError> {
    let header = Header {
        vendor: VENDOR,
        device: FIRST_DEVICE.saturating_add(spec.id),
        class: spec.class,
        revision: 1,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    };
    let index = BarIndex::new(BAR).ok_or(VirtioPciError::Capabilities)?;
    let bars = Bars::none().with(index, BarKind::Memory64 { prefetch: true }, BAR_SIZE)?;
    let mut config = ConfigSpace::new(header, bars);
    let mut add = |kind: u8, offset: u32, len: u32, extra: Option<u32>, writable: bool| {
        // The id and the link come before, the link being filled in later.
        let size = if extra.is_some() { 20 } else { 16 };
        let mut body = vec![size, kind, BAR, 0, 0, 0];
        body.extend(offset.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.extend(extra.map(u32::to_le_bytes).into_iter().flatten());
        let mask: &[u8] = match writable {
            true => &[0, 0, 0xff, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
            false => &[],
        };
        config
            .add_capability(VENDOR_CAPABILITY, &body, mask)
            .map(u16::from)
            .ok_or(VirtioPciError::Capabilities)
    };
    for place in &PLACES {
        if let Some(kind) = place.capability {
            let multiplier = (place.area == Area::Notify).then_some(width::low32(NOTIFY_MULTIPLIER));
            add(kind, place.start, place.len, multiplier, false)?;
        }
    }
    let window_at = add(WINDOW_CAPABILITY, 0, 0, Some(0), true)?;
    let msix_at = msix.add_capability(&mut config, BAR, TABLE, PENDING);
    let msix_at = msix_at.map(u16::from).ok_or(VirtioPciError::Capabilities)?;
    Ok((config, msix_at, window_at))
}

#[cfg(test)]
mod tests;
