use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use backend::tap::TapError;
use domain::Gpa;

use super::control::{Command as Wish, parse};
use super::*;
use crate::device::{Queues, Sources, Wake};
use crate::queue::{Chain, FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use crate::testing::{Ring, guest};

const HEADER: usize = backend::tap::VNET_HEADER;
const RINGS: u64 = 0x10_0000;
const DATA: u64 = 0x40_0000;
const CONTROL: u64 = 0x80_0000;
const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
/// Descriptors of the host's tap itself, as in `ip link`.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

/// Runs `test` on a thread in a network of its own, where root can have taps.
fn in_network(test: fn()) {
    let thread = std::thread::spawn(move || {
        #[expect(deprecated, reason = "another network changes nothing that safe code relies on")]
        let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        if unshared.is_err() {
            eprintln!("SKIPPED: cannot have a network namespace (needs root)");
            return;
        }
        if !ip("link set lo up") {
            eprintln!("SKIPPED: no ip(8)");
            return;
        }
        // IPv6 sends frames of its own accord, in the middle of a test.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap_or_default();
        if let Err(TapError::Device(reason)) = Tap::open("probe", 1) {
            eprintln!("SKIPPED: no taps here: {reason}");
            return;
        }
        test();
    });
    thread.join().unwrap();
}

/// A device on a tap whose host end is 192.0.2.1, and the driver's end of all its queues.
struct Bench {
    net: Net,
    memory: GuestMemory,
    workers: Vec<Box<dyn Worker>>,
    queues: Vec<Queues>,
    rings: Vec<Ring>,
    control: usize,
}

impl Bench {
    fn new(pairs: usize, without: u64, ring_size: u16) -> Bench {
        let taps = Tap::open("tap0", pairs).unwrap();
        assert!(ip("link set tap0 address 02:00:00:00:00:01"));
        assert!(ip("addr add 192.0.2.1/24 dev tap0"));
        taps[0].interface().bring_up().unwrap();
        assert!(ip("neigh add 192.0.2.2 lladdr 00:16:3e:01:02:03 dev tap0"));
        let net = Net::new(&NetConfig { mtu: Some(1500), ..NetConfig::new(MAC) }, taps).unwrap();
        let features = net.spec().features & !without | FEATURE_VERSION_1 | FEATURE_EVENT_IDX;
        let (sim, memory) = guest();
        let control = net.0.control_queue(features);
        let rings: Vec<_> =
            (0..=control).map(|index| Ring::new(&sim, RINGS + index as u64 * 0x1_0000, ring_size)).collect();
        let mut queues: Vec<_> = (0..pairs).map(|_| Queues::new()).collect();
        for (index, ring) in rings.iter().enumerate() {
            let (mut queue, _) = ring.queue(&memory, features);
            queue.grant(u32::MAX);
            queues[net.spec().queues[index].worker].insert(index, queue);
        }
        let workers = (0..pairs).map(|index| net.worker(index, features, &memory).unwrap()).collect();
        Bench { net, memory, workers, queues, rings, control }
    }

    fn serve(&mut self, index: usize) -> Wake {
        let worker = self.net.spec().queues[index].worker;
        self.workers[worker].serve(&mut self.queues[worker], index).unwrap()
    }

    /// How many descriptors worker `index` waits for besides the doorbell.
    fn waits(&self, index: usize) -> usize {
        let doorbell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut sources = Sources::new(rustix::fd::AsFd::as_fd(&doorbell));
        self.workers[index].sources(&self.queues[index], &mut sources);
        sources.as_poll().len() - 1
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.rings[0].sim.ram_write(Gpa(at), bytes);
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rings[0].sim.ram_read(Gpa(at), &mut bytes);
        bytes
    }

    /// Offers receive buffers of `len` bytes as chains `heads`.
    fn offer_buffers(&mut self, heads: std::ops::Range<u16>, len: u32) {
        for head in heads {
            self.rings[0].chain(head, &[(DATA + u64::from(head) * 4096, len, true)]);
            self.rings[0].offer(head);
        }
    }

    /// Serves the receive queue until the driver has a frame of `wanted` bytes of payload: its buffers.
    fn receive(&mut self, wanted: usize) -> Vec<(u32, u32)> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            self.serve(0);
            while let Some(first) = self.rings[0].take_used() {
                let mut frame = vec![first];
                let count = self.get(DATA + u64::from(first.0) * 4096 + 10, 2);
                let count = u16::from_le_bytes(count.try_into().unwrap());
                assert!(count >= 1);
                for _ in 1..count {
                    frame.push(self.rings[0].take_used().expect("all buffers of a frame come at once"));
                }
                let total: usize = frame.iter().map(|(_, len)| *len as usize).sum();
                if total == HEADER + 42 + wanted {
                    return frame;
                }
            }
            assert!(Instant::now() < end, "no frame came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.put(CONTROL, bytes);
        self.put(CONTROL + 4096, &[0xee]);
        let control = self.control;
        // Class and command in a descriptor of their own, as Linux has it.
        let cut = bytes.len().min(2);
        let mut parts = vec![(CONTROL, cut as u32, false)];
        if bytes.len() > cut {
            parts.push((CONTROL + cut as u64, (bytes.len() - cut) as u32, false));
        }
        parts.push((CONTROL + 4096, 1, true));
        self.rings[control].chain(0, &parts);
        self.rings[control].offer(0);
        assert_eq!(self.serve(control), Wake::Kick);
        assert_eq!(self.rings[control].take_used(), Some((0, 1)));
        self.get(CONTROL + 4096, 1)[0]
    }
}

/// A UDP datagram from the guest to port 7 of the host, with Ethernet and vnet headers.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(HOST_MAC);
    frame.extend(MAC);
    frame.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    header[2..4].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(header);
    frame.extend([0, 9, 0, 7]);
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("192.0.2.1:7").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

#[test]
fn transmit() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 64);
        let socket = socket();
        let frame = datagram(b"hello, host");
        bench.put(DATA, &frame);
        let len = frame.len() as u32;
        // Whole, and in pieces that cut the header.
        bench.rings[1].chain(0, &[(DATA, len, false)]);
        bench.rings[1].chain(4, &[(DATA, 5, false), (DATA + 5, 20, false), (DATA + 25, len - 25, false)]);
        // Shorter than the header, header only, nothing readable, and longer than any frame.
        bench.rings[1].chain(8, &[(DATA, 11, false)]);
        bench.rings[1].chain(9, &[(DATA, 12, false)]);
        bench.rings[1].chain(10, &[(DATA, 64, true)]);
        bench.rings[1].chain(11, &[(DATA, 65566, false)]);
        // Offloads that make no sense.
        bench.put(DATA + 0x2_0000, &[1, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        bench.put(DATA + 0x2_000c, &frame[12..]);
        bench.rings[1].chain(12, &[(DATA + 0x2_0000, len, false)]);
        for head in [8, 9, 10, 11, 12, 0, 4] {
            bench.rings[1].offer(head);
        }
        assert_eq!(bench.serve(1), Wake::Kick);
        for head in [8, 9, 10, 11, 12, 0, 4] {
            assert_eq!(bench.rings[1].take_used(), Some((head, 0)));
        }
        let mut bytes = [0; 64];
        for _ in 0..2 {
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"hello, host");
        }
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut bytes).is_err());
        bench.workers[0].drain(&mut bench.queues[0], 1).unwrap();
        assert_eq!(bench.queues[0].get(1).unwrap().in_flight(), 0);
    });
}

