//! The thread of a worker: it serves queues while there is work, and sleeps on the doorbell.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use domain::Patience;
use rustix::event::{Timespec, poll};

use crate::device::{MAX_SOURCES, Queues, Sources, Wake, Worker};
use crate::doorbell::Doorbell;
use crate::queue::{Queue, QueueError};
use crate::state::State;

/// Chains that a queue may have served before its worker looks at the other queues and at commands. So a
/// driver that adds chains as fast as they are served cannot keep a reset from happening.
const SHARE: u32 = 256;

/// Workers do not recurse; this is many times what they use.
const STACK_SIZE: usize = 256 << 10;

const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The longest name that the kernel keeps for a thread.
const NAME_LENGTH: usize = 15;

enum Command {
    Start(usize, Box<Queue>),
    /// Drain a queue and let go of it.
    Stop(usize),
    /// Drain all queues, and say so when that is done.
    Pause(SyncSender<()>),
    Quit,
}

/// A worker's thread, from the start of its first queue until the device is reset. Dropping it drains
/// its queues and waits for the thread to end.
#[derive(Debug)]
pub(crate) struct Thread {
    commands: Sender<Command>,
    doorbell: Arc<Doorbell>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts the thread of worker number `index`, with no queues yet.
    pub(crate) fn spawn(
        index: usize,
        worker: Box<dyn Worker>,
        doorbell: Arc<Doorbell>,
        state: Arc<State>,
    ) -> io::Result<Thread> {
        let (commands, receiver) = channel();
        let name = thread_name(&state.name, index);
        let work = Loop {
            state,
            doorbell: doorbell.clone(),
            commands: receiver,
            worker,
            queues: Queues::new(),
            wakes: Vec::new(),
            patience: Patience::new(domain::longest_look()),
            quit: false,
        };
        let handle = std::thread::Builder::new().name(name).stack_size(STACK_SIZE).spawn(|| work.run())?;
        Ok(Thread { commands, doorbell, handle: Some(handle) })
    }

    /// Has the worker serve `queue` as number `index`.
    pub(crate) fn start(&self, index: usize, queue: Queue) {
        self.send(Command::Start(index, Box::new(queue)));
    }

    /// Has the worker finish with queue `index`, without waiting for it: [`State::is_stopping`] tells.
    pub(crate) fn stop(&self, index: usize) {
        self.send(Command::Stop(index));
    }

    /// Has the worker finish what it has in flight, without waiting for it: the channel tells, also by
    /// being closed.
    pub(crate) fn pause(&self) -> Receiver<()> {
        let (done, receiver) = sync_channel(1);
        self.send(Command::Pause(done));
        receiver
    }

    /// Has the thread drain its queues and end, without waiting for it: for several at once.
    pub(crate) fn quit(&self) {
        self.send(Command::Quit);
    }

