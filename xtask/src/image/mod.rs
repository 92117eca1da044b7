//! What boots: Xen, the kernel, dom0 as one initramfs, and the guests' initramfs inside it.

pub mod cpio;
pub mod elf;
mod kernel;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::packages::{Tree, fingerprint};
use crate::progress::Progress;
use cpio::Archive;
use modules::Modules;

const DOM0_INIT: &[u8] = include_bytes!("../../assets/dom0-init");
const GUEST_INIT: &[u8] = include_bytes!("../../assets/guest-init");

/// A change of anything that decides what is in an image must make a new one.
const RECIPE: [&str; 7] = [
    include_str!("mod.rs"),
    include_str!("cpio.rs"),
    include_str!("elf.rs"),
    include_str!("kernel.rs"),
    include_str!("modules.rs"),
    include_str!("../../assets/dom0-init"),
    include_str!("../../assets/guest-init"),
];

/// Programs of dom0, below the tree's root. Xen's own live in their own directory.
const DOM0_PROGRAMS: &[&str] = &[
    "usr/bin/bash",
    "usr/bin/iperf3",
    // Two that the scripts connecting PV devices need in full.
    "usr/bin/flock",
    "usr/bin/ip",
    "usr/bin/lspci",
    "usr/bin/pmap",
    "usr/bin/ps",
    "usr/bin/socat",
    "usr/bin/stat",
    "usr/bin/strace",
    "usr/bin/top",
    "usr/bin/xenstore",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-watch",
    "usr/bin/xenstore-write",
    // What programs built on this machine load.
    "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "usr/lib/x86_64-linux-gnu/libm.so.6",
    "usr/sbin/bridge",
    "usr/sbin/mke2fs",
    "usr/lib/xen-common/bin/xen-utils-wrapper",
    "usr/lib/xen-4.20/bin/libxl-save-helper",
    "usr/lib/xen-4.20/bin/lsevtchn",
    "usr/lib/xen-4.20/bin/xen-hvmctx",
    "usr/lib/xen-4.20/bin/xen-init-dom0",
    "usr/lib/xen-4.20/bin/xenconsole",
    "usr/lib/xen-4.20/bin/xenconsoled",
    "usr/lib/xen-4.20/bin/xenctx",
    "usr/lib/xen-4.20/bin/xenstore-control",
    "usr/lib/xen-4.20/bin/xenstored",
    "usr/lib/xen-4.20/bin/xentop",
    "usr/lib/xen-4.20/bin/xl",
];

/// Commands that Debian's wrapper runs from the directory of the Xen that is running.
const WRAPPED: [&str; 5] = ["xl", "xenstored", "xenconsoled", "xentop", "xen-hvmctx"];

const DOM0_MODULES: &[&str] = &[
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "9p",
    "9pnet_virtio",
    "tun",
    "bridge",
    "loop",
    "brd",
    "ext4",
    "crc32c_generic",
    "xen-blkback",
    "xen-netback",
];

/// iperf3 loads libgcc_s when it ends its threads.
const GUEST_PROGRAMS: &[&str] =
    &["usr/bin/iperf3", "usr/bin/lspci", "usr/lib/x86_64-linux-gnu/libgcc_s.so.1", "usr/sbin/mke2fs"];

const GUEST_MODULES: &[&str] = &[
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "ext4",
    "crc32c_generic",
    "xen-blkfront",
    "xen-netfront",
];

/// QEMU's xenpvh, the peer that `bench` compares with.
const PEER_PROGRAMS: &[&str] = &["usr/libexec/xen-qemu-system-i386"];

/// It wants this even for a display that nobody sees.
const PEER_KEYMAP: &str = "usr/share/qemu/keymaps/en-us";

const MEASURING_PROGRAMS: &[&str] = &["usr/bin/fio"];

