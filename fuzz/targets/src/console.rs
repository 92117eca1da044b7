//! The console device: what a driver says of its ports, and bytes both ways, which must stay in order.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use backend::chardev::Socket;
use backend::socket::Listener;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};
use virtio::console::{Console, FEATURE_MULTIPORT, Port};
use virtio::{
    Device, FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Queue, QueueState, Queues, Wake, Worker,
};

use crate::guest::Guest;
use crate::ring::{Descriptor, Ring, SPAN};

const RAM: u64 = 4 << 20;
const RINGS: u64 = 0x8000;
const MESSAGE: u64 = 0x2_0000;
const BYTES: u64 = 0x3_0000;
const BUFFERS: u64 = 0x4_0000;
/// Bytes of RAM for the buffers of one queue.
const ROOM: u64 = 0x4_0000;
const PORTS: u16 = 3;
const QUEUES: usize = 8;
const TELL: usize = 2;
const HEAR: usize = 3;

#[derive(Arbitrary, Debug)]
enum Step {
    Say {
        port: u8,
        event: u8,
        value: u8,
        len: u8,
    },
    /// The guest sends.
    Send {
        second: bool,
        len: u16,
        cut: u16,
    },
    Buffers {
        queue: u8,
        count: u8,
        len: u16,
    },
    /// The host sends.
    Host {
        len: u16,
    },
    /// The host reads.
    Read {
        len: u16,
    },
    Call,
    HangUp,
    Emergency {
        offset: u8,
        byte: u8,
    },
    Chain {
        queue: u8,
        descriptors: Vec<Descriptor>,
    },
    Punch(u16),
    Refill(u16),
    Invalidate,
    Reset {
        multiport: bool,
    },
}

/// Bytes that count, so that a gap shows.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u64,
    /// The byte that must come next; `None` if some may be missing.
    next: Option<u8>,
}

impl Count {
    fn make(&mut self, len: usize) -> Vec<u8> {
        let bytes = (self.sent..).take(len).map(|index| (index % 251) as u8).collect();
        self.sent += len as u64;
        bytes
    }

    fn check(&mut self, bytes: &[u8]) {
        for byte in bytes {
            assert!(self.next.is_none_or(|next| next == *byte), "{self:?}, but {byte} came");
            self.next = Some(if *byte == 250 { 0 } else { byte + 1 });
        }
    }
}

struct Bench {
    guest: Guest,
    address: SocketAddrUnix,
    peer: Option<OwnedFd>,
    /// A caller has left since the last start, whose last words may have been lost.
    left: bool,
    console: Console,
    /// What is at the other end of the console, which nobody reads.
    _terminal: UnixStream,
    worker: Option<Box<dyn Worker>>,
    queues: Queues,
    rings: Vec<Ring>,
    features: u64,
    /// Since the last start the driver did something that no driver does.
    odd: bool,
    to_host: Count,
    to_guest: Count,
}

/// Plays the driver and the host to a console device.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut bench = Bench::new();
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        bench.play(step);
    }
    let Bench { guest, queues, worker, .. } = bench;
    drop((queues, worker));
    guest.memory.invalidate();
    assert_eq!(guest.sim.mapped_frames(), 0, "mappings are left over");
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket")
}

/// What there is to read, if anything.
fn receive(peer: &OwnedFd, most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    let (count, _) = recv(peer, bytes.as_mut_slice(), RecvFlags::DONTWAIT).ok()?;
    bytes.truncate(count);
    (count > 0).then_some(bytes)
}

