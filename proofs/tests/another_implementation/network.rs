//! The script about the network device: what it is, frames both ways, and its control queue.

use std::net::UdpSocket;
use std::time::Duration;

use proofs::driver::*;
use proofs::{GUEST_MAC, Subject, datagram, set_up};

use crate::log::Log;
use crate::shape;

const SLOT: u8 = 4;
const RINGS: u64 = 0x10_0000;
const RECEIVE: u64 = 0x20_0000;
const SEND: u64 = 0x30_0000;
const COMMAND: u64 = 0x31_0000;
const SIZE: u16 = 64;
/// Bytes of the header before each frame.
const HEADER: usize = 12;
const BUFFER: u32 = 2048;

const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS_FIELD: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;

pub fn shape(subject: &mut dyn Subject, log: &mut Log) {
    log.topic("net");
    shape::header(subject, log, SLOT);
    shape::virtio(subject, log, SLOT);
    let net = Function::find(subject, SLOT);
    for (at, byte) in (0..).zip(GUEST_MAC) {
        let found = subject.read(net.device + at, 1);
        assert_eq!(found, u64::from(byte));
        log.hex(format_args!("byte {at} of the MAC address"), found);
    }
    // What is behind that belongs to features that neither offers.
    log.note("status", subject.read(net.device + 6, 2));
    net.negotiate(subject, VERSION_1 | MAC);
    for (offset, value) in [(0, 0x42), (6, 0)] {
        subject.write(net.device + offset, 1, value);
        log.hex(format_args!("offset {offset} after {value:#x}"), subject.read(net.device + offset, 1));
    }
    net.set(subject, STATUS, 0);
    log.hex("offset 0 after reset", subject.read(net.device, 1));
}

struct Net {
    function: Function,
    /// Receive, transmit, control.
    rings: [Ring; 3],
}

impl Net {
    fn new(subject: &mut dyn Subject, features: u64, buffers: u16) -> Net {
        let function = Function::find(subject, SLOT);
        let accepted = function.negotiate(subject, features);
        let rings = [0, 1, 2].map(|queue| {
            Ring::new(subject, &function, accepted, queue, SIZE, RINGS + u64::from(queue) * 0x3_0000)
        });
        function.drive(subject);
        let mut net = Net { function, rings };
        for index in 0..buffers {
            net.give_buffer(subject, index);
        }
        net.function.kick(subject, 0);
        net
    }

    fn give_buffer(&mut self, subject: &mut dyn Subject, index: u16) {
        let at = RECEIVE + u64::from(index) * u64::from(BUFFER);
        self.rings[0].chain(subject, index, &[(at, BUFFER, true)]);
        self.rings[0].offer(subject, index);
    }

    fn send(&mut self, subject: &mut dyn Subject, frame: &[u8]) -> Option<(u32, u32)> {
        subject.ram_write(SEND, &[0; HEADER]);
        subject.ram_write(SEND + 256, frame);
        let parts = [(SEND, HEADER as u32, false), (SEND + 256, frame.len() as u32, false)];
        self.rings[1].chain(subject, 0, &parts);
        self.rings[1].offer(subject, 0);
        self.function.kick(subject, 1);
        self.rings[1].wait(subject, &self.function)
    }

    /// The next frame that carries `payload`: its length and what is before the payload.
    fn receive(&mut self, subject: &mut dyn Subject, payload: &[u8]) -> (u32, Vec<u8>) {
        loop {
            let (index, len) = self.rings[0].wait(subject, &self.function).expect("a frame");
            let mut found = vec![0; len as usize];
            subject.ram_read(RECEIVE + u64::from(index) * u64::from(BUFFER), &mut found);
            self.give_buffer(subject, index as u16);
            self.function.kick(subject, 0);
            if found.ends_with(payload) {
                found.truncate(found.len() - payload.len());
                return (len, found);
            }
        }
    }

    fn command(&mut self, subject: &mut dyn Subject, bytes: &[u8]) -> (u8, Option<(u32, u32)>) {
        subject.ram_write(COMMAND, bytes);
        subject.ram_write(COMMAND + 1024, &[0xee]);
        let ring = &mut self.rings[2];
        ring.chain(subject, 0, &[(COMMAND, bytes.len() as u32, false), (COMMAND + 1024, 1, true)]);
        ring.offer(subject, 0);
        self.function.kick(subject, 2);
        let used = ring.wait(subject, &self.function);
        let mut ack = [0];
        subject.ram_read(COMMAND + 1024, &mut ack);
        (ack[0], used)
    }
}