/// The files QEMU is given.
pub struct Images {
    pub xen: PathBuf,
    pub kernel: PathBuf,
    /// dom0 with what `test` and `demo` need.
    pub dom0: PathBuf,
    /// The same with the peers for `bench`.
    pub dom0_with_peers: PathBuf,
}

/// Builds the images, or finds those an earlier run built from the same packages with the same recipe.
pub fn build(box_directory: &Path, tree: &Tree, progress: &Progress) -> Result<Images> {
    let key = fingerprint((RECIPE.concat() + &tree.fingerprint).as_bytes());
    let root = box_directory.join("images");
    let done = root.join(&key);
    let images = |root: &Path| Images {
        xen: root.join("xen"),
        kernel: root.join("vmlinux"),
        dom0: root.join("dom0.cpio"),
        dom0_with_peers: root.join("dom0-with-peers.cpio"),
    };
    if done.is_dir() {
        return Ok(images(&done));
    }
    progress.step("building the images of Xen, dom0 and the guests");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let new = root.join("new");
    fs::create_dir_all(&new)?;
    let files = images(&new);

    let bzimage = kernel_package(tree)?;
    let vmlinux = kernel::unpack(tree, &bzimage, &new.join("payload"))?;
    fs::write(&files.kernel, &vmlinux)?;
    let xen = tree.root.join("boot/xen-4.20-amd64.gz");
    fs::write(&files.xen, tree.run("usr/bin/busybox", &["gunzip".as_ref(), "-c".as_ref(), xen.as_ref()])?)?;

    let guest = guest(tree)?;
    let dom0 = dom0(tree, &fs::read(&bzimage)?, &vmlinux, &guest)?;
    fs::write(&files.dom0, &dom0)?;
    let mut whole = dom0;
    whole.extend(peers(tree)?);
    fs::write(&files.dom0_with_peers, &whole)?;
    fs::rename(&new, &done)?;
    Ok(images(&done))
}

