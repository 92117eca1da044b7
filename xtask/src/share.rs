//! The folder that this machine and dom0 share, and what is said through it.
//!
//! dom0 mounts it by 9p on `/share`. Both sides run this same program: outside it writes the plan, inside it
//! carries the plan out and appends one event per line.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub const PLAN: &str = "plan.json";
pub const EVENTS: &str = "events.jsonl";
/// Commands for dom0's shell: `N.sh` in, `N.out` and then `N.status` out.
pub const COMMANDS: &str = "commands";
/// Console output of every guest, kept by xenconsoled.
pub const GUESTS: &str = "guests";
/// Logs of xl and of the device models it starts.
pub const XL: &str = "xl";

/// What dom0 is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Plan {
    /// Run shell commands as they come, until the box is switched off.
    Serve,
    /// Run the scenarios whose name contains one of the words (all, if there are none), so many times over.
    /// `long`: some of them, once, for as long as it takes to see what only comes with time.
    Scenarios { words: Vec<String>, rounds: u32, long: bool },
    /// Show a person that it works.
    Demo,
    /// Measure the device models against each other.
    Bench { rounds: u32, only: Vec<String> },
}

/// What dom0 reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Xen, dom0 and the toolstack are up.
    Up {
        xen: String,
        kernel: String,
    },
    Begin {
        scenario: String,
    },
    Step {
        text: String,
    },
    /// Lines for the person, printed as they are.
    Show {
        lines: Vec<String>,
    },
    End {
        scenario: String,
        seconds: f64,
        error: Option<String>,
        logs: Vec<String>,
    },
    Done {
        passed: u32,
        failed: u32,
    },
}

/// Appends events, from dom0.
pub struct Reporter {
    file: Mutex<File>,
}

impl Reporter {
    pub fn new(share: &Path) -> Result<Self> {
        let path = share.join(EVENTS);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: Mutex::new(file.with_context(|| format!("opening {}", path.display()))?) })
    }

    /// A report that cannot be written must not stop the scenario: the log of dom0's runner still has it.
    pub fn say(&self, event: &Event) {
        eprintln!("{event:?}");
        let line = serde_json::to_string(event).map(|line| line + "\n");
        if let (Ok(line), Ok(mut file)) = (line, self.file.lock())
            && let Err(error) = file.write_all(line.as_bytes())
        {
            eprintln!("cannot report: {error}");
        }
    }

    pub fn step(&self, text: impl Into<String>) {
        self.say(&Event::Step { text: text.into() });
    }
}

/// Follows a file that the other side appends to.
pub struct Tail {
    path: PathBuf,
    offset: u64,
    partial: Vec<u8>,
}

impl Tail {
    pub fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, partial: Vec::new() }
    }

    /// What was added since the last call; nothing while the file does not exist.
    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        self.offset += file.read_to_end(&mut bytes)? as u64;
        Ok(bytes)
    }

    /// The next complete line, if there is one already.
    pub fn line(&mut self) -> Result<Option<String>> {
        if !self.partial.contains(&b'\n') {
            let bytes = self.bytes()?;
            self.partial.extend(bytes);
        }
        let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.partial.drain(..=end).collect();
        Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_string()))
    }
}

/// The last lines of a file, for an error message.
pub fn last_lines(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("    {line}\n")).collect()
}

/// Writes a file so that the other side sees it whole or not at all.
pub fn write_whole(path: &Path, data: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, data)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_gives_whole_lines_once() {
        let path = std::env::temp_dir().join(format!("xtask-tail-{}", std::process::id()));
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.line().unwrap(), None);
        fs::write(&path, "one\ntw").unwrap();
        assert_eq!(tail.line().unwrap().unwrap(), "one");
        assert_eq!(tail.line().unwrap(), None);
        fs::write(&path, "one\ntwo\r\nthree\n").unwrap();
        assert_eq!(tail.line().unwrap().unwrap(), "two");
        assert_eq!(tail.line().unwrap().unwrap(), "three");
        assert_eq!(last_lines(&path, 1), "    three\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn plans_and_events_travel() {
        let plan = serde_json::to_string(&Plan::Bench { rounds: 3, only: vec![] }).unwrap();
        assert!(matches!(serde_json::from_str(&plan).unwrap(), Plan::Bench { rounds: 3, .. }));
        let event = serde_json::to_string(&Event::Begin { scenario: "x".into() }).unwrap();
        assert_eq!(event, r#"{"event":"begin","scenario":"x"}"#);
    }
}
