//! The common configuration as data: which registers there are (virtio 1.3 §4.1.4.3), and in which state of
//! the device and of the selected queue each may be written. At other times a write does nothing.

use crate::queue::FEATURE_RING_RESET;
use crate::state::status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDescriptors,
    QueueAvailable,
    QueueUsed,
    QueueReset,
}

/// How far the driver has got (§3.1.1), which the device status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// After a reset, or acknowledged.
    Idle,
    /// The driver chooses features: DRIVER.
    Negotiating,
    /// It sets up queues: FEATURES_OK.
    SettingUp,
    /// It drives the device: DRIVER_OK.
    Running,
    /// It gave up: FAILED. Only a reset helps.
    Failed,
}

impl Phase {
    /// The phase that a device status stands for.
    pub(crate) fn of(status: u8) -> Phase {
        let steps = [
            (status::FAILED, Phase::Failed),
            (status::DRIVER_OK, Phase::Running),
            (status::FEATURES_OK, Phase::SettingUp),
            (status::DRIVER, Phase::Negotiating),
        ];
        steps.iter().find(|(bit, _)| status & bit != 0).map_or(Phase::Idle, |(_, phase)| *phase)
    }
}

/// Where a queue is on its way from its set-up to its reset (§4.1.4.3, §2.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueuePhase {
    /// There is no such queue.
    Absent,
    /// The driver may describe it.
    SettingUp,
    /// It is enabled, and nothing about it changes any more.
    Enabled,
    /// The driver wants it back, and we are not done with it.
    Resetting,
}

/// When a register may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    phases: &'static [Phase],
    queue: &'static [QueuePhase],
    /// Bits that must have been negotiated for the register to be there.
    needs: u64,
}

const ANY_PHASE: &[Phase] =
    &[Phase::Idle, Phase::Negotiating, Phase::SettingUp, Phase::Running, Phase::Failed];
const ANY_QUEUE: &[QueuePhase] =
    &[QueuePhase::Absent, QueuePhase::SettingUp, QueuePhase::Enabled, QueuePhase::Resetting];
const AGREED: &[Phase] = &[Phase::SettingUp, Phase::Running];

const NEVER: When = When { phases: &[], queue: &[], needs: 0 };
const ALWAYS: When = When { phases: ANY_PHASE, queue: ANY_QUEUE, needs: 0 };
const NEGOTIATING: When = When { phases: &[Phase::Negotiating], queue: ANY_QUEUE, needs: 0 };
/// A queue that was reset alone is set up again while the device runs.
const QUEUE_SETUP: When = When { phases: AGREED, queue: &[QueuePhase::SettingUp], needs: 0 };
const QUEUE_RESET: When = When { phases: AGREED, queue: &[QueuePhase::Enabled], needs: FEATURE_RING_RESET };

impl When {
    /// Whether the register may be written with these `features` negotiated.
    pub(crate) fn allows(&self, phase: Phase, queue: QueuePhase, features: u64) -> bool {
        self.phases.contains(&phase) && self.queue.contains(&queue) && features & self.needs == self.needs
    }
}

/// One register.
pub(crate) struct Field {
    pub(crate) offset: u64,
    pub(crate) width: u8,
    pub(crate) register: Register,
    pub(crate) writable: When,
}

const fn field(offset: u64, width: u8, register: Register, writable: When) -> Field {
    Field { offset, width, register, writable }
}

/// All registers. What is not here (the fields of features that we never offer) reads as zero.
pub(crate) const FIELDS: [Field; 17] = [
    field(0x00, 4, Register::DeviceFeatureSelect, ALWAYS),
    field(0x04, 4, Register::DeviceFeature, NEVER),
    field(0x08, 4, Register::DriverFeatureSelect, ALWAYS),
    field(0x0c, 4, Register::DriverFeature, NEGOTIATING),
    field(0x10, 2, Register::ConfigVector, ALWAYS),
    field(0x12, 2, Register::QueueCount, NEVER),
    field(0x14, 1, Register::DeviceStatus, ALWAYS),
    field(0x15, 1, Register::ConfigGeneration, NEVER),
    field(0x16, 2, Register::QueueSelect, ALWAYS),
    field(0x18, 2, Register::QueueSize, QUEUE_SETUP),
    field(0x1a, 2, Register::QueueVector, ALWAYS),
    field(0x1c, 2, Register::QueueEnable, QUEUE_SETUP),
    field(0x1e, 2, Register::QueueNotifyOffset, NEVER),
    field(0x20, 8, Register::QueueDescriptors, QUEUE_SETUP),
    field(0x28, 8, Register::QueueAvailable, QUEUE_SETUP),
    field(0x30, 8, Register::QueueUsed, QUEUE_SETUP),
    field(0x3a, 2, Register::QueueReset, QUEUE_RESET),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases() {
        let table = [
            (0, Phase::Idle),
            (1, Phase::Idle),
            (3, Phase::Negotiating),
            (11, Phase::SettingUp),
            (15, Phase::Running),
            (15 | status::NEEDS_RESET, Phase::Running),
            (0x81, Phase::Failed),
            (0x8f, Phase::Failed),
        ];
        for (status, phase) in table {
            assert_eq!(Phase::of(status), phase, "{status:#x}");
        }
    }

    #[test]
    fn registers_do_not_overlap() {
        for pair in FIELDS.windows(2) {
            assert!(pair[0].offset + u64::from(pair[0].width) <= pair[1].offset);
        }
    }
}