fn kernel_package(tree: &Tree) -> Result<PathBuf> {
    fs::read_dir(tree.root.join("boot"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .context("the kernel package holds no /boot/vmlinuz")
}

type Image = Archive<Vec<u8>>;

fn guest(tree: &Tree) -> Result<Vec<u8>> {
    let mut image = Archive::new(Vec::new());
    base(&mut image, tree, GUEST_PROGRAMS, GUEST_MODULES)?;
    image.file("init", true, GUEST_INIT)?;
    // What the guest's kernel runs when xl asks for a shutdown or reboot; our init takes no signals.
    for name in ["poweroff", "reboot"] {
        image.file(
            &format!("usr/sbin/{name}"),
            true,
            format!("#!/bin/sh\nexec busybox {name} -f\n").as_bytes(),
        )?;
    }
    image.symlink("usr/sbin/mkfs.ext4", "mke2fs")?;
    copy(&mut image, tree, "etc/mke2fs.conf")?;
    copy(&mut image, tree, "usr/share/misc/pci.ids")?;
    Ok(image.finish()?)
}

fn dom0(tree: &Tree, bzimage: &[u8], vmlinux: &[u8], guest: &[u8]) -> Result<Vec<u8>> {
    let mut image = Archive::new(Vec::new());
    base(&mut image, tree, DOM0_PROGRAMS, DOM0_MODULES)?;
    image.file("init", true, DOM0_INIT)?;
    copy(&mut image, tree, "etc/xen")?;
    copy(&mut image, tree, "etc/mke2fs.conf")?;
    for name in WRAPPED {
        image.symlink(&format!("usr/sbin/{name}"), "../lib/xen-common/bin/xen-utils-wrapper")?;
    }
    for name in ["xen-init-dom0", "lsevtchn", "xenctx"] {
        image.symlink(&format!("usr/sbin/{name}"), &format!("../lib/xen-4.20/bin/{name}"))?;
    }
    image.symlink("usr/sbin/mkfs.ext4", "mke2fs")?;
    image.symlink("var/run", "/run")?;
    image.symlink("var/lock", "/run/lock")?;
    for directory in ["var/lib/xen", "var/log/xen"] {
        image.directory(directory)?;
    }
    image.file("boot/vmlinuz", false, bzimage)?;
    image.file("boot/vmlinux", false, vmlinux)?;
    image.file("boot/guest.cpio", false, guest)?;
    // Only for some guests: it is large.
    let mut measuring = Archive::new(Vec::new());
    programs(&mut measuring, tree, MEASURING_PROGRAMS)?;
    image.file("boot/measuring.cpio", false, &measuring.finish()?)?;
    Ok(image.finish()?)
}

/// A second archive behind dom0's: the kernel unpacks one over the other.
fn peers(tree: &Tree) -> Result<Vec<u8>> {
    let mut image = Archive::new(Vec::new());
    programs(&mut image, tree, PEER_PROGRAMS)?;
    copy(&mut image, tree, PEER_KEYMAP)?;
    Ok(image.finish()?)
}

/// What dom0 and the guests have in common: busybox for all small commands, programs with libraries, modules.
fn base(image: &mut Image, tree: &Tree, names: &[&str], wanted: &[&str]) -> Result<()> {
    for (link, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        image.directory(target)?;
        image.symlink(link, target)?;
    }
    for directory in ["dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc"] {
        image.directory(directory)?;
    }
    image.file("etc/passwd", false, b"root:x:0:0:root:/root:/bin/sh\n")?;
    image.file("etc/group", false, b"root:x:0:\n")?;
    copy(image, tree, "usr/bin/busybox")?;
    let applets = tree.run("usr/bin/busybox", &["--list".as_ref()])?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        let ours = names.iter().any(|name| name.rsplit('/').next() == Some(applet));
        // Busybox' shell prefers its own applets to programs of that name, so a real shell goes before it.
        let target = if applet == "sh" && names.contains(&"usr/bin/bash") { "bash" } else { "busybox" };
        if applet != "busybox" && !ours {
            image.symlink(&format!("usr/bin/{applet}"), target)?;
        }
    }
    image.symlink("usr/sbin/modprobe", "../bin/busybox")?;
    programs(image, tree, names)?;

    let modules = Modules::select(tree, wanted)?;
    let directory = modules.directory();
    for (name, module) in &modules.by_name {
        image.file(&format!("{directory}/kernel/{name}.ko"), false, &module.data)?;
    }
    image.file(&format!("{directory}/modules.dep"), false, modules.dep().as_bytes())?;
    image.file(&format!("{directory}/modules.alias"), false, modules.alias().as_bytes())?;
    Ok(())
}

fn programs(image: &mut Image, tree: &Tree, names: &[&str]) -> Result<()> {
    let paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    for name in names {
        copy(image, tree, name)?;
    }
    for (path, file) in elf::libraries(&tree.root, &paths)? {
        image.file(&path, true, &fs::read(&file).with_context(|| format!("reading {}", file.display()))?)?;
    }
    let loader = "usr/lib64/ld-linux-x86-64.so.2";
    image.file(loader, true, &fs::read(tree.root.join(loader))?)?;
    Ok(())
}

/// Copies a file, or a directory with all that is in it.
fn copy(image: &mut Image, tree: &Tree, path: &str) -> Result<()> {
    let source = tree.root.join(path);
    let metadata =
        fs::symlink_metadata(&source).with_context(|| format!("{} is missing", source.display()))?;
    if metadata.is_dir() {
        image.directory(path)?;
        let mut names: Vec<_> = fs::read_dir(&source)?.collect::<std::io::Result<_>>()?;
        names.sort_by_key(|entry| entry.file_name());
        return names.iter().try_for_each(|entry| {
            copy(image, tree, &format!("{path}/{}", entry.file_name().to_string_lossy()))
        });
    }
    let executable =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&source)?.permissions()) & 0o111 != 0;
    Ok(image.file(path, executable, &fs::read(&source)?)?)
}
