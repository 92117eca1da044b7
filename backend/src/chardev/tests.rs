use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};

use super::*;
use crate::socket::{Listener, SocketAddress, SocketError, connect};

fn nothing(result: io::Result<usize>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
}

fn wait(poller: &Poller) {
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(poller, PollFlags::IN)], Some(&limit)).unwrap(), 1, "nothing happened");
}

/// Waits until something happened to chardev 7, and has it attended to.
fn attend(poller: &Poller, chardev: &mut dyn Chardev) {
    wait(poller);
    while let Some(number) = poller.take() {
        assert_eq!(number, 7);
        chardev.attend(false);
    }
}

fn watched(mut chardev: impl Chardev) -> (impl Chardev, Poller) {
    let poller = Poller::new().unwrap();
    chardev.watch(poller.watch(7)).unwrap();
    (chardev, poller)
}

fn talk(chardev: &mut dyn Chardev, poller: &Poller, peer: &mut (impl Read + Write)) {
    let mut bytes = [0; 16];
    nothing(chardev.read(&mut bytes));
    peer.write_all(b"to the guest").unwrap();
    wait(poller);
    assert_eq!(chardev.read(&mut bytes[..6]).unwrap(), 6);
    assert_eq!(chardev.read(&mut bytes[6..]).unwrap(), 6);
    assert_eq!(&bytes[..12], b"to the guest");
    nothing(chardev.read(&mut bytes));
    assert_eq!(chardev.write(b"from it").unwrap(), 7);
    peer.read_exact(&mut bytes[..7]).unwrap();
    assert_eq!(&bytes[..7], b"from it");
}

#[test]
fn callers_come_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = Listener::open(&SocketAddress::Path(path.clone())).unwrap();
    assert_eq!(unix.filename(), format!("unix:{},server=on", path.display()));
    callers(unix, || UnixStream::connect(&path).unwrap());
    assert!(!path.exists(), "the socket's file went with it");
    let tcp = Listener::open(&SocketAddress::Tcp("127.0.0.1".to_owned(), 0)).unwrap();
    let address = tcp.filename().strip_prefix("tcp:").unwrap().strip_suffix(",server=on").unwrap().to_owned();
    callers(tcp, || TcpStream::connect(&address).unwrap());
}

fn callers<S: Read + Write>(listener: Listener, call: impl Fn() -> S) {
    let (mut socket, poller) = watched(Socket::server(listener));
    socket.attend(false);
    assert!(!socket.is_open());
    assert_eq!(socket.read(&mut [0]).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(socket.write(&[0]).unwrap_err().kind(), ErrorKind::NotConnected);
    let mut first = call();
    attend(&poller, &mut socket);
    assert!(socket.is_open());
    talk(&mut socket, &poller, &mut first);
    // Another one waits until the first has left, whose last words are not lost.
    let mut second = call();
    first.write_all(b"bye").unwrap();
    drop(first);
    attend(&poller, &mut socket);
    assert_eq!(socket.read(&mut [0; 9]).unwrap(), 3);
    assert!(socket.is_open());
    assert_eq!(socket.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::NotConnected);
    assert!(!socket.is_open());
    socket.attend(false);
    assert!(socket.is_open());
    talk(&mut socket, &poller, &mut second);
    // Nobody reads the last words of this one.
    second.write_all(b"bye").unwrap();
    drop(second);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while socket.is_open() && std::time::Instant::now() < end {
        socket.attend(true);
    }
    assert!(!socket.is_open());
}

#[test]
fn a_peer_that_does_not_read() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let (mut socket, poller) = watched(Socket::client(ours.into()));
    let mut sent = 0;
    let error = loop {
        match socket.write(&[1; 4096]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    while poller.take().is_some() {}
    peer.read_exact(&mut vec![0; sent]).unwrap();
    wait(&poller);
    assert!(socket.write(&[1]).is_ok());
    drop(peer);
    assert_eq!(socket.write(&[1]).unwrap_err().kind(), ErrorKind::NotConnected);
    assert!(!socket.is_open());
    socket.attend(false);
    assert!(!socket.is_open(), "nobody can call there");
}

#[test]
fn calling_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address = SocketAddress::Path(path.clone());
    let error = connect(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Failed to connect to '{}': No such file or directory", path.display())
    );
    let listener = UnixListener::bind(&path).unwrap();
    let (mut socket, poller) = watched(Socket::client(connect(&address).unwrap()));
    assert!(socket.is_open());
    talk(&mut socket, &poller, &mut listener.accept().unwrap().0);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = SocketAddress::Tcp("127.0.0.1".to_owned(), port);
    let taken = Listener::open(&address).unwrap_err();
    assert_eq!(taken.to_string(), "Failed to find an available port: Address already in use");
    let (mut socket, poller) = watched(Socket::client(connect(&address).unwrap()));
    talk(&mut socket, &poller, &mut listener.accept().unwrap().0);
    drop(listener);
    let error = connect(&address).unwrap_err();
    assert_eq!(error.to_string(), format!("Failed to connect to '127.0.0.1:{port}': Connection refused"));
    let nowhere = SocketAddress::Tcp("no.such.host.invalid".to_owned(), 1);
    assert!(matches!(connect(&nowhere), Err(SocketError::Resolve(..))));
}

#[test]
fn waiting_for_the_first_caller() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut socket = Socket::server(Listener::bind(&path).unwrap());
    let caller = std::thread::spawn(move || UnixStream::connect(path).unwrap());
    socket.wait();
    assert!(socket.is_open());
    caller.join().unwrap();
    // One that called is not waited for.
    Socket::client(UnixStream::pair().unwrap().0.into()).wait();
}

