//! The network device: commands, frames sent and frames received, on a socket in place of a tap.

use std::os::fd::OwnedFd;

use arbitrary::{Arbitrary, Unstructured};
use backend::tap::{Tap, VNET_HEADER};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use virtio::net::{Net, NetConfig};
use virtio::{
    Device, FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Queue, QueueState, Queues, Worker,
};

use crate::guest::Guest;
use crate::ring::{Descriptor, Ring, SPAN};

const RAM: u64 = 4 << 20;
const RINGS: u64 = 0x8000;
const COMMAND: u64 = 0x2_0000;
const ACK: u64 = 0x2_1fff;
const FRAME: u64 = 0x1f_8000;
const BUFFERS: u64 = 0x4_0000;
const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
/// The longest frame with its header that goes out.
const MAX_FRAME: usize = VNET_HEADER + 14 + 4 + 65535;
const PAIRS: usize = 2;
const UNTOUCHED: u8 = 0xee;

#[derive(Arbitrary, Debug)]
struct Setup {
    without: u64,
    mtu: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Command {
        class: u8,
        command: u8,
        body: Vec<u8>,
        cut: u8,
        room: u8,
    },
    Mac([u8; 6]),
    Pairs(u16),
    Offloads(u64),
    Send {
        pair: bool,
        header: [u8; 12],
        len: Length,
        fill: u8,
        cuts: [u16; 2],
    },
    Buffers {
        pair: bool,
        count: u8,
        len: u16,
    },
    /// A frame comes from the host.
    Receive {
        pair: bool,
        header: [u8; 12],
        len: u16,
        fill: u8,
    },
    Chain {
        queue: u8,
        descriptors: Vec<Descriptor>,
    },
    Link(bool),
    Punch(u16),
    Refill(u16),
    Invalidate,
    Reset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Short(u8),
    Long(u16),
    /// Around the longest frame.
    Edge(i8),
}

impl Length {
    fn get(self) -> usize {
        match self {
            Length::Short(len) => len.into(),
            Length::Long(len) => len.into(),
            Length::Edge(by) => MAX_FRAME.saturating_add_signed(by.into()),
        }
    }
}

struct Bench {
    guest: Guest,
    peers: Vec<OwnedFd>,
    net: Net,
    features: u64,
    /// The queue of commands.
    control: usize,
    rings: Vec<Ring>,
    workers: Vec<Box<dyn Worker>>,
    queues: Vec<Queues>,
    link: bool,
    active: usize,
    /// Since the last start the driver did something that no driver does.
    odd: bool,
    /// Frames of the host's that found no buffers, for each pair: what comes next is not what was sent last.
    backlog: [bool; PAIRS],
}

fn socket() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("a pair of sockets")
}

/// A network device of `pairs` queue pairs, and the other ends of them.
pub(crate) fn device(pairs: usize, mtu: Option<u16>) -> (Net, Vec<OwnedFd>) {
    let (ours, peers): (Vec<_>, Vec<_>) = (0..pairs).map(|_| socket()).unzip();
    let taps = ours.into_iter().map(Tap::stand_in).collect();
    let net = Net::new(&NetConfig { mtu, ..NetConfig::new(MAC) }, taps).expect("a device");
    (net, peers)
}

/// Takes the next frame that went out.
pub(crate) fn sent(peer: &OwnedFd, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(MAX_FRAME + 1, 0);
    match rustix::net::recv(peer, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((len, _)) => {
            buffer.truncate(len);
            true
        }
        Err(_) => false,
    }
}

/// Has a frame come from the host.
pub(crate) fn send(peer: &OwnedFd, frame: &[u8]) -> bool {
    rustix::net::send(peer, frame, SendFlags::DONTWAIT).is_ok()
}

/// Plays the driver and the host to a network device.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut input) else { return };
    let mut bench = Bench::new(&setup);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        bench.play(step);
    }
    let Bench { guest, queues, workers, .. } = bench;
    drop((queues, workers));
    guest.memory.invalidate();
    assert_eq!(guest.sim.mapped_frames(), 0, "mappings are left over");
}

impl Bench {
    fn new(setup: &Setup) -> Bench {
        let guest = Guest::new(RAM);
        let (net, peers) = device(PAIRS, setup.mtu);
        let features =
            net.spec().features & !setup.without | FEATURE_VERSION_1 | FEATURE_EVENT_IDX | FEATURE_INDIRECT;
        const MQ: u64 = 1 << 22;
        let control = if features & MQ != 0 { 2 * PAIRS } else { 2 };
        let mut bench = Bench {
            guest,
            peers,
            net,
            features,
            control,
            rings: Vec::new(),
            workers: Vec::new(),
            queues: Vec::new(),
            link: true,
            active: 1,
            odd: false,
            backlog: [false; PAIRS],
        };
        bench.restart();
        bench
    }

