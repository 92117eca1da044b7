//! The server: every socket with its client. It has no thread of its own and never blocks: its owner
//! polls [`Server::fds`] and calls [`Server::handle`] when one is ready.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use backend::socket::Listener;
use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use crate::cli::{CharBackend, Config, Error as CommandLineError};

use super::commands::{self, Context};
use super::stream::{Item, Splitter};
use super::types::{CharInfo, Control, Error, Event};
use super::{json, query};

/// Most bytes that wait for a client to read them; one that lets more pile up is disconnected.
const MAX_OUTPUT: usize = 1 << 20;
/// Most bytes read from one client in a row, so that others have their turn.
const MAX_TURN: usize = 1 << 18;
/// How long a client that was asked for gets to take the last words.
const FAREWELL: Duration = Duration::from_millis(100);

/// How long a socket is left alone after it failed to accept.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// One monitor: a socket, and who calls on it.
#[derive(Debug)]
struct Port {
    listener: Listener,
    pretty: bool,
    client: Option<Client>,
    /// Until when it is left alone after a failure to accept, which would come again at once.
    rests: Option<Instant>,
}

/// One client.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    splitter: Splitter,
    output: Vec<u8>,
    negotiated: bool,
    /// Nothing more is read; it goes when it has what waits for it.
    closing: bool,
}

/// All monitors of a machine.
#[derive(Debug, Default)]
pub struct Server {
    ports: Vec<Port>,
    chardevs: Vec<CharInfo>,
}

/// Opens the monitors of `config`. Waits for a client on those that say `wait=on`. Other chardevs are those that
/// devices have opened.
///
/// # Errors
/// A socket cannot be had.
pub fn listen(config: &Config, opened: &[CharInfo]) -> Result<Server, CommandLineError> {
    let mut server = Server::default();
    for chardev in &config.chardevs {
        let monitor = config.monitors.iter().find(|monitor| monitor.chardev == chardev.id);
        let filename = match (&chardev.backend, monitor) {
            (CharBackend::Socket(socket), Some(monitor)) => {
                let listener = Listener::open(&socket.address);
                let listener = listener.map_err(|error| config.error(&chardev.typed, &error.to_string()))?;
                let filename = listener.filename().to_owned();
                server.add(listener, monitor.pretty);
                if socket.wait {
                    server.wait_for_client();
                }
                filename
            }
            (backend, _) => match opened.iter().find(|other| other.label == chardev.id) {
                Some(opened) => opened.filename.clone(),
                // Nobody uses it, so nobody can call.
                None if backend.kind() == "socket" => "disconnected:socket".to_owned(),
                None => backend.kind().to_owned(),
            },
        };
        server.chardevs.push(CharInfo { label: chardev.id.clone(), filename });
    }
    Ok(server)
}

impl Server {
    /// A server on these sockets, each with its label.
    #[must_use]
    pub fn new(listeners: Vec<(String, Listener)>) -> Server {
        let mut server = Server::default();
        for (label, listener) in listeners {
            server.chardevs.push(CharInfo { label, filename: listener.filename().to_owned() });
            server.add(listener, false);
        }
        server
    }

    fn add(&mut self, listener: Listener, pretty: bool) {
        self.ports.push(Port { listener, pretty, client: None, rests: None });
    }

    /// Waits until the socket added last has a client.
    fn wait_for_client(&mut self) {
        let Some(port) = self.ports.last_mut() else { return };
        log::info!("waiting for connection on: {}", port.listener.filename());
        while port.client.is_none() {
            let mut fds = [PollFd::new(&port.listener, PollFlags::IN)];
            // A signal that is not deadly may cut it short: then once more.
            let _ = rustix::event::poll(&mut fds, None);
            port.accept();
        }
    }

    /// What to poll for.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.ports.iter().map(|port| match &port.client {
            None if port.rests.is_some_and(|since| since.elapsed() < ACCEPT_REST) => {
                (port.listener.as_fd(), PollFlags::empty())
            }
            None => (port.listener.as_fd(), PollFlags::IN),
            Some(client) => {
                let mut flags = PollFlags::empty();
                if !client.closing {
                    flags |= PollFlags::IN;
                }
                if !client.output.is_empty() {
                    flags |= PollFlags::OUT;
                }
                (client.socket.as_fd(), flags)
            }
        })
    }

    /// Does what can be done now: takes new clients, carries out what they ask, hands out answers.
    /// To be called when any of [`fds`](Server::fds) is ready; harmless at other times.
    pub fn handle(&mut self, backend: &mut dyn Control) {
        let mut events = Vec::new();
        for index in 0..self.ports.len() {
            let Some(port) = self.ports.get_mut(index) else { return };
            // The next in line is taken at once when one leaves.
            for _ in 0..2 {
                port.accept();
                let Some(client) = &mut port.client else { break };
                events.extend(client.serve(&self.chardevs, backend, port.pretty));
                port.reap();
                if port.client.is_some() {
                    break;
                }
            }
            for event in events.drain(..) {
                self.event_but(&event, Some(index));
            }
        }
    }

    /// Tells all clients of something that did not come of a command.
    pub fn event(&mut self, event: &Event) {
        self.event_but(event, None);
    }

    /// Tells all clients but the one of this port.
    fn event_but(&mut self, event: &Event, but: Option<usize>) {
        let message = event.message();
        for (_, port) in self.ports.iter_mut().enumerate().filter(|(index, _)| Some(*index) != but) {
            if let Some(client) = port.client.as_mut().filter(|client| client.negotiated) {
                client.send(&message, port.pretty);
                client.flush();
            }
            port.reap();
        }
    }

    /// Hands out what still waits, for a short while: for the end of the process.
    pub fn finish(&mut self) {
        let start = Instant::now();
        loop {
            for port in &mut self.ports {
                if let Some(client) = &mut port.client {
                    client.flush();
                }
                port.reap();
            }
            let waiting = |port: &&Port| port.client.as_ref().is_some_and(|client| !client.output.is_empty());
            let clients = self.ports.iter().filter(waiting).filter_map(|port| port.client.as_ref());
            let mut fds: Vec<PollFd<'_>> =
                clients.map(|client| PollFd::new(&client.socket, PollFlags::OUT)).collect();
            let left = FAREWELL.saturating_sub(start.elapsed());
            if fds.is_empty() || left.is_zero() {
                return;
            }
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = rustix::event::poll(&mut fds, Some(&timeout));
        }
    }
}

