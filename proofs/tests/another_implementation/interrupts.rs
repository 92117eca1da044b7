//! The script about interrupts: ISR, MSI-X, masks and pending bits; and what holds devices back: event
//! indices, the bus master bit, a reset. On the entropy device, the simplest there is.

use proofs::Subject;
use proofs::driver::*;

use crate::log::Log;

const RING: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const SIZE: u16 = 8;

struct Rng {
    function: Function,
    ring: Ring,
}

impl Rng {
    fn new(subject: &mut dyn Subject, features: u64, vector: Option<u64>) -> Rng {
        let function = Function::find(subject, 3);
        let accepted = function.negotiate(subject, features);
        if let Some(vector) = vector {
            function.set(subject, QUEUE_SELECT, 0);
            function.set(subject, QUEUE_VECTOR, vector);
        }
        let ring = Ring::new(subject, &function, accepted, 0, SIZE, RING);
        function.drive(subject);
        Rng { function, ring }
    }

    /// Asks for `len` bytes and says how many came.
    fn ask(&mut self, subject: &mut dyn Subject, len: u32) -> u32 {
        self.offer(subject, len);
        self.function.kick(subject, 0);
        let (_, len) = self.ring.wait(subject, &self.function).expect("an answer");
        len
    }

    fn offer(&mut self, subject: &mut dyn Subject, len: u32) {
        subject.ram_write(DATA, &vec![0x77; len as usize]);
        self.ring.chain(subject, 0, &[(DATA, len, true)]);
        self.ring.offer(subject, 0);
    }
}

/// The data of the message that comes for this vector, if one is `expected`, or comes all the same.
#[track_caller]
fn heard(subject: &mut dyn Subject, vector: u64, expected: bool) -> String {
    let mut data = None;
    let mut look = || {
        data = subject.message(vector);
        data.is_some()
    };
    match expected {
        true => until(look),
        false => drop(soon(&mut look)),
    }
    format!("{data:x?}")
}

pub fn entropy(subject: &mut dyn Subject, log: &mut Log) {
    log.topic("rng");
    let mut rng = Rng::new(subject, VERSION_1 | INDIRECT, None);
    for len in [1, 7, 512, 4096, 65536] {
        let used = rng.ask(subject, len);
        log.note(format_args!("bytes for {len}"), used);
        let mut data = vec![1; len as usize];
        subject.ram_read(DATA, &mut data);
        log.note(format_args!("zeros for {len}"), data.iter().filter(|byte| **byte == 0).count());
        log.hex("ISR", rng.function.isr(subject, true));
        log.hex("ISR again", subject.read(rng.function.isr, 1));
    }
    log.note("parts", "");
    rng.ring.chain(subject, 0, &[(DATA, 10, true), (DATA + 100, 10, true), (DATA + 200, 10, true)]);
    rng.ring.offer(subject, 0);
    rng.function.kick(subject, 0);
    log.note("bytes for parts", format_args!("{:?}", rng.ring.wait(subject, &rng.function)));
    log.topic("rng, nothing to write");
    rng.ring.chain(subject, 0, &[(DATA, 64, false)]);
    rng.ring.offer(subject, 0);
    rng.function.kick(subject, 0);
    log.note("came back", sooner_or_later(|| rng.ring.take(subject).is_some()));
    log.hex("device status", rng.function.get(subject, STATUS));
    log.note("configuration", subject.read(rng.function.device, 4));
    rng.function.set(subject, STATUS, 0);
    log.hex("ISR after reset", subject.read(rng.function.isr, 1));
}

pub fn msix(subject: &mut dyn Subject, log: &mut Log) {
    log.topic("MSI-X");
    let function = Function::find(subject, 3);
    let pending = |subject: &mut dyn Subject| subject.read(function.pending, 4);
    let becomes_pending = |subject: &mut dyn Subject| {
        until(|| pending(subject) != 0);
        pending(subject)
    };
    let control = |subject: &mut dyn Subject, value: u64| {
        set_config(subject, function.place, function.msix + 2, 2, value);
    };
    function.enable_msix(subject, 2);
    let mut rng = Rng::new(subject, VERSION_1, Some(1));
    log.hex("vector", function.get(subject, QUEUE_VECTOR));
    rng.ask(subject, 16);
    log.note("message", heard(subject, 1, true));
    log.note("other vector", heard(subject, 0, false));
    log.hex("ISR", subject.read(function.isr, 1));
    log.hex("pending", pending(subject));

    log.topic("MSI-X, vector masked");
    subject.write(function.table + 16 + 12, 4, 1);
    rng.ask(subject, 16);
    log.hex("pending", becomes_pending(subject));
    log.note("message", heard(subject, 1, false));
    log.hex("ISR", subject.read(function.isr, 1));
    subject.write(function.table + 16 + 8, 4, 0x99);
    subject.write(function.table + 16 + 12, 4, 0);
    log.note("message once unmasked", heard(subject, 1, true));
    log.hex("pending once unmasked", pending(subject));

    log.topic("MSI-X, function masked");
    control(subject, 0xc000);
    rng.ask(subject, 16);
    log.hex("pending", becomes_pending(subject));
    log.note("message", heard(subject, 1, false));
    control(subject, 0x8000);
    log.note("message once unmasked", heard(subject, 1, true));
    log.hex("pending once unmasked", pending(subject));

    log.topic("MSI-X, pending and disabled");
    control(subject, 0xc000);
    rng.ask(subject, 16);
    log.hex("pending", becomes_pending(subject));
    control(subject, 0);
    log.note("message when disabled", heard(subject, 1, false));
    rng.ask(subject, 16);
    log.note("message while disabled", heard(subject, 1, false));
    log.hex("ISR while disabled", function.isr(subject, true));

    log.topic("MSI-X, no vector");
    control(subject, 0x8000);
    let _ = heard(subject, 1, false);
    function.set(subject, QUEUE_SELECT, 0);
    function.set(subject, QUEUE_VECTOR, 0xffff);
    rng.ask(subject, 16);
    log.note("message 0", heard(subject, 0, false));
    log.note("message 1", heard(subject, 1, false));
    log.hex("ISR", subject.read(function.isr, 1));
    log.hex("pending", pending(subject));

    log.topic("MSI-X, pending and reset");
    let mut rng = Rng::new(subject, VERSION_1, Some(0));
    subject.write(function.table + 12, 4, 1);
    rng.ask(subject, 16);
    log.hex("pending", becomes_pending(subject));
    function.set(subject, STATUS, 0);
    log.hex("pending after reset", pending(subject));
    let kept = subject.read(function.table, 4) == subject.mailbox(0);
    log.note("table kept after reset", kept);
    log.hex("mask after reset", subject.read(function.table + 12, 4));
    log.hex("control after reset", config(subject, function.place, function.msix + 2, 2));
    control(subject, 0);
}

