//! The control thread: QMP, signals, xenstore, and the dirty log. The guest cannot hold it up.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::GuestMemory;
use pci::Bus;
use rustix::event::{PollFd, PollFlags, Timespec};
use xen::{DomId, Store, StoreError};

use crate::cli::Config;
use crate::devices::Devices;
use crate::qmp::{self, BlockInfo, Error, Event, FunctionInfo, NicInfo, RunState};
use crate::run::Failure;
use crate::signals::Signals;
use crate::store;

/// How often pages that devices wrote are reported, for live migration.
const DIRTY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the control loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGHUP, SIGINT or SIGTERM.
    Signal,
    /// QMP's `quit`.
    Quit,
    /// The domain is no more.
    DomainGone,
}

impl End {
    /// Why, as QMP and the log say it.
    pub fn reason(self) -> &'static str {
        match self {
            End::Signal => "host-signal",
            End::Quit => "host-qmp-quit",
            End::DomainGone => "guest-shutdown",
        }
    }
}

/// The domain that is served.
pub struct Served {
    /// Which.
    pub domid: DomId,
    /// The way to the toolstack.
    pub store: Store,
    /// Its RAM.
    pub memory: GuestMemory,
    /// Its PCI functions.
    pub bus: Arc<Bus>,
    /// Its devices.
    pub devices: Devices,
}

/// What QMP controls: a served domain, or none in a probe run.
pub struct Control {
    name: String,
    state: RunState,
    quit: bool,
    /// `-xen-domid-restrict`: whoever started us asks QMP and does not look at xenstore.
    restricted: bool,
    served: Option<Served>,
}

impl Control {
    /// A guest that does not run yet.
    pub fn new(config: &Config, served: Option<Served>) -> Control {
        Control {
            name: config.name.clone(),
            state: RunState::Prelaunch,
            quit: false,
            restricted: config.restrict,
            served,
        }
    }

    /// Lets the guest run: the toolstack waits to hear so.
    ///
    /// # Errors
    /// xenstored failed.
    pub fn start(&mut self) -> Result<(), StoreError> {
        if let Some(served) = self.served.as_mut().filter(|_| !self.restricted) {
            store::announce_running(&mut served.store, served.domid)?;
        }
        self.state = RunState::Running;
        Ok(())
    }

    /// Serves everything but the guest until there is a reason to end.
    ///
    /// # Errors
    /// xenstored is gone.
    pub fn run(&mut self, signals: &Signals, server: &mut qmp::Server) -> Result<End, Failure> {
        let end = self.wait(signals, server)?;
        if end != End::Quit {
            // The server itself tells of a quit, before it answers.
            server.event(&Event::shutdown(end == End::DomainGone, end.reason()));
        }
        server.finish();
        Ok(end)
    }

    fn wait(&mut self, signals: &Signals, server: &mut qmp::Server) -> Result<End, Failure> {
        let mut next_flush = Instant::now() + DIRTY_INTERVAL;
        loop {
            let (signal, store_ready) = self.sleep(signals, server, next_flush)?;
            if signal {
                return Ok(End::Signal);
            }
            if store_ready && self.domain_gone()? {
                return Ok(End::DomainGone);
            }
            server.handle(self);
            if self.quit {
                return Ok(End::Quit);
            }
            if next_flush <= Instant::now() {
                if let Some(served) = &self.served {
                    // Fails only when the domain goes, which xenstore tells us.
                    let _ = served.memory.flush_dirty();
                }
                next_flush = Instant::now() + DIRTY_INTERVAL;
            }
        }
    }

    /// Sleeps until something happens or `until`. Says whether there was a signal, and news of xenstore.
    fn sleep(
        &self,
        signals: &Signals,
        server: &qmp::Server,
        until: Instant,
    ) -> Result<(bool, bool), Failure> {
        let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        if let Some(served) = &self.served {
            fds.push(PollFd::from_borrowed_fd(served.store.as_fd(), PollFlags::IN));
        }
        fds.extend(server.fds().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let timeout = Timespec::try_from(until.saturating_duration_since(Instant::now()))?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(0), self.served.is_some() && ready(1)))
    }

    /// Reads xenstore's events: `@releaseDomain` says that some domain shut down or is gone.
    fn domain_gone(&mut self) -> Result<bool, StoreError> {
        let Some(Served { store, domid, .. }) = &mut self.served else { return Ok(false) };
        let mut gone = false;
        while store.next_event()?.is_some() {
            gone |= !store.is_domain_introduced(*domid)?;
        }
        Ok(gone)
    }

    /// The devices, for the end.
    pub fn devices(&self) -> Option<&Devices> {
        self.served.as_ref().map(|served| &served.devices)
    }
}

/// What only the toolstack can do to a domain.
fn toolstack(what: &str, command: &str) -> Error {
    Error::generic(format!("{what} is for the toolstack: use '{command}'"))
}

impl qmp::Control for Control {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn status(&self) -> RunState {
        self.state
    }

    fn cont(&mut self) -> Result<(), Error> {
        match self.state {
            RunState::Running => Ok(()),
            _ => self.start().map_err(|error| Error::generic(error.to_string())),
        }
    }

    fn stop(&mut self) -> Result<(), Error> {
        Err(toolstack("stopping a domain", "xl pause"))
    }

    fn quit(&mut self) {
        self.quit = true;
    }

    fn system_reset(&mut self) -> Result<(), Error> {
        Err(toolstack("resetting a domain", "xl reboot"))
    }

    fn system_powerdown(&mut self) -> Result<(), Error> {
        Err(toolstack("shutting a domain down", "xl shutdown"))
    }

    fn set_link(&mut self, name: &str, up: bool) -> Result<(), Error> {
        let nics = self.devices().map(|devices| devices.nics.as_slice()).unwrap_or_default();
        let nic = nics.iter().find(|nic| nic.device == name || nic.netdev == name);
        nic.ok_or_else(|| Error::device_not_found(name))?.net.set_link(up);
        Ok(())
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        self.devices().map(Devices::block_infos).unwrap_or_default()
    }

    fn nics(&self) -> Vec<NicInfo> {
        self.devices().map(Devices::nic_infos).unwrap_or_default()
    }

    fn functions(&self) -> Vec<FunctionInfo> {
        let Some(Served { bus, devices, .. }) = &self.served else { return Vec::new() };
        devices.function_infos(bus)
    }
}
