//! What `virtio-drivers` asks of a platform, on a domain without Xen.
//!
//! Nothing here touches a device: each of the driver's accesses to a BAR or to configuration space becomes an
//! ioreq of the vCPU. Its DMA buffers are in the domain's RAM.
//!
//! The crate's hooks are functions without a `self`, so the machine belongs to the thread that drives it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use domain::Gpa;
use proofs::{ECAM, MMIO, Ours, RAM};
use safe_mmio::{MmioOps, set_mmio_ops};
use sim::{SimDomain, Vcpu};
use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, DeviceFunction};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// How long a test may take: drivers spin until their request is done.
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    static HERE: RefCell<Option<Rc<Guest>>> = const { RefCell::new(None) };
}

/// The guest that this thread is.
struct Guest {
    sim: Arc<SimDomain>,
    vcpu: Vcpu,
    heap: RefCell<Heap>,
}

fn here() -> Rc<Guest> {
    HERE.with_borrow(|here| here.clone()).expect("this thread has a platform")
}

/// A machine, driven by this thread while it lives.
pub struct Platform {
    pub ours: Ours,
    _watchdog: Sender<()>,
}

impl Platform {
    pub fn new(arguments: &[String]) -> Platform {
        let ours = Ours::new(arguments);
        let guest = Guest {
            sim: ours.sim.clone(),
            vcpu: ours.vcpu.clone(),
            heap: RefCell::new(Heap { free_from: 1 << 20, free: BTreeMap::new(), in_use: 0, turn: 0 }),
        };
        HERE.set(Some(Rc::new(guest)));
        Platform { ours, _watchdog: watchdog() }
    }

    /// Pages that the driver has not given back.
    pub fn pages_in_use(&self) -> usize {
        here().heap.borrow().in_use
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

/// Ends the process unless what it returns is dropped in time.
fn watchdog() -> Sender<()> {
    let (alive, end) = channel();
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    std::thread::spawn(move || {
        if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test}: the driver still waits for the device");
            std::process::abort();
        }
    });
    alive
}

/// Pages of RAM for DMA.
struct Heap {
    free_from: u64,
    /// Addresses of free blocks, by number of pages.
    free: BTreeMap<usize, Vec<u64>>,
    in_use: usize,
    /// Counts buffers, so that each begins elsewhere in its page.
    turn: u64,
}

impl Heap {
    fn take(&mut self, pages: usize) -> u64 {
        self.in_use += pages;
        if let Some(address) = self.free.get_mut(&pages).and_then(Vec::pop) {
            return address;
        }
        let address = self.free_from;
        self.free_from += (pages * PAGE_SIZE) as u64;
        assert!(self.free_from <= RAM, "out of RAM for DMA");
        address
    }

    fn give(&mut self, address: u64, pages: usize) {
        self.in_use -= pages;
        self.free.entry(pages).or_default().push(address);
    }
}

pub struct Dma;

// SAFETY: blocks are in the domain's RAM, which lives as long as the thread's guest, and go to one owner at a
// time; zeroed. MMIO pointers are never followed: `Mmio` takes them for the numbers they are.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let guest = here();
        let address = guest.heap.borrow_mut().take(pages);
        guest.sim.ram_write(Gpa(address), &vec![0; pages * PAGE_SIZE]);
        (address, guest.sim.ram_ptr(Gpa(address), pages * PAGE_SIZE))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        here().heap.borrow_mut().give(paddr, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        assert!(paddr >= MMIO, "{paddr:#x} is no BAR");
        NonNull::new(ptr::without_provenance_mut(paddr as usize)).expect("not null")
    }

    /// Buffers are copied to RAM, each to another offset in its page.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let guest = here();
        let mut heap = guest.heap.borrow_mut();
        heap.turn += 1;
        let offset = heap.turn * 272 % PAGE_SIZE as u64;
        let address = heap.take(pages(buffer)) + offset;
        // SAFETY: the caller lends us the buffer.
        let bytes = unsafe { buffer.as_ref() };
        match direction {
            // What the device does not write must not be taken for what it wrote.
            BufferDirection::DeviceToDriver => {
                guest.sim.ram_write(Gpa(address), &vec![0x5c; bytes.len()]);
            }
            _ => guest.sim.ram_write(Gpa(address), bytes),
        }
        address
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let guest = here();
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`.
            guest.sim.ram_read(Gpa(paddr), unsafe { buffer.as_mut() });
        }
        guest.heap.borrow_mut().give(paddr & !(PAGE_SIZE as u64 - 1), pages(buffer));
    }
}

/// Pages that a buffer takes, wherever in the first it begins.
fn pages(buffer: NonNull<[u8]>) -> usize {
    buffer.len().div_ceil(PAGE_SIZE) + 1
}

/// The driver's accesses to BARs.
struct Mmio;

impl Mmio {
    fn read(address: usize, size: u32) -> u64 {
        here().vcpu.mmio_read(address as u64, size).expect("an answer")
    }

    fn write(address: usize, size: u32, value: u64) {
        here().vcpu.mmio_write(address as u64, size, value).expect("an answer");
    }
}

impl MmioOps for Mmio {
    unsafe fn read_u8(src: *const u8) -> u8 {
        Mmio::read(src.addr(), 1) as u8
    }

    unsafe fn read_u16(src: *const u16) -> u16 {
        Mmio::read(src.addr(), 2) as u16
    }

    unsafe fn read_u32(src: *const u32) -> u32 {
        Mmio::read(src.addr(), 4) as u32
    }

    unsafe fn read_u64(src: *const u64) -> u64 {
        Mmio::read(src.addr(), 8)
    }

    unsafe fn write_u8(dst: *mut u8, value: u8) {
        Mmio::write(dst.addr(), 1, value.into());
    }

    unsafe fn write_u16(dst: *mut u16, value: u16) {
        Mmio::write(dst.addr(), 2, value.into());
    }

    unsafe fn write_u32(dst: *mut u32, value: u32) {
        Mmio::write(dst.addr(), 4, value.into());
    }

    unsafe fn write_u64(dst: *mut u64, value: u64) {
        Mmio::write(dst.addr(), 8, value);
    }
}

set_mmio_ops!(Mmio);

/// The ways to configuration space.
#[derive(Clone, Copy, Debug)]
pub enum Configuration {
    /// Memory.
    Ecam,
    /// Ports 0xcf8 and 0xcfc, which Xen decodes.
    Ports,
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        let vcpu = &here().vcpu;
        let value = match self {
            Configuration::Ecam => vcpu.mmio_read(in_ecam(function, offset), 4),
            Configuration::Ports => vcpu.config_read(sbdf(function), offset.into(), 4),
        };
        value.expect("an answer") as u32
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        let vcpu = &here().vcpu;
        match self {
            Configuration::Ecam => vcpu.mmio_write(in_ecam(function, offset), 4, data.into()),
            Configuration::Ports => vcpu.config_write(sbdf(function), offset.into(), 4, data.into()),
        }
        .expect("an answer");
    }

    unsafe fn unsafe_clone(&self) -> Configuration {
        *self
    }
}

fn in_ecam(function: DeviceFunction, offset: u8) -> u64 {
    ECAM + u64::from(Cam::Ecam.cam_offset(function, offset))
}

fn sbdf(DeviceFunction { bus, device, function }: DeviceFunction) -> u32 {
    u32::from(bus) << 8 | u32::from(device) << 3 | u32::from(function)
}
