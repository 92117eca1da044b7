//! The control thread: QMP, signals, xenstore, and the dirty log. The guest cannot hold it up.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::GuestMemory;
use pci::Bus;
use rustix::event::{PollFd, PollFlags, Timespec};
use xen::{DomId, IoreqServer, Store, StoreError};

use crate::cli::Config;
use crate::devices::Devices;
use crate::qmp::{self, BlockInfo, Error, Event, FunctionInfo, NicInfo, RunState};
use crate::run::Failure;
use crate::signals::Signals;
use crate::store;

/// How often pages that devices wrote are reported, for live migration, and whether the domain is still there
/// is looked at.
const TICK: Duration = Duration::from_secs(1);

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
    /// The ioreq server, which goes with the domain.
    pub server: IoreqServer,
    /// The way to the toolstack; `None` once it is not needed any more or broken.
    pub store: Option<Store>,
    /// Its RAM.
    pub memory: GuestMemory,
    /// Its PCI functions.
    pub bus: Arc<Bus>,
    /// Its devices.
    pub devices: Devices,
    /// It was said that written pages cannot be reported.
    pub complained: bool,
}

/// What QMP controls: a served domain, or none in a probe run.
pub struct Control {
    name: String,
    state: RunState,
    quit: bool,
    /// `-xen-domid-restrict`: whoever started us asks QMP and does not look at xenstore.
    restricted: bool,
    /// The process was told to give up its privileges.
    deprived: bool,
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
            deprived: config.restrict || config.user.is_some() || config.chroot.is_some(),
            served,
        }
    }

    /// Lets the guest run: the toolstack waits to hear so.
    ///
    /// # Errors
    /// xenstored failed.
    pub fn start(&mut self) -> Result<(), StoreError> {
        if let Some(served) = &mut self.served {
            if let Some(store) = served.store.as_mut().filter(|_| !self.restricted) {
                store::announce_running(store, served.domid)?;
            }
            if self.deprived {
                // It could change any domain's life: not for a process that gave up its other powers.
                served.store = None;
            }
        }
        self.state = RunState::Running;
        Ok(())
    }

    /// Serves everything but the guest until there is a reason to end.
    ///
    /// # Errors
    /// The system has no poll for us.
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
        let mut last_tick = Instant::now();
        loop {
            let left = TICK.saturating_sub(last_tick.elapsed());
            let (signal, store_ready) = self.sleep(signals, server, left)?;
            if signal {
                return Ok(End::Signal);
            }
            server.handle(self);
            if self.quit {
                return Ok(End::Quit);
            }
            let tick = last_tick.elapsed() >= TICK;
            if let Some(served) = &mut self.served
                && (store_ready || tick)
            {
                // A domain that shut down or was suspended is news in xenstore: its last pages matter.
                served.flush_dirty();
                if served.is_gone() {
                    return Ok(End::DomainGone);
                }
            }
            if tick {
                last_tick = Instant::now();
            }
        }
    }

    /// Sleeps until something happens, for no longer than `most`. Says whether there was a signal, and news of xenstore.
    fn sleep(
        &self,
        signals: &Signals,
        server: &qmp::Server,
        most: Duration,
    ) -> Result<(bool, bool), Failure> {
        let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let store = self.served.as_ref().and_then(|served| served.store.as_ref());
        fds.extend(store.map(|store| PollFd::from_borrowed_fd(store.as_fd(), PollFlags::IN)));
        fds.extend(server.fds().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let timeout = Timespec::try_from(most)?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(0), store.is_some() && ready(1)))
    }

    fn devices(&self) -> Option<&Devices> {
        self.served.as_ref().map(|served| &served.devices)
    }

    /// The end: the devices finish or give back what is in flight, disks are flushed, and only then the
    /// domain is left alone.
    pub fn close(self) {
        let Some(mut served) = self.served else { return };
        served.bus.reset();
        served.devices.flush();
        if let Err(error) = served.server.close() {
            log::info!("closing the ioreq server: {error}");
        }
    }
}

impl Served {
    fn flush_dirty(&mut self) {
        match self.memory.flush_dirty() {
            Err(error) if !self.complained => {
                self.complained = true;
                log::error!("cannot report written pages, a live migration would lose them: {error}");
            }
            _ => {}
        }
    }

    /// Whether the domain is no more: xenstore says so at once, Xen when asked.
    fn is_gone(&mut self) -> bool {
        let introduced = match &mut self.store {
            Some(store) => introduced(store, self.domid),
            None => Ok(true),
        };
        let introduced = introduced.unwrap_or_else(|error| {
            log::error!("no more news from xenstore: {error}");
            self.store = None;
            true
        });
        !introduced || self.server.exists().is_ok_and(|exists| !exists)
    }
}

/// Reads xenstore's events: `@releaseDomain` says that some domain shut down or is gone.
fn introduced(store: &mut Store, domid: DomId) -> Result<bool, StoreError> {
    let mut introduced = true;
    while store.next_event()?.is_some() {
        introduced &= store.is_domain_introduced(domid)?;
    }
    Ok(introduced)
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
