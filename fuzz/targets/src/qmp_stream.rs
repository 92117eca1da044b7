//! QMP: whatever a client sends, in one piece and in many, must have the same answers.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use xenpvh::qmp::{BlockInfo, Control, Error, FunctionInfo, Listener, NicInfo, RegionInfo, RunState, Server};

/// More than this is read from a client in several turns anyway.
const LONGEST: usize = 1 << 14;
/// An answer that is longer may get its reader thrown out, which is right.
const MUCH: usize = 512 << 10;

/// Has the machine's part, and remembers.
struct Stand {
    status: RunState,
    link: bool,
    quit: bool,
}

impl Control for Stand {
    fn name(&self) -> String {
        "guest".to_owned()
    }

    fn status(&self) -> RunState {
        self.status
    }

    fn cont(&mut self) -> Result<(), Error> {
        self.status = RunState::Running;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.status = RunState::Paused;
        Ok(())
    }

    fn quit(&mut self) {
        self.quit = true;
    }

    fn system_reset(&mut self) -> Result<(), Error> {
        Err(Error::generic("not now"))
    }

    fn system_powerdown(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn set_link(&mut self, name: &str, up: bool) -> Result<(), Error> {
        if name != "nic0" {
            return Err(Error::device_not_found(name));
        }
        self.link = up;
        Ok(())
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        let (device, qdev) = ("drive0".to_owned(), "disk0".to_owned());
        vec![BlockInfo {
            device,
            qdev,
            filename: "/a\"b\\".to_owned(),
            size: 1 << 30,
            ..BlockInfo::default()
        }]
    }

    fn nics(&self) -> Vec<NicInfo> {
        vec![NicInfo { name: "nic0".to_owned(), link_up: self.link, ..NicInfo::default() }]
    }

    fn functions(&self) -> Vec<FunctionInfo> {
        let region = RegionInfo { bar: 0, size: 4096, address: Some(1 << 32), prefetch: true, wide: true };
        vec![FunctionInfo { slot: 1, vendor: 0x1af4, regions: vec![region], ..FunctionInfo::default() }]
    }
}

/// A server, and the name under which it can be called.
struct Bench {
    server: Server,
    address: SocketAddr,
}

impl Bench {
    fn new() -> Bench {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // An abstract name leaves nothing behind in the file system.
        let name = format!("xenpvh-fuzz-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name for a socket");
        let socket = UnixListener::bind_addr(&address).expect("a socket");
        let listener = Listener::inherit(socket.as_raw_fd()).expect("a listener");
        Bench { server: Server::new(vec![("qmp".to_owned(), listener)]), address }
    }

    /// Sends the pieces, and gives all that came back.
    fn talk<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut stand = Stand { status: RunState::Running, link: true, quit: false };
        let mut client = UnixStream::connect_addr(&self.address).expect("a connection");
        client.set_nonblocking(true).expect("a connection that does not block");
        let mut answers = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            while !rest.is_empty() {
                match client.write(rest) {
                    Ok(length) => rest = &rest[length..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // Thrown out.
                    Err(_) => rest = &[],
                }
                self.server.handle(&mut stand);
                collect(&mut client, &mut answers);
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Write);
        // Each turn takes and gives something, so the end is near.
        for _ in 0..10_000 {
            self.server.handle(&mut stand);
            if collect(&mut client, &mut answers) {
                return answers;
            }
        }
        panic!("the server does not let a client go that has hung up");
    }
}

/// Reads what is there. True at the end.
fn collect(client: &mut UnixStream, answers: &mut Vec<u8>) -> bool {
    match client.read_to_end(answers) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// The messages of a stream, without what differs each time.
fn messages(answers: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(answers).expect("answers are text");
    let messages = text.split_terminator("\r\n").map(|line| {
        let mut value: Value = serde_json::from_str(line).expect("an answer is JSON");
        let object = value.as_object_mut().expect("an answer is an object");
        object.remove("timestamp");
        let known = ["QMP", "return", "error", "event"];
        assert_eq!(known.iter().filter(|key| object.contains_key(**key)).count(), 1, "{line}");
        value
    });
    messages.collect()
}

/// Sends the bytes to a server twice.
pub fn run(data: &[u8]) {
    thread_local! {
        static BENCH: std::cell::RefCell<Bench> = std::cell::RefCell::new(Bench::new());
    }
    let Some((size, stream)) = data.split_first() else { return };
    let stream = &stream[..stream.len().min(LONGEST)];
    BENCH.with_borrow_mut(|bench| {
        let whole = bench.talk(std::iter::once(stream));
        let greeting = messages(&whole);
        assert!(greeting.first().is_some_and(|first| first.get("QMP").is_some()));
        if whole.len() < MUCH && stream.len() < 4096 {
            let pieces = bench.talk(stream.chunks(usize::from(*size % 32) + 1));
            assert_eq!(messages(&pieces), greeting, "pieces make a difference");
        }
    });
}
