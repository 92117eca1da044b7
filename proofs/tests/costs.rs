//! What a request costs, as far as it can be counted: allocations and system calls of the device model's threads in
//! steady state. Time is not measured here; `cargo xtask bench --native` does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backend::block::DiskOptions;
use proofs::driver::{EVENT_IDX, Function, INDIRECT, PACKED, Ring, VERSION_1, until};
use proofs::{OurSubject, Subject, datagram, in_network, set_up};
use tempfile::NamedTempFile;

const DISK: u64 = 1 << 20;
const DEPTH: u16 = 32;
const SIZE: u16 = 128;
/// Rounds of [`DEPTH`] requests before anything is counted, and while it is.
const WARM_UP: u64 = 30;
const ROUNDS: u64 = 100;

const RINGS: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const HEADERS: u64 = 0x21_0000;
const STATUSES: u64 = 0x22_0000;
const DATA: u64 = 0x30_0000;
const FLUSH: u64 = 1 << 9;

/// The system's allocator, which counts what the device model's threads ask of it.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    if COUNTING.load(Ordering::Relaxed) && is_device_model(&thread_name()) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

/// The calling thread's name, padded with zeros. Allocates nothing.
fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: writes no more than 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// `vcpuN`, or `ID/N` for a worker.
fn is_device_model(name: &[u8]) -> bool {
    name.starts_with(b"vcpu") || name.contains(&b'/')
}