/// A socket of the host's, and its port.
fn host() -> (UdpSocket, u16) {
    set_up("tap0");
    let host = UdpSocket::bind("192.0.2.1:0").expect("a socket");
    host.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let port = host.local_addr().expect("an address").port();
    (host, port)
}

pub fn frames(subject: &mut dyn Subject, log: &mut Log) {
    let (host, port) = host();
    let no_offloads = VERSION_1 | MAC | STATUS_FIELD | CTRL_VQ | MRG_RXBUF;
    for (name, features, buffers) in [
        ("all features", !0, 48),
        ("no offloads", no_offloads, 48),
        ("hardly any feature", VERSION_1, 48),
        ("few buffers", no_offloads, 2),
        ("few buffers for large frames", !0, 2),
        ("one buffer", VERSION_1, 1),
    ] {
        log.topic(name);
        let mut net = Net::new(subject, features, buffers);
        for len in [1, 18, 100, 1400] {
            let payload: Vec<u8> = (0..len).map(|at: usize| (at * 3 + len) as u8).collect();
            let used = net.send(subject, &datagram(port, &payload));
            log.note(format_args!("sent {len}"), format_args!("{used:?}"));
            let mut found = [0; 2048];
            let (got, from) = host.recv_from(&mut found).expect("the guest's datagram");
            log.note(format_args!("arrived {len}"), format_args!("{from} {}", found[..got] == payload));

            host.send_to(&payload, "192.0.2.2:9").expect("sent");
            let (used, before) = net.receive(subject, &payload);
            log.note(format_args!("used length for {len}"), used);
            log.note(format_args!("header for {len}"), format_args!("{:?}", &before[..HEADER]));
            log.note(format_args!("addresses for {len}"), format_args!("{:?}", &before[HEADER..HEADER + 14]));
        }
        log.hex("device status", net.function.get(subject, STATUS));
        net.function.set(subject, STATUS, 0);
    }
}

pub fn commands(subject: &mut dyn Subject, log: &mut Log) {
    let mut net = Net::new(subject, !0, 1);
    let unicast = [1, 0, 0, 0, 2, 0, 0, 0, 0, 9];
    let table = [&unicast[..], &[0; 4]].concat();
    let cases: &[(&str, u8, u8, &[u8])] = &[
        ("promiscuous on", 0, 0, &[1]),
        ("promiscuous off", 0, 0, &[0]),
        ("all multicast", 0, 1, &[1]),
        ("all unicast", 0, 2, &[1]),
        ("no multicast", 0, 3, &[1]),
        ("no unicast", 0, 4, &[1]),
        ("no broadcast", 0, 5, &[1]),
        ("no such receive mode", 0, 6, &[1]),
        ("receive mode without a value", 0, 0, &[]),
        ("receive mode with more", 0, 0, &[1, 1]),
        ("MAC table", 1, 0, &table),
        ("MAC table cut short", 1, 0, &table[..9]),
        ("MAC address", 1, 1, &[2, 0, 0, 0, 0, 9]),
        ("MAC address cut short", 1, 1, &[2, 0, 0]),
        ("no such MAC command", 1, 2, &[1]),
        ("add a VLAN", 2, 0, &[5, 0]),
        ("remove a VLAN", 2, 1, &[5, 0]),
        ("add a VLAN that cannot be", 2, 0, &[0, 0x10]),
        ("no such VLAN command", 2, 2, &[5, 0]),
        ("announce", 3, 0, &[]),
        ("pairs without MQ", 4, 0, &[1, 0]),
        ("two pairs without MQ", 4, 0, &[2, 0]),
        ("offloads off", 5, 0, &[0; 8]),
        ("offloads for checksums", 5, 0, &[2, 0, 0, 0, 0, 0, 0, 0]),
        ("offloads never negotiated", 5, 0, &[0, 0, 0, 0, 0, 0, 0, 1]),
        ("no such class", 77, 0, &[1]),
    ];
    for (name, class, command, data) in cases {
        log.topic(name);
        let (ack, used) = net.command(subject, &[&[*class, *command], *data].concat());
        log.hex("answer", ack.into());
        log.note("used", format_args!("{used:?}"));
        let status = net.function.get(subject, STATUS);
        log.hex("device status", status);
        if status & NEEDS_RESET != 0 {
            net = Net::new(subject, !0, 1);
        }
        let address: u64 = (0..6).fold(0, |all, at| all << 8 | subject.read(net.function.device + at, 1));
        log.hex("MAC address", address);
    }
    net.function.set(subject, STATUS, 0);
    log.hex("MAC address after reset", subject.read(net.function.device, 4));
}
