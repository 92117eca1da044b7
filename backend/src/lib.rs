//! The host side of devices: disks and taps.
