//! Who a script is played to: our machine, or QEMU's.

use domain::Gpa;

use crate::Ours;

/// A machine, as its guest sees it.
pub trait Subject {
    /// Reads 1, 2, 4 or 8 bytes of memory-mapped I/O.
    fn read(&mut self, address: u64, size: u8) -> u64;
    /// Writes 1, 2, 4 or 8 bytes of memory-mapped I/O.
    fn write(&mut self, address: u64, size: u8, value: u64);
    /// Reads RAM.
    fn ram_read(&mut self, address: u64, bytes: &mut [u8]);
    /// Writes RAM.
    fn ram_write(&mut self, address: u64, bytes: &[u8]);
    /// Where interrupt message number `index` is to go, so that it can be seen. An interrupt for ours; RAM for
    /// QEMU's, where its devices can be watched writing it.
    fn mailbox(&self, index: u64) -> u64;
    /// The data of a message that was sent there since the last time, if any was.
    fn message(&mut self, index: u64) -> Option<u32>;
}

/// Our machine, and messages that were sent but not yet asked for.
pub struct OurSubject {
    /// The machine.
    pub ours: Ours,
    messages: Vec<domain::Msi>,
}

impl OurSubject {
    /// Starts a machine with these devices.
    #[must_use]
    pub fn new(arguments: &[String]) -> OurSubject {
        OurSubject { ours: Ours::new(arguments), messages: Vec::new() }
    }
}

impl Subject for OurSubject {
    fn read(&mut self, address: u64, size: u8) -> u64 {
        let value = self.ours.vcpu.mmio_read(address, size.into()).expect("an answer");
        value & (u64::MAX >> (64 - 8 * u32::from(size)))
    }

    fn write(&mut self, address: u64, size: u8, value: u64) {
        self.ours.vcpu.mmio_write(address, size.into(), value).expect("an answer");
    }

    fn ram_read(&mut self, address: u64, bytes: &mut [u8]) {
        self.ours.sim.ram_read(Gpa(address), bytes);
    }

    fn ram_write(&mut self, address: u64, bytes: &[u8]) {
        self.ours.sim.ram_write(Gpa(address), bytes);
    }

    fn mailbox(&self, index: u64) -> u64 {
        // Another processor's each time (Intel SDM vol. 3 §11.11.1).
        0xfee0_0000 + (index << 12)
    }

    fn message(&mut self, index: u64) -> Option<u32> {
        let address = self.mailbox(index);
        self.messages.extend(self.ours.sim.messages());
        let found = self.messages.iter().find(|msi| msi.address == address).map(|msi| msi.data);
        self.messages.retain(|msi| msi.address != address);
        found
    }
}
