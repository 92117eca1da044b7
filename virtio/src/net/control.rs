//! The control queue (virtio 1.3 §5.1.6.5).
//!
//! The tap gives us every frame there is, so receive modes and filters are checked and otherwise only
//! taken note of: a driver has to cope with frames it did not ask for.

use memory::GuestMemory;

use super::{
    FEATURE_CTRL_GUEST_OFFLOADS, FEATURE_CTRL_MAC_ADDR, FEATURE_CTRL_RX, FEATURE_CTRL_VLAN, FEATURE_MQ,
    GUEST_OFFLOADS, Shared,
};
use crate::queue::{Chain, ChainError, Queue, QueueError, Reader};

/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const ERROR: u8 = 1;
/// VLAN ids are 12 bits wide.
const VLANS: u16 = 4096;
/// Length of a MAC address.
const MAC_LEN: u32 = 6;

/// What the driver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Something that changes nothing here.
    Noted,
    /// VIRTIO_NET_CTRL_MAC_ADDR_SET.
    Mac([u8; 6]),
    /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
    Pairs(u16),
    /// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET.
    Offloads(u64),
}

/// Answers every command that waits.
pub(super) fn serve(
    shared: &Shared,
    features: u64,
    memory: &GuestMemory,
    queue: &mut Queue,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    while queue.pop(chain)? {
        let pairs = u16::try_from(shared.pairs.len()).unwrap_or(u16::MAX);
        let done = match parse(&mut chain.reader(memory), features, pairs) {
            Ok(Some(command)) => apply(shared, command),
            Ok(None) | Err(_) => false,
        };
        let mut writer = chain.writer(memory);
        // A command without room for the answer gets none.
        let _ = writer.write(&[if done { OK } else { ERROR }]);
        let written = writer.written();
        queue.push(chain.head(), written)?;
    }
    queue.flush()
}

fn apply(shared: &Shared, command: Command) -> bool {
    match command {
        Command::Noted => true,
        Command::Mac(mac) => {
            shared.set_mac(mac);
            true
        }
        Command::Pairs(count) => match shared.activate(count) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("cannot use {count} queues of {}: {error}", shared.name());
                false
            }
        },
        Command::Offloads(bits) => {
            shared.set_offloads(bits);
            true
        }
    }
}

/// Reads a command whole. `None`, or an error if it is too short: it makes no sense, or was not negotiated.
pub(super) fn parse(
    reader: &mut Reader<'_>,
    features: u64,
    max_pairs: u16,
) -> Result<Option<Command>, ChainError> {
    let [class, command] = take(reader)?;
    let needs = |feature: u64| features & feature != 0;
    let command = match (class, command) {
        // Promiscuous, all multicast: on or off.
        (0, 0 | 1) if needs(FEATURE_CTRL_RX) => {
            let [_on] = take(reader)?;
            Some(Command::Noted)
        }
        // MAC filter table: one list of unicast addresses, one of multicast addresses.
        (1, 0) if needs(FEATURE_CTRL_RX) => {
            for _ in 0..2 {
                let entries = u32::from_le_bytes(take(reader)?);
                reader.skip(u64::from(entries).saturating_mul(MAC_LEN.into()))?;
            }
            Some(Command::Noted)
        }
        (1, 1) if needs(FEATURE_CTRL_MAC_ADDR) => Some(Command::Mac(take(reader)?)),
        // VLAN filter: add, remove.
        (2, 0 | 1) if needs(FEATURE_CTRL_VLAN) => {
            (u16::from_le_bytes(take(reader)?) < VLANS).then_some(Command::Noted)
        }
        (4, 0) if needs(FEATURE_MQ) => {
            let count = u16::from_le_bytes(take(reader)?);
            (1..=max_pairs).contains(&count).then_some(Command::Pairs(count))
        }
        (5, 0) if needs(FEATURE_CTRL_GUEST_OFFLOADS) => {
            let bits = u64::from_le_bytes(take(reader)?);
            (bits & !(features & GUEST_OFFLOADS) == 0).then_some(Command::Offloads(bits))
        }
        _ => None,
    };
    Ok(command.filter(|_| reader.remaining() == 0))
}

fn take<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], ChainError> {
    let mut bytes = [0; N];
    reader.read(&mut bytes)?;
    Ok(bytes)
}
