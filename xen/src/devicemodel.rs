//! Device-model operations (xen/include/public/hvm/dm_op.h): the calls by which a device model makes
//! itself known to Xen, and acts on its domain.

use std::fmt;
use std::io;

use domain::{Extent, Msi, Shutdown};

use crate::privcmd::Privcmd;
use crate::{DomId, XenError};

const CREATE_IOREQ_SERVER: u32 = 1;
const GET_IOREQ_SERVER_INFO: u32 = 2;
const MAP_IO_RANGE: u32 = 3;
const UNMAP_IO_RANGE: u32 = 4;
const SET_IOREQ_SERVER_STATE: u32 = 5;
const DESTROY_IOREQ_SERVER: u32 = 6;
const MODIFIED_MEMORY: u32 = 11;
const INJECT_MSI: u32 = 14;
const REMOTE_SHUTDOWN: u32 = 16;
const NR_VCPUS: u32 = 20;

/// `HVM_IOREQSRV_BUFIOREQ_OFF`.
const BUFIOREQ_OFF: u8 = 0;
/// `XEN_DMOP_no_gfns`: do not allocate guest frames for the pages.
const NO_GFNS: u16 = 1;

/// Most ioreq servers a domain can have (xen/include/xen/sched.h, `MAX_NR_IOREQ_SERVERS`).
pub const MAX_SERVERS: u16 = 8;

/// Extents in one call: what fits a buffer of the size that the kernel lets through (4096 bytes).
const EXTENTS_PER_CALL: usize = 4096 / size_of::<RawExtent>();

/// `struct xen_dm_op`: the number of an operation and its arguments, which its results replace.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DmOp {
    op: u32,
    pad: u32,
    arguments: [u8; 24],
}
const _: () = assert!(size_of::<DmOp>() == 32 && std::mem::offset_of!(DmOp, arguments) == 8);

/// `struct xen_dm_op_modified_memory_extent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawExtent {
    nr: u32,
    pad: u32,
    first_pfn: u64,
}
const _: () = assert!(size_of::<RawExtent>() == 16 && std::mem::offset_of!(RawExtent, first_pfn) == 8);

impl DmOp {
    const fn new(op: u32) -> DmOp {
        DmOp { op, pad: 0, arguments: [0; 24] }
    }

    /// Puts a field at its offset. Offsets are constants, checked by the tests.
    fn put<const N: usize>(mut self, offset: usize, bytes: [u8; N]) -> DmOp {
        let arguments = self.arguments.iter_mut().skip(offset);
        arguments.zip(bytes).for_each(|(argument, byte)| *argument = byte);
        self
    }

    fn u8(self, offset: usize, value: u8) -> DmOp {
        self.put(offset, [value])
    }

    fn u16(self, offset: usize, value: u16) -> DmOp {
        self.put(offset, value.to_ne_bytes())
    }

    fn u32(self, offset: usize, value: u32) -> DmOp {
        self.put(offset, value.to_ne_bytes())
    }

    fn u64(self, offset: usize, value: u64) -> DmOp {
        self.put(offset, value.to_ne_bytes())
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = self.arguments.iter().skip(offset);
        std::array::from_fn(|_| bytes.next().copied().unwrap_or_default())
    }

    fn create_ioreq_server() -> DmOp {
        DmOp::new(CREATE_IOREQ_SERVER).u8(0, BUFIOREQ_OFF)
    }

    fn get_ioreq_server_info(id: u16) -> DmOp {
        DmOp::new(GET_IOREQ_SERVER_INFO).u16(0, id).u16(2, NO_GFNS)
    }

    fn io_range(op: u32, id: u16, range: &IoRange) -> DmOp {
        DmOp::new(op).u16(0, id).u32(4, range.space as u32).u64(8, range.first).u64(16, range.last)
    }

    fn set_ioreq_server_state(id: u16, enabled: bool) -> DmOp {
        DmOp::new(SET_IOREQ_SERVER_STATE).u16(0, id).u8(2, enabled.into())
    }

    fn destroy_ioreq_server(id: u16) -> DmOp {
        DmOp::new(DESTROY_IOREQ_SERVER).u16(0, id)
    }

    fn modified_memory(extents: u32) -> DmOp {
        DmOp::new(MODIFIED_MEMORY).u32(0, extents)
    }

