//! A network namespace for a test, in which root can have taps.

use std::io::{self, Write};
use std::process::Command;

use backend::tap::{Tap, TapError};

/// The guest's MAC address.
pub const GUEST_MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
/// The MAC address that [`set_up`] gives the host's end of a tap.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs `ip ARGUMENTS` and says whether it went well.
#[must_use]
pub fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

/// Runs `test` on a thread in a network of its own. Where that cannot be had, says so, past the test harness,
/// which shows the output of failures only.
///
/// # Panics
/// If the test does.
pub fn in_network(test: impl FnOnce() + Send) {
    let run = || {
        #[expect(deprecated, reason = "another network changes nothing that safe code relies on")]
        let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        if unshared.is_err() {
            return skip("cannot have a network namespace (needs root)");
        }
        if !ip("link set lo up") {
            return skip("no ip(8)");
        }
        // IPv6 sends frames of its own accord, in the middle of a test.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap_or_default();
        if let Err(TapError::Device(reason)) = Tap::open("probe", 1) {
            return skip(&format!("no taps here: {reason}"));
        }
        test();
    };
    let ended = std::thread::scope(|scope| scope.spawn(run).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn skip(why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED: a network device on a tap: {why}");
}

/// Gives the host's end of tap `name` the address 192.0.2.1 and [`HOST_MAC`], and tells it that 192.0.2.2 is at
/// [`GUEST_MAC`].
///
/// # Panics
/// If `ip` refuses.
pub fn set_up(name: &str) {
    assert!(ip(&format!("link set {name} address {}", mac(HOST_MAC))));
    assert!(ip(&format!("addr add 192.0.2.1/24 dev {name}")));
    assert!(ip(&format!("link set {name} up")));
    assert!(ip(&format!("neigh add 192.0.2.2 lladdr {} dev {name}", mac(GUEST_MAC))));
}

/// A MAC address as it is written.
#[must_use]
pub fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// A UDP datagram from port 9 of the guest, 192.0.2.2, to port `port` of 192.0.2.1, in an Ethernet frame.
#[must_use]
pub fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [HOST_MAC, GUEST_MAC].concat();
    frame.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    header[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend(header);
    frame.extend(9u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}
