use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use backend::chardev::{Plain, Socket};
use backend::socket::Listener;
use domain::Gpa;
use tempfile::TempDir;

use super::*;
use crate::device::{Queues, Sources, Wake};
use crate::queue::{FEATURE_EVENT_IDX, FEATURE_VERSION_1};
use crate::testing::{RAM, Ring, guest};

const RINGS: u64 = 0x10_0000;
const DATA: u64 = 0x40_0000;
const TELL: usize = 2;
const HEAR: usize = 3;

/// A device with a console on port 0 and `org.test` on port 1, each on a connection, and the driver's end of all.
struct Bench {
    console: Console,
    worker: Box<dyn Worker>,
    queues: Queues,
    rings: Vec<Ring>,
    hosts: [UnixStream; 2],
    memory: GuestMemory,
    features: u64,
}

fn port(number: u16, console: bool, name: &str, host: impl Chardev + 'static) -> Port {
    Port { number, console, name: name.to_owned(), host: Mutex::new(Box::new(host)) }
}

fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Socket::client(ours.into()), theirs)
}

impl Bench {
    fn new(without: u64) -> Bench {
        let ((first, host), (second, other)) = (pair(), pair());
        Bench::with(
            without,
            vec![port(0, true, "", first), port(1, false, "org.test", second)],
            [host, other],
        )
    }

    fn with(without: u64, ports: Vec<Port>, hosts: [UnixStream; 2]) -> Bench {
        let console = Console::new(3, ports).unwrap();
        let features = console.spec().features & !without | FEATURE_VERSION_1 | FEATURE_EVENT_IDX;
        let (sim, memory) = guest();
        let rings: Vec<_> = (0..8).map(|index| Ring::new(&sim, RINGS + index * 0x1_0000, 32)).collect();
        let worker = console.worker(0, features, &memory).unwrap();
        let mut bench = Bench { console, worker, queues: Queues::new(), rings, hosts, memory, features };
        bench.start();
        bench
    }

    fn start(&mut self) {
        for (index, ring) in self.rings.iter().enumerate() {
            let (mut queue, _) = ring.queue(&self.memory, self.features);
            queue.grant(u32::MAX);
            self.queues.insert(index, queue);
        }
    }

    /// What the loop on the worker's thread does: everything that can be done now.
    fn run(&mut self) {
        for _ in 0..1000 {
            let ready = {
                let doorbell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
                let mut sources = Sources::new(doorbell.as_fd());
                self.worker.sources(&self.queues, &mut sources);
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                rustix::event::poll(sources.as_poll(), Some(&now)).unwrap() > 0
            };
            self.worker.woken(&[ready]);
            let wakes: Vec<_> = (0..self.rings.len()).map(|index| self.serve(index)).collect();
            if !ready && !wakes.contains(&Wake::Again) {
                return;
            }
        }
        panic!("it never rests");
    }

    fn serve(&mut self, index: usize) -> Wake {
        self.worker.serve(&mut self.queues, index).unwrap()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.rings[0].sim.ram_write(Gpa(at), bytes);
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rings[0].sim.ram_read(Gpa(at), &mut bytes);
        bytes
    }

    fn at(queue: usize, head: u16) -> u64 {
        DATA + queue as u64 * 0x10_0000 + u64::from(head) * 4096
    }

    /// Offers buffers of `len` bytes as chains `heads` of a queue.
    fn offer(&mut self, queue: usize, heads: std::ops::Range<u16>, len: u32) {
        for head in heads {
            self.rings[queue].chain(head, &[(Bench::at(queue, head), len, true)]);
            self.rings[queue].offer(head);
        }
    }