    fn inject_msi(msi: Msi) -> DmOp {
        DmOp::new(INJECT_MSI).u32(0, msi.data).u64(8, msi.address)
    }

    fn remote_shutdown(reason: Shutdown) -> DmOp {
        DmOp::new(REMOTE_SHUTDOWN).u32(0, reason as u32)
    }
}

impl From<&Extent> for RawExtent {
    fn from(extent: &Extent) -> RawExtent {
        RawExtent { nr: extent.count, pad: 0, first_pfn: extent.first.0 }
    }
}

/// The kind of address in an [`IoRange`] (`XEN_DMOP_IO_RANGE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Port numbers.
    Port = 0,
    /// Guest-physical addresses.
    Memory = 1,
    /// PCI functions, as segment << 16 | bus << 8 | device << 3 | function: configuration accesses by way
    /// of ports 0xcf8 and 0xcfc.
    Pci = 2,
}

/// Addresses whose accesses come to an ioreq server. An access must lie in one range as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRange {
    /// What the addresses are.
    pub space: Space,
    /// First address.
    pub first: u64,
    /// Last address, which belongs to the range.
    pub last: u64,
}

impl fmt::Display for IoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Port => "ports",
            Space::Memory => "memory",
            Space::Pci => "PCI functions",
        };
        write!(f, "{space} {:#x}-{:#x}", self.first, self.last)
    }
}

/// The operations on one domain.
#[derive(Debug)]
pub struct DeviceModel {
    privcmd: Privcmd,
    domid: DomId,
}

impl DeviceModel {
    /// Operations on `domid` by way of `privcmd`. Makes no call.
    pub fn new(privcmd: Privcmd, domid: DomId) -> DeviceModel {
        DeviceModel { privcmd, domid }
    }

    /// The domain.
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// The device that the calls go through.
    pub fn privcmd(&self) -> &Privcmd {
        &self.privcmd
    }

    fn call(&self, op: &mut DmOp) -> io::Result<()> {
        self.privcmd.dm_op(self.domid, op, &mut [])
    }

    /// The most vCPUs the domain may have.
    ///
    /// # Errors
    /// No such domain (`ESRCH`), or not one that takes a device model.
    pub fn nr_vcpus(&self) -> Result<u32, XenError> {
        let mut op = DmOp::new(NR_VCPUS);
        self.call(&mut op).map_err(|error| XenError::call("XEN_DMOP_nr_vcpus", error))?;
        Ok(u32::from_ne_bytes(op.get(0)))
    }

    /// Makes an ioreq server without buffered requests, not enabled yet, and returns its id.
    ///
    /// # Errors
    /// The domain has [`MAX_SERVERS`] of them (`ENOSPC`).
    pub fn create_ioreq_server(&self) -> Result<u16, XenError> {
        let mut op = DmOp::create_ioreq_server();
        self.call(&mut op).map_err(|error| XenError::call("XEN_DMOP_create_ioreq_server", error))?;
        Ok(u16::from_ne_bytes(op.get(4)))
    }

