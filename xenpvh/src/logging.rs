//! The log: one line a message on standard error, or in the file that `-D` names.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// What a guest does can make its devices log. So many lines of theirs are written in each interval, so that
/// it cannot fill the host's disk.
const LINES: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(60);
/// The crates whose messages are our own doing, or the host's.
const TRUSTED: &str = "xenpvh";

struct Logger {
    program: String,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// When the interval began, and how many lines of devices came in it.
    since: Instant,
    lines: u32,
}

impl State {
    /// Whether a line of a device is to be written, or instead that there are too many.
    fn admit(&mut self) -> Option<bool> {
        if self.since.elapsed() >= INTERVAL {
            (self.since, self.lines) = (Instant::now(), 0);
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            0..=LINES => Some(true),
            lines if lines == LINES + 1 => Some(false),
            _ => None,
        }
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let kind = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        let Ok(mut state) = self.state.lock() else { return };
        let whole = record.target().starts_with(TRUSTED) || {
            let Some(whole) = state.admit() else { return };
            whole
        };
        let line = match whole {
            true => format!("{}: {kind}{}\n", self.program, record.args()),
            false => {
                format!("{}: too many messages of devices, leaving some out for a while\n", self.program)
            }
        };
        // A full disk or a closed pipe must not stop the guest.
        let _ = state.out.write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Starts logging to `file`, or to standard error without one.
pub fn start(program: &str, file: Option<std::fs::File>) {
    let out: Box<dyn Write + Send> = match file {
        Some(file) => Box::new(file),
        None => Box::new(io::stderr()),
    };
    let state = Mutex::new(State { out, since: Instant::now(), lines: 0 });
    if log::set_boxed_logger(Box::new(Logger { program: program.to_owned(), state })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_cannot_flood_the_log() {
        let mut state = State { out: Box::new(io::sink()), since: Instant::now(), lines: 0 };
        let verdicts: Vec<_> = (0..1000).map(|_| state.admit()).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Some(true)).count(), LINES as usize);
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Some(false)).count(), 1);
        state.since = Instant::now().checked_sub(INTERVAL).unwrap();
        assert_eq!(state.admit(), Some(true));
    }
}