#[test]
fn receive_into_several_buffers() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        let socket = socket();
        // Nothing to read into: the tap is left alone.
        assert_eq!(bench.serve(0), Wake::Kick);
        assert_eq!(bench.waits(0), 0);
        bench.offer_buffers(0..200, 1536);
        assert_eq!(bench.waits(0), 0);
        while bench.serve(0) == Wake::Again {}
        assert_eq!(bench.serve(0), Wake::Source);
        assert_eq!(bench.waits(0), 1);

        for size in [1, 1000, 1472] {
            let payload: Vec<u8> = (0..size).map(|index| index as u8).collect();
            socket.send_to(&payload, "192.0.2.2:7").unwrap();
            let frame = bench.receive(size);
            assert_eq!(frame.len(), 1);
            let (head, len) = frame[0];
            let read = bench.get(DATA + u64::from(head) * 4096, len as usize);
            assert_eq!(&read[len as usize - size..], &payload[..]);
            assert_eq!(&read[HEADER..HEADER + 6], &MAC);
        }
        // What is staged is given back, in order, and nothing is lost.
        let held = bench.queues[0].get(0).unwrap().in_flight();
        assert!(held > 0);
        bench.workers[0].drain(&mut bench.queues[0], 0).unwrap();
        let queue = bench.queues[0].get(0).unwrap();
        assert_eq!(queue.in_flight(), 0);
        assert_eq!(queue.state().next_avail, queue.state().next_used);
        socket.send_to(&[1; 77], "192.0.2.2:7").unwrap();
        bench.receive(77);
    });
}