impl Port {
    /// Takes the next client if there is none.
    fn accept(&mut self) {
        if self.client.is_some() {
            return;
        }
        let socket = match self.listener.accept() {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => {
                if self.rests.is_none() {
                    log::warn!("cannot accept a QMP client on {}: {error}", self.listener.filename());
                }
                self.rests = Some(Instant::now());
                return;
            }
        };
        self.rests = None;
        let mut client = Client {
            socket: socket.into(),
            splitter: Splitter::new(),
            output: Vec::new(),
            negotiated: false,
            closing: false,
        };
        client.send(&json!({"QMP": {"version": query::version(), "capabilities": []}}), self.pretty);
        client.flush();
        self.client = Some(client);
        self.reap();
    }

    /// Lets a client go that has nothing more to do here.
    fn reap(&mut self) {
        if self.client.as_ref().is_some_and(|client| client.closing && client.output.is_empty()) {
            self.client = None;
        }
    }
}

impl Client {
    /// Reads and answers. Gives the events that came of it; the client itself has been told.
    fn serve(&mut self, chardevs: &[CharInfo], backend: &mut dyn Control, pretty: bool) -> Vec<Event> {
        let mut events = Vec::new();
        let mut buffer = [0; 4096];
        let mut taken = 0usize;
        while !self.closing && taken < MAX_TURN {
            match self.socket.read(&mut buffer) {
                // It may have closed one half only, and still want its answers.
                Ok(0) => self.closing = true,
                Ok(length) => {
                    taken = taken.saturating_add(length);
                    let mut items = Vec::new();
                    self.splitter
                        .feed(buffer.get(..length).unwrap_or_default(), &mut |item| items.push(item));
                    for item in items {
                        events.extend(self.item(item, chardevs, backend, pretty));
                    }
                    self.flush();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.hang_up(),
            }
        }
        self.flush();
        events
    }

    /// Answers one item of the stream.
    fn item(
        &mut self,
        item: Item,
        chardevs: &[CharInfo],
        backend: &mut dyn Control,
        pretty: bool,
    ) -> Vec<Event> {
        if self.closing {
            return Vec::new();
        }
        let parsed = match item {
            Item::Message(message) => json::parse(&message),
            Item::Error(complaint) => Err(complaint),
            Item::TooLong => {
                let error = Error::generic("JSON token size limit exceeded");
                self.send(&reply(None, Err(error)), pretty);
                self.closing = true;
                return Vec::new();
            }
        };
        let (id, request) = match parsed {
            Ok(message) => commands::request(message),
            Err(complaint) => (None, Err(Error::generic(complaint))),
        };
        let mut context = Context { backend, chardevs, events: Vec::new() };
        let result = match &request {
            Err(error) => Err(error.clone()),
            Ok(request) if !self.negotiated => commands::negotiate(request),
            Ok(request) => commands::run(&mut context, request),
        };
        // Events come before the answer of the command that they came of.
        for event in &context.events {
            self.send(&event.message(), pretty);
        }
        // Before negotiation, nothing but negotiating succeeds.
        self.negotiated |= result.is_ok();
        self.send(&reply(id, result), pretty);
        context.events
    }

    /// Queues a message.
    fn send(&mut self, message: &Value, pretty: bool) {
        if self.output.len() > MAX_OUTPUT {
            self.flush();
        }
        if self.output.len() > MAX_OUTPUT {
            log::warn!("a QMP client does not read its answers: disconnected");
            self.hang_up();
        }
        if !self.closing {
            self.output.extend(json::write(message, pretty));
            self.output.extend(b"\r\n");
        }
    }

    /// Hands out as much as the client takes now.
    fn flush(&mut self) {
        let mut done = 0usize;
        while let Some(rest) = self.output.get(done..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(length) => done = done.saturating_add(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.hang_up(),
            }
        }
        self.output.drain(..done);
    }

    /// The client is gone, or as good as.
    fn hang_up(&mut self) {
        self.closing = true;
        self.output.clear();
    }
}

/// An answer, its id where QEMU puts it.
fn reply(id: Option<Value>, result: Result<Value, Error>) -> Value {
    match (result, id) {
        (Ok(value), Some(id)) => json!({"return": value, "id": id}),
        (Ok(value), None) => json!({"return": value}),
        (Err(error), id) => {
            let error = json!({"class": error.class.name(), "desc": error.desc});
            match id {
                Some(id) => json!({"id": id, "error": error}),
                None => json!({"error": error}),
            }
        }
    }
}