    /// What was received on a queue since this was last asked, chain by chain.
    fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some((head, len)) = self.rings[queue].take_used() {
            all.push(self.get(Bench::at(queue, head as u16), len as usize));
        }
        all
    }

    fn send(&mut self, queue: usize, head: u16, bytes: &[u8]) {
        self.put(Bench::at(queue, head), bytes);
        self.rings[queue].chain(head, &[(Bench::at(queue, head), bytes.len() as u32, false)]);
        self.rings[queue].offer(head);
    }

    /// The driver says something; all that it is told for it.
    fn say(&mut self, port: u32, event: u16, value: u16) -> Vec<(u32, u16, u16, Vec<u8>)> {
        self.send(HEAR, 0, &message(port, event, value));
        self.run();
        assert_eq!(self.rings[HEAR].take_used(), Some((0, 0)));
        self.told()
    }

    fn told(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let told = self.received(TELL).into_iter().map(|raw| {
            let short = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
            (u32::from(short(0)) | u32::from(short(2)) << 16, short(4), short(6), raw[8..].to_vec())
        });
        told.collect()
    }

    /// A driver that has both ports and opened them.
    fn set_up(&mut self) {
        self.offer(TELL, 0..20, 64);
        self.say(0, 0, 1);
        for number in 0..2 {
            self.say(number, 3, 1);
            self.say(number, 6, 1);
        }
    }

    fn heard(&mut self, host: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match self.hosts[host].read(&mut piece) {
                Ok(0) => return bytes,
                Ok(count) => bytes.extend(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn what_it_is() {
    let bench = Bench::new(0);
    let spec = bench.console.spec();
    assert_eq!((spec.id, spec.class, spec.features), (3, 0x07_80_00, 6));
    let sizes: Vec<_> = spec.queues.iter().map(|queue| (queue.max_size, queue.worker)).collect();
    assert_eq!(sizes, [128, 128, 32, 32, 128, 128, 128, 128].map(|size| (size, 0)));
    let mut config = [0xff; 12];
    bench.console.config().read(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let null = |number| port(number, false, "", Plain::null());
    assert_eq!(Console::new(0, vec![]).err(), Some(ConsoleError::Ports(0)));
    assert_eq!(Console::new(32, vec![]).err(), Some(ConsoleError::Ports(32)));
    assert_eq!(Console::new(2, vec![null(2)]).err(), Some(ConsoleError::Number(2)));
    assert_eq!(Console::new(2, vec![null(1), null(1)]).err(), Some(ConsoleError::Number(1)));
    let one = Console::new(1, vec![]).unwrap();
    assert_eq!((one.spec().features, one.spec().queues.len()), (4, 4));
    assert_eq!(Console::new(31, vec![]).unwrap().spec().queues.len(), 64);
}

#[test]
fn ports_are_made_known() {
    let mut bench = Bench::new(0);
    bench.offer(TELL, 0..20, 64);
    bench.run();
    assert_eq!(bench.told(), [], "not before the driver is ready");
    assert_eq!(bench.say(0, 0, 1), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    assert_eq!(bench.say(0, 3, 1), [(0, 4, 1, vec![]), (0, 6, 1, vec![])]);
    assert_eq!(bench.say(1, 3, 1), [(1, 7, 1, b"org.test".to_vec()), (1, 6, 1, vec![])]);
    assert_eq!(bench.say(1, 6, 1), []);
    // What makes no sense changes nothing.
    for (port, event, value) in [(2, 3, 1), (3, 6, 1), (u32::MAX, 3, 1), (0, 1, 1), (1, 99, 7), (0, 0, 0)] {
        assert_eq!(bench.say(port, event, value), [], "{port} {event} {value}");
    }
    bench.send(HEAR, 0, &message(0, 3, 1)[..7]);
    bench.rings[HEAR].chain(1, &[(DATA, 64, true)]);
    bench.rings[HEAR].offer(1);
    bench.run();
    assert_eq!(bench.rings[HEAR].take_used(), Some((0, 0)));
    assert_eq!(bench.rings[HEAR].take_used(), Some((1, 0)));
    assert_eq!(bench.told(), []);
}

#[test]
fn what_the_driver_has_no_room_for_is_told_later() {
    let mut bench = Bench::new(0);
    // However often it asks, no more is told than there is.
    for _ in 0..50 {
        assert_eq!(bench.say(0, 0, 1), []);
        assert_eq!(bench.say(1, 3, 1), []);
    }
    assert_eq!(bench.serve(TELL), Wake::Kick);
    bench.offer(TELL, 0..1, 7);
    bench.offer(TELL, 1..3, 8);
    bench.run();
    assert_eq!(bench.rings[TELL].take_used(), Some((0, 0)));
    assert_eq!(bench.told(), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    bench.offer(TELL, 3..4, 15);
    bench.offer(TELL, 4..6, 16);
    bench.run();
    assert_eq!(bench.rings[TELL].take_used(), Some((3, 0)));
    assert_eq!(bench.told(), [(1, 7, 1, b"org.test".to_vec()), (1, 6, 1, vec![])]);
    assert_eq!(bench.serve(TELL), Wake::Source, "there is nothing to tell");
}

#[test]
fn bytes_go_both_ways() {
    let mut bench = Bench::new(0);
    bench.set_up();
    bench.offer(0, 0..4, 4096);
    bench.offer(4, 0..4, 5);
    bench.hosts[0].write_all(b"root\n").unwrap();
    bench.hosts[1].write_all(b"guest-ping").unwrap();
    bench.run();
    assert_eq!(bench.received(0), [b"root\n".to_vec()]);
    assert_eq!(bench.received(4), [b"guest".to_vec(), b"-ping".to_vec()]);
    bench.send(1, 0, b"login: ");
    // A chain of several pieces, some of them not to be read, and one of nothing.
    bench.put(DATA, b"return");
    bench.rings[5].chain(0, &[(DATA, 2, false), (DATA + 2, 4, false), (DATA + 0x100, 4, true)]);
    bench.rings[5].chain(3, &[(DATA + 0x100, 4, true)]);
    bench.rings[5].offer(3);
    bench.rings[5].offer(0);
    // A port that is not there.
    bench.send(7, 0, b"lost");
    bench.offer(6, 0..1, 64);
    bench.run();
    assert_eq!(bench.heard(0), b"login: ");
    assert_eq!(bench.heard(1), b"return");
    assert_eq!(bench.rings[5].take_used(), Some((3, 0)));
    assert_eq!(bench.rings[5].take_used(), Some((0, 0)));
    assert_eq!(bench.rings[7].take_used(), Some((0, 0)));
    assert_eq!(bench.rings[6].take_used(), None);
    // Buffers for nothing come back.
    bench.rings[0].chain(9, &[(DATA, 4, false)]);
    bench.received(0);
    let mut fresh = Bench::new(0);
    fresh.set_up();
    fresh.rings[0].chain(9, &[(DATA, 4, false)]);
    fresh.rings[0].offer(9);
    fresh.run();
    assert_eq!(fresh.rings[0].take_used(), Some((9, 0)));
}

#[test]
fn what_the_guest_has_no_room_for_stays_with_the_host() {
    let mut bench = Bench::new(0);
    bench.offer(TELL, 0..20, 64);
    bench.offer(4, 0..2, 16);
    bench.hosts[1].write_all(b"0123456789").unwrap();
    bench.say(0, 0, 1);
    bench.say(1, 3, 1);
    assert_eq!(bench.received(4), Vec::<Vec<u8>>::new(), "the guest has not opened the port");
    bench.say(1, 6, 1);
    assert_eq!(bench.received(4), [b"0123456789".to_vec()]);
    let mut sent = 0;
    while let Ok(count) = bench.hosts[1].write(&[7; 4096]) {
        sent += count;
        bench.run();
    }
    assert_eq!(bench.received(4), [vec![7; 16]]);
    assert_eq!(bench.serve(4), Wake::Kick);
    bench.rings[4].take_used();
    let mut got = 16;
    while got < sent {
        for _ in 0..8 {
            let head = bench.rings[4].available % 32;
            bench.offer(4, head..head + 1, 4096);
        }
        bench.run();
        got += bench.received(4).iter().map(Vec::len).sum::<usize>();
    }
    assert_eq!(got, sent);
}

#[test]
fn what_the_host_does_not_take_stays_with_the_guest() {
    let mut bench = Bench::new(0);
    bench.set_up();
    let pattern: Vec<u8> = (0..4096u32).map(|index| (index / 5) as u8).collect();
    let mut wanted = Vec::new();
    for head in 0..8 {
        bench.put(Bench::at(5, head * 2), &pattern);
    }
    // Chains of 128 KiB each, so that one is cut wherever the host stops.
    let mut offered = 0;
    let chain: Vec<_> = (0..32).map(|index| (Bench::at(5, index % 8 * 2), 4096, false)).collect();
    while offered < 64 {
        bench.rings[5].chain(0, &chain);
        bench.rings[5].offer(0);
        offered += 1;
        wanted.extend((0..32).flat_map(|_| &pattern));
        bench.run();
        if bench.rings[5].take_used().is_none() {
            break;
        }
    }
    assert!(offered < 64, "the host takes everything");
    assert_eq!(bench.serve(5), Wake::Source);
    assert_eq!(bench.queues.get(5).unwrap().in_flight(), 0);
    let mut heard = Vec::new();
    while heard.len() < wanted.len() {
        let more = bench.heard(1);
        assert!(!more.is_empty(), "{} of {}", heard.len(), wanted.len());
        heard.extend(more);
        bench.run();
    }
    assert!(heard == wanted);
    assert_eq!(bench.rings[5].take_used(), Some((0, 0)));

    // A console's driver cannot wait.
    bench.rings[1].chain(0, &chain);
    for _ in 0..20 {
        bench.rings[1].offer(0);
        bench.run();
        assert_eq!(bench.rings[1].take_used(), Some((0, 0)));
    }
    let heard = bench.heard(0);
    assert!(!heard.is_empty() && heard.len() < 20 * 32 * 4096);

    // Stopped in the middle, a queue has nothing left over for its next life.
    loop {
        bench.rings[5].offer(0);
        bench.run();
        if bench.rings[5].take_used().is_none() {
            break;
        }
    }
    bench.worker.drain(&mut bench.queues, 5).unwrap();
    bench.queues.remove(5);
    let sim = bench.rings[5].sim.clone();
    bench.rings[5] = Ring::new(&sim, RINGS + 0x8_0000, 32);
    let (mut queue, _) = bench.rings[5].queue(&bench.memory, bench.features);
    queue.grant(u32::MAX);
    bench.queues.insert(5, queue);
    bench.heard(1);
    bench.send(5, 0, b"new");
    bench.run();
    assert!(bench.heard(1).ends_with(b"new"));
}

fn server(directory: &TempDir) -> (Socket, PathBuf) {
    let path = directory.path().join("socket");
    (Socket::server(Listener::bind(&path).unwrap()), path)
}

#[test]
fn callers_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, path) = server(&directory);
    let unused = UnixStream::pair().unwrap();
    let ports = vec![port(1, false, "", socket)];
    let mut bench = Bench::with(0, ports, unused.into());
    bench.offer(TELL, 0..20, 64);
    bench.offer(4, 0..20, 64);
    assert_eq!(bench.say(0, 0, 1), [(1, 1, 1, vec![])]);
    assert_eq!(bench.say(1, 3, 1), [], "nobody is there");
    bench.say(1, 6, 1);
    bench.send(5, 0, b"lost");
    bench.run();
    assert_eq!(bench.rings[5].take_used(), Some((0, 0)));
    for round in 0..3 {
        let mut caller = UnixStream::connect(&path).unwrap();
        bench.run();
        assert_eq!(bench.told(), [(1, 6, 1, vec![])], "{round}");
        caller.write_all(b"ping").unwrap();
        bench.run();
        assert_eq!(bench.received(4), [b"ping".to_vec()]);
        bench.send(5, 0, b"pong");
        bench.run();
        let mut bytes = [0; 4];
        caller.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"pong");
        caller.write_all(b"bye").unwrap();
        drop(caller);
        bench.run();
        assert_eq!(bench.received(4), [b"bye".to_vec()]);
        assert_eq!(bench.told(), [(1, 6, 0, vec![])], "{round}");
        bench.rings[5].take_used();
    }
    // The next waits for the one before, and the driver hears of both.
    let first = UnixStream::connect(&path).unwrap();
    bench.run();
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"me").unwrap();
    bench.run();
    assert_eq!(bench.told(), [(1, 6, 1, vec![])]);
    drop(first);
    bench.run();
    assert_eq!(bench.told(), [(1, 6, 0, vec![]), (1, 6, 1, vec![])]);
    assert_eq!(bench.received(4), [b"me".to_vec()]);
    // With the guest's end closed nobody reads what those say who leave.
    assert_eq!(bench.say(1, 6, 0), []);
    second.write_all(b"lost").unwrap();
    drop(second);
    bench.run();
    assert_eq!(bench.told(), [(1, 6, 0, vec![])]);
    let _third = UnixStream::connect(&path).unwrap();
    bench.run();
    assert_eq!(bench.told(), [(1, 6, 1, vec![])]);
    assert_eq!(bench.received(4), Vec::<Vec<u8>>::new());
}

#[test]
fn without_control_queues() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, path) = server(&directory);
    let ports = vec![port(0, true, "", socket)];
    let mut bench = Bench::with(FEATURE_MULTIPORT, ports, UnixStream::pair().unwrap().into());
    for index in 2..8 {
        bench.queues.remove(index);
    }
    bench.offer(0, 0..20, 64);
    for _ in 0..3 {
        let mut caller = UnixStream::connect(&path).unwrap();
        caller.write_all(b"ls\n").unwrap();
        bench.run();
        assert_eq!(bench.received(0), [b"ls\n".to_vec()]);
        bench.send(1, 0, b"bin etc");
        bench.run();
        assert_eq!(bench.rings[1].take_used(), Some((0, 0)));
        let mut bytes = [0; 7];
        caller.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"bin etc");
        drop(caller);
        bench.run();
    }
}

