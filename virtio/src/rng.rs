//! The entropy device (virtio 1.3 §5.4).

use std::fs::File;
use std::io::{self, Read};

use memory::GuestMemory;

use crate::device::{Config, Device, QueueSpec, Queues, Spec, Wake, Worker};
use crate::queue::{Chain, QueueError};

/// Most bytes given for one request: a guest could ask for 4 GiB otherwise, and be served for seconds.
const MOST: u64 = 64 << 10;
/// Bytes copied at a time.
const BUFFER: usize = 4096;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    spec: Spec,
    config: Config,
    source: File,
}

impl Rng {
    /// An entropy device that reads `source`, a file that neither ends nor blocks, such as `/dev/urandom`.
    pub fn new(source: File) -> Rng {
        let queues = vec![QueueSpec { max_size: 8, worker: 0 }];
        let spec = Spec { id: 4, class: 0x00_ff_00, features: 0, queues };
        Rng { spec, config: Config::default(), source }
    }
}

impl Device for Rng {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn worker(&self, _index: usize, _features: u64, memory: &GuestMemory) -> io::Result<Box<dyn Worker>> {
        Ok(Box::new(RngWorker {
            source: self.source.try_clone()?,
            memory: memory.clone(),
            chain: Chain::new(),
            buffer: Box::new([0; BUFFER]),
        }))
    }
}

struct RngWorker {
    source: File,
    memory: GuestMemory,
    chain: Chain,
    buffer: Box<[u8; BUFFER]>,
}

impl RngWorker {
    /// Fills the writable part of the chain, up to [`MOST`] bytes. Returns how many.
    fn fill(&mut self) -> Result<u32, QueueError> {
        let mut writer = self.chain.writer(&self.memory);
        let mut left = writer.remaining().min(MOST);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let buffer = self.buffer.get_mut(..wanted).unwrap_or_default();
            let data = match self.source.read(buffer) {
                Ok(count) if count > 0 => buffer.get(..count).unwrap_or_default(),
                // The guest gets what there was. That can be nothing, which its driver bears.
                end => {
                    log::debug!("random source: {end:?}");
                    break;
                }
            };
            writer.write(data)?;
            left = left.saturating_sub(data.len() as u64);
        }
        Ok(writer.written())
    }
}

impl Worker for RngWorker {
    fn serve(&mut self, queues: &mut Queues, index: usize) -> Result<Wake, QueueError> {
        let Some(queue) = queues.get(index) else { return Ok(Wake::Kick) };
        while queue.pop(&mut self.chain)? {
            let written = self.fill()?;
            queue.push(self.chain.head(), written)?;
        }
        queue.flush()?;
        Ok(Wake::Kick)
    }
}