#[test]
fn large_frames_fill_many_buffers() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        let socket = socket();
        bench.offer_buffers(0..200, 256);
        // All of them do not hold the longest frame: more than half of the ring is ours, so go on.
        let payload: Vec<u8> = (0..1400u32).map(|index| (index / 3) as u8).collect();
        while bench.serve(0) == Wake::Again {}
        socket.send_to(&payload, "192.0.2.2:7").unwrap();
        let frame = bench.receive(payload.len());
        assert_eq!(frame.len(), (HEADER + 42 + payload.len()).div_ceil(256));
        let mut read = Vec::new();
        for (head, len) in frame {
            read.extend(bench.get(DATA + u64::from(head) * 4096, len as usize));
        }
        assert_eq!(&read[HEADER + 42..], &payload[..]);
    });
}

#[test]
fn the_longest_frames() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        assert!(ip("link set tap0 mtu 65521"));
        let socket = socket();
        // Too few for the longest frame: it waits.
        bench.offer_buffers(0..42, 1536);
        let payload: Vec<u8> = (0..65400u32).map(|index| (index / 5) as u8).collect();
        socket.send_to(&payload, "192.0.2.2:7").unwrap();
        assert_eq!(bench.serve(0), Wake::Kick);
        assert_eq!(bench.rings[0].take_used(), None);
        bench.offer_buffers(42..90, 1536);
        let frame = bench.receive(payload.len());
        assert_eq!(frame.len(), (HEADER + 42 + payload.len()).div_ceil(1536));
        let mut read = Vec::new();
        for (head, len) in frame {
            read.extend(bench.get(DATA + u64::from(head) * 4096, len as usize));
        }
        assert!(read[HEADER + 42..] == payload[..]);
    });
}

/// A driver may give fewer buffers than the longest frame would fill.
#[test]
fn receive_into_few_buffers() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        let socket = socket();
        bench.offer_buffers(0..1, 1536);
        assert_eq!(bench.serve(0), Wake::Source);
        assert_eq!(bench.waits(0), 1, "the one may be enough for what comes");
        let payload: Vec<u8> = (0..1400u32).map(|index| (index / 3) as u8).collect();
        socket.send_to(&payload[..500], "192.0.2.2:7").unwrap();
        assert_eq!(bench.receive(500), [(0, (HEADER + 42 + 500) as u32)]);
        assert_eq!(bench.get(DATA + 10, 2), [1, 0]);
        assert_eq!(&bench.get(DATA + (HEADER + 42) as u64, 500), &payload[..500]);

        // One that is longer waits for more of them, and the next for it.
        bench.offer_buffers(1..3, 600);
        socket.send_to(&payload, "192.0.2.2:7").unwrap();
        socket.send_to(&payload[..77], "192.0.2.2:7").unwrap();
        assert_eq!(bench.serve(0), Wake::Kick);
        assert_eq!(bench.waits(0), 0, "only the driver can help");
        assert_eq!(bench.rings[0].take_used(), None);
        bench.offer_buffers(3..5, 600);
        let frame = bench.receive(payload.len());
        assert_eq!(frame, [(1, 600), (2, 600), (3, (HEADER + 42 + 1400 - 1200) as u32)]);
        assert_eq!(bench.get(DATA + 4096 + 10, 2), [3, 0]);
        let mut read = Vec::new();
        for (head, len) in frame {
            read.extend(bench.get(DATA + u64::from(head) * 4096, len as usize));
        }
        assert_eq!(&read[HEADER + 42..], &payload[..]);
        assert_eq!(bench.receive(77)[0].0, 4);

        // A queue that stops has no frame left over for its next life.
        bench.offer_buffers(5..6, 600);
        socket.send_to(&payload, "192.0.2.2:7").unwrap();
        assert_eq!(bench.serve(0), Wake::Kick);
        bench.workers[0].drain(&mut bench.queues[0], 0).unwrap();
        assert_eq!(bench.queues[0].get(0).unwrap().in_flight(), 0);
        socket.send_to(&payload[..66], "192.0.2.2:7").unwrap();
        assert_eq!(bench.receive(66)[0].0, 5);
    });
}

