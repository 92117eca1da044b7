//! Taps: network interfaces of the host whose other end is a file.
//!
//! One read or write is one Ethernet frame with a 12-byte [`virtio_net_hdr`](VNET_HEADER) before it, the
//! same that virtio 1.3 §5.1.6 has, so offloads pass through unchanged.

mod interface;
mod ioctl;
mod receive;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use memory::Pinned;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::reason;
use ioctl::{Ifreq, InterfaceName};

pub use interface::Interface;
pub use receive::Receive;

/// Size of the header before each frame, in bytes: `struct virtio_net_hdr_v1` (virtio 1.3 §5.1.6).
pub const VNET_HEADER: usize = 12;
/// Most queues that a tap can have (`MAX_TAP_QUEUES`, drivers/net/tun.c).
pub const MAX_QUEUES: usize = 256;

/// Why a tap could not be had. The texts are QEMU's where it has one.
#[derive(Debug, Error)]
pub enum TapError {
    /// There is no tap driver, or no permission.
    #[error("could not open /dev/net/tun: {0}")]
    Device(String),
    /// The name cannot be one.
    #[error("'{0}' is not a name for a network interface: 1 to 15 characters, no '/', ':' or spaces")]
    Name(String),
    /// A tap has 1 to 256 queues.
    #[error("a tap cannot have {0} queues: 1 to {MAX_QUEUES} are possible")]
    Queues(usize),
    /// The interface could not be attached to or made.
    #[error("could not configure /dev/net/tun ({name}): {}", reason(error))]
    Configure {
        /// What the user typed.
        name: String,
        /// The host's reason.
        error: io::Error,
    },
    /// A descriptor that is not open.
    #[error("Can't use file descriptor {fd}: {reason}")]
    Descriptor {
        /// What the user typed.
        fd: RawFd,
        /// The host's reason.
        reason: String,
    },
    /// A descriptor of something else.
    #[error("file descriptor {0} is not a tap with a vnet header (IFF_TAP, IFF_VNET_HDR)")]
    NotATap(RawFd),
    /// The tap works, but not with this bridge.
    #[error("could not add '{tap}' to bridge '{bridge}': {reason}")]
    Bridge {
        /// The tap.
        tap: String,
        /// The bridge.
        bridge: String,
        /// The host's reason.
        reason: String,
    },
    /// The interface could not be set up.
    #[error("could not bring up '{tap}': {reason}")]
    Up {
        /// The tap.
        tap: String,
        /// The host's reason.
        reason: String,
    },
}

impl TapError {
    /// Whether the tap is somebody else's at this moment.
    pub fn is_busy(&self) -> bool {
        matches!(self, TapError::Configure { error, .. } if error.raw_os_error() == Some(libc::EBUSY))
    }
}

/// What the guest can take that is not a plain frame with its checksum (`TUN_F_*`, linux/if_tun.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames whose checksum is not complete. All others need this one.
    pub checksum: bool,
    /// TCP over IPv4 in frames of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 in frames of up to 64 KiB.
    pub tso6: bool,
    /// TCP with ECN bits among those.
    pub ecn: bool,
    /// UDP in frames of up to 64 KiB: only where [`Tap::has_uso`].
    pub uso: bool,
}

impl Offloads {
    fn bits(self) -> libc::c_uint {
        const CSUM: libc::c_uint = 0x01;
        const TSO4: libc::c_uint = 0x02;
        const TSO6: libc::c_uint = 0x04;
        const TSO_ECN: libc::c_uint = 0x08;
        const USO4: libc::c_uint = 0x20;
        const USO6: libc::c_uint = 0x40;
        if !self.checksum {
            return 0;
        }
        let bit = |on, bit| if on { bit } else { 0 };
        CSUM | bit(self.tso4, TSO4)
            | bit(self.tso6, TSO6)
            | bit(self.ecn && (self.tso4 || self.tso6), TSO_ECN)
            | bit(self.uso, USO4 | USO6)
    }
}

/// One queue of a tap. Closing the last one removes the interface, unless it was made persistent.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    name: String,
    multi_queue: bool,
    uso: bool,
}

impl Tap {
    /// Attaches to the tap `name`, or makes it if there is none: one [`Tap`] for each of `queues`. A
    /// `%d` in the name stands for the first number that is free.
    ///
    /// # Errors
    /// See [`TapError`]; nothing stays attached.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Tap>, TapError> {
        let wanted = InterfaceName::new(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        let first = Tap::attach(wanted, queues > 1)?;
        // The others join the first one, whatever number it got.
        let actual = InterfaceName::new(&first.name).ok_or_else(|| TapError::Name(first.name.clone()))?;
        let mut taps = vec![first];
        while taps.len() < queues {
            taps.push(Tap::attach(actual, true)?);
        }
        Ok(taps)
    }

