//! QEMU's machine `microvm` with PCIe, by the line protocol of its `-qtest` option.
//!
//! Debian's QEMU has no accelerator `qtest`, but the protocol works beside any other. So its one CPU is a real
//! one, for which a firmware of four bytes has nothing to do but to halt.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Once;

use tempfile::NamedTempFile;

use crate::RAM;
use crate::subject::Subject;

/// Where to find QEMU: a program and arguments for it, separated by spaces.
const VARIABLE: &str = "XENPVH_QEMU";
/// What is looked for without.
const PROGRAM: &str = "qemu-system-x86_64";
/// The release that the tables of differences are about.
const RELEASE: &str = "10.";

/// RAM that no script uses.
const MAILBOXES: u64 = RAM - 4096;

/// Where files are in memory, on Linux.
const SHARED_MEMORY: &str = "/dev/shm";

const FIRMWARE_SIZE: usize = 64 << 10;
/// `cli`, `hlt`, and back to the latter.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// Says why nothing is compared: once, and past the test harness, which shows the output of failures only.
fn skip(why: &str) -> Option<Vec<String>> {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let _ = writeln!(std::io::stderr(), "SKIPPED: comparison with QEMU: {why}");
    });
    None
}

/// A running QEMU.
pub struct Qemu {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    ram: File,
    /// Files that QEMU has open by name.
    _files: [NamedTempFile; 2],
}

impl Qemu {
    /// Finds QEMU: a program and its first arguments. Or says why nothing is compared with it.
    ///
    /// # Panics
    /// If the variable that names it is no UTF-8.
    #[must_use]
    pub fn find() -> Option<Vec<String>> {
        if let Some(prefix) = std::env::var_os(VARIABLE) {
            let prefix = prefix.into_string().expect("UTF-8");
            return Some(prefix.split_whitespace().map(str::to_owned).collect());
        }
        let Ok(output) = Command::new(PROGRAM).arg("--version").output() else {
            return skip(&format!("no {PROGRAM} in PATH, and {VARIABLE} names no other"));
        };
        let version = String::from_utf8_lossy(&output.stdout);
        let version =
            version.split_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or_default();
        if !version.starts_with(RELEASE) {
            return skip(&format!("{PROGRAM} is version {version}, and what differs is known of {RELEASE}x"));
        }
        Some(vec![PROGRAM.to_owned()])
    }

    /// Starts QEMU with these devices.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn new(prefix: &[String], arguments: &[String]) -> Qemu {
        let mut firmware = vec![0; FIRMWARE_SIZE];
        firmware[FIRMWARE_SIZE - 16..][..HALT.len()].copy_from_slice(&HALT);
        // RAM in RAM: on a disk it would be written back all the time.
        let directory =
            if Path::new(SHARED_MEMORY).is_dir() { SHARED_MEMORY.into() } else { std::env::temp_dir() };
        let files = [(); 2].map(|()| NamedTempFile::new_in(&directory).expect("a file"));
        let [bios, memory] = &files;
        bios.as_file().write_all_at(&firmware, 0).expect("the firmware");
        memory.as_file().set_len(RAM).expect("RAM");

        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "tcg", "-qtest", "stdio", "-qtest-log", "none"]);
        command.args(["-M", "microvm,pcie=on,memory-backend=ram", "-m", &format!("{RAM}B")]);
        let path = memory.path().display();
        command
            .args(["-object", &format!("memory-backend-file,id=ram,size={RAM}B,mem-path={path},share=on")]);
        command.arg("-bios").arg(bios.path());
        command.args(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("QEMU can be started");
        let mut qemu = Qemu {
            commands: child.stdin.take().expect("a pipe"),
            answers: BufReader::new(child.stdout.take().expect("a pipe")),
            ram: memory.reopen().expect("RAM"),
            child,
            _files: files,
        };
        // It answers once all its devices are there.
        qemu.command("endianness");
        qemu
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that its RAM is, from address 0 on.
    #[must_use]
    pub fn ram(&self) -> &File {
        &self.ram
    }

    /// Sends a command and returns what comes after `OK`.
    fn command(&mut self, line: &str) -> String {
        // In one piece, so that it wakes once.
        let sent = self.commands.write_all(format!("{line}\n").as_bytes());
        let mut answer = String::new();
        let read = sent.and_then(|()| self.answers.read_line(&mut answer));
        match (read, answer.strip_prefix("OK")) {
            (Ok(1..), Some(rest)) => rest.trim().to_owned(),
            _ => panic!("QEMU answers {line:?} with {answer:?}; see above for its own words"),
        }
    }
}

impl Subject for Qemu {
    fn read(&mut self, address: u64, size: u8) -> u64 {
        let answer = self.command(&format!("read{} {address:#x}", letter(size)));
        let digits = answer.strip_prefix("0x").unwrap_or(&answer);
        u64::from_str_radix(digits, 16).expect("a number")
    }

    fn write(&mut self, address: u64, size: u8, value: u64) {
        self.command(&format!("write{} {address:#x} {value:#x}", letter(size)));
    }

    fn ram_read(&mut self, address: u64, bytes: &mut [u8]) {
        self.ram.read_exact_at(bytes, address).expect("RAM");
    }

    fn ram_write(&mut self, address: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, address).expect("RAM");
    }

    fn mailbox(&self, index: u64) -> u64 {
        MAILBOXES + index * 4
    }

    fn message(&mut self, index: u64) -> Option<u32> {
        let address = self.mailbox(index);
        let mut data = [0; 4];
        self.ram_read(address, &mut data);
        self.ram_write(address, &[0; 4]);
        Some(u32::from_le_bytes(data)).filter(|data| *data != 0)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn letter(size: u8) -> char {
    match size {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}