#[test]
fn receive_without_mergeable_buffers() {
    in_network(|| {
        let mut bench = Bench::new(1, FEATURE_MRG_RXBUF, 16);
        let socket = socket();
        // Useless ones come back at once, but in their turn.
        bench.rings[0].chain(14, &[(DATA, 11, true)]);
        bench.rings[0].offer(14);
        bench.offer_buffers(0..2, 2048);
        bench.rings[0].offer(14);
        let payload = [0x42; 500];
        socket.send_to(&payload, "192.0.2.2:7").unwrap();
        assert_ne!(bench.serve(0), Wake::Again);
        assert_eq!(bench.rings[0].take_used(), Some((14, 0)));
        let (head, len) = bench.receive(500)[0];
        assert_eq!((head, len), (0, (HEADER + 42 + 500) as u32));
        assert_eq!(bench.get(DATA + 10, 2), [1, 0]);
        socket.send_to(&payload[..300], "192.0.2.2:7").unwrap();
        let (head, _) = bench.receive(300)[0];
        assert_eq!(head, 1);
        assert_eq!(bench.serve(0), Wake::Kick, "the driver has to give us more");
        assert_eq!(bench.rings[0].take_used(), Some((14, 0)));
        assert_eq!(bench.queues[0].get(0).unwrap().in_flight(), 0);
    });
}

#[test]
fn the_memory_map_changes_under_staged_buffers() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        let socket = socket();
        bench.offer_buffers(0..100, 1536);
        while bench.serve(0) == Wake::Again {}
        // The first buffers get other pages at the same address.
        for head in 0..100u64 {
            bench.rings[0].sim.refill((Gpa(DATA + head * 4096)).frame());
        }
        bench.memory.invalidate();
        socket.send_to(&[0x77; 600], "192.0.2.2:7").unwrap();
        let (head, len) = bench.receive(600)[0];
        let read = bench.get(DATA + u64::from(head) * 4096, len as usize);
        assert_eq!(&read[HEADER + 42..], [0x77; 600]);
    });
}

#[test]
fn link_down_stops_frames() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        let socket = socket();
        let generation = bench.net.config().generation();
        bench.offer_buffers(0..100, 1536);
        bench.net.set_link(false);
        assert!(!bench.net.link());
        assert_ne!(bench.net.config().generation(), generation);
        let status = |bench: &Bench| {
            let mut bytes = [0; 2];
            bench.net.config().read(CONFIG_STATUS, &mut bytes);
            u16::from_le_bytes(bytes)
        };
        assert_eq!(status(&bench), 0);
        assert_eq!(bench.serve(0), Wake::Source);
        let frame = datagram(b"lost");
        bench.put(DATA + 0x20_0000, &frame);
        bench.rings[1].chain(0, &[(DATA + 0x20_0000, frame.len() as u32, false)]);
        bench.rings[1].offer(0);
        bench.serve(1);
        assert_eq!(bench.rings[1].take_used(), Some((0, 0)));
        assert_eq!(bench.rings[0].take_used(), None);
        assert_eq!(bench.waits(0), 1, "waits to be told");

        bench.net.set_link(true);
        assert_eq!(status(&bench), 1);
        socket.send_to(&[1; 99], "192.0.2.2:7").unwrap();
        bench.receive(99);
        bench.rings[1].offer(0);
        bench.serve(1);
        let mut bytes = [0; 16];
        assert_eq!(socket.recv(&mut bytes).unwrap(), 4);
    });
}

#[test]
fn a_tap_that_is_gone() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 256);
        bench.offer_buffers(0..100, 1536);
        while bench.serve(0) == Wake::Again {}
        assert!(ip("link delete tap0"));
        assert_eq!(bench.serve(0), Wake::Source);
        let frame = datagram(b"lost");
        bench.put(DATA + 0x20_0000, &frame);
        bench.rings[1].chain(0, &[(DATA + 0x20_0000, frame.len() as u32, false)]);
        bench.rings[1].offer(0);
        assert_eq!(bench.serve(1), Wake::Kick);
        assert_eq!(bench.rings[1].take_used(), Some((0, 0)));
        // It does not poll what will never be ready, or always is.
        let doorbell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut sources = Sources::new(rustix::fd::AsFd::as_fd(&doorbell));
        bench.workers[0].sources(&bench.queues[0], &mut sources);
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(sources.as_poll(), Some(&now)).unwrap(), 0);
        bench.workers[0].drain(&mut bench.queues[0], 0).unwrap();
        bench.net.reset();
    });
}

