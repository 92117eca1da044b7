//! Messages about ports (virtio 1.3 §5.3.6.2).
//!
//! What the driver is to be told is not queued but follows from what it knows, so that no driver can make it much.

use memory::GuestMemory;

use super::{Port, Shared};
use crate::queue::{Chain, ChainError, Queue, QueueError};

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// `struct virtio_console_control`: the port, what happened to it, and a value.
const LENGTH: u64 = 8;

/// What driver and device know of each other's end of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The driver is to be told of the port.
    add: bool,
    /// The driver has the port.
    ready: bool,
    /// The driver is to be told that it is a console.
    console: bool,
    /// The driver is to be told its name.
    name: bool,
    /// What the driver was told of the host's end.
    host_open: bool,
    /// What we were told of the guest's end.
    pub guest_open: bool,
}

/// What a driver can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Add,
    Console,
    Name,
    Open(bool),
}

impl Known {
    pub(super) fn new(guest_open: bool) -> Known {
        Known { guest_open, ..Known::default() }
    }

    fn news(&self, port: &Port) -> Option<News> {
        if self.add {
            return Some(News::Add);
        }
        if !self.ready {
            return None;
        }
        if self.console {
            return Some(News::Console);
        }
        if self.name {
            return Some(News::Name);
        }
        let open = port.is_open();
        (open != self.host_open).then_some(News::Open(open))
    }

    fn note(&mut self, told: News) {
        match told {
            News::Add => self.add = false,
            News::Console => self.console = false,
            News::Name => self.name = false,
            News::Open(open) => self.host_open = open,
        }
    }
}

/// Tells the driver the next thing about `port`. False if there is none, or no buffer to tell it in.
pub(super) fn tell(
    port: &Port,
    known: &mut Known,
    memory: &GuestMemory,
    queue: &mut Queue,
    chain: &mut Chain,
) -> Result<bool, QueueError> {
    let Some(news) = known.news(port) else { return Ok(false) };
    if !queue.pop(chain)? {
        return Ok(false);
    }
    let (event, value, name) = match news {
        News::Add => (DEVICE_ADD, 1, ""),
        News::Console => (CONSOLE_PORT, 1, ""),
        News::Name => (PORT_NAME, 1, port.name.as_str()),
        News::Open(open) => (PORT_OPEN, u16::from(open), ""),
    };
    let [a, b, c, d] = u32::from(port.number).to_le_bytes();
    let ([e, f], [g, h]) = (event.to_le_bytes(), value.to_le_bytes());
    let mut writer = chain.writer(memory);
    // In one that is too short it is not told, and comes in the next.
    if writer.remaining() >= LENGTH.saturating_add(name.len() as u64) {
        writer.write(&[a, b, c, d, e, f, g, h])?;
        writer.write(name.as_bytes())?;
        known.note(news);
    }
    let written = writer.written();
    queue.push(chain.head(), written)?;
    Ok(true)
}

/// Whether there is something to tell.
pub(super) fn is_news(port: &Port, known: &Known) -> bool {
    known.news(port).is_some()
}

/// Takes note of what the driver says in `chain`: the number of the port whose end it opened or closed, if it did.
/// What makes no sense is passed over.
pub(super) fn hear(
    shared: &Shared,
    known: &mut [Known],
    memory: &GuestMemory,
    chain: &Chain,
) -> Option<usize> {
    let (number, event, value) = read(chain, memory).ok()?;
    if event == DEVICE_READY {
        for (port, known) in shared.ports.iter().zip(known) {
            *known = Known { add: value != 0 && port.is_some(), ..Known::default() };
        }
        return None;
    }
    let number = usize::try_from(number).ok()?;
    let (port, known) = (shared.port(number)?, known.get_mut(number)?);
    match event {
        PORT_READY => {
            let ready = value != 0;
            let (console, name) = (ready && port.console, ready && !port.name.is_empty());
            *known = Known { ready, console, name, host_open: false, ..*known };
            None
        }
        PORT_OPEN => {
            known.guest_open = value != 0;
            Some(number)
        }
        _ => None,
    }
}

fn read(chain: &Chain, memory: &GuestMemory) -> Result<(u32, u16, u16), ChainError> {
    let (mut number, mut event, mut value) = ([0; 4], [0; 2], [0; 2]);
    let mut reader = chain.reader(memory);
    reader.read(&mut number)?;
    reader.read(&mut event)?;
    reader.read(&mut value)?;
    Ok((u32::from_le_bytes(number), u16::from_le_bytes(event), u16::from_le_bytes(value)))
}