    /// Whether the domain has an ioreq server `id`, whoever made it. Changes nothing.
    ///
    /// # Errors
    /// No such domain.
    pub fn has_ioreq_server(&self, id: u16) -> Result<bool, XenError> {
        match self.call(&mut DmOp::get_ioreq_server_info(id)) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(false),
                // It was made by another domain.
                Some(libc::EPERM) => Ok(true),
                _ => Err(XenError::call("XEN_DMOP_get_ioreq_server_info", error)),
            },
        }
    }

    /// Lets accesses to `range` come to server `id`.
    ///
    /// # Errors
    /// It overlaps a range of this server (`EEXIST`) or there are 256 of its kind (`ENOMEM`).
    pub fn map_io_range(&self, id: u16, range: &IoRange) -> Result<(), XenError> {
        let result = self.call(&mut DmOp::io_range(MAP_IO_RANGE, id, range));
        result
            .map_err(|error| XenError::call(format!("XEN_DMOP_map_io_range_to_ioreq_server({range})"), error))
    }

    /// Takes `range` back from server `id`.
    ///
    /// # Errors
    /// The range is not wholly the server's (`ENOENT`).
    pub fn unmap_io_range(&self, id: u16, range: &IoRange) -> Result<(), XenError> {
        let result = self.call(&mut DmOp::io_range(UNMAP_IO_RANGE, id, range));
        result.map_err(|error| {
            XenError::call(format!("XEN_DMOP_unmap_io_range_from_ioreq_server({range})"), error)
        })
    }

    /// Starts or stops the flow of accesses to server `id`.
    ///
    /// # Errors
    /// No such server.
    pub fn set_ioreq_server_state(&self, id: u16, enabled: bool) -> Result<(), XenError> {
        let result = self.call(&mut DmOp::set_ioreq_server_state(id, enabled));
        result.map_err(|error| XenError::call("XEN_DMOP_set_ioreq_server_state", error))
    }

    /// Removes server `id`; vCPUs that wait for an answer from it go on.
    ///
    /// # Errors
    /// No such server (`ENOENT`), or another domain made it (`EPERM`).
    pub fn destroy_ioreq_server(&self, id: u16) -> Result<(), XenError> {
        let result = self.call(&mut DmOp::destroy_ioreq_server(id));
        result.map_err(|error| XenError::call("XEN_DMOP_destroy_ioreq_server", error))
    }

    /// Reports frames as written to whoever copies the domain's memory. Cheap when nobody does.
    ///
    /// # Errors
    /// The domain is gone or going, or an extent is empty or out of its memory (`EINVAL`). Extents up to
    /// the bad one's call may have been reported.
    pub fn modified_memory(&self, extents: &[Extent]) -> Result<(), XenError> {
        let mut raw = [RawExtent::default(); EXTENTS_PER_CALL];
        for part in extents.chunks(EXTENTS_PER_CALL) {
            let mut count = 0u32;
            for (raw, extent) in raw.iter_mut().zip(part) {
                *raw = extent.into();
                count = count.saturating_add(1);
            }
            let raw = raw.get_mut(..part.len()).unwrap_or_default();
            let result = self.privcmd.dm_op(self.domid, &mut DmOp::modified_memory(count), raw);
            result.map_err(|error| XenError::call("XEN_DMOP_modified_memory", error))?;
        }
        Ok(())
    }

    /// Delivers a message-signalled interrupt.
    ///
    /// # Errors
    /// The vector is 0, which Xen would take for something else; the delivery mode is neither fixed nor
    /// lowest priority; or no vCPU is meant.
    pub fn inject_msi(&self, msi: Msi) -> Result<(), XenError> {
        let result = if msi.data & 0xff == 0 {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        } else {
            self.call(&mut DmOp::inject_msi(msi))
        };
        result.map_err(|error| XenError::call("XEN_DMOP_inject_msi", error))
    }

    /// Shuts the domain down for `reason`.
    ///
    /// # Errors
    /// The domain is gone.
    pub fn remote_shutdown(&self, reason: Shutdown) -> Result<(), XenError> {
        let result = self.call(&mut DmOp::remote_shutdown(reason));
        result.map_err(|error| XenError::call("XEN_DMOP_remote_shutdown", error))
    }
}

#[cfg(test)]
mod tests {
    use domain::Gfn;

    use super::*;

    /// The 32 bytes that go to Xen.
    fn bytes(op: DmOp) -> Vec<u8> {
        [&op.op.to_ne_bytes()[..], &op.pad.to_ne_bytes(), &op.arguments].concat()
    }

    /// An expectation with its trailing zeros left out.
    fn padded(start: &[u8]) -> Vec<u8> {
        let mut all = start.to_vec();
        all.resize(32, 0);
        all
    }