#[test]
fn several_pairs() {
    in_network(|| {
        let mut bench = Bench::new(2, 0, 256);
        assert_eq!((bench.control, bench.rings.len()), (4, 5));
        assert!(bench.net.0.is_live(0) && !bench.net.0.is_live(1));
        assert_eq!(bench.serve(2), Wake::Source);
        assert_eq!(bench.waits(1), 1);
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        assert!(bench.net.0.is_live(1));
        assert_eq!(bench.serve(2), Wake::Kick);
        assert_eq!(bench.waits(1), 0, "no buffers yet");
        assert_eq!(bench.command(&[4, 0, 0, 0]), 1);
        assert_eq!(bench.command(&[4, 0, 3, 0]), 1);
        assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
        assert!(!bench.net.0.is_live(1));
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        bench.net.reset();
        assert!(bench.net.0.is_live(0) && !bench.net.0.is_live(1));
    });
}

/// A driver without multiqueue knows of three queues (virtio 1.3 §5.1.2).
#[test]
fn the_control_queue_moves_without_multiqueue() {
    in_network(|| {
        let mut bench = Bench::new(2, FEATURE_MQ, 64);
        assert_eq!(bench.control, 2);
        assert_eq!(bench.net.spec().queues[2].worker, 1);
        assert_eq!(bench.command(&[0, 0, 1]), 0);
        assert_eq!(bench.command(&[4, 0, 1, 0]), 1);
        // Its worker hears of revivals through whichever queue it has.
        assert_eq!(bench.waits(1), 1);
        bench.workers[1].drain(&mut bench.queues[1], 2).unwrap();
    });
}

