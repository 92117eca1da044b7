//! The Xen PVH machine: a device model for one Xen PVH guest.
//!
//! The parts, from the command line to the answer of an ioreq; ARCHITECTURE.md tells how they fit.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod acpi;
pub mod cli;
pub mod control;
pub mod devices;
pub mod ioreq;
pub mod layout;
pub mod logging;
pub mod machine;
pub mod privileges;
pub mod qmp;
pub mod run;
pub mod signals;
pub mod store;
pub mod survey;
