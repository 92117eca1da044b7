//! The Xen ABI, and a domain seen through it.
