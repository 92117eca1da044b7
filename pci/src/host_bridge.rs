//! The host bridge at 00:00.0, which makes the root bus recognisable as one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Bars, ConfigSpace, Function, Header, width};

/// QEMU's GPEX root (1b36:0008), so that guests see the machine they know. It does nothing.
#[derive(Debug)]
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
    bars: Arc<Bars>,
}

impl HostBridge {
    /// A host bridge.
    pub fn new() -> HostBridge {
        let header = Header {
            vendor: 0x1b36,
            device: 0x0008,
            class: 0x06_00_00,
            revision: 0,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let config = ConfigSpace::new(header, Bars::none());
        HostBridge { bars: config.bars(), config: Mutex::new(config) }
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HostBridge {
    fn default() -> HostBridge {
        HostBridge::new()
    }
}

impl Function for HostBridge {
    fn name(&self) -> &str {
        "gpex-root"
    }

    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.config().read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        let _ = self.config().write(offset, size, value);
    }

    fn bars(&self) -> &Bars {
        &self.bars
    }

    fn bar_read(&self, _bar: u8, _offset: u64, size: u8) -> u64 {
        width::absent(size)
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _size: u8, _value: u64) {}

    fn reset(&self) {
        self.config().reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gpex() {
        let bridge = HostBridge::new();
        let registers = [(0x00, 0x0008_1b36), (0x04, 0), (0x08, 0x0600_0000), (0x0c, 0), (0x2c, 0x1100_1af4)];
        for (offset, expected) in registers {
            assert_eq!(bridge.config_read(offset, 4), expected, "{offset:#x}");
        }
        for offset in (0x10..0x2c).step_by(4).chain((0x30..0x100).step_by(4)) {
            assert_eq!(bridge.config_read(offset, 4), 0, "{offset:#x}");
        }
        bridge.config_write(0x04, 2, 0xffff);
        assert_eq!(bridge.config_read(0x04, 4), 0x0544);
        bridge.reset();
        assert_eq!(bridge.config_read(0x04, 4), 0);
        assert_eq!(bridge.bar_read(0, 0, 8), u64::MAX);
    }
}
