//! A domain without Xen, for tests, fuzzers and benchmarks. Needs no privileges.
//!
//! [`SimDomain`] has two faces. To the device model it is a [`Domain`] like any other. To the test it is
//! the guest and the host around it: the test reads and writes RAM, takes pages away and gives them
//! back, makes accesses as a vCPU, and sees the interrupts and the dirty reports that come out.
//!
//! * RAM is a memfd. A frame taken away with [`SimDomain::punch`] is missing from later mappings, while
//!   mappings made before go on to work on the old page; [`SimDomain::refill`] gives the frame a *new*
//!   page. This is what ballooning does on Xen, so whoever uses a stale mapping gets stale data.
//!   Touching a missing page kills the process, as it does there.
//! * Accesses arrive as on Xen: a slot in a shared page and an event, here an eventfd, each way.
//!   [`SimDomain::vcpu`] gives the guest's end, which answers like a CPU: it blocks until it is served.
//! * [`SimDomain::stop`] ends every channel, so that the threads that serve them can be joined.
//!
//! ```
//! use domain::{Domain, Gpa};
//! use sim::SimDomain;
//!
//! let sim = SimDomain::new(1, &[(Gpa(0), 16 << 20)])?;
//! // The device model: serve one vCPU, reading all ones from everywhere.
//! let mut channel = sim.take_channels().remove(0);
//! let server = std::thread::spawn(move || {
//!     while channel.wait()? {
//!         if channel.slot().take().is_some() {
//!             channel.slot().finish(!0);
//!             channel.notify()?;
//!         }
//!     }
//!     std::io::Result::Ok(())
//! });
//! // The guest.
//! assert_eq!(sim.vcpu(0).mmio_read(0xe000_0000, 8)?, !0);
//! sim.stop();
//! server.join().unwrap()?;
//! # std::io::Result::Ok(())
//! ```
//!
//! Mistakes of the test itself (an address that is not RAM, a vCPU that does not exist) panic.

mod ram;
#[cfg(test)]
mod tests;
mod vcpu;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::{Domain, Extent, Frames, Gfn, Gpa, IoreqChannel, Msi, SLOTS_PER_PAGE, Shutdown};

use ram::Ram;
use vcpu::Link;
pub use vcpu::Vcpu;

/// Most extents a dirty report may have here: what Xen takes in one call without a continuation.
pub const MAX_EXTENTS: usize = 256;

/// A domain made of a memfd, a page and some eventfds.
#[derive(Debug)]
pub struct SimDomain {
    ram: Ram,
    link: Arc<Link>,
    channels_taken: AtomicBool,
    messages: Mutex<VecDeque<Msi>>,
    message_arrived: Condvar,
    dirty: Mutex<Vec<Extent>>,
    shutdown: Mutex<Option<Shutdown>>,
    maps: AtomicU64,
    fail_map: AtomicBool,
    fail_dirty: AtomicBool,
}

