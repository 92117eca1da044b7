//! Block requests, good and bad, against the image's bytes before and after.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use arbitrary::{Arbitrary, Unstructured};
use backend::block::{Disk, DiskOptions, EngineChoice};
use virtio::blk::{Blk, BlkConfig};
use virtio::{
    Device, FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_VERSION_1, Queue, QueueState, Queues, Worker,
};

use crate::guest::Guest;
use crate::ring::{Descriptor, Ring};

const RAM: u64 = 4 << 20;
const RING: u64 = 0x8000;
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x1_1ff0;
/// Ends in another chunk of guest memory.
const DATA: u64 = 0x1f_0000;
const SIZE: u64 = 64 << 10;
const UNTOUCHED: u8 = 0xee;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[derive(Arbitrary, Debug)]
struct Setup {
    read_only: bool,
    discard: bool,
    no_flush: bool,
    uring: bool,
    max_discard: u16,
    max_write_zeroes: u16,
    block_order: u8,
    write_cache: Option<bool>,
    without: u64,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request(Request),
    /// Descriptors of any kind, and the first of them made available.
    Chain(Vec<Descriptor>),
    Raw(u32, [u8; 8]),
    Config {
        offset: u8,
        value: u8,
    },
    Punch(u16),
    Refill(u16),
    Invalidate,
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Request {
    kind: Kind,
    sector: Sector,
    sectors: u8,
    /// Bytes more than whole sectors.
    extra: u16,
    fill: u8,
    /// Where the descriptors end.
    header_cut: u8,
    data_cut: u16,
    status_apart: bool,
    range_sectors: u32,
    range_flags: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Near(u8),
    Any(u64),
}

struct Bench {
    guest: Guest,
    file: File,
    setup: Setup,
    block: u64,
    device: Blk,
    features: u64,
    ring: Ring,
    worker: Box<dyn Worker>,
    queues: Queues,
}

/// Plays requests to a block device on an image in memory.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut input) else { return };
    let mut bench = Bench::new(setup);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        bench.play(step);
        assert_eq!(bench.file.metadata().expect("its size").len(), SIZE);
    }
    let Bench { guest, queues, worker, .. } = bench;
    drop((queues, worker));
    guest.memory.invalidate();
    assert_eq!(guest.sim.mapped_frames(), 0, "mappings are left over");
}

/// An image in memory, whose path works as long as it is open.
pub(crate) fn image(size: u64) -> (File, String) {
    let file = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(file);
    file.set_len(size).expect("room for an image");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path)
}

