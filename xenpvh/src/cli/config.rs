//! What a command line comes to: everything looked up, checked and in its final form.

use std::os::fd::RawFd;
use std::path::PathBuf;

pub use backend::socket::SocketAddress;

use super::Error;
use super::device_config::Device;

/// The whole command line, with every reference between options resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// File name of `argv[0]`: what messages start with.
    pub program: String,
    /// The domain to serve, 1 to 0x7fef. Always there unless [`Machine::Probe`] was asked for.
    pub domid: Option<u16>,
    /// `-name`; empty when not given.
    pub name: String,
    /// What to build.
    pub machine: Machine,
    /// `-m` in bytes; `None` when not given.
    pub memory: Option<u64>,
    /// `-smp`; `None` when not given.
    pub smp: Option<Smp>,
    /// Character devices in command-line order.
    pub chardevs: Vec<Chardev>,
    /// QMP monitors in command-line order. The chardev of each is a socket that we serve, or null.
    pub monitors: Vec<Monitor>,
    /// Host network ends in command-line order.
    pub netdevs: Vec<Netdev>,
    /// Disks in command-line order.
    pub blocks: Vec<BlockNode>,
    /// Sources of randomness in command-line order.
    pub rngs: Vec<RngObject>,
    /// PCI functions in command-line order, each with the slot that it gets.
    pub devices: Vec<Device>,
    /// `-incoming`.
    pub incoming: Option<Incoming>,
    /// `-S`: do not run until told by QMP.
    pub paused: bool,
    /// `-no-shutdown`: stop rather than exit when the guest shuts down.
    pub no_shutdown: bool,
    /// `-xen-domid-restrict`: give up every privilege but the one over this domain.
    pub restrict: bool,
    /// `-run-with chroot=` or `-chroot`.
    pub chroot: Option<PathBuf>,
    /// `-run-with user=` or `-runas`.
    pub user: Option<User>,
    /// `-D`: where the log goes instead of standard error.
    pub log_file: Option<PathBuf>,
    /// `-pidfile`.
    pub pid_file: Option<PathBuf>,
    /// Hand ACPI over to the guest and exit, serving nothing.
    pub acpi_only: bool,
    /// What is odd but not wrong, each one line to print after `PROG: warning: `.
    pub warnings: Vec<String>,
}

impl Config {
    /// The host network end called `id`.
    #[must_use]
    pub fn netdev(&self, id: &str) -> Option<&Netdev> {
        self.netdevs.iter().find(|netdev| netdev.id == id)
    }

    /// The disk called `name` (`-drive id=` or `-blockdev node-name=`).
    #[must_use]
    pub fn block(&self, name: &str) -> Option<&BlockNode> {
        self.blocks.iter().find(|block| block.name == name)
    }

    /// The character device called `id`.
    #[must_use]
    pub fn chardev(&self, id: &str) -> Option<&Chardev> {
        self.chardevs.iter().find(|chardev| chardev.id == id)
    }

    /// Something wrong with the option `typed` that showed only when it was put to work.
    #[must_use]
    pub fn error(&self, typed: &str, message: &str) -> Error {
        Error { program: self.program.clone(), message: format!("{typed}: {message}") }
    }

    /// The source of randomness called `id`.
    #[must_use]
    pub fn rng(&self, id: &str) -> Option<&RngObject> {
        self.rngs.iter().find(|rng| rng.id == id)
    }
}

/// `-machine`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// `none`: no guest at all, answer QMP until told to quit (libxl asks this way what we can do).
    Probe,
    /// `xenpv` or none given: a PVH guest whose address layout is ours to choose.
    Xenpv,
    /// `xenpvh`: the address layout is on the command line and obeyed to the letter.
    Xenpvh(XenpvhLayout),
}

/// The properties of `-machine xenpvh`: guest-physical addresses and sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XenpvhLayout {
    /// Where low RAM starts.
    pub ram_low_base: u64,
    /// At most this much RAM is low.
    pub ram_low_size: u64,
    /// Where the RAM starts that is not low.
    pub ram_high_base: u64,
    /// Not used, as in QEMU: how much RAM is high follows from `-m`.
    pub ram_high_size: u64,
    /// Where PCI configuration space is mapped.
    pub ecam_base: u64,
    /// 1 MiB for each bus, at most 256 MiB; 0 means no PCI at all.
    pub ecam_size: u64,
    /// The 32-bit window.
    pub mmio_base: u64,
    /// Size of the 32-bit window; 0 means none.
    pub mmio_size: u64,
    /// The 64-bit window.
    pub mmio_high_base: u64,
    /// Size of the 64-bit window; 0 means none.
    pub mmio_high_size: u64,
}

impl Default for XenpvhLayout {
    /// QEMU's defaults: no PCI.
    fn default() -> XenpvhLayout {
        XenpvhLayout {
            ram_low_base: 0,
            ram_low_size: 0x8000_0000,
            ram_high_base: 0xc0_0000_0000,
            ram_high_size: 0x40_0000_0000,
            ecam_base: 0,
            ecam_size: 0,
            mmio_base: 0,
            mmio_size: 0,
            mmio_high_base: 0,
            mmio_high_size: 0,
        }
    }
}

/// `-smp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smp {
    /// vCPUs at start, 1 to 128.
    pub cpus: u32,
    /// vCPUs that there may ever be, `cpus` to 128.
    pub maxcpus: u32,
}

/// `-chardev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chardev {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// Unique among chardevs.
    pub id: String,
    /// What it is.
    pub backend: CharBackend,
}

