//! A PCI function, as the bus sees it.

use crate::Bars;

/// A PCI function: its configuration space and what is behind its BARs.
///
/// Called by several vCPUs at once. Nothing a guest does may make it panic or block for long.
pub trait Function: Send + Sync {
    /// What the user calls it, for messages.
    fn name(&self) -> &str;

    /// Reads `size` bytes (1, 2 or 4, within one dword) of configuration space at `offset` (0 to 4095).
    /// Past the end of its configuration space, all ones.
    fn config_read(&self, offset: u16, size: u8) -> u32;

    /// Writes the low `size` bytes of `value`; offset and size as for [`Function::config_read`].
    fn config_write(&self, offset: u16, size: u8, value: u32);

    /// Where the BARs are now. Read on every memory access, so it must be cheap and take no lock.
    fn bars(&self) -> &Bars;

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` of BAR `bar`; the access lies within the BAR.
    fn bar_read(&self, bar: u8, offset: u64, size: u8) -> u64;

    /// Writes the low `size` bytes of `value`; the rest as for [`Function::bar_read`].
    fn bar_write(&self, bar: u8, offset: u64, size: u8, value: u64);

    /// Goes back to the state after power-on (a bus reset).
    fn reset(&self);
}
