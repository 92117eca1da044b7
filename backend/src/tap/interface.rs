//! The interface that a tap is on the host.

use std::io;

use super::{InterfaceName, TapError, ioctl};
use crate::reason;

/// A network interface of the host, by its name. Knowing it keeps nothing open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    pub(super) fn new(name: &str) -> Interface {
        Interface(name.to_owned())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Brings it up.
    ///
    /// # Errors
    /// No permission, or it is gone.
    pub fn bring_up(&self) -> Result<(), TapError> {
        let up = || -> io::Result<()> { ioctl::bring_up(&ioctl::control_socket()?, checked(&self.0)?) };
        up().map_err(|error| TapError::Up { tap: self.0.clone(), reason: reason(&error) })
    }

    /// Makes it a port of `bridge`. That it is one already is fine.
    ///
    /// # Errors
    /// There is no such bridge, it is a port of another one, or no permission.
    pub fn join_bridge(&self, bridge: &str) -> Result<(), TapError> {
        let failed =
            |reason: String| TapError::Bridge { tap: self.0.clone(), bridge: bridge.to_owned(), reason };
        let join = || -> io::Result<()> {
            ioctl::join_bridge(&ioctl::control_socket()?, checked(bridge)?, checked(&self.0)?)
        };
        match join() {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => match self.bridge() {
                Some(current) if current == bridge => Ok(()),
                Some(current) => Err(failed(format!("it is a port of '{current}' already"))),
                None => Err(failed(reason(&error))),
            },
            Err(error) => Err(failed(reason(&error))),
        }
    }

    /// The bridge that it is a port of.
    fn bridge(&self) -> Option<String> {
        let link = std::fs::read_link(format!("/sys/class/net/{}/brport/bridge", self.0)).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }
}

fn checked(name: &str) -> io::Result<InterfaceName> {
    InterfaceName::new(name).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
