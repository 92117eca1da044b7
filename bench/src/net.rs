//! Network devices: frames from the guest to a tap and the other way.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use proofs::driver::{EVENT_IDX, Function, INDIRECT, VERSION_1};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::machine::Machine;
use crate::outcome::{Latencies, Outcome};
use crate::ring::{self, Ring, SIZE};

/// Where things are, of the receive queue and of the transmit queue.
const RINGS: u64 = 0x10_0000;
const TABLES: u64 = 0x30_0000;
const RECEIVE: u64 = 0x100_0000;
const SEND: u64 = 0x200_0000;
/// Bytes of a buffer for receiving, as Linux has them for large frames.
const BUFFER: u64 = 4096;
/// Bytes of a table: 18 descriptors.
const TABLE: u64 = 512;
/// Frames shown to the device at once.
const BATCH: u16 = 32;

/// Bytes of the header before each frame (virtio 1.3 §5.1.6).
const HEADER: usize = 12;
/// Offset of the number of buffers in it.
const NUM_BUFFERS: u64 = 10;
/// In the header: the checksum is to be completed, and the frame is TCP over IPv4 to be cut up.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;

/// Bytes of Ethernet, IPv4 and TCP headers.
const HEADERS: usize = 54;
/// Payload of each packet that a large frame stands for.
const SEGMENT: u16 = 1448;

/// Which frames, and which way.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub receive: bool,
    /// Bytes of each frame, Ethernet header included. More than 1514: TCP to be cut up.
    pub bytes: usize,
    /// Frames under way at most.
    pub window: u32,
}

/// A frame with the header before it, `header` bytes long. It is TCP for somebody else: the host drops it once it
/// has looked at it.
fn frame(bytes: usize, header: usize) -> Vec<u8> {
    let mut frame = vec![0; header];
    if bytes > 1514 {
        frame[0] = NEEDS_CSUM;
        frame[1] = GSO_TCPV4;
        frame[2..4].copy_from_slice(&(HEADERS as u16).to_le_bytes());
        frame[4..6].copy_from_slice(&SEGMENT.to_le_bytes());
        // Where the checksum begins, and where in that it is.
        frame[6..8].copy_from_slice(&34u16.to_le_bytes());
        frame[8..10].copy_from_slice(&16u16.to_le_bytes());
    }
    frame.extend([2, 0, 0, 0, 0, 0x77, 2, 0, 0, 0, 0, 0x78, 8, 0]);
    let total = (bytes - 14) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend(ip);
    let mut tcp = [0; 20];
    tcp[0..4].copy_from_slice(&[0, 9, 0, 9]);
    (tcp[12], tcp[13]) = (0x50, 0x10);
    frame.extend(tcp);
    frame.resize(header + bytes, 0x5a);
    frame
}

pub struct Net {
    receive: Ring,
    send: Ring,
}

impl Net {
    pub fn new(machine: &mut Machine, slot: u8) -> Net {
        let function = Function::find(machine.subject(), slot);
        let offloads = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF;
        function.negotiate(machine.subject(), VERSION_1 | EVENT_IDX | INDIRECT | offloads);
        function.enable_msix(machine.subject(), 1);
        let receive = Ring::new(machine, &function, 0, RINGS);
        let send = Ring::new(machine, &function, 1, RINGS + ring::BYTES);
        function.drive(machine.subject());
        let mut net = Net { receive, send };
        for head in 0..SIZE {
            let piece = (RECEIVE + u64::from(head) * BUFFER, BUFFER as u32, true);
            net.receive.describe(&machine.ram, head, 0, &[piece]);
            net.receive.add(&machine.ram, head);
        }
        net.receive.listen(&machine.ram);
        net.receive.show(machine);
        net
    }

