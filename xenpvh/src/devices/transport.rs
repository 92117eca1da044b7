//! Which features of queues and transport a device is to offer.

use virtio::{
    FEATURE_ACCESS_PLATFORM, FEATURE_EVENT_IDX, FEATURE_IN_ORDER, FEATURE_INDIRECT,
    FEATURE_NOTIFICATION_DATA, FEATURE_RING_PACKED, FEATURE_RING_RESET,
};

use crate::cli::Transport;

/// Feature bits that the user turned on.
pub(super) fn with(transport: &Transport) -> u64 {
    let on = [
        (transport.iommu_platform, FEATURE_ACCESS_PLATFORM),
        (transport.packed, FEATURE_RING_PACKED),
        (transport.in_order, FEATURE_IN_ORDER),
        (transport.notification_data, FEATURE_NOTIFICATION_DATA),
    ];
    on.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

/// Feature bits that the user turned off.
pub(super) fn without(transport: &Transport) -> u64 {
    let on = [
        (transport.indirect_desc, FEATURE_INDIRECT),
        (transport.event_idx, FEATURE_EVENT_IDX),
        (transport.queue_reset, FEATURE_RING_RESET),
    ];
    on.iter().filter(|(on, _)| !on).fold(0, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        let none = Transport {
            event_idx: false,
            in_order: false,
            indirect_desc: false,
            iommu_platform: false,
            notification_data: false,
            packed: false,
            queue_reset: false,
        };
        assert_eq!((with(&none), without(&none)), (0, 1 << 28 | 1 << 29 | 1 << 40));
        let usual = Transport { event_idx: true, indirect_desc: true, queue_reset: true, ..none };
        assert_eq!((with(&usual), without(&usual)), (0, 0));
        let cases = [
            (Transport { iommu_platform: true, ..usual }, 33),
            (Transport { packed: true, ..usual }, 34),
            (Transport { in_order: true, ..usual }, 35),
            (Transport { notification_data: true, ..usual }, 38),
        ];
        for (transport, bit) in cases {
            assert_eq!((with(&transport), without(&transport)), (1 << bit, 0));
        }
    }
}
