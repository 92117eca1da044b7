//! The shared page through which a vCPU's accesses arrive (xen/include/public/hvm/ioreq.h).
//!
//! Each vCPU has a 32-byte slot. Its state goes strictly forward: Xen sets READY, we set INPROCESS,
//! then RESP_READY, Xen sets NONE. Xen crashes the domain if it ever sees the state go back, so the
//! only ways to change it are [`Slot::take`] and [`Slot::finish`].

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Size of one slot in bytes.
pub const RAW_IOREQ_SIZE: usize = 32;
/// Slots in the one ioreq page, so the most vCPUs a domain can have.
pub const SLOTS_PER_PAGE: usize = 4096 / RAW_IOREQ_SIZE;

const STATE_MASK: u8 = 0x0f;
const STATE_READY: u8 = 1;
const STATE_INPROCESS: u8 = 2;
const STATE_RESP_READY: u8 = 3;
const DATA_IS_POINTER: u8 = 1 << 4;
const DIRECTION_READ: u8 = 1 << 5;
const DIRECTION_DOWN: u8 = 1 << 6;

/// The layout of `struct ioreq`. Bit-fields are one byte here, since we read and write them whole.
#[repr(C)]
struct Raw {
    addr: AtomicU64,
    data: AtomicU64,
    count: AtomicU32,
    size: AtomicU32,
    vp_eport: AtomicU32,
    _pad: [u8; 2],
    flags: AtomicU8,
    kind: AtomicU8,
}
const _: () = assert!(size_of::<Raw>() == RAW_IOREQ_SIZE);
const _: () = assert!(std::mem::offset_of!(Raw, flags) == 30 && std::mem::offset_of!(Raw, kind) == 31);

/// What kind of access an [`Ioreq`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Port I/O: the address is a port number.
    Port,
    /// Memory-mapped I/O: the address is guest-physical.
    Memory,
    /// Configuration space by way of ports 0xcf8/0xcfc: the address is SBDF << 32 | register.
    Config,
    /// The guest's memory map changed: drop every mapping before answering.
    Invalidate,
    /// Anything else, answered with nothing done (the number is Xen's `IOREQ_TYPE_*`).
    Other(u8),
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest reads from the device.
    Read,
    /// The guest writes to the device.
    Write,
}

/// One access by one vCPU, copied out of the shared page once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioreq {
    /// What kind of access.
    pub access: Access,
    /// Which way.
    pub direction: Direction,
    /// Where: see [`Access`].
    pub address: u64,
    /// The value written, or, if `data_is_pointer`, the guest-physical address of the data.
    pub data: u64,
    /// Repetitions (string instructions), as Xen gave it: 1 for a plain access.
    pub count: u32,
    /// Bytes a repetition, as Xen gave it: 1, 2, 4 or 8 from an honest Xen.
    pub size: u32,
    /// Whether `data` is an address.
    pub data_is_pointer: bool,
    /// Whether repetitions go down in memory (the x86 direction flag).
    pub downwards: bool,
}

/// The page of slots. It stays mapped as long as any [`Slot`] made from it may be used.
#[derive(Debug)]
pub struct IoreqPage(NonNull<u8>);

// SAFETY: the page is shared memory, accessed through atomics only.
unsafe impl Send for IoreqPage {}
// SAFETY: as above.
unsafe impl Sync for IoreqPage {}

impl IoreqPage {
    /// Wraps the page at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and stays mapped, readable and writable, for the rest of the process.
    pub unsafe fn from_raw(base: NonNull<u8>) -> IoreqPage {
        IoreqPage(base)
    }

    /// The slot of `vcpu`, or `None` past the end of the page.
    pub fn slot(&self, vcpu: usize) -> Option<Slot> {
        let offset = vcpu.checked_mul(RAW_IOREQ_SIZE)?;
        // SAFETY: in bounds of the page by the check of `vcpu`.
        (vcpu < SLOTS_PER_PAGE).then(|| Slot(unsafe { self.0.add(offset) }.cast()))
    }
}

