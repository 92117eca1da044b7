//! PCI Express functions, configuration space, BARs, MSI-X and the bus.
//!
//! A device is a [`Function`]: configuration space and BARs. The [`Bus`] finds the function that an
//! access is for, without a lock, and calls it; nothing here calls back up.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]

mod bar;
mod bdf;
mod bus;
mod config;
pub mod ecam;
mod function;
mod host_bridge;
mod msix;
pub mod width;

pub use bar::{BarError, BarIndex, BarKind, Bars};
pub use bdf::Bdf;
pub use bus::{Bus, BusError, Decoded};
pub use config::{ConfigSpace, Header, Written, command, register};
pub use function::Function;
pub use host_bridge::HostBridge;
pub use msix::{MAX_VECTORS, Msix};