impl Bench {
    fn new() -> Bench {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("console-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("a name");
        let socket = socket();
        bind(&socket, &address).expect("an address");
        let listener = Listener::inherit(socket.as_raw_fd()).expect("a listener");
        let (ours, terminal) = UnixStream::pair().expect("a pair of sockets");
        let port = |number, console, name: &str, host| Port {
            number,
            console,
            name: name.to_owned(),
            host: Mutex::new(Box::new(host)),
        };
        let ports = vec![
            port(0, true, "", Socket::client(ours.into())),
            port(1, false, "org.fuzz.0", Socket::server(listener)),
        ];
        let mut bench = Bench {
            guest: Guest::new(RAM),
            address,
            peer: None,
            left: false,
            console: Console::new(PORTS, ports).expect("a device"),
            _terminal: terminal,
            worker: None,
            queues: Queues::new(),
            rings: Vec::new(),
            features: 0,
            odd: false,
            to_host: Count::default(),
            to_guest: Count::default(),
        };
        bench.restart(true);
        bench
    }

    /// Resets the device and starts all queues over empty rings.
    fn restart(&mut self, multiport: bool) {
        self.guest.refill_all();
        // As Xen has us do when pages are others than before.
        self.guest.memory.invalidate();
        if let Some(mut worker) = self.worker.take() {
            for index in 0..QUEUES {
                let _ = worker.drain(&mut self.queues, index);
            }
        }
        self.console.reset();
        let without = if multiport { 0 } else { FEATURE_MULTIPORT };
        self.features = self.console.spec().features & !without
            | FEATURE_VERSION_1
            | FEATURE_EVENT_IDX
            | FEATURE_INDIRECT;
        (self.rings, self.queues, self.odd) = (Vec::new(), Queues::new(), false);
        (self.to_host.next, self.to_guest.next) = (None, None);
        // Of what the guest was sending some may be missing from here on.
        while self.peer.as_ref().is_some_and(|peer| receive(peer, 0x1_0000).is_some()) {}
        // Without messages the guest's end is always open, and last words are there to be read.
        self.left &= !multiport;
        for index in 0..QUEUES {
            let ring = Ring::new(RINGS + index as u64 * SPAN, 6);
            self.guest.put(ring.layout.descriptors.0, &[0; SPAN as usize]);
            let (memory, state) = (self.guest.memory.clone(), QueueState::initial(self.features));
            let queue = Queue::new(memory, ring.layout, self.features, state, Box::new(|| {}));
            self.queues.insert(index, queue.expect("a good ring"));
            self.rings.push(ring);
        }
        let worker = self.console.worker(0, self.features, &self.guest.memory);
        self.worker = Some(worker.expect("a worker"));
        if multiport {
            self.buffers(TELL, 8, 64);
            self.say(0, 0, 1, 8);
            self.say(1, 3, 1, 8);
            self.say(1, 6, 1, 8);
        }
    }

    /// Does what the loop around a worker does, until there is nothing to do.
    fn work(&mut self) {
        for _ in 0..1000 {
            let Some(worker) = &mut self.worker else { return };
            worker.woken(&[true]);
            let mut again = false;
            for index in 0..QUEUES {
                match worker.serve(&mut self.queues, index) {
                    Ok(wake) => again |= wake == Wake::Again,
                    Err(_) => {
                        assert!(self.odd || !self.guest.is_whole(), "a good driver breaks queue {index}");
                        let multiport = self.features & FEATURE_MULTIPORT != 0;
                        return self.restart(multiport);
                    }
                }
            }
            if !again {
                return self.take_received();
            }
        }
        panic!("it never rests");
    }

    /// Looks at what came in the guest's buffers.
    fn take_received(&mut self) {
        for index in 0..QUEUES {
            while let Some((head, len)) = self.rings[index].take_used(&self.guest) {
                let at = BUFFERS + index as u64 * ROOM + u64::from(head) * 0x1000;
                if index == 4 && !self.odd && !self.left {
                    let bytes = self.guest.bytes(at, len as usize);
                    bytes.iter().for_each(|bytes| self.to_guest.check(bytes));
                }
            }
        }
    }

    /// Chains that the driver has not got back.
    fn in_flight(&self, queue: usize) -> u16 {
        self.rings[queue].available.wrapping_sub(self.rings[queue].used)
    }

    fn buffers(&mut self, queue: usize, count: u8, len: u32) {
        for _ in 0..count {
            let head = self.rings[queue].available % 64;
            let at = BUFFERS + queue as u64 * ROOM + u64::from(head) * 0x1000;
            self.rings[queue].chain(&self.guest, head, &[(at, len, true)]);
            self.rings[queue].offer(&self.guest, head);
        }
    }

    fn say(&mut self, port: u8, event: u8, value: u8, len: u32) {
        self.guest.put(MESSAGE, &[port, 0, 0, 0, event, 0, value, 0]);
        self.rings[HEAR].chain(&self.guest, 0, &[(MESSAGE, len.max(1), false)]);
        self.rings[HEAR].offer(&self.guest, 0);
        self.work();
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Say { port, event, value, len } => {
                let len = if len < 0xe0 { 8 } else { u32::from(len) % 16 };
                self.say(port % 4, event % 9, value % 2, len);
            }
            Step::Send { second, len, cut } => {
                let (queue, at) = if second { (5, BYTES) } else { (1, BYTES + 0x8000) };
                // Until the driver has the last chain back, its bytes stay.
                if self.in_flight(queue) > 0 {
                    return self.work();
                }
                let len = usize::from(len % 0x4000);
                let bytes = if second { self.to_host.make(len) } else { vec![b'x'; len] };
                self.guest.put(at, &bytes);
                let cut = usize::from(cut).min(len);
                let mut parts = vec![(at, cut as u32, false), (at + cut as u64, (len - cut) as u32, false)];
                parts.retain(|part| part.1 > 0);
                if parts.is_empty() {
                    return;
                }
                self.rings[queue].chain(&self.guest, 0, &parts);
                self.rings[queue].offer(&self.guest, 0);
                self.work();
            }
            Step::Buffers { queue, count, len } => {
                let queue = [0, TELL, 4, 6][usize::from(queue) % 4];
                // More than there are descriptors would be odd.
                let count = u16::from(count % 32).min(64u16.saturating_sub(self.in_flight(queue)));
                self.buffers(queue, count as u8, u32::from(len % 0x1000).max(1));
                self.work();
            }
            Step::Host { len } => {
                if let Some(peer) = &self.peer {
                    let mut count = self.to_guest;
                    let bytes = count.make(usize::from(len));
                    let sent = send(peer, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0);
                    self.to_guest.sent += sent as u64;
                }
                self.work();
            }
            Step::Read { len } => {
                if let Some(bytes) = self.peer.as_ref().and_then(|peer| receive(peer, len.into()))
                    && !self.odd
                {
                    self.to_host.check(&bytes);
                }
                self.work();
            }
            Step::Call => {
                if self.peer.is_none() {
                    let socket = socket();
                    // Too many may wait already.
                    self.peer = connect(&socket, &self.address).is_ok().then_some(socket);
                    self.to_host.next = None;
                }
                self.work();
            }
            Step::HangUp => {
                self.left |= self.peer.take().is_some();
                self.work();
            }
            Step::Emergency { offset, byte } => {
                self.console.write_config(usize::from(offset % 12), &[byte]);
            }
            Step::Chain { queue, descriptors } => {
                let queue = usize::from(queue) % QUEUES;
                self.odd = true;
                for d in &descriptors {
                    let table = self.rings[queue].layout.descriptors.0;
                    d.write(&self.guest, table, u16::from(d.index) % 64, d.next % 65);
                }
                let head = descriptors.first().map_or(0, |first| u16::from(first.index));
                self.rings[queue].offer(&self.guest, head);
                self.work();
            }
            Step::Punch(page) => {
                self.guest.punch(page.into());
                self.odd = true;
            }
            Step::Refill(page) => self.guest.refill(page.into()),
            Step::Invalidate => self.guest.memory.invalidate(),
            Step::Reset { multiport } => self.restart(multiport),
        }
    }
}
