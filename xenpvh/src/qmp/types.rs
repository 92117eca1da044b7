//! What QMP shows of the machine and asks of it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::query;
use crate::cli::Cache;

/// What the machine is doing. The names are QEMU's (`RunState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Started with `-S`, never run.
    Prelaunch,
    /// Waits for what was saved.
    InMigrate,
    /// Serving the guest.
    Running,
    /// Stopped by QMP.
    Paused,
    /// The guest shut down.
    Shutdown,
    /// Stopped because a disk failed (`werror=stop`).
    IoError,
    /// Stopped because something failed that should not.
    InternalError,
}

impl RunState {
    /// As `query-status` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RunState::Prelaunch => "prelaunch",
            RunState::InMigrate => "inmigrate",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Shutdown => "shutdown",
            RunState::IoError => "io-error",
            RunState::InternalError => "internal-error",
        }
    }
}

/// What QMP needs from the machine. Every call returns at once.
///
/// Commands that bring the machine from one state to another are followed by the event that says so:
/// the server looks at [`status`](Control::status) before and after.
pub trait Control {
    /// `-name`; empty for none.
    fn name(&self) -> String;

    /// What the machine is doing.
    fn status(&self) -> RunState;

    /// Lets the guest run.
    ///
    /// # Errors
    /// It cannot run.
    fn cont(&mut self) -> Result<(), Error>;

    /// Stops the guest.
    ///
    /// # Errors
    /// It cannot be stopped.
    fn stop(&mut self) -> Result<(), Error>;

    /// Asks for the process to end.
    fn quit(&mut self);

    /// Resets the devices.
    ///
    /// # Errors
    /// They cannot be reset from here.
    fn system_reset(&mut self) -> Result<(), Error>;

    /// Asks the guest to shut down, as a power button does.
    ///
    /// # Errors
    /// It cannot be asked.
    fn system_powerdown(&mut self) -> Result<(), Error>;

    /// Plugs the cable of a NIC, named by its own or its netdev's id, in or out.
    ///
    /// # Errors
    /// [`Error::device_not_found`], or it did not work.
    fn set_link(&mut self, name: &str, up: bool) -> Result<(), Error>;

    /// The disks, in command-line order.
    fn blocks(&self) -> Vec<BlockInfo>;

    /// The NICs, in command-line order.
    fn nics(&self) -> Vec<NicInfo>;

    /// The PCI functions, in order of address.
    fn functions(&self) -> Vec<FunctionInfo>;
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockInfo {
    /// `-drive id=`; empty for a `-blockdev`.
    pub device: String,
    /// `-blockdev node-name=`; empty for a `-drive`.
    pub node_name: String,
    /// `id=` of the device that it is in; empty when it has none.
    pub qdev: String,
    /// The image.
    pub filename: String,
    /// Size that the guest sees, in bytes.
    pub size: u64,
    /// What it takes on the host, in bytes.
    pub actual_size: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// How the host caches it.
    pub cache: Cache,
    /// `off`, `on` or `unmap`; empty for `off`.
    pub detect_zeroes: &'static str,
    /// What was done on it.
    pub stats: BlockStats,
}

/// What was done on a disk since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Reads.
    pub read: OperationStats,
    /// Writes, and zeroing.
    pub write: OperationStats,
    /// Flushes.
    pub flush: OperationStats,
    /// Discards.
    pub unmap: OperationStats,
    /// End of the highest byte written.
    pub highest_offset: u64,
}

/// What was done of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationStats {
    /// Bytes that went through.
    pub bytes: u64,
    /// Requests that succeeded.
    pub operations: u64,
    /// Requests that failed on the host.
    pub failed: u64,
    /// Requests that made no sense.
    pub invalid: u64,
    /// Time that all requests took together, in nanoseconds.
    pub total_time_ns: u64,
}

/// A NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicInfo {
    /// `id=`, or what it is called without one (`virtio-net-pci.0`).
    pub name: String,
    /// Its driver.
    pub model: String,
    /// Its address as it is now.
    pub mac: [u8; 6],
    /// The netdev's id; empty for none.
    pub netdev: String,
    /// The netdev's type and what else is worth telling: `type=tap,ifname=vif1.0`.
    pub netdev_about: String,
    /// Whether the cable is plugged in.
    pub link_up: bool,
}

/// A PCI function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
    /// `id=`; empty for none.
    pub id: String,
    /// Base class and subclass.
    pub class: u16,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// BARs that exist; the upper half of a 64-bit one is not listed.
    pub regions: Vec<RegionInfo>,
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// 0 to 5.
    pub bar: u8,
    /// In bytes.
    pub size: u64,
    /// Where it is, if the guest has mapped it.
    pub address: Option<u64>,
    /// Reading it has no side effects.
    pub prefetch: bool,
    /// It has 64 bits of address.
    pub wide: bool,
}

/// A character device, for `query-chardev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharInfo {
    /// Its id.
    pub label: String,
    /// What it is, as QEMU writes it: `unix:/run/x,server=on`.
    pub filename: String,
}

/// Classes of QMP errors (libxl looks at them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Anything without a class of its own.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// There is no such device.
    DeviceNotFound,
}

impl Class {
    /// As QMP writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::GenericError => "GenericError",
            Class::CommandNotFound => "CommandNotFound",
            Class::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct Error {
    /// For programs.
    pub class: Class,
    /// For people.
    pub desc: String,
}

impl Error {
    /// An error without a class of its own.
    pub fn generic(desc: impl Into<String>) -> Error {
        Error { class: Class::GenericError, desc: desc.into() }
    }

    /// There is no such device.
    #[must_use]
    pub fn device_not_found(name: &str) -> Error {
        Error { class: Class::DeviceNotFound, desc: format!("Device '{name}' not found") }
    }

    pub(super) fn command_not_found(desc: impl Into<String>) -> Error {
        Error { class: Class::CommandNotFound, desc: desc.into() }
    }
}

/// Something that happened, told to every client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    name: &'static str,
    data: Option<Value>,
}

impl Event {
    /// The guest stopped.
    pub const STOP: Event = Event { name: "STOP", data: None };
    /// The guest runs again.
    pub const RESUME: Event = Event { name: "RESUME", data: None };
    /// The guest was asked to shut down.
    pub const POWERDOWN: Event = Event { name: "POWERDOWN", data: None };

    /// The devices were reset, by the guest or for a reason such as `host-qmp-system-reset`.
    #[must_use]
    pub fn reset(guest: bool, reason: &str) -> Event {
        Event { name: "RESET", data: Some(json!({"guest": guest, "reason": reason})) }
    }

    /// It ends, by the guest or for a reason such as `host-signal`.
    #[must_use]
    pub fn shutdown(guest: bool, reason: &str) -> Event {
        Event { name: "SHUTDOWN", data: Some(json!({"guest": guest, "reason": reason})) }
    }

    /// Any other event of QEMU's.
    #[must_use]
    pub fn other(name: &'static str, data: Value) -> Event {
        Event { name, data: Some(data) }
    }

    /// The message that tells of it, with the time being now.
    pub(super) fn message(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()});
        let mut message = json!({"timestamp": timestamp, "event": self.name});
        if let Some(data) = &self.data {
            query::add(&mut message, "data", data.clone());
        }
        message
    }
}
