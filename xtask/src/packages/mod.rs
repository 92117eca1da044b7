//! Debian packages without root: a private apt, and one tree with every package unpacked.

mod apt;
mod sources;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use crate::image::elf::LIBRARIES;
use crate::progress::Progress;

/// Everything the box is made of; apt adds what these depend on.
const PACKAGES: [&str; 24] = [
    "bash",
    "busybox-static",
    "coreutils",
    "debian-archive-keyring",
    "e2fsprogs",
    "fio",
    "iperf3",
    "iproute2",
    "linux-image-amd64",
    "pciutils",
    "procps",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-system-x86",
    "qemu-system-xen",
    "seabios",
    "socat",
    "strace",
    "util-linux",
    "xen-hypervisor-4.20-amd64",
    "xen-utils-4.20",
    "xen-utils-common",
    "xz-utils",
    "zstd",
];

/// The unpacked packages, and a fingerprint of exactly which they are.
pub struct Tree {
    pub root: PathBuf,
    pub fingerprint: String,
}

impl Tree {
    /// A command that runs one of the tree's programs on this machine, with the tree's own loader and libraries:
    /// this machine's may be older, newer or none.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(self.root.join(LIBRARIES)).arg(self.root.join(program));
        command
    }

    /// Runs a program of the tree and returns what it prints.
    pub fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Vec<u8>> {
        let output =
            self.command(program).args(arguments).output().with_context(|| format!("running {program}"))?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} failed: {}", message.trim());
        Ok(output.stdout)
    }
}

/// Downloads and unpacks, or finds that all is there from an earlier run.
pub fn tree(box_directory: &Path, progress: &Progress) -> Result<Tree> {
    let root = box_directory.join("tree");
    let stamp = box_directory.join("tree.stamp");
    let wanted = fingerprint(PACKAGES.join(" ").as_bytes());
    if let Ok(text) = fs::read_to_string(&stamp)
        && let Some((request, fingerprint)) = text.trim().split_once(' ')
        && request == wanted
        && root.is_dir()
    {
        return Ok(Tree { root, fingerprint: fingerprint.to_string() });
    }
    let debs = apt::download(&box_directory.join("apt"), &PACKAGES, progress)?;
    progress.step(&format!("unpacking {} packages", debs.len()));
    let unpacking = box_directory.join("tree.new");
    for stale in [&root, &unpacking] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    unpack(&debs, &unpacking)?;
    fs::rename(&unpacking, &root)?;
    let names: Vec<_> = debs.iter().filter_map(|deb| deb.file_name()?.to_str()).collect();
    let fingerprint = fingerprint(names.join(" ").as_bytes());
    fs::write(&stamp, format!("{wanted} {fingerprint}\n"))?;
    Ok(Tree { root, fingerprint })
}

/// FNV-1a, 64 bits: tells one input from another, which is all a cache key has to do.
pub fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn unpack(debs: &[PathBuf], into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    // The package that owns these links is essential, so no dependency brings it.
    for link in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(into.join("usr").join(link))?;
        std::os::unix::fs::symlink(format!("usr/{link}"), into.join(link))?;
    }
    let queue = Mutex::new(debs.iter());
    let next = || queue.lock().ok()?.next();
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some(deb) = next() {
                unpack_one(deb, into)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("an unpacking thread panicked"),
        })
    })
}

fn unpack_one(deb: &Path, into: &Path) -> Result<()> {
    let mut reader =
        Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("running dpkg-deb (the box needs apt, dpkg and tar, so a Debian or a relative of it)")?;
    let tar = Command::new("tar")
        .args(["-x", "--keep-directory-symlink", "--no-same-owner", "--exclude=./usr/share/doc"])
        .args(["--exclude=./usr/share/man", "--exclude=./usr/share/locale", "-C"])
        .arg(into)
        .stdin(reader.stdout.take().context("dpkg-deb has no output")?)
        .output()
        .context("running tar")?;
    ensure!(
        reader.wait()?.success() && tar.status.success(),
        "unpacking {} failed: {}\nRemove {} and run again: it will be downloaded anew.",
        deb.display(),
        String::from_utf8_lossy(&tar.stderr).trim(),
        deb.display()
    );
    Ok(())
}
