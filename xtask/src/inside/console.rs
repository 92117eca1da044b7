//! Talks to a guest through its Xen console.
//!
//! The guest's init reads lines of a script and then `@@run N`; it answers `@@begin N`, the script's output and
//! `@@end N STATUS`. Everything else on the console is kernel messages, which xenconsoled keeps in a log.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// From fcntl.h of Linux on x86: the console must not become ours.
const O_NOCTTY: i32 = 0o400;

/// hvc takes this much at once; more would overrun the guest's tty.
const CHUNK: usize = 512;

/// A kernel that says so will not reach its init.
const LOST: [&str; 2] = ["Kernel panic", "soft lockup"];

pub struct Console {
    writer: File,
    bytes: Receiver<Vec<u8>>,
    pending: Vec<u8>,
    next: u32,
}

impl Console {
    pub fn open(tty: &str) -> Result<Self> {
        let open = || OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY).open(tty);
        let writer = open().with_context(|| format!("opening the guest's console {tty}"))?;
        let mut reader = open()?;
        let (sender, bytes) = mpsc::channel();
        // Ends when xenconsoled closes the terminal, which it does when the domain goes.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { writer, bytes, pending: Vec::new(), next: 0 })
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_string());
            }
            match self.bytes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.pending.extend(bytes),
                Err(RecvTimeoutError::Timeout) => bail!("the guest is silent"),
                Err(RecvTimeoutError::Disconnected) => bail!("the guest's console was closed"),
            }
        }
    }

    /// Waits for the guest's init.
    pub fn ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut last = String::new();
        loop {
            match self.line(deadline) {
                Ok(line) if line.ends_with("@@ready") => return Ok(()),
                Ok(line) if LOST.iter().any(|text| line.contains(text)) => {
                    bail!("the guest's kernel is lost: {line}")
                }
                Ok(line) => last = line,
                Err(error) => {
                    bail!(
                        "the guest did not reach its init within {} s: {error}; last: {last}",
                        limit.as_secs()
                    )
                }
            }
        }
    }

    /// Starts a script without waiting for its end; `finish` takes the number this returns.
    pub fn start(&mut self, script: &str) -> Result<u32> {
        self.next += 1;
        let number = self.next;
        let text = format!("{}\n@@run {number}\n", script.trim());
        for chunk in text.as_bytes().chunks(CHUNK) {
            self.writer.write_all(chunk).context("writing to the guest's console")?;
        }
        Ok(number)
    }

    /// Waits for a script's end: its exit status and what it printed.
    pub fn finish(&mut self, number: u32, limit: Duration) -> Result<(i32, String)> {
        let deadline = Instant::now() + limit;
        let (begin, end) = (format!("@@begin {number}"), format!("@@end {number} "));
        let mut output: Option<Vec<String>> = None;
        loop {
            let line = self.line(deadline).with_context(|| {
                let so_far = output.clone().unwrap_or_default().join("\n");
                format!(
                    "a script in the guest did not end within {} s; it printed: {so_far}",
                    limit.as_secs()
                )
            })?;
            if line == begin {
                output = Some(Vec::new());
            } else if let (Some(status), Some(lines)) = (line.strip_prefix(&end), &mut output) {
                // The end mark starts a line of its own, whatever was printed before it.
                if lines.last().is_some_and(String::is_empty) {
                    lines.pop();
                }
                return Ok((status.trim().parse()?, lines.join("\n")));
            } else if let Some(lines) = &mut output {
                lines.push(line);
            }
        }
    }
}
