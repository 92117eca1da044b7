//! How accesses travel: the ioreq page and an eventfd each way for each vCPU.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use domain::{Access, Direction, Ioreq, IoreqChannel, IoreqPage, PAGE_SIZE, Slot};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::lock;

/// How long a vCPU waits for its answer before the access fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What both ends share.
#[derive(Debug)]
pub(crate) struct Link {
    page: Lease,
    bells: Vec<Bells>,
    stopped: AtomicBool,
}

/// The events of one vCPU.
#[derive(Debug)]
struct Bells {
    request: OwnedFd,
    answer: OwnedFd,
    /// Held over an access. Whether an earlier one timed out and its answer is still to come.
    late: Mutex<bool>,
}

impl Link {
    pub(crate) fn new(vcpus: u32) -> io::Result<Arc<Link>> {
        let bell = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
        let bells = (0..vcpus)
            .map(|_| Ok(Bells { request: bell()?, answer: bell()?, late: Mutex::new(false) }))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Link { page: Lease::new(), bells, stopped: AtomicBool::new(false) }))
    }

    pub(crate) fn vcpus(&self) -> usize {
        self.bells.len()
    }

    pub(crate) fn channels(link: &Arc<Link>) -> Vec<Box<dyn IoreqChannel>> {
        let channel = |index| Channel { link: Arc::clone(link), index, slot: link.slot(index) };
        (0..link.vcpus()).map(|index| Box::new(channel(index)) as Box<dyn IoreqChannel>).collect()
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for bells in &self.bells {
            // An eventfd write fails only where the count is near 2^64: then it is readable anyhow.
            let _ = ring(&bells.request);
            let _ = ring(&bells.answer);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn slot(&self, index: usize) -> Slot {
        // SAFETY: leased pages are never unmapped.
        unsafe { IoreqPage::from_raw(self.page.0) }.slot(index).expect("no more vCPUs than slots")
    }
}

fn ring(bell: &OwnedFd) -> io::Result<()> {
    rustix::io::write(bell, &1u64.to_ne_bytes())?;
    Ok(())
}

/// Waits for the bell, and silences it. A signal may end the wait early.
fn listen(bell: &OwnedFd) -> io::Result<()> {
    match rustix::io::read(bell, &mut [0; 8]) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The device model's end.
struct Channel {
    link: Arc<Link>,
    index: usize,
    slot: Slot,
}

impl IoreqChannel for Channel {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn wait(&mut self) -> io::Result<bool> {
        if !self.link.is_stopped() {
            listen(&self.link.bells[self.index].request)?;
        }
        Ok(!self.link.is_stopped())
    }

    fn notify(&mut self) -> io::Result<()> {
        ring(&self.link.bells[self.index].answer)
    }
}

/// The guest's end of a vCPU: makes accesses and waits for their answers.
///
/// Each call fails with `TimedOut` if the device model does not answer in time, and with
/// `ConnectionAborted` once the domain is stopped.
#[derive(Clone, Debug)]
pub struct Vcpu {
    link: Arc<Link>,
    index: usize,
    patience: Duration,
}

impl Vcpu {
    #[track_caller]
    pub(crate) fn new(link: Arc<Link>, index: usize) -> Vcpu {
        assert!(index < link.vcpus(), "there is no vCPU {index}");
        Vcpu { link, index, patience: PATIENCE }
    }

    /// The same vCPU, waiting for answers as long as this (10 seconds unless told).
    pub fn with_timeout(self, patience: Duration) -> Vcpu {
        Vcpu { patience, ..self }
    }

    /// Makes one access and returns the data of the answer: all 64 bits as they came, whatever the size,
    /// so that a test sees it if they are not what they should be.
    pub fn access(&self, request: &Ioreq) -> io::Result<u64> {
        let bells = &self.link.bells[self.index];
        let slot = self.link.slot(self.index);
        let mut late = lock(&bells.late);
        let deadline = Instant::now() + self.patience;
        if *late {
            self.answer(&slot, deadline)?;
        }
        if self.link.is_stopped() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        *late = true;
        slot.post(request);
        ring(&bells.request)?;
        let data = self.answer(&slot, deadline)?;
        *late = false;
        Ok(data)
    }

    fn answer(&self, slot: &Slot, deadline: Instant) -> io::Result<u64> {
        let bell = &self.link.bells[self.index].answer;
        loop {
            if let Some(data) = slot.answer() {
                return Ok(data);
            }
            if self.link.is_stopped() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("a timeout of less than an age");
            match rustix::event::poll(
                &mut [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)],
                Some(&left),
            ) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => listen(bell)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn plain(
        &self,
        access: Access,
        direction: Direction,
        address: u64,
        size: u32,
        data: u64,
    ) -> io::Result<u64> {
        self.access(&Ioreq {
            access,
            direction,
            address,
            data,
            count: 1,
            size,
            data_is_pointer: false,
            downwards: false,
        })
    }

    /// Reads `size` bytes (1, 2, 4 or 8) of memory-mapped I/O.
    pub fn mmio_read(&self, addr: u64, size: u32) -> io::Result<u64> {
        self.plain(Access::Memory, Direction::Read, addr, size, 0)
    }

    /// Writes `size` bytes (1, 2, 4 or 8) of memory-mapped I/O.
    pub fn mmio_write(&self, addr: u64, size: u32, value: u64) -> io::Result<()> {
        self.plain(Access::Memory, Direction::Write, addr, size, value).map(drop)
    }

    /// Reads `size` bytes (1, 2 or 4) from a port.
    pub fn port_read(&self, port: u16, size: u32) -> io::Result<u64> {
        self.plain(Access::Port, Direction::Read, port.into(), size, 0)
    }

    /// Writes `size` bytes (1, 2 or 4) to a port.
    pub fn port_write(&self, port: u16, size: u32, value: u64) -> io::Result<()> {
        self.plain(Access::Port, Direction::Write, port.into(), size, value).map(drop)
    }

    /// Reads `size` bytes (1, 2 or 4) of the configuration space of `sbdf` (segment << 16 | bus << 8 |
    /// device << 3 | function), by way of port 0xcfc as Xen decoded it.
    pub fn config_read(&self, sbdf: u32, register: u16, size: u32) -> io::Result<u64> {
        self.plain(Access::Config, Direction::Read, config_address(sbdf, register), size, 0)
    }

    /// Writes `size` bytes (1, 2 or 4) of the configuration space of `sbdf`: see [`Vcpu::config_read`].
    pub fn config_write(&self, sbdf: u32, register: u16, size: u32, value: u64) -> io::Result<()> {
        self.plain(Access::Config, Direction::Write, config_address(sbdf, register), size, value).map(drop)
    }

    /// Says that the memory map changed, as Xen does before the vCPU goes on.
    pub fn invalidate(&self) -> io::Result<()> {
        self.plain(Access::Invalidate, Direction::Write, 0, 4, u64::MAX).map(drop)
    }
}

fn config_address(sbdf: u32, register: u16) -> u64 {
    u64::from(sbdf) << 32 | u64::from(register)
}

/// A page for ioreqs. A [`Slot`] may be used for the rest of the process, so pages are never freed; but
/// one whose domain is gone is used for the next.
#[derive(Debug)]
struct Lease(NonNull<u8>);

// SAFETY: only a pointer to a page that is accessed through atomics.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

static RETURNED: Mutex<Vec<Lease>> = Mutex::new(Vec::new());

#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

impl Lease {
    fn new() -> Lease {
        let returned = lock(&RETURNED).pop();
        let lease = returned.unwrap_or_else(|| {
            let page = Box::leak(Box::new(Page([0; PAGE_SIZE])));
            Lease(NonNull::from(page).cast())
        });
        // SAFETY: a page that no link uses. (Its slots are gone: they are kept with the link.)
        unsafe { lease.0.as_ptr().write_bytes(0, PAGE_SIZE) };
        lease
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&RETURNED).push(Lease(self.0));
    }
}
