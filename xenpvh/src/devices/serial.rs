//! Serial devices and the chardevs behind their ports.

use std::sync::Mutex;

use backend::chardev::{Chardev, Plain, Socket};
use backend::socket::{Listener, connect};
use virtio::console::{Console, Port};

use super::at;
use crate::cli::{self, CharBackend, Config, SerialDevice, SerialPort};
use crate::qmp::CharInfo;
use crate::run::Failure;

/// Makes the device, and opens what its ports are on.
pub(super) fn open(
    config: &Config,
    options: &SerialDevice,
    opened: &mut Vec<CharInfo>,
) -> Result<Console, Failure> {
    let mut port = |port: &SerialPort| -> Result<Port, Failure> {
        let host: Box<dyn Chardev> = match port.chardev.as_deref().and_then(|id| config.chardev(id)) {
            Some(chardev) => {
                let (host, filename) =
                    open_chardev(chardev).map_err(|error| at(config, &chardev.typed, error))?;
                opened.push(CharInfo { label: chardev.id.clone(), filename });
                host
            }
            None => Box::new(Plain::null()),
        };
        let SerialPort { number, console, ref name, .. } = *port;
        Ok(Port { number, console, name: name.clone(), host: Mutex::new(host) })
    };
    let ports = options.ports.iter().map(&mut port).collect::<Result<_, _>>()?;
    Ok(Console::new(options.max_ports, ports)?)
}

/// Opens a chardev: it, and what `query-chardev` calls it. Waits for the first caller where that is asked for.
fn open_chardev(chardev: &cli::Chardev) -> Result<(Box<dyn Chardev>, String), Failure> {
    Ok(match &chardev.backend {
        CharBackend::Socket(socket) => {
            let listener = Listener::open(&socket.address)?;
            let filename = listener.filename().to_owned();
            let mut server = Socket::server(listener);
            if socket.wait {
                log::info!("waiting for connection on: {filename}");
                server.wait();
            }
            (Box::new(server), filename)
        }
        CharBackend::Client(address) => {
            let family = if let cli::SocketAddress::Tcp(..) = address { "tcp" } else { "unix" };
            (Box::new(Socket::client(connect(address)?)), format!("{family}:{address}"))
        }
        CharBackend::File { path, append } => (Box::new(Plain::file(path, *append)?), "file".to_owned()),
        CharBackend::Pty => {
            let (pty, path) = Plain::pty()?;
            log::info!("char device redirected to {path} (label {})", chardev.id);
            (Box::new(pty), format!("pty:{path}"))
        }
        CharBackend::Stdio { signals } => (Box::new(Plain::stdio(*signals)?), "stdio".to_owned()),
        CharBackend::Null => (Box::new(Plain::null()), "null".to_owned()),
        CharBackend::Unused(kind) => return Err(format!("a {kind} is not supported").into()),
    })
}
