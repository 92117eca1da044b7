//! The log: one line a message on standard error, or in the file that `-D` names.

use std::io::{self, Write};
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    program: String,
    out: Mutex<Box<dyn Write + Send>>,
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
        let line = format!("{}: {kind}{}\n", self.program, record.args());
        if let Ok(mut out) = self.out.lock() {
            // A full disk or a closed pipe must not stop the guest.
            let _ = out.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts logging to `file`, or to standard error without one.
pub fn start(program: &str, file: Option<std::fs::File>) {
    let out: Box<dyn Write + Send> = match file {
        Some(file) => Box::new(file),
        None => Box::new(io::stderr()),
    };
    if log::set_boxed_logger(Box::new(Logger { program: program.to_owned(), out: Mutex::new(out) })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