/// Allocations of the device model's threads during `act`.
fn allocations(act: impl FnOnce()) -> u64 {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    act();
    COUNTING.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// One test at a time: the count is of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A disk in a file system with a disk, if the build's directory is in one.
fn image() -> NamedTempFile {
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.as_file().set_len(DISK).expect("the image");
    file
}

struct Disk {
    subject: OurSubject,
    function: Function,
    ring: Ring,
}

impl Disk {
    fn new(image: &NamedTempFile, drive: &str, features: u64) -> Disk {
        let packed = if features & PACKED != 0 { ",packed=on" } else { "" };
        let line = format!(
            "-drive file={},if=none,id=d,format=raw,{drive} -device virtio-blk-pci,id=disk,drive=d,addr=2{packed}",
            image.path().display()
        );
        let mut subject = OurSubject::new(&arguments(&line));
        let function = Function::find(&mut subject, 2);
        let accepted = function.negotiate(&mut subject, VERSION_1 | INDIRECT | EVENT_IDX | FLUSH | features);
        function.enable_msix(&mut subject, 1);
        let ring = Ring::new(&mut subject, &function, accepted, 0, SIZE, RINGS);
        function.set(&mut subject, proofs::driver::QUEUE_VECTOR, 0);
        function.drive(&mut subject);
        Disk { subject, function, ring }
    }

    /// So many rounds of requests, [`DEPTH`] at once.
    fn rounds(&mut self, rounds: u64, write: bool) {
        let Disk { subject, function, ring } = self;
        for round in 0..rounds {
            for index in 0..DEPTH {
                let at = u64::from(index);
                let mut header = Vec::from(u64::from(write).to_le_bytes());
                header.extend(((round * 8 + at * 64) % (DISK / 512)).to_le_bytes());
                subject.ram_write(HEADERS + at * 16, &header);
                let parts = [
                    (HEADERS + at * 16, 16, false),
                    (DATA + at * 4096, 4096, !write),
                    (STATUSES + at, 1, true),
                ];
                let table = ring.table(&parts);
                subject.ram_write(TABLES + at * 64, &table);
                ring.descriptor(subject, index, (TABLES + at * 64, table.len() as u32, 4, 0));
                ring.offer(subject, index);
            }
            function.kick(subject, 0);
            for _ in 0..DEPTH {
                ring.wait(subject, function).expect("a request that comes back");
            }
            subject.ours.sim.messages();
        }
        let mut statuses = [0xff; DEPTH as usize];
        subject.ram_read(STATUSES, &mut statuses);
        assert_eq!(statuses, [0; DEPTH as usize]);
    }
}

#[test]
fn block_requests_allocate_nothing() {
    let _alone = alone();
    for (drive, features) in [("cache=writeback", 0), ("cache=writeback", PACKED), ("cache=writethrough", 0)]
    {
        let image = image();
        let mut disk = Disk::new(&image, drive, features);
        for write in [false, true] {
            disk.rounds(WARM_UP, write);
            let found = allocations(|| disk.rounds(ROUNDS, write));
            assert_eq!(found, 0, "{drive}, features {features:#x}, write {write}");
        }
    }
}

#[test]
fn the_count_sees_the_device_model() {
    let _alone = alone();
    let image = image();
    // A worker, and what it needs, is made at the first start of a queue.
    let found = allocations(|| Disk::new(&image, "cache=writeback", 0).rounds(1, false));
    assert!(found > 0);
}

#[test]
fn block_requests_take_few_system_calls() {
    let _alone = alone();
    let image = image();
    let options = DiskOptions::new(image.path());
    if !backend::block::Disk::open(&options).expect("the image").uses_uring() {
        return skip("counting system calls: no io_uring here, or no disk under the build's directory");
    }
    let mut disk = Disk::new(&image, "cache=writeback", 0);
    disk.rounds(WARM_UP, false);
    let Some(calls) = system_calls(|| disk.rounds(ROUNDS, false)) else { return };
    let requests = ROUNDS * u64::from(DEPTH);
    assert!(calls > ROUNDS && calls <= requests, "{calls} system calls for {requests} requests");
}

/// Says what is left out, past the test harness, which shows the output of failures only.
fn skip(why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED: {why}");
}

/// System calls of the device model's threads during `act`; `None`, and said so, if they cannot be counted.
fn system_calls(act: impl FnOnce()) -> Option<u64> {
    let skip = |why: &str| {
        skip(&format!("counting system calls: {why}"));
        None
    };
    // SAFETY: touches no memory. Where only ancestors may trace, our child may as well.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let report = NamedTempFile::new().expect("a file");
    let mut command = Command::new("strace");
    command.args(["-c", "-o"]).arg(report.path());
    let mut threads = 0;
    for entry in std::fs::read_dir("/proc/self/task").expect("our threads").flatten() {
        let name = std::fs::read(entry.path().join("comm")).unwrap_or_default();
        if is_device_model(&name) {
            command.arg("-p").arg(entry.file_name());
            threads += 1;
        }
    }
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let Ok(mut strace) = command.spawn() else { return skip("no strace") };
    let mut lines = BufReader::new(strace.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    for _ in 0..threads {
        match lines.next() {
            Some(line) if line.contains("attached") => {}
            other => {
                let _ = strace.kill();
                let _ = strace.wait();
                return skip(&other.unwrap_or_default());
            }
        }
    }
    act();
    let process = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("strace is there");
    let _ = strace.wait();
    let text = std::fs::read_to_string(report.path()).expect("a report");
    let total = text.lines().find(|line| line.ends_with(" total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

#[test]
fn frames_allocate_nothing() {
    let _alone = alone();
    in_network(|| {
        let line = "-netdev tap,id=n,ifname=tap0,script=no,downscript=no \
            -device virtio-net-pci,id=nic,netdev=n,addr=4,mac=00:16:3e:01:02:03";
        let mut subject = OurSubject::new(&arguments(line));
        set_up("tap0");
        let host = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        host.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let frame = datagram(host.local_addr().expect("an address").port(), &[0x5a; 1000]);

        let function = Function::find(&mut subject, 4);
        let features = function.negotiate(&mut subject, !(PACKED | 1 << 35));
        function.enable_msix(&mut subject, 1);
        let mut receive = Ring::new(&mut subject, &function, features, 0, SIZE, RINGS);
        let mut send = Ring::new(&mut subject, &function, features, 1, SIZE, RINGS + 0x3_0000);
        function.drive(&mut subject);
        for index in 0..SIZE {
            receive.chain(&mut subject, index, &[(DATA + u64::from(index) * 4096, 4096, true)]);
            receive.offer(&mut subject, index);
        }
        function.kick(&mut subject, 0);
        subject.ram_write(TABLES, &[[0; 12].as_slice(), &frame].concat());

        let mut rounds = |rounds: u64| {
            for _ in 0..rounds {
                for index in 0..DEPTH {
                    send.chain(&mut subject, index, &[(TABLES, 12 + frame.len() as u32, false)]);
                    send.offer(&mut subject, index);
                }
                function.kick(&mut subject, 1);
                for _ in 0..DEPTH {
                    send.wait(&mut subject, &function).expect("a frame that leaves");
                    let mut payload = [0; 2048];
                    assert_eq!(host.recv(&mut payload).expect("the guest's datagram"), 1000);
                }
                for _ in 0..DEPTH {
                    host.send_to(&[0xa5; 1000], "192.0.2.2:9").expect("sent");
                }
                for _ in 0..DEPTH {
                    let (index, len) = receive.wait(&mut subject, &function).expect("a frame that arrives");
                    assert_eq!(len, 12 + 42 + 1000);
                    receive.offer(&mut subject, index as u16);
                }
                function.kick(&mut subject, 0);
                subject.ours.sim.messages();
            }
        };
        rounds(WARM_UP);
        assert_eq!(allocations(|| rounds(ROUNDS)), 0);
        until(|| subject.ours.sim.messages().is_empty());
    });
}
