//! Virtio over PCI: queues, the transport, one file per device.
