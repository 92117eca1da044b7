//! The requests that taps, interfaces and bridges take (linux/if_tun.h, linux/sockios.h).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use libc::{c_int, c_uint, c_ulong};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNGETIFF: c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUNSETQUEUE: c_ulong = 0x4004_54d9;

const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;

/// What a tap of ours is.
pub(super) const TAP_FLAGS: i16 = short(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
/// The tap may have several queues.
pub(super) const MULTI_QUEUE: i16 = short(libc::IFF_MULTI_QUEUE);
const UP: i16 = short(libc::IFF_UP);

/// Flags as an `ifreq` has room for them.
const fn short(flags: c_int) -> i16 {
    assert!(flags >= 0 && flags <= 0x7fff);
    (flags & 0x7fff) as i16
}

/// The name of an interface: 1 to 15 bytes that the kernel takes (`dev_valid_name`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterfaceName([u8; libc::IFNAMSIZ]);

impl InterfaceName {
    pub(super) fn new(name: &str) -> Option<InterfaceName> {
        let odd = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.iter().any(|byte| odd(*byte)) {
            return None;
        }
        if name == "." || name == ".." {
            return None;
        }
        let mut padded = [0; libc::IFNAMSIZ];
        padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(InterfaceName(padded))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        f.write_str(&String::from_utf8_lossy(name))
    }
}

/// `struct ifreq`: a name and 24 bytes of which the first are what the request is about.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ifreq {
    name: InterfaceName,
    value: Value,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Value([u8; 24]);

const _: () = assert!(size_of::<Ifreq>() == size_of::<libc::ifreq>());
const _: () = assert!(std::mem::offset_of!(Ifreq, value) == std::mem::offset_of!(libc::ifreq, ifr_ifru));

impl Ifreq {
    fn new(name: InterfaceName) -> Ifreq {
        Ifreq { name, value: Value([0; 24]) }
    }

    fn with_flags(name: InterfaceName, flags: i16) -> Ifreq {
        let mut request = Ifreq::new(name);
        request.value.0[..2].copy_from_slice(&flags.to_ne_bytes());
        request
    }

    fn with_index(name: InterfaceName, index: c_int) -> Ifreq {
        let mut request = Ifreq::new(name);
        request.value.0[..4].copy_from_slice(&index.to_ne_bytes());
        request
    }

    pub(super) fn name(&self) -> String {
        self.name.to_string()
    }

    pub(super) fn flags(&self) -> i16 {
        i16::from_ne_bytes([self.value.0[0], self.value.0[1]])
    }

    fn index(&self) -> c_int {
        c_int::from_ne_bytes([self.value.0[0], self.value.0[1], self.value.0[2], self.value.0[3]])
    }
}

/// Makes a request that takes, and may change, an `ifreq`.
fn with_ifreq(file: impl AsFd, number: c_ulong, request: &mut Ifreq) -> io::Result<()> {
    // SAFETY: every number passed here takes a pointer to a `struct ifreq`, whose layout `Ifreq` has,
    // and touches no other memory of ours.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), number as _, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a freshly opened tun device to an interface, made if there is none: what it is then.
pub(super) fn attach(file: &OwnedFd, name: InterfaceName, multi_queue: bool) -> io::Result<Ifreq> {
    let flags = if multi_queue { TAP_FLAGS | MULTI_QUEUE } else { TAP_FLAGS };
    let mut request = Ifreq::with_flags(name, flags);
    with_ifreq(file, TUNSETIFF, &mut request)?;
    Ok(request)
}

/// What interface a tun device is attached to.
pub(super) fn interface(file: &OwnedFd) -> io::Result<Ifreq> {
    let mut request = Ifreq::new(InterfaceName([0; libc::IFNAMSIZ]));
    with_ifreq(file, TUNGETIFF, &mut request)?;
    Ok(request)
}

/// Attaches or detaches one queue.
pub(super) fn set_queue(file: &OwnedFd, attached: bool) -> io::Result<()> {
    let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    with_ifreq(file, TUNSETQUEUE, &mut Ifreq::with_flags(InterfaceName([0; libc::IFNAMSIZ]), flags))
}

/// Sets the size of the header before each frame.
pub(super) fn set_header_size(file: &OwnedFd, size: usize) -> io::Result<()> {
    let size = c_int::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the request reads an int from the pointer and touches no other memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ as _, std::ptr::from_ref(&size)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the offloads, `TUN_F_*`.
pub(super) fn set_offloads(file: &OwnedFd, bits: c_uint) -> io::Result<()> {
    // SAFETY: the request takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, c_ulong::from(bits)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket to make requests about interfaces on.
pub(super) fn control_socket() -> io::Result<OwnedFd> {
    let kind = SocketType::DGRAM;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Sets `IFF_UP`.
pub(super) fn bring_up(socket: &OwnedFd, name: InterfaceName) -> io::Result<()> {
    let mut request = Ifreq::new(name);
    with_ifreq(socket, libc::SIOCGIFFLAGS as c_ulong, &mut request)?;
    if request.flags() & UP != 0 {
        return Ok(());
    }
    with_ifreq(socket, libc::SIOCSIFFLAGS as c_ulong, &mut Ifreq::with_flags(name, request.flags() | UP))
}

/// Makes `port` a port of `bridge`.
pub(super) fn join_bridge(socket: &OwnedFd, bridge: InterfaceName, port: InterfaceName) -> io::Result<()> {
    const SIOCBRADDIF: c_ulong = 0x89a2;
    let mut request = Ifreq::new(port);
    with_ifreq(socket, libc::SIOCGIFINDEX as c_ulong, &mut request)?;
    with_ifreq(socket, SIOCBRADDIF, &mut Ifreq::with_index(bridge, request.index()))
}