impl SimDomain {
    /// A domain of `vcpus` vCPUs with RAM at `regions` (start and size in bytes), all zero.
    ///
    /// # Errors
    /// `InvalidInput` for no vCPUs or more than [`SLOTS_PER_PAGE`], or regions that are empty, not whole
    /// pages, or overlap; or the system is out of memory or file descriptors.
    pub fn new(vcpus: u32, regions: &[(Gpa, u64)]) -> io::Result<Arc<SimDomain>> {
        if vcpus == 0 || vcpus as usize > SLOTS_PER_PAGE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Arc::new(SimDomain {
            ram: Ram::new(regions)?,
            link: Link::new(vcpus)?,
            channels_taken: AtomicBool::new(false),
            messages: Mutex::default(),
            message_arrived: Condvar::new(),
            dirty: Mutex::default(),
            shutdown: Mutex::default(),
            maps: AtomicU64::new(0),
            fail_map: AtomicBool::new(false),
            fail_dirty: AtomicBool::new(false),
        }))
    }

    /// Reads RAM as the guest. 1, 2, 4 or 8 aligned bytes are one access, and acquire: what the other side
    /// wrote before it is seen after it.
    ///
    /// # Panics
    /// If the range is not in one region, or in a page that was taken away.
    #[track_caller]
    pub fn ram_read(&self, addr: Gpa, buf: &mut [u8]) {
        self.ram.read(addr, buf);
    }

    /// Writes RAM as the guest. 1, 2, 4 or 8 aligned bytes are one access, and release: what was written
    /// before is seen by whoever sees it. (A driver that then looks at whether to notify needs a
    /// `SeqCst` fence of its own in between.)
    ///
    /// # Panics
    /// As [`SimDomain::ram_read`].
    #[track_caller]
    pub fn ram_write(&self, addr: Gpa, bytes: &[u8]) {
        self.ram.write(addr, bytes);
    }

    /// Where the guest's own view of `len` bytes of RAM is in this process, for drivers that want a
    /// pointer. Good while the domain lives; moves with no page, but the page under it goes with
    /// [`SimDomain::punch`]. The device model writes there at any time.
    ///
    /// # Panics
    /// As [`SimDomain::ram_read`].
    #[track_caller]
    pub fn ram_ptr(&self, addr: Gpa, len: usize) -> NonNull<u8> {
        self.ram.pointer(addr, len)
    }

    /// Takes the frame's page away, as a guest does that balloons down. To be exact, follow it with
    /// [`Vcpu::invalidate`] as Xen does.
    ///
    /// # Panics
    /// If the frame is not in RAM.
    #[track_caller]
    pub fn punch(&self, frame: Gfn) {
        self.ram.punch(frame);
    }

    /// Gives the frame a new page, zeroed, as a guest does that balloons up.
    ///
    /// # Panics
    /// If the frame is not in RAM.
    #[track_caller]
    pub fn refill(&self, frame: Gfn) {
        self.ram.refill(frame);
    }

    /// The guest's end of a vCPU. Any number may be made; accesses of one vCPU are made one at a time.
    ///
    /// # Panics
    /// If there is no such vCPU.
    #[track_caller]
    pub fn vcpu(&self, index: u32) -> Vcpu {
        Vcpu::new(Arc::clone(&self.link), index as usize)
    }

    /// Makes every channel's `wait` return false, now and from now on, and every access fail.
    pub fn stop(&self) {
        self.link.stop();
    }

    /// Takes all interrupts that were sent, oldest first.
    pub fn messages(&self) -> Vec<Msi> {
        lock(&self.messages).drain(..).collect()
    }

    /// Takes the oldest interrupt, waiting for one up to `timeout`.
    pub fn wait_message(&self, timeout: Duration) -> Option<Msi> {
        let (mut messages, _) = self
            .message_arrived
            .wait_timeout_while(lock(&self.messages), timeout, |messages| messages.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        messages.pop_front()
    }

    /// Takes what was reported dirty, in the order of the reports.
    pub fn dirty(&self) -> Vec<Extent> {
        mem::take(&mut *lock(&self.dirty))
    }

    /// The last shutdown asked for.
    pub fn shutdown_asked(&self) -> Option<Shutdown> {
        *lock(&self.shutdown)
    }

    /// How many times [`Domain::map`] was called, failures included.
    pub fn maps(&self) -> u64 {
        self.maps.load(Ordering::SeqCst)
    }

    /// How many guest frames are mapped at this moment by way of [`Domain::map`], missing ones not
    /// counted. Asks the kernel, so it is exact, and slow.
    pub fn mapped_frames(&self) -> usize {
        self.ram.mapped_frames()
    }

    /// Makes the next [`Domain::map`] fail with `ENOMEM`.
    pub fn fail_next_map(&self) {
        self.fail_map.store(true, Ordering::SeqCst);
    }

    /// Makes the next [`Domain::mark_dirty`] fail with `ESRCH`, as for a domain that is gone.
    pub fn fail_next_dirty(&self) {
        self.fail_dirty.store(true, Ordering::SeqCst);
    }
}

impl Domain for SimDomain {
    fn vcpus(&self) -> u32 {
        self.link.vcpus() as u32
    }

    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>> {
        if self.channels_taken.swap(true, Ordering::SeqCst) {
            return Vec::new();
        }
        Link::channels(&self.link)
    }

    fn map(&self, first: Gfn, count: usize) -> io::Result<Frames> {
        self.maps.fetch_add(1, Ordering::SeqCst);
        if self.fail_map.swap(false, Ordering::SeqCst) {
            return Err(rustix::io::Errno::NOMEM.into());
        }
        self.ram.map(first, count)
    }

    /// Stricter than Xen: vector 0 is refused, which no driver of a PVH guest ever wants.
    fn inject_msi(&self, msi: Msi) -> io::Result<()> {
        if msi.data & 0xff == 0 {
            return Err(rustix::io::Errno::INVAL.into());
        }
        lock(&self.messages).push_back(msi);
        self.message_arrived.notify_all();
        Ok(())
    }

    /// Stricter than Xen: refuses more than [`MAX_EXTENTS`], empty extents, and frames that are not RAM.
    fn mark_dirty(&self, extents: &[Extent]) -> io::Result<()> {
        if self.fail_dirty.swap(false, Ordering::SeqCst) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        let known = |extent: &Extent| extent.count > 0 && self.ram.is_ram(extent.first, extent.count.into());
        if extents.len() > MAX_EXTENTS || !extents.iter().all(known) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        lock(&self.dirty).extend_from_slice(extents);
        Ok(())
    }

    fn shutdown(&self, reason: Shutdown) -> io::Result<()> {
        *lock(&self.shutdown) = Some(reason);
        Ok(())
    }
}

/// Locks; a test that panicked while it held the lock fails by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