#[test]
fn commands() {
    in_network(|| {
        let mut bench = Bench::new(1, 0, 64);
        let mac = |bench: &Bench| {
            let mut bytes = [0; 6];
            bench.net.config().read(0, &mut bytes);
            bytes
        };
        assert_eq!(bench.command(&[1, 1, 2, 3, 4, 5, 6, 7]), 0);
        assert_eq!(mac(&bench), [2, 3, 4, 5, 6, 7]);
        assert_eq!(bench.command(&[1, 1, 2, 3, 4, 5, 6]), 1);
        assert_eq!(bench.command(&[5, 0, 0x83, 1, 0, 0, 0, 0, 0, 0]), 1, "bit 0 is not one of the guest's");
        assert_eq!(bench.command(&[5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(bench.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(bench.command(&[]), 1);
        bench.net.reset();
        assert_eq!(mac(&bench), MAC);

        // No room for an answer, and nothing at all: given back.
        let control = bench.control;
        bench.rings[control].chain(3, &[(CONTROL, 2, false)]);
        bench.rings[control].offer(3);
        bench.serve(control);
        assert_eq!(bench.rings[control].take_used(), Some((3, 0)));
    });
}

#[test]
fn configuration_bytes() {
    in_network(|| {
        let taps = Tap::open("tap0", 3).unwrap();
        let uso = taps[0].has_uso();
        let options = NetConfig { mtu: Some(9000), tx_queue_size: 512, ..NetConfig::new(MAC) };
        let net = Net::new(&options, taps).unwrap();
        let mut bytes = [0; 16];
        net.config().read(0, &mut bytes);
        assert_eq!(net.config().len(), 12);
        assert_eq!(bytes[..12], [0, 0x16, 0x3e, 1, 2, 3, 1, 0, 3, 0, 0x28, 0x23]);
        let queues: Vec<_> = net.spec().queues.iter().map(|queue| (queue.max_size, queue.worker)).collect();
        assert_eq!(queues, [(256, 0), (512, 0), (256, 1), (512, 1), (256, 2), (512, 2), (64, 0)]);
        assert_eq!((net.spec().id, net.spec().class), (1, 0x02_00_00));
        assert_eq!(net.spec().features, features(3, &options, uso));
        assert!(Net::new(&options, Vec::new()).is_err());
    });
}

#[test]
fn feature_bits() {
    // 0, 1, 2, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19, 23.
    let plain = NetConfig::new([0; 6]);
    let with_mtu = NetConfig { mtu: Some(9000), ..plain.clone() };
    let with_speed = NetConfig { speed: Some((1000, true)), ..plain.clone() };
    assert_eq!(features(1, &plain, false), 0x8f_bba7);
    assert_eq!(features(1, &with_mtu, false), 0x8f_bbaf);
    assert_eq!(features(1, &with_speed, false), 0x8f_bba7 | 1 << 63);
    assert_eq!(features(2, &plain, true), 0x8f_bba7 | 1 << 22 | 1 << 54 | 1 << 55 | 1 << 56);
}

#[test]
fn parsing_commands() {
    let (sim, memory) = guest();
    let all = features(4, &NetConfig { mtu: Some(9000), ..NetConfig::new([0; 6]) }, true);
    let run = |features: u64, bytes: &[u8]| {
        let mut ring = Ring::new(&sim, RINGS, 4);
        ring.set_available(0);
        let (mut queue, _) = ring.queue(&memory, FEATURE_VERSION_1);
        sim.ram_write(Gpa(CONTROL), bytes);
        ring.chain(0, &[(CONTROL, bytes.len() as u32, false)]);
        ring.offer(0);
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        parse(&mut chain.reader(&memory), features, 4).ok().flatten()
    };
    let table = |unicast: u32, multicast: u32, bytes: usize| {
        let mut table = vec![1, 0];
        table.extend(unicast.to_le_bytes());
        table.extend(vec![0; unicast.min(100) as usize * 6]);
        table.extend(multicast.to_le_bytes());
        table.extend(vec![0; bytes]);
        table
    };
    let good: [(Vec<u8>, u64, Wish); 12] = [
        (vec![0, 0, 1], FEATURE_CTRL_RX, Wish::Noted),
        (vec![0, 1, 0], FEATURE_CTRL_RX, Wish::Noted),
        (table(0, 0, 0), FEATURE_CTRL_RX, Wish::Noted),
        (table(2, 3, 18), FEATURE_CTRL_RX, Wish::Noted),
        (table(100, 1, 6), FEATURE_CTRL_RX, Wish::Noted),
        (vec![1, 1, 1, 2, 3, 4, 5, 6], FEATURE_CTRL_MAC_ADDR, Wish::Mac([1, 2, 3, 4, 5, 6])),
        (vec![2, 0, 0xff, 0x0f], FEATURE_CTRL_VLAN, Wish::Noted),
        (vec![2, 1, 0, 0], FEATURE_CTRL_VLAN, Wish::Noted),
        (vec![4, 0, 4, 0], FEATURE_MQ, Wish::Pairs(4)),
        (vec![4, 0, 1, 0], FEATURE_MQ, Wish::Pairs(1)),
        (vec![5, 0, 2, 0, 0, 0, 0, 0, 0, 0], FEATURE_CTRL_GUEST_OFFLOADS, Wish::Offloads(2)),
        (vec![5, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0], FEATURE_CTRL_GUEST_OFFLOADS, Wish::Offloads(0xc0 << 48)),
    ];
    for (bytes, feature, wish) in good {
        assert_eq!(run(all, &bytes), Some(wish), "{bytes:?}");
        assert_eq!(run(all & !feature, &bytes), None, "not negotiated: {bytes:?}");
        assert_eq!(run(all, &bytes[..bytes.len() - 1]), None, "short: {bytes:?}");
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(run(all, &longer), None, "long: {bytes:?}");
    }
    let bad = [
        vec![0],
        vec![0, 2, 1],
        vec![1, 2],
        table(u32::MAX, 0, 0),
        table(0, u32::MAX, 12),
        table(1 << 30, 1 << 30, 0),
        vec![2, 2, 0, 0],
        vec![2, 0, 0, 0x10],
        vec![3, 0],
        vec![4, 0, 0, 0],
        vec![4, 0, 5, 0],
        vec![4, 1, 0, 0, 0, 0],
        vec![5, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        vec![5, 0, 0, 4, 0, 0, 0, 0, 0, 0],
        vec![6, 0],
        vec![0xff, 0xff],
    ];
    for bytes in bad {
        assert_eq!(run(all, &bytes), None, "{bytes:?}");
    }
}
