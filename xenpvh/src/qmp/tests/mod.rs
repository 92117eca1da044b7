//! Clients of all kinds against the server, over real sockets.

mod clients;
mod dialogues;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::cli::Cache;

/// A machine with a disk, a NIC and three functions.
struct Machine {
    state: RunState,
    quit: bool,
}

impl Control for Machine {
    fn name(&self) -> String {
        "g0".to_owned()
    }

    fn status(&self) -> RunState {
        self.state
    }

    fn cont(&mut self) -> Result<(), Error> {
        self.state = RunState::Running;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        if self.state == RunState::Running {
            self.state = RunState::Paused;
        }
        Ok(())
    }

    fn quit(&mut self) {
        self.quit = true;
    }

    fn system_reset(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn system_powerdown(&mut self) -> Result<(), Error> {
        Err(Error::generic("there is no power button"))
    }

    fn set_link(&mut self, name: &str, _up: bool) -> Result<(), Error> {
        if matches!(name, "nic0" | "net0") { Ok(()) } else { Err(Error::device_not_found(name)) }
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        let read = OperationStats { bytes: 4096, operations: 1, ..OperationStats::default() };
        let stats = BlockStats { read, ..BlockStats::default() };
        let drive = BlockInfo {
            device: "d".to_owned(),
            qdev: "vd".to_owned(),
            filename: "/a.img".to_owned(),
            size: 1 << 20,
            cache: Cache { writeback: true, direct: true, no_flush: false },
            stats,
            ..BlockInfo::default()
        };
        let node = BlockInfo {
            node_name: "n".to_owned(),
            filename: "/b.img".to_owned(),
            read_only: true,
            ..BlockInfo::default()
        };
        vec![drive, node]
    }

    fn nics(&self) -> Vec<NicInfo> {
        vec![NicInfo {
            name: "nic0".to_owned(),
            model: "virtio-net-pci".to_owned(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            netdev: "net0".to_owned(),
            netdev_about: "type=tap,ifname=t0".to_owned(),
            link_up: true,
        }]
    }

    fn functions(&self) -> Vec<FunctionInfo> {
        let bridge = FunctionInfo {
            class: 0x0600,
            vendor: 0x1b36,
            device: 8,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            ..FunctionInfo::default()
        };
        let region =
            RegionInfo { bar: 0, size: 0x1_0000, address: Some(0x80_0000_0000), prefetch: true, wide: true };
        let nic = FunctionInfo {
            slot: 1,
            id: "nic0".to_owned(),
            class: 0x0200,
            vendor: 0x1af4,
            device: 0x1041,
            regions: vec![region],
            ..bridge.clone()
        };
        vec![bridge, nic]
    }
}

/// A server on one socket of its own.
struct Bench {
    directory: TempDir,
    server: Server,
    machine: Machine,
}

impl Bench {
    fn new() -> Bench {
        let directory = TempDir::new().unwrap();
        let listener = Listener::bind(&directory.path().join("qmp")).unwrap();
        let server = Server::new(vec![("libxl-cmd".to_owned(), listener)]);
        Bench { directory, server, machine: Machine { state: RunState::Prelaunch, quit: false } }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    /// A client that has just called.
    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// A client that has negotiated.
    fn negotiated(&mut self) -> UnixStream {
        let mut client = self.connect();
        client.write_all(br#"{"execute":"qmp_capabilities"}"#).unwrap();
        let text = self.hear(&mut client);
        assert!(text.ends_with("\r\n{\"return\": {}}\r\n"), "{text}");
        client
    }

    /// Lets the server do what it can, as its owner would.
    fn turn(&mut self) {
        let mut fds: Vec<_> =
            self.server.fds().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now)).unwrap() > 0 {
            drop(fds);
            self.server.handle(&mut self.machine);
        }
    }

    /// All that the server says to `client` now.
    fn hear(&mut self, client: &mut UnixStream) -> String {
        let mut text = Vec::new();
        loop {
            self.turn();
            let before = text.len();
            match client.read_to_end(&mut text) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if text.len() == before {
                break;
            }
        }
        String::from_utf8(text).unwrap()
    }

    /// What the server says to `message`.
    fn ask(&mut self, client: &mut UnixStream, message: &str) -> String {
        client.write_all(message.as_bytes()).unwrap();
        self.hear(client)
    }

    /// The one answer to a command.
    fn answer(&mut self, client: &mut UnixStream, message: &str) -> Value {
        let text = self.ask(client, message);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{message}: {text}: {error}"))
    }
}