/// The driver is reset; the host's end is as it was.
#[test]
fn a_new_worker_takes_over() {
    let mut bench = Bench::new(0);
    bench.set_up();
    bench.hosts[1].write_all(b"early").unwrap();
    bench.worker = bench.console.worker(0, bench.features, &bench.memory).unwrap();
    bench.offer(4, 0..2, 64);
    bench.run();
    assert_eq!(bench.received(4), Vec::<Vec<u8>>::new());
    bench.set_up();
    bench.run();
    assert_eq!(bench.received(4), [b"early".to_vec()]);
}

#[test]
fn a_byte_in_an_emergency() {
    let mut bench = Bench::new(0);
    for (offset, bytes) in [(8, &[b'!', 0, 0, 0][..]), (8, b"?"), (9, b"x"), (0, b"yyyy"), (8, b"")] {
        bench.console.write_config(offset, bytes);
    }
    assert_eq!(bench.heard(0), b"!?");
    // Nobody has to take it.
    bench.hosts[0] = UnixStream::pair().unwrap().0;
    bench.console.write_config(8, b"!");
    Console::new(1, vec![]).unwrap().write_config(8, b"!");
}

#[test]
fn a_guest_that_names_what_it_has_not() {
    let mut bench = Bench::new(0);
    bench.set_up();
    bench.rings[5].chain(0, &[(RAM - 4, 64, false)]);
    bench.rings[5].offer(0);
    assert!(bench.worker.serve(&mut bench.queues, 5).is_err());
    bench.worker.drain(&mut bench.queues, 5).unwrap();
    bench.queues.remove(5);
    // The others go on.
    bench.send(1, 0, b"here");
    bench.run();
    assert_eq!(bench.heard(0), b"here");
}