pub fn suppression(subject: &mut dyn Subject, log: &mut Log) {
    log.topic("flags");
    let mut rng = Rng::new(subject, VERSION_1, None);
    rng.ask(subject, 16);
    log.hex("ISR", rng.function.isr(subject, true));
    let flags = rng.ring.driver_area();
    subject.ram_write(flags, &1u16.to_le_bytes());
    rng.ask(subject, 16);
    log.hex("ISR with no interrupt wanted", rng.function.isr(subject, false));
    subject.ram_write(flags, &0u16.to_le_bytes());
    rng.ask(subject, 16);
    log.hex("ISR with interrupts wanted", rng.function.isr(subject, true));
    log.note("used ring's flags", word(subject, rng.ring.device_area()));

    log.topic("event index");
    let mut rng = Rng::new(subject, VERSION_1 | EVENT_IDX, None);
    let used_event = rng.ring.driver_area() + 4 + u64::from(SIZE) * 2;
    for (name, event, expected) in [
        ("the next", 0u16, true),
        ("one later", 2, false),
        ("the very next", 2, true),
        ("one passed", 1, false),
    ] {
        subject.ram_write(used_event, &event.to_le_bytes());
        rng.ask(subject, 16);
        log.hex(format_args!("ISR for {name}"), rng.function.isr(subject, expected));
    }
    let avail_event = rng.ring.device_area() + 4 + u64::from(SIZE) * 8;
    let mut event = 0;
    // It asks for notice before it sleeps, which is after it answered.
    until(|| {
        event = word(subject, avail_event);
        event == rng.ring.available
    });
    log.note("avail_event", event);

    log.topic("no doorbell");
    rng.offer(subject, 16);
    log.note("served", soon(|| rng.ring.take(subject).is_some()));
    rng.function.kick(subject, 0);
    log.note("served when told", rng.ring.wait(subject, &rng.function).is_some());

    log.topic("doorbells of other queues");
    rng.offer(subject, 16);
    for offset in [4, 8, 0xffc] {
        subject.write(rng.function.notify + offset, 2, 0);
    }
    log.note("served", soon(|| rng.ring.take(subject).is_some()));
    subject.write(rng.function.notify, 2, 7);
    log.note("served with another number", soon(|| rng.ring.take(subject).is_some()));
    rng.function.kick(subject, 0);

    log.topic("bus master off");
    let mut rng = Rng::new(subject, VERSION_1, None);
    set_config(subject, 3, 4, 2, 2);
    rng.offer(subject, 16);
    rng.function.kick(subject, 0);
    log.note("served", soon(|| rng.ring.take(subject).is_some()));
    log.hex("device status", rng.function.get(subject, STATUS));
    rng.function.set(subject, STATUS, 0);
    set_config(subject, 3, 4, 2, 6);

    log.topic("before DRIVER_OK");
    let function = Function::find(subject, 3);
    let accepted = function.negotiate(subject, VERSION_1);
    let mut ring = Ring::new(subject, &function, accepted, 0, SIZE, RING);
    subject.ram_write(DATA, &[0x77; 16]);
    ring.chain(subject, 0, &[(DATA, 16, true)]);
    ring.offer(subject, 0);
    function.kick(subject, 0);
    log.note("served", soon(|| ring.take(subject).is_some()));
    function.drive(subject);
    function.kick(subject, 0);
    log.note("served after DRIVER_OK", ring.wait(subject, &function).is_some());

    log.topic("after reset");
    function.set(subject, STATUS, 0);
    ring.offer(subject, 0);
    function.kick(subject, 0);
    log.note("served", soon(|| ring.take(subject).is_some()));
    log.hex("ISR", subject.read(function.isr, 1));
}