    fn send(&self, command: Command) {
        // A thread that is gone has no queues left either.
        let _ = self.commands.send(command);
        self.doorbell.ring();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.quit();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// `name/index`, the name cut so that the whole fits.
fn thread_name(name: &str, index: usize) -> String {
    let end = format!("/{index}");
    // A NUL cannot be in a thread's name.
    let mut name = name.replace('\0', "");
    while name.len().saturating_add(end.len()) > NAME_LENGTH && name.pop().is_some() {}
    name + &end
}

/// What runs on the thread.
struct Loop {
    state: Arc<State>,
    doorbell: Arc<Doorbell>,
    commands: Receiver<Command>,
    worker: Box<dyn Worker>,
    queues: Queues,
    /// What each queue waits for, by its number.
    wakes: Vec<Wake>,
    patience: Patience,
    quit: bool,
}

impl Loop {
    fn run(mut self) {
        loop {
            self.obey();
            if self.quit {
                return self.stop();
            }
            if self.serve() || self.linger() {
                continue;
            }
            // In this order: whoever rings from here on is heard, and whatever was rung for before is
            // found by looking once more.
            self.doorbell.listen();
            if self.obey() || self.ask() {
                self.doorbell.ignore();
            } else {
                self.wait(None);
            }
            self.patience.resume();
        }
    }

    /// Looks for more work for a while before going to sleep. The driver is not asked to notify us meanwhile, which
    /// saves it an exit, and us a wake-up. True if there is some.
    fn linger(&mut self) -> bool {
        let mut patience = self.patience;
        let more = patience.look(|| self.glance());
        if more {
            patience.resume();
        }
        self.patience = patience;
        more
    }

    /// Whether there is anything to do.
    fn glance(&mut self) -> bool {
        self.obey() || self.look() || self.wait(Some(&NOT_AT_ALL))
    }

    /// Carries out the commands that wait. True if there were any.
    fn obey(&mut self) -> bool {
        let mut any = false;
        while let Ok(command) = self.commands.try_recv() {
            any = true;
            match command {
                Command::Start(index, queue) => {
                    self.queues.insert(index, *queue);
                    self.wakes.resize(self.queues.end(), Wake::Kick);
                    if let Some(wake) = self.wakes.get_mut(index) {
                        *wake = Wake::Kick;
                    }
                }
                Command::Stop(index) => {
                    if let Err(error) = self.drain(index) {
                        self.state.needs_reset(format_args!("queue {index}, being reset: {error}"));
                    }
                    self.state.set_stopping(index, false);
                }
                Command::Pause(done) => {
                    self.pause();
                    let _ = done.send(());
                }
                Command::Quit => self.quit = true,
            }
        }
        any
    }

    /// Serves every queue once. True if there is more to do at once.
    fn serve(&mut self) -> bool {
        let mut again = false;
        if !self.state.bus_master() {
            return again;
        }
        for index in 0..self.queues.end() {
            let Some(queue) = self.queues.get(index) else { continue };
            queue.grant(SHARE);
            let served =
                queue.disable_notification().and_then(|()| self.worker.serve(&mut self.queues, index));
            match served {
                Ok(wake) => {
                    again |= wake == Wake::Again;
                    if let Some(slot) = self.wakes.get_mut(index) {
                        *slot = wake;
                    }
                }
                Err(error) => self.fail(index, &error),
            }
        }
        again
    }

    /// Asks drivers to notify us, where that is waited for. True if there is something to do already.
    fn ask(&mut self) -> bool {
        self.any_more(Queue::enable_notification)
    }

    /// Whether drivers have something for us, where that is waited for.
    fn look(&mut self) -> bool {
        self.any_more(Queue::has_more)
    }

    fn any_more(&mut self, has_more: fn(&mut Queue) -> Result<bool, QueueError>) -> bool {
        let mut more = false;
        if !self.state.bus_master() {
            return more;
        }
        for index in 0..self.queues.end() {
            if self.wakes.get(index) != Some(&Wake::Kick) {
                continue;
            }
            match self.queues.get(index).map(has_more) {
                Some(Ok(available)) => more |= available,
                Some(Err(error)) => self.fail(index, &error),
                None => {}
            }
        }
        more
    }

    /// Waits until the doorbell or one of the worker's sources wakes us, or for as long as `limit`. True if one
    /// did.
    fn wait(&mut self, limit: Option<&Timespec>) -> bool {
        let mut sources = Sources::new(self.doorbell.as_fd());
        if self.state.bus_master() {
            self.worker.sources(&self.queues, &mut sources);
        }
        let fds = sources.as_poll();
        // Awake, the doorbell is silent: without other sources there is nothing to ask the kernel.
        if limit.is_some() && fds.len() == 1 {
            return false;
        }
        let result = poll(fds, limit);
        self.doorbell.ignore();
        match result {
            Ok(count) => {
                let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
                if ready.next() == Some(true) {
                    self.doorbell.clear();
                }
                let mut sources = [false; MAX_SOURCES];
                let mut known = 0usize;
                for (slot, ready) in sources.iter_mut().zip(ready) {
                    *slot = ready;
                    known = known.saturating_add(1);
                }
                self.worker.woken(sources.get(..known).unwrap_or_default());
                count > 0
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                // Out of memory, most likely: going round at full speed would not help.
                self.state.complain(format_args!("poll: {error}"));
                std::thread::sleep(Duration::from_millis(10));
                true
            }
        }
    }

    /// Stops queue `index`, which the driver broke. The others go on.
    fn fail(&mut self, index: usize, error: &QueueError) {
        // It is broken already: that it cannot be drained tidily is no news.
        let _ = self.drain(index);
        self.state.needs_reset(format_args!("queue {index}: {error}"));
    }

    /// Has the worker finish all it has in flight. The queues stay.
    fn pause(&mut self) {
        // What each waited for may come while nobody looks.
        self.wakes.fill(Wake::Kick);
        for index in 0..self.queues.end() {
            if !self.queues.contains(index) {
                continue;
            }
            let drained = self.worker.drain(&mut self.queues, index);
            let flushed = drained.and_then(|()| self.queues.get(index).map_or(Ok(()), Queue::flush));
            if let Err(error) = flushed {
                self.fail(index, &error);
            }
        }
    }

    /// Stops all queues.
    fn stop(mut self) {
        for index in 0..self.queues.end() {
            if let Err(error) = self.drain(index) {
                self.state.complain(format_args!("queue {index}, being stopped: {error}"));
            }
        }
    }

    /// Has the worker finish with queue `index`, and shows the driver what was done.
    fn drain(&mut self, index: usize) -> Result<(), QueueError> {
        if !self.queues.contains(index) {
            return Ok(());
        }
        let drained = self.worker.drain(&mut self.queues, index);
        let flushed = self.queues.remove(index).map_or(Ok(()), |mut queue| queue.flush());
        drained.and(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(thread_name("nic0", 0), "nic0/0");
        assert_eq!(thread_name("a-very-long-device-id", 12), "a-very-long-/12");
        assert_eq!(thread_name("gerät-mit-umlautä", 3), "gerät-mit-um/3");
        assert_eq!(thread_name("a\0b", 3), "ab/3");
        assert_eq!(thread_name("", 0), "/0");
    }
}
