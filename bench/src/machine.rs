//! Who is measured, and what they use.

use std::process::{Command, Stdio};
use std::time::Duration;

use proofs::{OurSubject, Qemu, RAM, Subject};

use crate::ram::Ram;

enum Side {
    Ours(Box<OurSubject>),
    Qemu(Qemu),
}

/// A machine with devices, and a driver's access to it.
pub struct Machine {
    // Before the side: the mapping of ours ends with the domain.
    pub ram: Ram,
    side: Side,
}

impl Machine {
    /// Our devices, on a domain without Xen in this process.
    pub fn ours(arguments: &[String]) -> Machine {
        let ours = OurSubject::new(arguments);
        Machine { ram: Ram::of_domain(&ours.ours.sim, RAM), side: Side::Ours(Box::new(ours)) }
    }

    /// QEMU's, in a process of their own.
    pub fn qemu(prefix: &[String], arguments: &[String]) -> Machine {
        let qemu = Qemu::new(prefix, arguments);
        Machine { ram: Ram::of_file(qemu.ram(), RAM).expect("QEMU's RAM"), side: Side::Qemu(qemu) }
    }

    pub fn subject(&mut self) -> &mut dyn Subject {
        match &mut self.side {
            Side::Ours(ours) => &mut **ours,
            Side::Qemu(qemu) => qemu,
        }
    }

    /// CPU time of the device model so far. Ours shares the process with the driver, which is this thread and does
    /// nothing on the device model's behalf: its time is taken off. What the kernel does for a thread's system
    /// calls, threads of `io_uring` included, is the process's.
    pub fn cpu(&self) -> Duration {
        match &self.side {
            Side::Ours(_) => clock(libc::CLOCK_PROCESS_CPUTIME_ID) - clock(libc::CLOCK_THREAD_CPUTIME_ID),
            Side::Qemu(qemu) => clock(process_clock(qemu.id())),
        }
    }

    /// Interrupts since the last time. QEMU's are writes to one word of RAM: two that come without a look in
    /// between are counted once.
    pub fn interrupts(&mut self) -> u64 {
        match &mut self.side {
            Side::Ours(ours) => ours.ours.sim.messages().len() as u64,
            Side::Qemu(qemu) => {
                let at = qemu.mailbox(0);
                let came = self.ram.load32(at) != 0;
                if came {
                    self.ram.store32(at, 0);
                }
                came.into()
            }
        }
    }

    /// Resident memory that is the process's own, in KiB.
    pub fn resident(&self) -> u64 {
        let path = match &self.side {
            Side::Ours(_) => "/proc/self/status".to_owned(),
            Side::Qemu(qemu) => format!("/proc/{}/status", qemu.id()),
        };
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    /// Has perf(1) count the device model's system calls for `time`; ask what it gives for the number once that is
    /// over. perf looks on from the kernel's tracepoints, so that what is counted goes on at its usual speed.
    pub fn count_system_calls(&self, time: Duration) -> Counter {
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter"]);
        match &self.side {
            Side::Ours(_) => command.arg("-t").arg(other_threads().join(",")),
            Side::Qemu(qemu) => command.arg("-p").arg(qemu.id().to_string()),
        };
        command.arg("--timeout").arg(time.as_millis().to_string());
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Counter(command.spawn().ok())
    }
}

/// perf(1) at work.
pub struct Counter(Option<std::process::Child>);

impl Counter {
    pub fn is_over(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// System calls, if they could be counted.
    pub fn result(self) -> Option<u64> {
        let output = self.0?.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        text.lines().find(|line| line.contains("sys_enter"))?.split(',').next()?.parse().ok()
    }
}

/// The threads of this process but this one.
fn other_threads() -> Vec<String> {
    let me = rustix::thread::gettid().as_raw_nonzero().to_string();
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.filter_map(|entry| entry.file_name().into_string().ok()).filter(|id| *id != me).collect()
}

fn process_clock(process: u32) -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: writes to `clock` alone.
    let result = unsafe { libc::clock_getcpuclockid(process as libc::pid_t, &mut clock) };
    assert_eq!(result, 0, "no clock for process {process}");
    clock
}

fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to `time` alone.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "a clock went away");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