    fn attach(name: InterfaceName, multi_queue: bool) -> Result<Tap, TapError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|error| TapError::Device(reason(&error.into())))?;
        let configure = |error: io::Error| TapError::Configure { name: name.to_string(), error };
        let actual = match ioctl::attach(&file, name, multi_queue) {
            // A tap made for several queues has one here: it wants to hear so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi_queue => {
                ioctl::attach(&file, name, true).map_err(|_| configure(error))?
            }
            other => other.map_err(configure)?,
        };
        Tap::prepare(file, actual).map_err(configure)
    }

    /// Takes over a tap that whoever started us has opened. `fd` is its number, for messages.
    ///
    /// # Errors
    /// It is no tap, or one without a vnet header.
    pub fn from_fd(file: OwnedFd) -> Result<Tap, TapError> {
        let number = file.as_raw_fd();
        let bad = |error: io::Error| TapError::Descriptor { fd: number, reason: reason(&error) };
        let request = ioctl::interface(&file).map_err(|_| TapError::NotATap(number))?;
        if request.flags() & ioctl::TAP_FLAGS != ioctl::TAP_FLAGS {
            return Err(TapError::NotATap(number));
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| bad(error.into()))?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|error| bad(error.into()))?;
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC).map_err(|error| bad(error.into()))?;
        Tap::prepare(file, request).map_err(bad)
    }

    /// [`Tap::from_fd`] for a number on the command line (`fd=`, `fds=`), which names a descriptor that
    /// we inherited and nothing else here uses.
    ///
    /// # Errors
    /// As for [`Tap::from_fd`], or nothing is open under this number.
    pub fn from_number(fd: RawFd) -> Result<Tap, TapError> {
        let bad = |error: io::Error| TapError::Descriptor { fd, reason: reason(&error) };
        if fd <= libc::STDERR_FILENO {
            return Err(bad(io::Error::from_raw_os_error(libc::EBADF)));
        }
        // SAFETY: only asks the kernel about the number; the borrow ends before the line does.
        let answer = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) });
        answer.map_err(|error| bad(error.into()))?;
        // SAFETY: it is open, and the command line hands it over to us: see above.
        Tap::from_fd(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn prepare(file: OwnedFd, actual: Ifreq) -> io::Result<Tap> {
        ioctl::set_header_size(&file, VNET_HEADER)?;
        let mut tap = Tap {
            name: actual.name(),
            multi_queue: actual.flags() & ioctl::MULTI_QUEUE != 0,
            uso: true,
            file,
        };
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        // Linux has it since 6.2.
        tap.uso = tap.set_offloads(all).is_ok();
        tap.set_offloads(Offloads::default())?;
        Ok(tap)
    }

    /// Not a tap but a socket that keeps messages apart, for fuzzers: what the kernel does with offloads and
    /// queues is left out, frames come and go as messages.
    #[doc(hidden)]
    pub fn stand_in(socket: OwnedFd) -> Tap {
        Tap { file: socket, name: "stand-in".to_owned(), multi_queue: false, uso: true }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface that it is on the host.
    pub fn interface(&self) -> Interface {
        Interface::new(&self.name)
    }

    /// Whether [`Offloads::uso`] is possible.
    pub fn has_uso(&self) -> bool {
        self.uso
    }

    /// Says what frames may be read from here on. Of all queues of a tap, whoever comes last decides.
    ///
    /// # Errors
    /// The kernel does not know one of them, or the tap is gone.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        ioctl::set_offloads(&self.file, offloads.bits())
    }

    /// Takes this queue out of the tap's distribution of frames over its queues, or back in. A tap
    /// opened with a single queue stays as it is.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        match ioctl::set_queue(&self.file, enabled) {
            // What the kernel says if it was so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Reads one frame with its header into the buffers of `receive`: how many bytes came. A frame that
    /// does not fit is cut off.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; anything else, and the tap is down or gone.
    pub fn read(&self, receive: &Receive) -> io::Result<usize> {
        let vectors = receive.vectors();
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the vectors are those of `Pinned` memory that `receive` holds until it hands it back.
        let read = unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// [`Tap::read`] into memory of ours.
    ///
    /// # Errors
    /// As there.
    pub fn read_bytes(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.file, frame)?)
    }

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// `WouldBlock` if it has to wait; `InvalidInput` if the header or the frame makes no sense, or it
    /// has more than 1024 pieces; anything else, and the tap is down or gone.
    pub fn write(&self, frame: &Pinned) -> io::Result<()> {
        let vectors = frame.iovecs();
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the vectors are those of memory that `frame` keeps mapped.
        let written = unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), count) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