#[test]
fn files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for (append, content) in [(false, "one"), (true, "onetwo"), (false, "three")] {
        let (mut file, _poller) = watched(Plain::file(&path, append).unwrap());
        let new = if append { "two" } else { content };
        assert_eq!(file.write(new.as_bytes()).unwrap(), new.len());
        nothing(file.read(&mut [0; 4]));
        assert!(file.is_open());
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    let nowhere: PathBuf = directory.path().join("no/log");
    let error = Plain::file(&nowhere, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Could not create '{}': No such file or directory", nowhere.display())
    );
    if File::create("/dev/full").is_ok() {
        let mut full = Plain::file("/dev/full".as_ref(), true).unwrap();
        assert_eq!(full.write(b"x").unwrap_err().kind(), ErrorKind::StorageFull);
    }
}

#[test]
fn null() {
    let (mut null, poller) = watched(Plain::null());
    nothing(null.read(&mut [0]));
    assert_eq!(null.write(&[0; 100]).unwrap(), 100);
    assert!(null.is_open() && poller.take().is_none());
}

#[test]
fn ptys() {
    let (pty, path) = match Plain::pty() {
        Ok(made) => made,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let (mut pty, poller) = watched(pty);
    // What was said before somebody came is there, and does not come back.
    assert_eq!(pty.write(b"login: \n").unwrap(), 8);
    nothing(pty.read(&mut [0; 16]));
    for _ in 0..2 {
        let mut terminal = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        if poller.take().is_some() {
            nothing(pty.read(&mut [0; 16]));
        }
        let mut bytes = [0; 8];
        terminal.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"login: \n");
        terminal.write_all(b"root\r").unwrap();
        wait(&poller);
        let mut bytes = [0; 16];
        assert_eq!(pty.read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes[..5], b"root\r");
        nothing(pty.read(&mut bytes));
        while poller.take().is_some() {}
        drop(terminal);
        nothing(pty.read(&mut bytes));
        assert_eq!(pty.write(b"login: \n").unwrap(), 8);
    }
    // It fills, which is no reason to fail.
    let error = loop {
        if let Err(error) = pty.write(&[b'x'; 1024]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// In a process of its own, since others have its standard output, too.
#[test]
fn standard_input_and_output() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "chardev::tests::other_process", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"keys").unwrap();
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "{output}");
    assert!(output.contains("heard keys"), "{output}");
}

#[test]
#[ignore = "started by standard_input_and_output"]
fn other_process() {
    let blocks = || !rustix::fs::fcntl_getfl(io::stdin()).unwrap().contains(rustix::fs::OFlags::NONBLOCK);
    assert!(blocks());
    let (mut stdio, poller) = watched(Plain::stdio(true).unwrap());
    assert!(!blocks());
    wait(&poller);
    let mut bytes = [0; 9];
    let count = loop {
        match stdio.read(&mut bytes) {
            Ok(count) => break count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    };
    nothing(stdio.read(&mut bytes[count..]));
    stdio.write(&[b"heard ", &bytes[..count], b"\n"].concat()).unwrap();
    drop(stdio);
    assert!(blocks(), "they are put back");
}
