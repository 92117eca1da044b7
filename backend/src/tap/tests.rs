use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use domain::Gpa;
use memory::Pin;

use super::*;
use crate::test_guest::{memory, pin};

const MIB: u64 = 1 << 20;

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

/// Runs `test` on a thread in a network of its own, where root can have taps.
fn in_network(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: changes only which namespaces this thread is in.
        if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
            eprintln!("SKIPPED: cannot have a network namespace (needs root)");
            return;
        }
        let mount = |arguments: &[&str]| {
            Command::new("mount").args(arguments).status().is_ok_and(|status| status.success())
        };
        // sysfs shows the network of whoever mounted it.
        if !mount(&["--make-rprivate", "/"])
            || !mount(&["-t", "sysfs", "sysfs", "/sys"])
            || !ip("link set lo up")
        {
            eprintln!("SKIPPED: no mount(8) or ip(8)");
            return;
        }
        if let Err(TapError::Device(reason)) = Tap::open("probe", 1) {
            eprintln!("SKIPPED: no taps here: {reason}");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

/// Reads, waiting for a frame that `wanted` likes.
fn read_until(tap: &Tap, receive: &Receive, mut wanted: impl FnMut(usize) -> bool) -> usize {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match tap.read(receive) {
            Ok(len) if wanted(len) => return len,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "no frame came");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A UDP datagram from 192.0.2.2 to port `port` of 192.0.2.1, with Ethernet and vnet headers.
fn datagram(destination: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend(destination);
    frame.extend([2, 0, 0, 0, 0, 2, 8, 0]);
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    header[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(header);
    frame.extend(9u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

#[test]
fn frames_go_both_ways() {
    in_network(|| {
        let taps = Tap::open("test%d", 1).unwrap();
        let [tap] = &taps[..] else { panic!("one tap") };
        assert_eq!(tap.name(), "test0");
        assert!(ip("link set test0 address 02:00:00:00:00:01"));
        assert!(ip("addr add 192.0.2.1/24 dev test0"));
        tap.interface().bring_up().unwrap();
        tap.interface().bring_up().unwrap();
        assert!(ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev test0"));
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: tap.has_uso() };
        tap.set_offloads(all).unwrap();
        tap.set_enabled(true).unwrap();

        let guest = memory(4 * MIB);
        let socket = UdpSocket::bind("192.0.2.1:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

        // To the host, from memory in three pieces.
        let frame = datagram([2, 0, 0, 0, 0, 1], 7, b"hello, host");
        guest.write(Gpa(0x1000), &frame[..5]).unwrap();
        guest.write(Gpa(0x3000), &frame[5..30]).unwrap();
        guest.write(Gpa(0x5ff0), &frame[30..]).unwrap();
        let pieces = [(0x1000, 5), (0x3000, 25), (0x5ff0, frame.len() - 30)];
        tap.write(&pin(&guest, Pin::Read, &pieces)).unwrap();
        let mut bytes = [0; 64];
        let len = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"hello, host");

        // From the host, into buffers too small for it: it goes on in the next one.
        socket.send_to(&[0x5a; 1000], "192.0.2.2:7").unwrap();
        let mut receive = Receive::new();
        assert!(receive.is_empty() && receive.pop().is_none());
        for index in 0..8 {
            receive.push(pin(&guest, Pin::Write, &[(0x10_0000 + index * 0x1000, 256)]));
        }
        assert_eq!((receive.len(), receive.bytes()), (8, 2048));
        let len = read_until(tap, &receive, |len| len == VNET_HEADER + 42 + 1000);
        let mut whole = Vec::new();
        while whole.len() < len {
            let buffer = receive.pop().unwrap();
            let mut piece = vec![0; buffer.len()];
            buffer.copy_to(0, &mut piece);
            whole.extend(piece);
        }
        assert_eq!(whole[len - 1000..len], [0x5a; 1000]);
        assert_eq!((receive.len(), receive.bytes()), (3, 768));
        assert_eq!(receive.vectors().len(), 3);

        // Too short to be a frame, and a header that makes no sense.
        assert!(tap.write(&pin(&guest, Pin::Read, &[(0x1000, 5)])).is_err());
        guest.write(Gpa(0x1000), &[1, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).unwrap();
        assert!(tap.write(&pin(&guest, Pin::Read, &[(0x1000, 12), (0x3000, 64)])).is_err());

        assert!(ip("link delete test0"));
        assert!(tap.read(&receive).is_err());
        assert_ne!(tap.read(&receive).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn queues() {
    in_network(|| {
        let taps = Tap::open("many", 4).unwrap();
        assert_eq!(taps.len(), 4);
        assert!(taps.iter().all(|tap| tap.name() == "many"));
        for tap in &taps[1..] {
            tap.set_enabled(false).unwrap();
            tap.set_enabled(false).unwrap();
            tap.set_enabled(true).unwrap();
        }
        // With one queue the tap stays as others made it.
        drop(taps);
        assert!(ip("tuntap add dev kept mode tap multi_queue vnet_hdr"));
        assert_eq!(Tap::open("kept", 1).unwrap().len(), 1);
        assert!(Tap::open("kept", 2).is_ok());
        assert!(matches!(Tap::open("kept", 0), Err(TapError::Queues(0))));
        assert!(matches!(Tap::open("kept", 257), Err(TapError::Queues(257))));
    });
}

#[test]
fn busy_and_foreign() {
    in_network(|| {
        let held = Tap::open("busy", 1).unwrap();
        assert_eq!(
            Tap::open("busy", 1).unwrap_err().to_string(),
            "could not configure /dev/net/tun (busy): Device or resource busy"
        );
        let again = Tap::from_fd(held.into_iter().next().unwrap().file).unwrap();
        assert_eq!(again.name(), "busy");
        assert!(matches!(Tap::open("lo", 1), Err(TapError::Configure { .. })));
    });
}

#[test]
fn bridges() {
    in_network(|| {
        let tap = Tap::open("port", 1).unwrap().remove(0);
        if !ip("link add br0 type bridge") || !ip("link add br1 type bridge") {
            eprintln!("SKIPPED: no bridges in this kernel");
            return;
        }
        tap.interface().join_bridge("br0").unwrap();
        tap.interface().join_bridge("br0").unwrap();
        assert_eq!(
            tap.interface().join_bridge("br1").unwrap_err().to_string(),
            "could not add 'port' to bridge 'br1': it is a port of 'br0' already"
        );
        let missing = tap.interface().join_bridge("br7").unwrap_err().to_string();
        assert_eq!(missing, "could not add 'port' to bridge 'br7': No such device");
    });
}

#[test]
fn descriptors_that_are_no_taps() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let number = file.as_raw_fd();
    let error = Tap::from_fd(file.into()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("file descriptor {number} is not a tap with a vnet header (IFF_TAP, IFF_VNET_HDR)")
    );
    assert_eq!(
        Tap::from_number(99_999).unwrap_err().to_string(),
        "Can't use file descriptor 99999: Bad file descriptor"
    );
    assert!(matches!(Tap::from_number(-1), Err(TapError::Descriptor { .. })));
    assert!(matches!(Tap::from_number(1), Err(TapError::Descriptor { .. })));
}

#[test]
fn names() {
    for bad in ["", "1234567890123456", "a/b", "a b", "a:b", ".", "..", "a\0b", "a\n"] {
        assert!(matches!(Tap::open(bad, 1), Err(TapError::Name(name)) if name == bad), "{bad:?}");
    }
    assert_eq!(InterfaceName::new("vif3.0-emu").unwrap().to_string(), "vif3.0-emu");
    assert_eq!(InterfaceName::new("123456789012345").unwrap().to_string(), "123456789012345");
}

#[test]
fn offload_bits() {
    let none = Offloads::default();
    assert_eq!(none.bits(), 0);
    assert_eq!(Offloads { tso4: true, uso: true, ..none }.bits(), 0, "nothing goes without checksums");
    assert_eq!(Offloads { checksum: true, ecn: true, ..none }.bits(), 1, "ECN only goes with TSO");
    assert_eq!(Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true }.bits(), 0x6f);
}

#[test]
fn receive_keeps_its_vectors_in_order() {
    let guest = memory(4 * MIB);
    let mut receive = Receive::new();
    for round in 0..3000u64 {
        receive.push(pin(&guest, Pin::Write, &[(round % 64 * 4096, 100), (round % 64 * 4096 + 200, 50)]));
        if round >= 40 {
            assert_eq!(receive.pop().unwrap().len(), 150);
            assert_eq!(receive.vectors().len(), 2 * receive.len());
            let first = receive.first().unwrap().iovecs()[0].iov_base;
            assert_eq!(receive.vectors()[0].iov_base, first);
        }
    }
    while receive.pop_last().is_some() {
        assert_eq!(receive.bytes(), 150 * receive.len());
    }
    for _ in 0..600 {
        receive.push(pin(&guest, Pin::Write, &[(0, 100), (200, 50)]));
    }
    assert!(receive.is_full());
    assert_eq!(receive.vectors().len(), 1024);
}
