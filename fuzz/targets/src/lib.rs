//! What the fuzz targets do.
//!
//! Each module is one target: `run` takes any bytes, does with them what a hostile peer could do, and panics if
//! something is not as it must be. libFuzzer calls it from `fuzz/fuzz_targets`; `tests/replay.rs` calls it with
//! the seeds and with pseudo-random bytes, on any toolchain.

pub mod acpi_tables;
pub mod blk_request;
pub mod bus;
pub mod command_line;
pub mod config_space;
pub mod console;
mod guest;
pub mod ioreq_slot;
pub mod msix_table;
pub mod net_control;
pub mod packed_ring;
pub mod qmp_stream;
mod queue;
mod ring;
pub mod split_ring;
pub mod xenstore_wire;

/// A target: its name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by name.
pub const ALL: &[Target] = &[
    ("acpi_tables", acpi_tables::run),
    ("blk_request", blk_request::run),
    ("bus", bus::run),
    ("command_line", command_line::run),
    ("config_space", config_space::run),
    ("console", console::run),
    ("ioreq_slot", ioreq_slot::run),
    ("msix_table", msix_table::run),
    ("net_control", net_control::run),
    ("packed_ring", packed_ring::run),
    ("qmp_stream", qmp_stream::run),
    ("split_ring", split_ring::run),
    ("xenstore_wire", xenstore_wire::run),
];
