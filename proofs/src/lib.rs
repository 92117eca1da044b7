//! What the tests of this package share: our machine on a domain without Xen, made from a command line, and
//! networks of a test's own.
//!
//! The tests themselves are the point:
//!
//! * `tests/another_driver` lets the `virtio-drivers` crate, written by others for others' devices, drive ours.
//! * `tests/another_implementation` plays the same script to QEMU's devices and to ours, and compares.
#![forbid(unsafe_code)]

mod machine;
mod network;

pub use machine::{ECAM, ECAM_SIZE, MMIO, MMIO_HIGH, Ours, RAM};
pub use network::{GUEST_MAC, HOST_MAC, datagram, in_network, ip, mac, set_up};