impl Bench {
    fn new(setup: Setup) -> Bench {
        let guest = Guest::new(RAM);
        let (file, path) = image(SIZE);
        let pattern: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8 ^ at as u8).collect();
        file.write_all_at(&pattern, 0).expect("a written image");
        let options = DiskOptions {
            read_only: setup.read_only,
            discard: setup.discard,
            no_flush: setup.no_flush,
            engine: if setup.uring { EngineChoice::Auto } else { EngineChoice::Synchronous },
            ..DiskOptions::new(path)
        };
        let block = 512 << (setup.block_order % 4);
        let config = BlkConfig {
            serial: "serial".to_owned(),
            write_cache: setup.write_cache,
            max_discard: setup.max_discard.into(),
            max_write_zeroes: setup.max_write_zeroes.into(),
            logical_block_size: Some(block),
            ..BlkConfig::default()
        };
        let device = Blk::new(&config, Disk::open(&options).expect("an open image")).expect("a device");
        let features = device.spec().features & !setup.without
            | FEATURE_VERSION_1
            | FEATURE_EVENT_IDX
            | FEATURE_INDIRECT;
        let worker = device.worker(0, features, &guest.memory).expect("a worker");
        let ring = Ring::new(RING, 6);
        let mut bench = Bench {
            guest,
            file,
            setup,
            block: block.into(),
            device,
            features,
            ring,
            worker,
            queues: Queues::new(),
        };
        bench.restart();
        bench
    }

    /// Starts the queue over an empty ring.
    fn restart(&mut self) {
        self.ring = Ring::new(RING, 6);
        self.guest.refill_all();
        self.guest.memory.invalidate();
        self.guest.put(RING, &[0; crate::ring::SPAN as usize]);
        let queue = Queue::new(
            self.guest.memory.clone(),
            self.ring.layout,
            self.features,
            QueueState::initial(self.features),
            Box::new(|| {}),
        );
        self.queues.insert(0, queue.expect("a good ring"));
    }

    /// Has the device do all there is to do. False if the ring is broken; it starts anew then.
    fn serve(&mut self) -> bool {
        let served = self.worker.serve(&mut self.queues, 0).map(drop);
        let drained = self.worker.drain(&mut self.queues, 0);
        let in_flight = self.queues.get(0).map_or(0, |queue| queue.in_flight());
        if served.is_ok() && drained.is_ok() {
            assert_eq!(in_flight, 0, "a request is forgotten");
            return true;
        }
        self.restart();
        false
    }

    fn disk(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.file.read_exact_at(&mut bytes, 0).expect("the image");
        bytes
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Request(request) => self.request(&request),
            Step::Chain(descriptors) => {
                let before = self.setup.read_only.then(|| self.disk());
                for d in &descriptors {
                    d.write(
                        &self.guest,
                        self.ring.layout.descriptors.0,
                        u16::from(d.index) % 64,
                        d.next % 65,
                    );
                }
                let head = descriptors.first().map_or(0, |first| u16::from(first.index));
                self.ring.offer(&self.guest, head);
                self.serve();
                while self.ring.take_used(&self.guest).is_some() {}
                assert!(before.is_none_or(|before| before == self.disk()), "a read-only image was written");
            }
            Step::Raw(at, bytes) => self.guest.put(u64::from(at) % RAM, &bytes),
            Step::Config { offset, value } => {
                if usize::from(offset) < self.device.config().len() {
                    self.device.write_config(offset.into(), &[value]);
                }
            }
            Step::Punch(page) => self.guest.punch(page.into()),
            Step::Refill(page) => self.guest.refill(page.into()),
            Step::Invalidate => self.guest.memory.invalidate(),
            Step::Reset => {
                self.restart();
                self.device.reset();
                let worker = self.device.worker(0, self.features, &self.guest.memory);
                self.worker = worker.expect("a worker");
            }
        }
    }

    /// One request of the right shape, and what it must have done.
    fn request(&mut self, request: &Request) {
        // The driver's memory is in order.
        self.restart();
        let kind = match request.kind {
            Kind::In => IN,
            Kind::Out => OUT,
            Kind::Flush => FLUSH,
            Kind::GetId => GET_ID,
            Kind::Discard => DISCARD,
            Kind::WriteZeroes => WRITE_ZEROES,
            Kind::Other(kind) => kind,
        };
        let sector = match request.sector {
            Sector::Near(sector) => sector.into(),
            Sector::Any(sector) => sector,
        };
        let has_range = matches!(kind, DISCARD | WRITE_ZEROES);
        let mut len = u64::from(request.sectors) * 512;
        if request.extra >= 0xff00 {
            len += u64::from(request.extra & 0xff);
        }
        if has_range && request.extra < 0xff00 {
            len = 16;
        }
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(HEADER, &header);
        self.guest.put(STATUS, &[UNTOUCHED]);
        let mut data = vec![request.fill; len as usize];
        if has_range && data.len() >= 16 {
            data[..8].copy_from_slice(&sector.to_le_bytes());
            data[8..12].copy_from_slice(&request.range_sectors.to_le_bytes());
            data[12..16].copy_from_slice(&u32::from(request.range_flags).to_le_bytes());
        }
        self.guest.put(DATA, &data);
        self.guest.put(DATA + len, &[UNTOUCHED]);
        let device_writes = !(kind == OUT || has_range);
        let parts = Bench::parts(request, len, device_writes);
        let before = self.disk();
        self.ring.chain(&self.guest, 0, &parts);
        self.ring.offer(&self.guest, 0);
        assert!(self.serve(), "a well-formed chain breaks the queue");
        let used = self.ring.take_used(&self.guest);
        let Some((0, written)) = used else { panic!("used {used:?}") };
        assert!(u64::from(written) <= len * u64::from(device_writes) + 1);
        assert_eq!(self.ring.take_used(&self.guest), None);

        let status_at = if device_writes && !request.status_apart { DATA + len } else { STATUS };
        let [status] = self.guest.get(status_at).expect("the status byte");
        let after = self.disk();
        let place = self.place(kind, request, sector, len);
        assert!(matches!(status, 0..=2), "status {status:#x}");
        if matches!(kind, IN | OUT) || place.is_none() {
            let plain = matches!(kind, FLUSH | GET_ID);
            assert_eq!(status == 0, plain || place.is_some(), "{request:?}");
        }
        let Some(place) = place.filter(|_| status == 0) else {
            assert!(after == before, "what failed or writes nothing changed the image");
            return;
        };
        let (mut expected, range) = (before.clone(), place);
        match kind {
            IN => {
                let read = self.guest.bytes(DATA, len as usize).expect("the data");
                assert!(read == before[range], "the wrong bytes were read");
                assert_eq!(u64::from(written), len + 1);
            }
            OUT => expected[range].copy_from_slice(&data),
            WRITE_ZEROES => expected[range].fill(0),
            _ if after[range.clone()] != before[range.clone()] => expected[range].fill(0),
            _ => {}
        }
        assert!(after == expected, "the wrong bytes were written: {request:?}");
    }

    /// The descriptors of a request, cut up as it says.
    fn parts(request: &Request, len: u64, device_writes: bool) -> Vec<(u64, u32, bool)> {
        let mut parts = Vec::new();
        let mut add = |at: u64, len: u64, cut: u64, writable: bool| {
            let cut = cut.min(len);
            for (at, len) in [(at, cut), (at + cut, len - cut)] {
                if len > 0 {
                    parts.push((at, len as u32, writable));
                }
            }
        };
        add(HEADER, 16, u64::from(request.header_cut) % 17, false);
        // The status byte has a descriptor of its own, or is at the end of the data's.
        let apart = u64::from(request.status_apart || !device_writes);
        add(DATA, len + 1 - apart, request.data_cut.into(), device_writes);
        add(STATUS, apart, 1, true);
        parts
    }

    /// The bytes of the image that a request is about, if it can be done.
    fn place(&self, kind: u32, request: &Request, sector: u64, len: u64) -> Option<std::ops::Range<usize>> {
        let ranged = |most: u16| {
            let sectors = request.range_sectors;
            (len == 16 && most > 0 && sectors <= most.into()).then(|| u64::from(sectors) * 512)
        };
        let len = match kind {
            IN => len,
            OUT if !self.setup.read_only => len,
            DISCARD if !self.setup.read_only && request.range_flags == 0 => ranged(self.setup.max_discard)?,
            WRITE_ZEROES if !self.setup.read_only && request.range_flags <= 1 => {
                ranged(self.setup.max_write_zeroes)?
            }
            _ => return None,
        };
        let start = sector.checked_mul(512)?;
        let end = start.checked_add(len).filter(|end| *end <= SIZE)?;
        let aligned = start.is_multiple_of(self.block) && len.is_multiple_of(self.block);
        aligned.then_some(start as usize..end as usize)
    }
}
