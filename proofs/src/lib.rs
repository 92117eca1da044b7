//! What the tests of this package share: our machine on a domain without Xen, made from a command line, and
//! networks of a test's own.
//!
//! The tests themselves are the point:
//!
//! * `tests/another_driver` lets the `virtio-drivers` crate, written by others for others' devices, drive ours.
//! * `tests/another_implementation` plays the same script to QEMU's devices and to ours, and compares.
//! * `tests/costs` counts what requests cost our threads in steady state: allocations and system calls.
//!
//! The driver of the latter is here too, for others who want to play something to both.
#![forbid(unsafe_code)]

#[expect(missing_docs, reason = "most names are those of the specification")]
pub mod driver;
mod machine;
mod network;
mod qemu;
mod subject;

pub use machine::{ECAM, ECAM_SIZE, MMIO, MMIO_HIGH, Ours, RAM};
pub use network::{GUEST_MAC, HOST_MAC, datagram, in_network, ip, mac, set_up};
pub use qemu::Qemu;
pub use subject::{OurSubject, Subject};