    fn worker_of(&self, queue: usize) -> usize {
        self.net.spec().queues[queue].worker
    }

    /// Resets the device and starts all queues over empty rings.
    fn restart(&mut self) {
        self.guest.refill_all();
        for index in 0..self.rings.len() {
            let worker = self.worker_of(index);
            let _ = self.workers[worker].drain(&mut self.queues[worker], index);
        }
        self.workers.clear();
        self.net.reset();
        self.active = 1;
        self.odd = false;
        self.guest.memory.invalidate();
        self.rings.clear();
        self.queues = (0..PAIRS).map(|_| Queues::new()).collect();
        for index in 0..=self.control {
            let ring = Ring::new(RINGS + index as u64 * SPAN, 6);
            self.guest.put(ring.layout.descriptors.0, &[0; SPAN as usize]);
            let memory = self.guest.memory.clone();
            let queue = Queue::new(
                memory,
                ring.layout,
                self.features,
                QueueState::initial(self.features),
                Box::new(|| {}),
            );
            let worker = self.worker_of(index);
            self.queues[worker].insert(index, queue.expect("a good ring"));
            self.rings.push(ring);
        }
        for index in 0..PAIRS {
            let worker = self.net.worker(index, self.features, &self.guest.memory);
            self.workers.push(worker.expect("a worker"));
        }
    }

    /// Serves a queue; starts over if it is broken.
    fn serve(&mut self, queue: usize) -> bool {
        let worker = self.worker_of(queue);
        let served = self.workers[worker].serve(&mut self.queues[worker], queue).is_ok();
        if !served {
            self.restart();
        }
        served
    }