    #[test]
    fn encodings() {
        let range = |space, first, last| IoRange { space, first, last };
        let cases = [
            (DmOp::create_ioreq_server(), padded(&[1, 0, 0, 0, 0, 0, 0, 0, 0])),
            (DmOp::get_ioreq_server_info(0x0203), padded(&[2, 0, 0, 0, 0, 0, 0, 0, 3, 2, 1, 0])),
            (
                DmOp::io_range(MAP_IO_RANGE, 5, &range(Space::Memory, 0xfc80_0000, 0x12_fcff_ffff)),
                padded(&[
                    3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, //
                    0, 0, 0x80, 0xfc, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc, 0x12, 0, 0, 0,
                ]),
            ),
            (
                DmOp::io_range(UNMAP_IO_RANGE, 1, &range(Space::Pci, 0, 0xff)),
                padded(&[4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff]),
            ),
            (
                DmOp::io_range(MAP_IO_RANGE, 0, &range(Space::Port, 0xcf8, 0xcfb)),
                padded(&[
                    3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
                    0xf8, 0x0c, 0, 0, 0, 0, 0, 0, 0xfb, 0x0c,
                ]),
            ),
            (DmOp::set_ioreq_server_state(7, true), padded(&[5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 1])),
            (DmOp::set_ioreq_server_state(7, false), padded(&[5, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0])),
            (DmOp::destroy_ioreq_server(0x102), padded(&[6, 0, 0, 0, 0, 0, 0, 0, 2, 1])),
            (DmOp::modified_memory(256), padded(&[11, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0])),
            (
                DmOp::inject_msi(Msi { address: 0xfee0_1004, data: 0x4123 }),
                padded(&[14, 0, 0, 0, 0, 0, 0, 0, 0x23, 0x41, 0, 0, 0, 0, 0, 0, 4, 0x10, 0xe0, 0xfe]),
            ),
            (DmOp::remote_shutdown(Shutdown::Crash), padded(&[16, 0, 0, 0, 0, 0, 0, 0, 3])),
            (DmOp::remote_shutdown(Shutdown::PowerOff), padded(&[16])),
            (DmOp::new(NR_VCPUS), padded(&[20])),
        ];
        for (op, expected) in cases {
            assert_eq!(bytes(op), expected, "op {}", op.op);
        }
    }

    #[test]
    fn results_are_read_where_xen_puts_them() {
        let op = DmOp::new(CREATE_IOREQ_SERVER).u16(4, 0x0506);
        assert_eq!(u16::from_ne_bytes(op.get(4)), 0x0506);
    }

    #[test]
    fn extents() {
        let extent = RawExtent::from(&Extent { first: Gfn(0x1_2345_6789), count: 7 });
        assert_eq!(extent, RawExtent { nr: 7, pad: 0, first_pfn: 0x1_2345_6789 });
        assert_eq!(EXTENTS_PER_CALL, 256);
    }

    #[test]
    fn ranges_are_named_in_errors() {
        let range = IoRange { space: Space::Memory, first: 0xfc80_0000, last: 0xfcff_ffff };
        assert_eq!(range.to_string(), "memory 0xfc800000-0xfcffffff");
        let range = IoRange { space: Space::Pci, first: 0, last: 0xff };
        assert_eq!(range.to_string(), "PCI functions 0x0-0xff");
    }

    #[test]
    fn vector_zero_never_reaches_xen() {
        let model = DeviceModel::new(Privcmd::without_xen(), DomId::MAX);
        let inject = |data| model.inject_msi(Msi { address: 0xfee0_0000, data }).unwrap_err();
        assert_eq!(inject(0x4000).raw_os_error(), Some(libc::EINVAL));
        assert_eq!(inject(0x4001).raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn failed_calls_are_named() {
        let model = DeviceModel::new(Privcmd::without_xen(), DomId::MAX);
        let range = IoRange { space: Space::Port, first: 0xcf8, last: 0xcfb };
        let extents = [Extent { first: Gfn(0), count: 1 }];
        let errors = [
            (model.nr_vcpus().unwrap_err(), "XEN_DMOP_nr_vcpus: "),
            (model.create_ioreq_server().unwrap_err(), "XEN_DMOP_create_ioreq_server: "),
            (model.has_ioreq_server(0).unwrap_err(), "XEN_DMOP_get_ioreq_server_info: "),
            (
                model.map_io_range(0, &range).unwrap_err(),
                "XEN_DMOP_map_io_range_to_ioreq_server(ports 0xcf8-0xcfb): ",
            ),
            (
                model.unmap_io_range(0, &range).unwrap_err(),
                "XEN_DMOP_unmap_io_range_from_ioreq_server(ports 0xcf8-0xcfb): ",
            ),
            (model.set_ioreq_server_state(0, true).unwrap_err(), "XEN_DMOP_set_ioreq_server_state: "),
            (model.destroy_ioreq_server(0).unwrap_err(), "XEN_DMOP_destroy_ioreq_server: "),
            (model.modified_memory(&extents).unwrap_err(), "XEN_DMOP_modified_memory: "),
            (model.remote_shutdown(Shutdown::Reboot).unwrap_err(), "XEN_DMOP_remote_shutdown: "),
        ];
        for (error, call) in errors {
            assert_eq!(error.to_string(), format!("{call}Inappropriate ioctl for device"));
        }
        model.modified_memory(&[]).unwrap();
    }
}