/// One vCPU's slot.
#[derive(Debug)]
pub struct Slot(NonNull<Raw>);

// SAFETY: a slot is shared memory, accessed through atomics only.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    fn raw(&self) -> &Raw {
        // SAFETY: `IoreqPage::from_raw` promised that the page stays mapped, and `Raw` has only atomics
        // (and padding that is never read), so that others may write while we hold the reference.
        unsafe { self.0.as_ref() }
    }

    /// The Xen event channel by which this vCPU is heard; 0 while the server is not enabled.
    pub fn event_port(&self) -> u32 {
        self.raw().vp_eport.load(Ordering::Acquire)
    }

    /// Whether a request waits, without taking it.
    pub fn is_ready(&self) -> bool {
        self.raw().flags.load(Ordering::Relaxed) & STATE_MASK == STATE_READY
    }

    /// Takes the request if one waits, marking it in process.
    ///
    /// A slot found in process is taken as well: its taker died, and it is ours to answer now.
    /// Each field is read once, into private memory.
    pub fn take(&self) -> Option<Ioreq> {
        let raw = self.raw();
        let flags = raw.flags.load(Ordering::Acquire);
        match flags & STATE_MASK {
            STATE_READY | STATE_INPROCESS => {}
            _ => return None,
        }
        let request = Ioreq {
            access: match raw.kind.load(Ordering::Relaxed) {
                0 => Access::Port,
                1 => Access::Memory,
                2 => Access::Config,
                8 => Access::Invalidate,
                other => Access::Other(other),
            },
            direction: if flags & DIRECTION_READ != 0 { Direction::Read } else { Direction::Write },
            address: raw.addr.load(Ordering::Relaxed),
            data: raw.data.load(Ordering::Relaxed),
            count: raw.count.load(Ordering::Relaxed),
            size: raw.size.load(Ordering::Relaxed),
            data_is_pointer: flags & DATA_IS_POINTER != 0,
            downwards: flags & DIRECTION_DOWN != 0,
        };
        raw.flags.store(flags & !STATE_MASK | STATE_INPROCESS, Ordering::Relaxed);
        Some(request)
    }

    /// Answers the request taken last: `data` is what a read returns, zero-extended to 64 bits.
    /// Call [`IoreqChannel::notify`](crate::IoreqChannel::notify) next.
    pub fn finish(&self, data: u64) {
        let raw = self.raw();
        raw.data.store(data, Ordering::Relaxed);
        let flags = raw.flags.load(Ordering::Relaxed);
        raw.flags.store(flags & !STATE_MASK | STATE_RESP_READY, Ordering::Release);
    }

    /// The other side's half, for a domain without Xen: posts `request` in an idle slot.
    pub fn post(&self, request: &Ioreq) {
        let raw = self.raw();
        raw.addr.store(request.address, Ordering::Relaxed);
        raw.data.store(request.data, Ordering::Relaxed);
        raw.count.store(request.count, Ordering::Relaxed);
        raw.size.store(request.size, Ordering::Relaxed);
        let kind = match request.access {
            Access::Port => 0,
            Access::Memory => 1,
            Access::Config => 2,
            Access::Invalidate => 8,
            Access::Other(other) => other,
        };
        raw.kind.store(kind, Ordering::Relaxed);
        let mut flags = STATE_READY;
        if request.direction == Direction::Read {
            flags |= DIRECTION_READ;
        }
        if request.data_is_pointer {
            flags |= DATA_IS_POINTER;
        }
        if request.downwards {
            flags |= DIRECTION_DOWN;
        }
        raw.flags.store(flags, Ordering::Release);
    }

    /// The other side's half: takes the answer if there is one, leaving the slot idle.
    pub fn answer(&self) -> Option<u64> {
        let raw = self.raw();
        if raw.flags.load(Ordering::Acquire) & STATE_MASK != STATE_RESP_READY {
            return None;
        }
        let data = raw.data.load(Ordering::Relaxed);
        raw.flags.store(0, Ordering::Release);
        Some(data)
    }
}