/// What a chardev talks to. It is opened for the monitor or the device that uses it, and not otherwise: libxl adds
/// such for consoles that it then gives to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharBackend {
    /// A socket that we serve.
    Socket(SocketChardev),
    /// A socket that somebody else serves.
    Client(SocketAddress),
    /// Nothing.
    Null,
    /// A file, to be written to.
    File {
        /// Where.
        path: PathBuf,
        /// `append=on`: what is in it stays.
        append: bool,
    },
    /// A new pty.
    Pty,
    /// Standard input and output.
    Stdio {
        /// `signal=off`: ^C and its like are for the guest.
        signals: bool,
    },
    /// A kind that nothing here can use.
    Unused(&'static str),
}

impl CharBackend {
    /// Its name on the command line.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            CharBackend::Socket(_) | CharBackend::Client(_) => "socket",
            CharBackend::Null => "null",
            CharBackend::File { .. } => "file",
            CharBackend::Pty => "pty",
            CharBackend::Stdio { .. } => "stdio",
            CharBackend::Unused(kind) => kind,
        }
    }
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketChardev {
    /// Where.
    pub address: SocketAddress,
    /// `wait=on`: do not start before the first client.
    pub wait: bool,
}

/// `-mon`, in control mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// The chardev it talks over.
    pub chardev: String,
    /// `pretty=on`: answers are indented for people.
    pub pretty: bool,
}

/// `-netdev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// Unique among netdevs.
    pub id: String,
    /// What it is.
    pub backend: NetBackend,
}

/// The host end of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap device.
    Tap(Tap),
}

/// `-netdev tap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// How to get at it.
    pub source: TapSource,
    /// Queue pairs, at least 1; with fds, one for each.
    pub queues: u16,
    /// `vnet_hdr=`: offloads between guest and tap. `false` only when asked for.
    pub vnet_hdr: bool,
    /// `br=`.
    pub bridge: Option<String>,
    /// `script=`: run when the tap is there.
    pub script: Script,
    /// `downscript=`: run before the tap goes.
    pub downscript: Script,
    /// `sndbuf=` in bytes: how much may wait in the tap; `None` for no limit.
    pub sndbuf: Option<u64>,
}

/// How to open a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// By name, which may hold a `%d` that the kernel fills in.
    Name(String),
    /// Inherited, one descriptor for each queue pair.
    Fds(Vec<RawFd>),
}

/// A network script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Not said.
    Default,
    /// `no`.
    No,
    /// This program.
    Path(PathBuf),
}

/// `-drive` or `-blockdev`: one raw image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNode {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// `id=` of a drive or `node-name=` of a block node; unique among both.
    pub name: String,
    /// Which of the two it came from.
    pub origin: BlockOrigin,
    /// The image.
    pub filename: PathBuf,
    /// What the file must be.
    pub kind: FileKind,
    /// How the host caches it.
    pub cache: Cache,
    /// The guest may not write.
    pub read_only: bool,
    /// `auto-read-only=on`: fall back to read-only when the file cannot be opened for writing.
    pub auto_read_only: bool,
    /// `discard=unmap`: the guest's discards reach the host.
    pub discard: bool,
    /// `detect-zeroes=`.
    pub detect_zeroes: DetectZeroes,
    /// `werror=`: what to do when a write fails, unless the device says.
    pub write_error: ErrorAction,
    /// `rerror=`: what to do when a read fails, unless the device says.
    pub read_error: ErrorAction,
    /// `file.locking=`: whether to keep other processes from writing to the image.
    pub locking: Locking,
}

/// Which option made a block node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOrigin {
    /// `-drive`: QMP shows the name as `device`.
    Drive,
    /// `-blockdev`: QMP shows the name as `node-name`.
    Blockdev,
}

/// What an image's file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A drive: a regular file or a block device.
    Any,
    /// `driver=file`: a regular file.
    Regular,
    /// `driver=host_device`: a block device.
    HostDevice,
}

/// `cache=`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The guest sees a volatile write cache (and flushes it). Off: each write is on the medium before it
    /// completes.
    pub writeback: bool,
    /// Go around the host's page cache.
    pub direct: bool,
    /// Ignore the guest's flushes.
    pub no_flush: bool,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { writeback: true, direct: false, no_flush: false }
    }
}

/// `detect-zeroes=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Write zeroes as any data.
    #[default]
    Off,
    /// Turn them into zero ranges.
    On,
    /// And let these be discarded.
    Unmap,
}

/// `werror=` and `rerror=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest gets the error.
    Report,
    /// The request succeeds.
    Ignore,
    /// The device stops until `cont`.
    Stop,
    /// Stop when the disk is full, report anything else.
    Enospc,
}

/// `file.locking=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Where the file system can.
    #[default]
    Auto,
    /// Or fail.
    On,
    /// Never.
    Off,
}

/// `-object rng-random` or `rng-builtin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngObject {
    /// The option as typed, for messages: `-opt value`.
    pub typed: String,
    /// Unique among objects.
    pub id: String,
    /// Where the bytes come from.
    pub source: RngSource,
}

/// Where random bytes come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RngSource {
    /// The kernel.
    #[default]
    Builtin,
    /// A file to read from.
    File(PathBuf),
}

/// `-incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// `defer`: QMP will say from where.
    Defer,
    /// `fd:N`.
    Fd(RawFd),
}

/// Who to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By name.
    Name(String),
    /// `uid:gid`.
    Ids(u32, u32),
}
