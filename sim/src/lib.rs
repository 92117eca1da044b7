//! A domain without Xen, for tests and benchmarks.
