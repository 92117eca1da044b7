//! The Xen PVH machine.
