//! The host side of devices: disks, taps and character devices.
//!
//! [`block`] is a disk image or block device and the engines that do I/O on it; [`tap`] is a network
//! interface of the host. Neither knows virtio: they move bytes between a file descriptor and
//! [`memory::Pinned`] guest memory, and report what the host said. [`chardev`] is a stream of bytes to and from
//! the host; [`socket`] has the sockets that it can be.
#![cfg_attr(test, allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed"))]
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod block;
pub mod chardev;
pub mod socket;
pub mod tap;

#[cfg(test)]
mod test_guest;

/// The host's words for an error, without Rust's "(os error N)".
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" (os error ").map_or(text.clone(), |(words, _)| words.to_owned())
}