    /// Keeps the device busy until `is_over` says so, which is asked every now and then. `host` is the host's side.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        host: &Host,
        load: Load,
        is_over: &mut dyn FnMut(u64) -> bool,
    ) -> Outcome {
        match load.receive {
            true => self.run_receive(machine, host, load, is_over),
            false => self.run_send(machine, load, is_over),
        }
    }

    fn run_send(
        &mut self,
        machine: &mut Machine,
        load: Load,
        is_over: &mut dyn FnMut(u64) -> bool,
    ) -> Outcome {
        let frame = frame(load.bytes, HEADER);
        machine.ram.write(SEND, &frame);
        // All frames are alike, in pieces of a page as they are in Linux.
        let mut pieces = vec![];
        let mut at = 0;
        while at < frame.len() {
            let len = if at == 0 { frame.len().min(HEADER + HEADERS) } else { (frame.len() - at).min(4096) };
            pieces.push((SEND + at as u64, len as u32, false));
            at += len;
        }
        for head in 0..SIZE {
            self.send.describe(&machine.ram, head, TABLES + u64::from(head) * TABLE, &pieces);
        }
        let mut free: Vec<u16> = (0..SIZE).collect();
        let (mut done, mut interrupts) = (0u64, 0);
        let kicks = self.send.kicks;
        let (cpu, begin) = (machine.cpu(), Instant::now());
        let mut over = false;
        let mut idle = Idle::new();
        while !over || free.len() < usize::from(SIZE) {
            let before = free.len();
            while let Some((head, _)) = self.send.take(&machine.ram) {
                free.push(head);
                done += 1;
            }
            // Linux asks for an interrupt only if the ring is full.
            self.send.do_not_listen(&machine.ram);
            if free.len() == before {
                idle.wait("frames do not leave");
            } else {
                idle = Idle::new();
                interrupts += machine.interrupts();
                over = over || is_over(done);
            }
            let full = u32::from(SIZE) - free.len() as u32;
            if !over && load.window - full >= BATCH.into() {
                for _ in 0..BATCH {
                    let Some(head) = free.pop() else { break };
                    self.send.add(&machine.ram, head);
                }
                self.send.show(machine);
            }
        }
        Outcome {
            done,
            bytes: done * load.bytes as u64,
            time: begin.elapsed(),
            cpu: machine.cpu() - cpu,
            kicks: self.send.kicks - kicks,
            interrupts,
            latencies: Latencies::default(),
        }
    }

    fn run_receive(
        &mut self,
        machine: &mut Machine,
        host: &Host,
        load: Load,
        is_over: &mut dyn FnMut(u64) -> bool,
    ) -> Outcome {
        // The host's header ends before the number of buffers.
        let frame = frame(load.bytes, NUM_BUFFERS as usize);
        let (mut sent, mut done, mut bytes, mut interrupts) = (0u64, 0u64, 0u64, 0);
        let mut more = 0;
        let kicks = self.receive.kicks;
        let (cpu, begin) = (machine.cpu(), Instant::now());
        let mut over = false;
        let mut idle = Idle::new();
        while !over || done < sent {
            let mut any = false;
            while let Some((head, len)) = self.receive.take(&machine.ram) {
                any = true;
                if more == 0 {
                    more = machine.ram.load16(RECEIVE + u64::from(head) * BUFFER + NUM_BUFFERS);
                    bytes -= HEADER as u64;
                    done += 1;
                }
                more -= 1;
                bytes += u64::from(len);
                self.receive.add(&machine.ram, head);
            }
            if any {
                idle = Idle::new();
                self.receive.listen(&machine.ram);
                self.receive.show(machine);
                interrupts += machine.interrupts();
                over = over || is_over(done);
            } else if sent > done {
                idle.wait("frames do not arrive");
            }
            while !over && sent - done < u64::from(load.window) && host.send(&frame) {
                sent += 1;
            }
        }
        Outcome {
            done,
            bytes,
            time: begin.elapsed(),
            cpu: machine.cpu() - cpu,
            kicks: self.receive.kicks - kicks,
            interrupts,
            latencies: Latencies::default(),
        }
    }
}

/// Waiting by looking, but not for ever.
struct Idle {
    turns: u32,
    since: Instant,
}

impl Idle {
    fn new() -> Idle {
        Idle { turns: 0, since: Instant::now() }
    }

    fn wait(&mut self, what: &str) {
        self.turns += 1;
        if self.turns.is_multiple_of(32) {
            std::thread::yield_now();
        }
        if self.turns.is_multiple_of(1 << 16) {
            assert!(self.since.elapsed() < Duration::from_secs(5), "{what}");
        }
    }
}

/// The host's end of a tap: a socket by which frames with their header go to the guest.
pub struct Host(OwnedFd);

impl Host {
    /// For the interface of this name, which is up.
    pub fn new(name: &str) -> io::Result<Host> {
        let socket = rustix::net::socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let index = rustix::net::netdevice::name_to_index(&socket, name)?;
        for (level, option, value) in
            [(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1), (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 32 << 20)]
        {
            let value: libc::c_int = value;
            // SAFETY: the kernel reads an int.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    level,
                    option,
                    (&raw const value).cast(),
                    mem::size_of_val(&value) as libc::socklen_t,
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: all zeros is an address like any other.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the kernel reads one address of this size.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Host(socket))
    }

    /// Sends a frame; false if there is no room for it now.
    fn send(&self, frame: &[u8]) -> bool {
        match rustix::io::write(&self.0, frame) {
            Ok(_) => true,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => false,
            Err(error) => panic!("sending to the guest: {error}"),
        }
    }
}
