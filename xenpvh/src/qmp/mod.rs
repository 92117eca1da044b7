//! QMP, as libxl and xenstat speak it.
//!
//! Bytes go through `stream` (cut into messages), `json` (read), `commands` (carried out on a
//! [`Control`]) and back out of `server`, which keeps the sockets. The owner of the machine polls.

mod commands;
mod json;
mod monitor;
mod query;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod types;

pub use backend::socket::{Listener, SocketError};
pub use server::{Server, listen};
pub use types::{
    BlockInfo, BlockStats, CharInfo, Class, Control, Error, Event, FunctionInfo, NicInfo, OperationStats,
    RegionInfo, RunState,
};
