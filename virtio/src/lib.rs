//! Virtio over PCI: queues, the transport, one file per device.
//!
//! Follows virtio 1.3. A [`Device`] says what it is and makes [`Worker`]s; [`VirtioPci`] is the PCI
//! function around it, which the guest's driver sees; each worker has a thread, on which it takes
//! [`Chain`]s from its [`Queue`]s and gives them back. The way of one request: a doorbell write in
//! `pci.rs` wakes the loop in `worker.rs`, which calls the device's worker, which pops from `queue.rs`.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]

pub mod blk;
mod chain;
mod common_config;
pub mod console;
mod device;
mod doorbell;
pub mod net;
mod order;
mod packed;
mod pci;
mod queue;
mod registers;
mod ring;
mod rng;
mod split;
mod state;
#[cfg(test)]
mod testing;
mod worker;

pub use self::pci::{MAX_QUEUES, Placement, VirtioPci, VirtioPciError};
pub use device::{Config, Device, MAX_SOURCES, QueueSpec, Queues, Sources, Spec, Wake, Worker};
pub use queue::{
    Chain, ChainError, FEATURE_ACCESS_PLATFORM, FEATURE_EVENT_IDX, FEATURE_IN_ORDER, FEATURE_INDIRECT,
    FEATURE_NOTIFICATION_DATA, FEATURE_RING_PACKED, FEATURE_RING_RESET, FEATURE_VERSION_1, Interrupt, Layout,
    MAX_INDIRECT, Queue, QueueError, QueueSize, QueueState, Reader, Writer,
};
pub use rng::Rng;