    /// Receive and transmit queue of a pair, where there are two.
    fn pair(&self, second: bool) -> (usize, usize, usize) {
        let pair = usize::from(second && self.control > 2);
        (pair, pair * 2, pair * 2 + 1)
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Command { class, command, body, cut, room } => {
                let bytes: Vec<u8> = [class, command].into_iter().chain(body).collect();
                self.command(&bytes, cut.into(), room > 3);
                if let [4, 0, count @ (1 | 2), 0] = bytes[..]
                    && self.control > 2
                {
                    self.active = count.into();
                }
            }
            Step::Mac(mac) => {
                let bytes: Vec<u8> = [1, 1].into_iter().chain(mac).collect();
                if self.command(&bytes, 2, true) == Some(0) {
                    let mut now = [0; 6];
                    self.net.config().read(0, &mut now);
                    assert_eq!(now, mac);
                }
            }
            Step::Pairs(count) => {
                let [a, b] = count.to_le_bytes();
                if self.command(&[4, 0, a, b], 2, true) == Some(0) {
                    assert!((1..=PAIRS).contains(&usize::from(count)));
                    self.active = count.into();
                }
            }
            Step::Offloads(bits) => {
                let bytes: Vec<u8> = [5, 0].into_iter().chain(bits.to_le_bytes()).collect();
                if self.command(&bytes, 2, true) == Some(0) {
                    assert_eq!(bits & !self.features, 0, "offloads that were not negotiated");
                }
            }
            Step::Send { pair, header, len, fill, cuts } => self.send(pair, &header, len.get(), fill, cuts),
            Step::Buffers { pair, count, len } => {
                let (_, rx, _) = self.pair(pair);
                for _ in 0..count % 16 {
                    let head = self.rings[rx].available % 64;
                    let at = BUFFERS + rx as u64 * 0x8_0000 + u64::from(head) * 0x2000;
                    self.rings[rx].chain(&self.guest, head, &[(at, u32::from(len % 0x2000).max(1), true)]);
                    self.rings[rx].offer(&self.guest, head);
                }
                self.serve(rx);
            }
            Step::Receive { pair, header, len, fill } => self.receive(pair, &header, len.into(), fill),
            Step::Chain { queue, descriptors } => {
                let queue = usize::from(queue) % self.rings.len();
                self.odd = true;
                for d in &descriptors {
                    let table = self.rings[queue].layout.descriptors.0;
                    d.write(&self.guest, table, u16::from(d.index) % 64, d.next % 65);
                }
                let head = descriptors.first().map_or(0, |first| u16::from(first.index));
                self.rings[queue].offer(&self.guest, head);
                if self.serve(queue) {
                    while self.rings[queue].take_used(&self.guest).is_some() {}
                }
                let mut rest = Vec::new();
                self.peers.iter().for_each(|peer| while sent(peer, &mut rest) {});
            }
            Step::Link(up) => {
                self.net.set_link(up);
                self.link = up;
                assert_eq!(self.net.link(), up);
            }
            Step::Punch(page) => {
                self.guest.punch(page.into());
                self.odd = true;
            }
            Step::Refill(page) => self.guest.refill(page.into()),
            Step::Invalidate => self.guest.memory.invalidate(),
            Step::Reset => {
                self.restart();
                let mut mac = [0; 6];
                self.net.config().read(0, &mut mac);
                assert_eq!(mac, MAC);
            }
        }
    }

    /// Starts over if the driver did something that no driver does.
    fn tidy(&mut self) {
        if !self.guest.is_whole() || self.odd {
            self.restart();
        }
    }

    /// Gives a command; the answer, if there is room for one.
    fn command(&mut self, bytes: &[u8], cut: usize, room: bool) -> Option<u8> {
        self.tidy();
        self.guest.put(COMMAND, bytes);
        self.guest.put(ACK, &[UNTOUCHED]);
        let cut = cut.min(bytes.len());
        let mut parts = vec![
            (COMMAND, cut as u32, false),
            (COMMAND + cut as u64, (bytes.len() - cut) as u32, false),
            (ACK, u32::from(room), true),
        ];
        parts.retain(|part| part.1 > 0);
        let control = self.control;
        let head = 32;
        self.rings[control].chain(&self.guest, head, &parts);
        self.rings[control].offer(&self.guest, head);
        assert!(self.serve(control), "a well-formed chain breaks the queue");
        assert_eq!(self.rings[control].take_used(&self.guest), Some((head.into(), u32::from(room))));
        let [ack] = self.guest.get(ACK).expect("the answer");
        assert!(if room { ack <= 1 } else { ack == UNTOUCHED });
        room.then_some(ack)
    }

    /// Sends a frame; it must come out as it went in, or not at all.
    fn send(&mut self, second: bool, header: &[u8; 12], len: usize, fill: u8, cuts: [u16; 2]) {
        self.tidy();
        let (pair, _, tx) = self.pair(second);
        let mut frame = vec![fill; len];
        for (to, from) in frame.iter_mut().zip(header) {
            *to = *from;
        }
        self.guest.put(FRAME, &frame);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut).min(len)).collect();
        ends.extend([0, len]);
        ends.sort_unstable();
        let part = |pair: &[usize]| (FRAME + pair[0] as u64, (pair[1] - pair[0]) as u32, false);
        let mut parts: Vec<_> = ends.windows(2).map(part).filter(|part| part.1 > 0).collect();
        if parts.is_empty() {
            parts.push((FRAME, 1, true));
        }
        self.rings[tx].chain(&self.guest, 0, &parts);
        self.rings[tx].offer(&self.guest, 0);
        assert!(self.serve(tx), "a well-formed chain breaks the queue");
        assert_eq!(self.rings[tx].take_used(&self.guest), Some((0, 0)));
        let live = self.link && pair < self.active;
        let mut out = Vec::new();
        let arrived = sent(&self.peers[pair], &mut out);
        assert_eq!(arrived, live && (VNET_HEADER..=MAX_FRAME).contains(&len));
        assert!(!arrived || out == frame, "a frame was changed");
    }

    /// A frame comes from the host; the buffers it fills must hold it.
    fn receive(&mut self, second: bool, header: &[u8; 12], len: usize, fill: u8) {
        let (pair, rx, _) = self.pair(second);
        let mut frame = vec![fill; len.max(VNET_HEADER)];
        frame[..VNET_HEADER].copy_from_slice(header);
        if !self.guest.is_whole() || !self.serve(rx) {
            return;
        }
        while self.rings[rx].take_used(&self.guest).is_some() {}
        if !send(&self.peers[pair], &frame) || !self.serve(rx) {
            self.backlog[pair] = true;
            return;
        }
        let mut got = Vec::new();
        let mut buffers = 0u16;
        while let Some((head, len)) = self.rings[rx].take_used(&self.guest) {
            let at = BUFFERS + rx as u64 * 0x8_0000 + u64::from(head) * 0x2000;
            let Some(bytes) = self.guest.bytes(at, len as usize) else { break };
            got.extend(bytes);
            buffers += 1;
        }
        if got.is_empty() {
            self.backlog[pair] = true;
        }
        if self.odd || self.backlog[pair] {
            return;
        }
        // Cut off where the buffers were too short; the count of buffers is ours to write.
        let told = got.get(10..12).map(|count| u16::from_le_bytes([count[0], count[1]]));
        assert!(told.is_none_or(|told| told == buffers), "{told:?} of {buffers} buffers");
        let same = |at: usize| matches!(at, 10 | 11) || got.get(at) == frame.get(at);
        assert!(got.len() <= frame.len() && (0..got.len()).all(same), "a frame was changed");
    }
}
