//! The console device (virtio 1.3 §5.3): consoles and other streams of bytes, called ports, each over a chardev of the
//! host.
//!
//! One worker serves all ports and the messages about them (`worker`): the host's bytes are waited for together, and
//! nothing that a port does takes long.

mod control;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backend::chardev::Chardev;
use memory::GuestMemory;
use thiserror::Error;

use crate::device::{Config, Device, QueueSpec, Spec, Worker};
use worker::ConsoleWorker;

/// VIRTIO_CONSOLE_F_MULTIPORT: there are control queues, and ports beyond the first.
pub const FEATURE_MULTIPORT: u64 = 1 << 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: a byte can be written without a queue.
pub const FEATURE_EMERGENCY_WRITE: u64 = 1 << 2;

/// Most ports that a device has.
pub const MAX_PORTS: u16 = 31;

/// Offset of `emerg_wr` in the configuration (virtio 1.3 §5.3.4), after columns, rows and the number of ports.
const CONFIG_EMERGENCY_WRITE: usize = 8;
/// Sizes of queues, those that QEMU has.
const PORT_SIZE: u16 = 128;
const CONTROL_SIZE: u16 = 32;

/// A port.
pub struct Port {
    /// Below the device's number of ports.
    pub number: u16,
    /// The guest makes a console (`hvcN`) of it.
    pub console: bool,
    /// What the guest calls it; may be empty.
    pub name: String,
    /// What is at the host's end.
    pub host: Mutex<Box<dyn Chardev>>,
}

/// Ports that a device cannot have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConsoleError {
    /// Not a number of ports.
    #[error("a console device cannot have {0} ports: 1 to {MAX_PORTS} are possible")]
    Ports(u16),
    /// Too high, or there already.
    #[error("a console device cannot have a port {0} here")]
    Number(u16),
}

/// A console device.
pub struct Console(Arc<Shared>);

/// What device and worker share.
struct Shared {
    spec: Spec,
    config: Config,
    /// By number.
    ports: Vec<Option<Port>>,
}

impl Console {
    /// A device that has room for `max_ports` ports, and these ports.
    ///
    /// # Errors
    /// See [`ConsoleError`].
    pub fn new(max_ports: u16, ports: Vec<Port>) -> Result<Console, ConsoleError> {
        if !(1..=MAX_PORTS).contains(&max_ports) {
            return Err(ConsoleError::Ports(max_ports));
        }
        let mut places: Vec<Option<Port>> = (0..max_ports).map(|_| None).collect();
        for port in ports {
            match places.get_mut(usize::from(port.number)) {
                Some(place @ None) => *place = Some(port),
                _ => return Err(ConsoleError::Number(port.number)),
            }
        }
        let features = FEATURE_EMERGENCY_WRITE | if max_ports > 1 { FEATURE_MULTIPORT } else { 0 };
        let mut config = vec![0; CONFIG_EMERGENCY_WRITE + 4];
        for (to, from) in config.iter_mut().skip(4).zip(u32::from(max_ports).to_le_bytes()) {
            *to = from;
        }
        Ok(Console(Arc::new(Shared {
            spec: Spec { id: 3, class: 0x07_80_00, features, queues: queues(max_ports) },
            config: Config::new(config),
            ports: places,
        })))
    }
}

/// rx0, tx0, control rx, control tx, rx1, tx1, … (virtio 1.3 §5.3.2).
fn queues(max_ports: u16) -> Vec<QueueSpec> {
    let pair = |max_size| [QueueSpec { max_size, worker: 0 }; 2];
    let sizes = (0..=max_ports).map(|index| if index == 1 { CONTROL_SIZE } else { PORT_SIZE });
    sizes.flat_map(pair).collect()
}

impl Device for Console {
    fn spec(&self) -> &Spec {
        &self.0.spec
    }

    fn config(&self) -> &Config {
        &self.0.config
    }

    /// A guest in trouble writes a byte to its first console (virtio 1.3 §5.3.4).
    fn write_config(&self, offset: usize, data: &[u8]) {
        let console = self.0.ports.iter().flatten().find(|port| port.console);
        if let (CONFIG_EMERGENCY_WRITE, Some(byte), Some(port)) = (offset, data.get(..1), console)
            // Not waited for: the byte is lost, as it is if the host takes none now.
            && let Ok(mut host) = port.host.try_lock()
        {
            let _ = host.write(byte);
        }
    }

    fn worker(&self, _index: usize, features: u64, memory: &GuestMemory) -> io::Result<Box<dyn Worker>> {
        Ok(Box::new(ConsoleWorker::new(self.0.clone(), features & FEATURE_MULTIPORT != 0, memory.clone())?))
    }
}

impl Shared {
    fn port(&self, number: usize) -> Option<&Port> {
        self.ports.get(number)?.as_ref()
    }
}

impl Port {
    fn host(&self) -> MutexGuard<'_, Box<dyn Chardev>> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest is to know that somebody is there. At a console somebody always is: what its driver cannot
    /// write it waits for, with a lock held.
    fn is_open(&self) -> bool {
        self.console || self.host().is_open()
    }
}
