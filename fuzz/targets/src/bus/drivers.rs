//! What a good driver does.

use std::time::{Duration, Instant};

use virtio::{FEATURE_RING_PACKED, FEATURE_VERSION_1};

use super::{BLK, Bench, NET, RNG};
use crate::net_control;
use crate::ring::{PackedRing, Ring, SPAN};

/// Where rings are.
const RINGS: u64 = 0x1_0000;
/// Where buffers are: up to the end of RAM and over the edge of a chunk.
pub(super) const BUFFERS: u64 = 0x1f_0000;
/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A queue that was set up.
pub(super) struct Queue {
    pub(super) ring: Ring,
    /// The same place as a packed ring, if that was negotiated.
    pub(super) packed: Option<PackedRing>,
    pub(super) slot: usize,
    pub(super) queue: u16,
}

impl Bench {
    pub(super) fn status(&self, slot: usize) -> u8 {
        self.read(self.slots[slot].bar + 0x14, 1) as u8
    }

    /// Rings the doorbell of a queue.
    pub(super) fn kick(&self, slot: usize, queue: u16) {
        self.write(self.slots[slot].bar + 0x3000 + u64::from(queue) * 4, 2, queue.into());
    }

    /// Drives a device up to DRIVER_OK, with rings of these sizes, `shift` bytes from where they would be. `skip`
    /// leaves a step out.
    pub(super) fn start(&mut self, slot: usize, features: u64, orders: &[u8; 3], shift: u64, skip: u8) {
        let bar = self.slots[slot].bar;
        let status = |value: u64| self.write(bar + 0x14, 1, value);
        if skip != 1 {
            status(0);
        }
        status(1);
        if skip != 2 {
            status(3);
        }
        let accepted = self.offered(bar) & (features | FEATURE_VERSION_1);
        for half in 0..2 {
            self.write(bar + 8, 4, half);
            self.write(bar + 0xc, 4, accepted >> (32 * half) & 0xffff_ffff);
        }
        if skip != 3 {
            status(0xb);
        }
        self.rings.retain(|queue| queue.slot != slot);
        for queue in 0..self.slots[slot].queues {
            let at = RINGS + (slot as u64 * 4 + u64::from(queue)) * SPAN + shift;
            self.guest.put(at, &[0; SPAN as usize]);
            let order = orders[usize::from(queue) % 3];
            // Nobody has fewer entries than 8, and few queues have fewer than 64.
            let ring = Ring::new(at, if slot == RNG { order.min(3) } else { order });
            self.write(bar + 0x16, 2, queue.into());
            self.write(bar + 0x18, 2, ring.size().into());
            self.write(bar + 0x1a, 2, queue.into());
            self.write(bar + 0x20, 8, ring.layout.descriptors.0);
            self.write(bar + 0x28, 8, ring.layout.available.0);
            self.write(bar + 0x30, 8, ring.layout.used.0);
            if skip != 4 {
                self.write(bar + 0x1c, 2, 1);
            }
            let mut packed = PackedRing::new(at, ring.size());
            packed.layout.size = ring.layout.size;
            let is_packed = accepted & FEATURE_RING_PACKED != 0;
            self.rings.push(Queue { ring, packed: is_packed.then_some(packed), slot, queue });
        }
        if skip != 5 {
            self.write(bar + 0x14, 1, 0xf);
        }
    }

    /// All features that a device offers.
    fn offered(&self, bar: u64) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write(bar, 4, half);
            features | self.read(bar + 4, 4) << (32 * half)
        })
    }

    /// Starts a device for good.
    fn start_well(&mut self, slot: usize) {
        self.start(slot, !super::OPTIONAL, &[6; 3], 0, 0);
        assert_eq!(self.status(slot), 0xf, "a reset device does not start");
    }

    /// Gives a chain to a queue, and waits until it comes back.
    fn request(&mut self, slot: usize, queue: u16, parts: &[(u64, u32, bool)]) -> u32 {
        let Bench { guest, rings, .. } = self;
        let found = rings.iter_mut().find(|ring| ring.slot == slot && ring.queue == queue);
        let ring = &mut found.expect("a queue that was set up").ring;
        ring.chain(guest, 0, parts);
        ring.offer(guest, 0);
        self.kick(slot, queue);
        let end = Instant::now() + PATIENCE;
        loop {
            let Bench { guest, rings, .. } = self;
            let found = rings.iter_mut().find(|ring| ring.slot == slot && ring.queue == queue);
            let ring = &mut found.expect("a queue that was set up").ring;
            if let Some((head, written)) = ring.take_used(guest) {
                assert_eq!(head, 0);
                return written;
            }
            assert!(Instant::now() < end, "a reset device does not answer");
            assert_eq!(self.status(slot), 0xf, "a reset device breaks");
            std::thread::yield_now();
        }
    }

    /// Writes a sector and reads it back.
    pub(super) fn use_blk(&mut self) {
        self.start_well(BLK);
        let (header, data, status) = (BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x800);
        let pattern: Vec<u8> = (0..512).map(|at| at as u8 ^ 0x5a).collect();
        for (kind, read_only_status) in [(1u64, 1), (0, 0)] {
            self.guest.put(header, &kind.to_le_bytes());
            self.guest.put(header + 8, &3u64.to_le_bytes());
            self.guest.put(data, &if kind == 1 { pattern.clone() } else { vec![0; 512] });
            self.guest.put(status, &[0xee]);
            let parts = [(header, 16, false), (data, 512, kind == 0), (status, 1, true)];
            self.request(BLK, 1, &parts);
            let expected = if self.read_only { read_only_status } else { 0 };
            assert_eq!(self.guest.get(status), Some([expected]));
        }
        let read = self.guest.bytes(data, 512).expect("the data");
        assert!(self.read_only || read == pattern, "not what was written");
    }

    /// Asks for random bytes.
    pub(super) fn use_rng(&mut self) {
        self.start_well(RNG);
        self.guest.put(BUFFERS, &[0; 64]);
        assert_eq!(self.request(RNG, 0, &[(BUFFERS, 64, true)]), 64);
        assert_ne!(self.guest.get(BUFFERS), Some([0; 64]), "no randomness");
    }

    /// Sends a frame and gives a command.
    pub(super) fn use_net(&mut self) {
        let mut frame = Vec::new();
        while net_control::sent(&self.peers[0], &mut frame) {}
        self.start_well(NET);
        let sent: Vec<u8> = (0..100).collect();
        self.guest.put(BUFFERS, &sent);
        self.guest.put(BUFFERS, &[0; 12]);
        self.request(NET, 1, &[(BUFFERS, 100, false)]);
        assert!(net_control::sent(&self.peers[0], &mut frame) && frame[12..] == sent[12..], "no frame");
        self.guest.put(BUFFERS, &[0, 0, 1]);
        self.request(NET, 2, &[(BUFFERS, 3, false), (BUFFERS + 64, 1, true)]);
        assert_eq!(self.guest.get(BUFFERS + 64), Some([0]));
    }
}
