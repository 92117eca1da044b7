//! Block devices: random and sequential requests at a fixed depth.

use std::time::{Duration, Instant};

use proofs::driver::{EVENT_IDX, Function, INDIRECT, NEEDS_RESET, Place, STATUS, VERSION_1};

use crate::machine::Machine;
use crate::outcome::{Latencies, Outcome};
use crate::ring::{self, Ring, SIZE};

/// Where each queue's things are.
const RINGS: u64 = 0x10_0000;
const TABLES: u64 = 0x30_0000;
const HEADERS: u64 = 0x50_0000;
const STATUSES: u64 = 0x60_0000;
const DATA: u64 = 0x100_0000;
/// Bytes for the tables, headers and status bytes of a queue.
const TABLES_BYTES: u64 = 0x4000;
const HEADERS_BYTES: u64 = 0x1000;
const STATUSES_BYTES: u64 = 0x100;

/// Without this one writes would have to be on the disk when they are over.
const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;
const SECTOR: u64 = 512;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub write: bool,
    pub bytes: u32,
    /// Requests in each queue at any time.
    pub depth: u16,
    pub sequential: bool,
}

pub struct Disk {
    rings: Vec<Ring>,
    function: Function,
    /// Size in bytes.
    size: u64,
    dice: u64,
    next: u64,
}

impl Disk {
    /// Drives the device at `place` with this many queues. `number` tells it from others of the machine.
    pub fn new(machine: &mut Machine, place: impl Into<Place>, queues: u16, size: u64, number: u64) -> Disk {
        let function = Function::find(machine.subject(), place);
        function.negotiate(machine.subject(), VERSION_1 | EVENT_IDX | INDIRECT | MQ | FLUSH);
        function.enable_msix(machine.subject(), 1);
        let at = RINGS + number * ring::BYTES;
        let rings = (0..queues)
            .map(|queue| Ring::new(machine, &function, queue, at + u64::from(queue) * ring::BYTES))
            .collect();
        function.drive(machine.subject());
        machine.interrupts();
        Disk { rings, function, size, dice: 1, next: 0 }
    }

    /// Keeps the device busy until `is_over` says so, which is asked every now and then.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        load: Load,
        is_over: &mut dyn FnMut(u64) -> bool,
    ) -> Outcome {
        let count = self.rings.len();
        let mut started = vec![[Instant::now(); SIZE as usize]; count];
        for (queue, ring) in (0..).zip(&self.rings) {
            for head in 0..load.depth {
                let index = queue * u64::from(load.depth) + u64::from(head);
                let data = (DATA + index * u64::from(load.bytes), load.bytes, !load.write);
                let header = HEADERS + queue * HEADERS_BYTES + u64::from(head) * 16;
                let status = STATUSES + queue * STATUSES_BYTES + u64::from(head);
                let table = TABLES + queue * TABLES_BYTES + u64::from(head) * 64;
                machine.ram.store64(header, load.write.into());
                machine.ram.store8(status, 0xff);
                ring.describe(&machine.ram, head, table, &[(header, 16, false), data, (status, 1, true)]);
            }
        }
        let mut latencies = Latencies::default();
        let (mut requests, mut interrupts, mut turns) = (0u64, 0, 0u32);
        let mut in_flight = 0;
        let kicks = self.kicks();
        let (cpu, begin) = (machine.cpu(), Instant::now());
        for (queue, started) in started.iter_mut().enumerate() {
            for head in 0..load.depth {
                self.place(machine, queue, head, load);
                started[usize::from(head)] = Instant::now();
            }
            in_flight += u32::from(load.depth);
            self.rings[queue].listen(&machine.ram);
            self.rings[queue].show(machine);
        }
        let mut over = false;
        let mut last = Instant::now();
        while in_flight > 0 {
            let mut any = false;
            for (queue, started) in started.iter_mut().enumerate() {
                let now = Instant::now();
                let mut came = false;
                while let Some((head, _)) = self.rings[queue].take(&machine.ram) {
                    came = true;
                    let status =
                        machine.ram.load8(STATUSES + queue as u64 * STATUSES_BYTES + u64::from(head));
                    assert_eq!(status, 0, "a request failed");
                    latencies.add(now.duration_since(started[usize::from(head)]));
                    requests += 1;
                    if over {
                        in_flight -= 1;
                    } else {
                        self.place(machine, queue, head, load);
                        started[usize::from(head)] = now;
                    }
                }
                if came {
                    any = true;
                    self.rings[queue].listen(&machine.ram);
                    self.rings[queue].show(machine);
                }
            }
            if any {
                last = Instant::now();
                interrupts += machine.interrupts();
                over = over || is_over(requests);
            } else {
                turns = turns.wrapping_add(1);
                // There may be fewer CPUs than threads.
                if turns.is_multiple_of(32) {
                    std::thread::yield_now();
                }
                if turns.is_multiple_of(1 << 16) && last.elapsed() > Duration::from_secs(5) {
                    let broken = self.function.get(machine.subject(), STATUS) & NEEDS_RESET != 0;
                    panic!("{in_flight} requests do not come back (needs a reset: {broken})");
                }
            }
        }
        Outcome {
            done: requests,
            bytes: requests * u64::from(load.bytes),
            time: begin.elapsed(),
            cpu: machine.cpu() - cpu,
            kicks: self.kicks() - kicks,
            interrupts,
            latencies,
        }
    }

    fn kicks(&self) -> u64 {
        self.rings.iter().map(|ring| ring.kicks).sum()
    }

    /// Has the device notified of nothing.
    pub fn kick(&mut self, machine: &mut Machine) {
        self.rings[0].kick(machine);
    }

    /// Reads a register that costs the device nothing.
    pub fn look(&self, machine: &mut Machine) {
        self.function.get(machine.subject(), STATUS);
    }

    fn place(&mut self, machine: &Machine, queue: usize, head: u16, load: Load) {
        let blocks = self.size / u64::from(load.bytes);
        let block = if load.sequential {
            self.next = (self.next + 1) % blocks;
            self.next
        } else {
            self.dice = self.dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.dice >> 33) % blocks
        };
        let header = HEADERS + queue as u64 * HEADERS_BYTES + u64::from(head) * 16;
        machine.ram.store64(header + 8, block * u64::from(load.bytes) / SECTOR);
        self.rings[queue].add(&machine.ram, head);
    }
}
