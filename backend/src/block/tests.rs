use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use domain::Gpa;
use memory::{GuestMemory, Pin, Pinned};
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::test_guest::{memory, pattern, pin};

const MIB: u64 = 1 << 20;

/// Says why a test did nothing: it would otherwise look as if it had passed.
fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

fn image(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn options(path: &Path, engine: EngineChoice) -> DiskOptions {
    DiskOptions { discard: true, engine, ..DiskOptions::new(path) }
}

fn both() -> [EngineChoice; 2] {
    [EngineChoice::Auto, EngineChoice::Synchronous]
}

fn request(tag: u64, op: Op, offset: u64, len: u64) -> Request {
    Request { tag, op, offset, len, data: Pinned::new() }
}

/// Runs requests to the end; their results in order of completion.
fn run_all(engine: &mut dyn Engine, requests: Vec<Request>) -> Vec<Completion> {
    let count = requests.len();
    for request in requests {
        engine.submit(request);
    }
    let mut done = Vec::new();
    while done.len() < count {
        engine.flush_submissions().unwrap();
        engine.wait();
        while let Some(completion) = engine.complete() {
            done.push(completion);
        }
    }
    assert_eq!(engine.in_flight(), 0);
    assert!(engine.complete().is_none());
    done
}

fn run(engine: &mut dyn Engine, request: Request) -> io::Result<()> {
    run_all(engine, vec![request]).pop().unwrap().result
}

fn transfer(guest: &GuestMemory, op: Op, offset: u64, ranges: &[(u64, usize)]) -> Request {
    let direction = if op == Op::Read { Pin::Write } else { Pin::Read };
    let data = pin(guest, direction, ranges);
    Request { tag: 7, op, offset, len: data.len() as u64, data }
}

const WRITE: Op = Op::Write { durable: false };

fn get(guest: &GuestMemory, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.read(Gpa(addr), &mut bytes).unwrap();
    bytes
}

fn code(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Writes and reads back, in pieces, at odd places in memory, through every kind of request.
fn exercise(disk: &Disk) {
    let guest = memory(16 * MIB);
    let mut engine = disk.engine();
    let data = pattern(1, 3 * MIB as usize);
    guest.write(Gpa(0x1003), &data).unwrap();
    // Scattered, unaligned in memory and longer than a bounce buffer.
    let ranges = [(0x1003, 5), (0x1008, 4096 - 5), (0x1003 + 4096, data.len() - 4096)];
    run(&mut *engine, transfer(&guest, Op::Write { durable: true }, 8192, &ranges)).unwrap();
    run(&mut *engine, request(1, Op::Flush, 0, 0)).unwrap();
    let whole = (8 * MIB + 0x2801, data.len());
    run(&mut *engine, transfer(&guest, Op::Read, 8192, &[whole])).unwrap();
    assert!(get(&guest, whole.0, whole.1) == data);

    // Zeros in the middle, both ways; what is beside them stays.
    for (index, unmap) in [false, true].into_iter().enumerate() {
        let offset = 8192 + (1 + index as u64) * 65536;
        let op = Op::WriteZeroes { unmap, durable: true };
        run(&mut *engine, request(2, op, offset, 32768)).unwrap();
        run(&mut *engine, transfer(&guest, Op::Read, offset - 4096, &[(whole.0, 40960)])).unwrap();
        let read = get(&guest, whole.0, 40960);
        let at = (offset - 8192 - 4096) as usize;
        assert!(read[..4096] == data[at..at + 4096]);
        assert!(read[4096..4096 + 32768].iter().all(|byte| *byte == 0));
        assert!(read[36864..] == data[at + 36864..at + 40960]);
    }
    run(&mut *engine, request(3, Op::Discard, 8192, 65536)).unwrap();

    // Many at once, more than any ring holds.
    let many: Vec<_> = (0..700u64)
        .map(|tag| {
            let addr = tag * 4096;
            guest.write(Gpa(addr), &tag.to_le_bytes()).unwrap();
            Request { tag, ..transfer(&guest, WRITE, addr, &[(addr, 4096)]) }
        })
        .collect();
    let done = run_all(&mut *engine, many);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    let mut tags: Vec<_> = done.iter().map(|completion| completion.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..700).collect::<Vec<_>>());
    run(&mut *engine, transfer(&guest, Op::Read, 0, &[(8 * MIB, 700 * 4096)])).unwrap();
    for tag in 0..700u64 {
        assert_eq!(guest.read_u64(Gpa(8 * MIB + tag * 4096)).unwrap(), tag);
    }
    run(&mut *engine, request(4, Op::Read, 0, 0)).unwrap();
}

#[test]
fn files_buffered() {
    for engine in both() {
        let file = image(8 * MIB);
        let disk = Disk::open(&options(file.path(), engine)).unwrap();
        assert_eq!((disk.size(), disk.is_block_device(), disk.logical_block_size()), (8 * MIB, false, 512));
        exercise(&disk);
        assert_eq!(file.as_file().metadata().unwrap().len(), 8 * MIB);
    }
    if !Disk::open(&options(image(512).path(), EngineChoice::Auto)).unwrap().uses_uring() {
        skip("no io_uring here: only the synchronous engine was tested");
    }
}

/// A directory on a file system that does direct I/O.
fn direct_directory() -> Option<TempDir> {
    [std::env::temp_dir(), PathBuf::from(env!("CARGO_MANIFEST_DIR"))].iter().find_map(|base| {
        let directory = TempDir::new_in(base).ok()?;
        let path = directory.path().join("probe");
        fs::write(&path, []).ok()?;
        let options = DiskOptions { direct: true, ..DiskOptions::new(&path) };
        Disk::open(&options).ok().map(|_| directory)
    })
}

#[test]
fn files_direct() {
    let Some(directory) = direct_directory() else { return skip("no file system here does direct I/O") };
    for engine in both() {
        let path = directory.path().join(format!("{engine:?}"));
        File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        let disk = Disk::open(&options(&path, engine).cache(Cache::None)).unwrap();
        assert!(disk.is_direct() && disk.logical_block_size() <= 4096);
        exercise(&disk);
    }
}

/// More in flight than the pool holds: the rest waits its turn.
#[test]
fn direct_pool_runs_out() {
    let Some(directory) = direct_directory() else { return skip("no file system here does direct I/O") };
    let path = directory.path().join("disk");
    File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let disk = Disk::open(&options(&path, EngineChoice::Auto).cache(Cache::None)).unwrap();
    let guest = memory(16 * MIB);
    let mut engine = disk.engine();
    let size = 3 * MIB as usize / 2;
    let writes: Vec<_> = (0..10u64)
        .map(|tag| {
            let at = tag * size as u64;
            guest.write(Gpa(at), &pattern(tag, size)).unwrap();
            Request { tag, ..transfer(&guest, WRITE, at, &[(at, size)]) }
        })
        .collect();
    assert!(run_all(&mut *engine, writes).iter().all(|completion| completion.result.is_ok()));
    let on_disk = fs::read(&path).unwrap();
    for tag in 0..10 {
        assert!(on_disk[tag * size..][..size] == pattern(tag as u64, size)[..]);
    }
}

/// A loop device over a fresh image, while this lives.
struct Loop {
    path: PathBuf,
    _image: NamedTempFile,
}

impl Loop {
    fn new(size: u64) -> Option<Loop> {
        let image = image(size);
        let output = Command::new("losetup").args(["--show", "-f"]).arg(image.path()).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Loop { path: path.trim().into(), _image: image })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

#[test]
fn block_devices() {
    for cache in [Cache::WriteBack, Cache::None] {
        for engine in both() {
            let Some(device) = Loop::new(8 * MIB) else {
                return skip("cannot make a loop device (needs root)");
            };
            let disk = Disk::open(&options(&device.path, engine).cache(cache)).unwrap();
            assert!(disk.is_block_device() && disk.size() == 8 * MIB);
            exercise(&disk);
        }
    }
}

#[test]
fn file_that_shrank() {
    for engine in both() {
        let file = image(MIB);
        let disk = Disk::open(&options(file.path(), engine)).unwrap();
        let guest = memory(4 * MIB);
        guest.write(Gpa(0), &[0x55; 8192]).unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut engine = disk.engine();
        assert_eq!(code(run(&mut *engine, transfer(&guest, Op::Read, 0, &[(0, 8192)]))), Some(libc::EIO));
        // No zeros were made up for what is missing.
        assert_eq!(get(&guest, 4096, 4096), [0x55; 4096]);
        assert_eq!(code(run(&mut *engine, transfer(&guest, Op::Read, 8192, &[(0, 512)]))), Some(libc::EIO));
        run(&mut *engine, transfer(&guest, Op::Read, 0, &[(0, 4096)])).unwrap();
    }
}

#[test]
fn file_system_that_is_full() {
    let directory = TempDir::new().unwrap();
    let mount = |target: &Path| {
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(target).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount(directory.path()) {
        return skip("cannot mount a small file system (needs root)");
    }
    for engine in both() {
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(MIB).unwrap();
        let disk = Disk::open(&options(&path, engine)).unwrap();
        let guest = memory(4 * MIB);
        let mut engine = disk.engine();
        let result = run(&mut *engine, transfer(&guest, WRITE, 0, &[(0, MIB as usize)]));
        assert_eq!(code(result), Some(libc::ENOSPC));
        // What had room is still served.
        run(&mut *engine, transfer(&guest, Op::Read, 0, &[(0, 4096)])).unwrap();
        // This file system has no ZERO_RANGE: zeros are written, and are found to be there already.
        run(&mut *engine, request(1, Op::WriteZeroes { unmap: false, durable: true }, 0, 8192)).unwrap();
        drop((engine, disk));
        fs::remove_file(&path).unwrap();
    }
    let status = Command::new("umount").arg(directory.path()).status().unwrap();
    assert!(status.success());
}

#[test]
fn more_vectors_than_a_call_takes() {
    for engine in both() {
        let file = image(8 * MIB);
        let disk = Disk::open(&options(file.path(), engine)).unwrap();
        let guest = memory(16 * MIB);
        let mut engine = disk.engine();
        // Every other 512 bytes, so that no two neighbours become one vector.
        let ranges: Vec<_> = (0..2500u64).map(|index| (index * 1024, 512)).collect();
        let data = pattern(3, 2500 * 512);
        for (range, piece) in ranges.iter().zip(data.chunks(512)) {
            guest.write(Gpa(range.0), piece).unwrap();
        }
        let write = transfer(&guest, WRITE, 512, &ranges);
        assert!(write.data.iovecs().len() > 2000);
        run(&mut *engine, write).unwrap();
        let mut found = vec![0; data.len()];
        file.as_file().read_exact_at(&mut found, 512).unwrap();
        assert!(found == data);
    }
}

#[test]
fn nonsense_is_refused() {
    let file = image(4096);
    let guest = memory(4 * MIB);
    for engine in both() {
        let disk = Disk::open(&options(file.path(), engine)).unwrap();
        let mut engine = disk.engine();
        for (offset, len) in [(4096, 512), (0, 8192), (u64::MAX, 512), (u64::MAX - 511, 512), (3584, 1024)] {
            for op in [Op::Discard, Op::WriteZeroes { unmap: true, durable: false }] {
                assert_eq!(code(run(&mut *engine, request(1, op, offset, len))), Some(libc::EINVAL));
            }
            let data = pin(&guest, Pin::Read, &[(0, len as usize)]);
            let write = Request { tag: 1, op: WRITE, offset, len, data };
            assert_eq!(code(run(&mut *engine, write)), Some(libc::EINVAL));
        }
        let short = Request { len: 1024, ..transfer(&guest, WRITE, 0, &[(0, 512)]) };
        assert_eq!(code(run(&mut *engine, short)), Some(libc::EINVAL));
        drop(engine);

        let options = DiskOptions { read_only: true, ..options(file.path(), EngineChoice::Auto) };
        let disk = Disk::open(&options).unwrap();
        let mut engine = disk.engine();
        let write = transfer(&guest, WRITE, 0, &[(0, 512)]);
        assert_eq!(code(run(&mut *engine, write)), Some(libc::EROFS));
        run(&mut *engine, request(1, Op::Flush, 0, 0)).unwrap();
        run(&mut *engine, transfer(&guest, Op::Read, 0, &[(0, 512)])).unwrap();
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
}

#[test]
fn event_says_when_there_is_something() {
    let file = image(MIB);
    let disk = Disk::open(&options(file.path(), EngineChoice::Auto)).unwrap();
    let mut engine = disk.engine();
    if !disk.uses_uring() {
        return skip("no io_uring here");
    }
    let ready = |engine: &dyn Engine, timeout| {
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(engine.event().unwrap(), rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: timeout, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
    };
    assert!(!ready(&*engine, 0));
    engine.submit(request(9, Op::Flush, 0, 0));
    engine.flush_submissions().unwrap();
    assert!(ready(&*engine, 10));
    assert_eq!(engine.complete().unwrap().tag, 9);
    assert!(engine.complete().is_none());
    assert!(!ready(&*engine, 0));
}

#[test]
fn dropping_an_engine_waits_for_the_kernel() {
    let file = image(8 * MIB);
    let guest = memory(8 * MIB);
    let disk = Disk::open(&options(file.path(), EngineChoice::Auto)).unwrap();
    for _ in 0..20 {
        let mut engine = disk.engine();
        for tag in 0..200u64 {
            engine.submit(Request { tag, ..transfer(&guest, WRITE, tag * 512, &[(tag * 4096, 512)]) });
        }
        engine.flush_submissions().unwrap();
        engine.submit(transfer(&guest, WRITE, 0, &[(0, 512)]));
    }
}

#[test]
fn unsafe_cache_does_not_flush_and_discard_needs_leave() {
    let file = image(MIB);
    file.as_file().write_all_at(&[1; 8192], 0).unwrap();
    let options = DiskOptions::new(file.path()).cache(Cache::Unsafe);
    let disk = Disk::open(&options).unwrap();
    assert!(!disk.supports_discard());
    let mut engine = disk.engine();
    run(&mut *engine, request(1, Op::Flush, 0, 0)).unwrap();
    run(&mut *engine, request(1, Op::Discard, 0, 8192)).unwrap();
    let mut found = [0; 8192];
    file.as_file().read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 8192]);
}

#[test]
fn cache_modes() {
    let modes = [
        ("writeback", false, false, true),
        ("writethrough", false, false, false),
        ("none", true, false, true),
        ("directsync", true, false, false),
        ("unsafe", false, true, true),
    ];
    for (name, direct, no_flush, write_back) in modes {
        let cache: Cache = name.parse().unwrap();
        assert_eq!(
            (cache.direct(), cache.no_flush(), cache.write_back()),
            (direct, no_flush, write_back),
            "{name}"
        );
    }
    assert_eq!("fast".parse::<Cache>().unwrap_err().to_string(), "invalid cache option");
}

#[test]
fn what_cannot_be_opened() {
    let open = |path: &Path| Disk::open(&DiskOptions::new(path)).unwrap_err().to_string();
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("none");
    assert_eq!(open(&missing), format!("Could not open '{}': No such file or directory", missing.display()));
    let kind = "a regular file or block device is required";
    assert_eq!(open(directory.path()), format!("Could not open '{}': {kind}", directory.path().display()));
    assert_eq!(open(Path::new("/dev/full")), format!("Could not open '/dev/full': {kind}"));
    let odd = image(1000);
    assert_eq!(
        open(odd.path()),
        format!("Could not open '{}': its size of 1000 bytes is not a multiple of 512", odd.path().display())
    );
    let proc = open(Path::new("/proc/version"));
    assert!(proc.starts_with("Could not open '/proc/version': "), "{proc}");
    let read_only = DiskOptions { read_only: true, ..DiskOptions::new(image(0).path()) };
    assert!(Disk::open(&read_only).is_err(), "it is gone by now");
    let empty = image(0);
    assert_eq!(Disk::open(&DiskOptions::new(empty.path())).unwrap().size(), 0);
}
