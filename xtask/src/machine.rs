//! The emulated machine that Xen runs on: one QEMU process without virtualisation extensions.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::image::Images;
use crate::packages::Tree;
use crate::share::{self, Plan, Tail};

/// How the machine is built.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its folder below `target/box/runs`.
    pub name: String,
    pub memory_mib: u32,
    /// One for dom0 and one for each vCPU of the guests that run at the same time.
    pub cpus: u32,
    pub with_peers: bool,
    /// Goes on when this program ends.
    pub detached: bool,
    /// A shell on the terminal in place of a plan.
    pub shell: bool,
}

impl Shape {
    /// dom0 and a guest with four vCPUs.
    pub const CPUS: u32 = 5;
}

const DOM0_MEMORY_MIB: u32 = 2048;

/// Xen prints one of these when it or dom0 is lost.
const FATAL: [&str; 4] =
    ["Panic on CPU", "Kernel panic - not syncing", "Hardware Dom0 crashed", "Xen BUG at"];

pub struct Machine {
    pub directory: PathBuf,
    child: Child,
    console: Tail,
    detached: bool,
}

impl Machine {
    /// Prepares the run's folder and starts QEMU. `programs` are put into dom0's path.
    pub fn start(
        box_directory: &Path,
        tree: &Tree,
        images: &Images,
        shape: &Shape,
        programs: &[PathBuf],
        plan: &Plan,
    ) -> Result<Self> {
        let directory = box_directory.join("runs").join(&shape.name);
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        fs::create_dir_all(directory.join(share::COMMANDS))?;
        fs::create_dir_all(directory.join("bin"))?;
        for program in programs {
            put_program(&directory, program)?;
        }
        fs::write(directory.join(share::PLAN), serde_json::to_string_pretty(plan)?)?;
        if shape.shell {
            fs::write(directory.join("shell"), "")?;
        }
        let mut command = qemu(tree, images, shape, &directory);
        if !shape.shell {
            let log = File::create(directory.join("qemu.log"))?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        }
        if shape.detached {
            command.process_group(0);
        }
        let child = command.spawn().context("starting QEMU (with setpriv of util-linux)")?;
        fs::write(directory.join("qemu.pid"), child.id().to_string())?;
        let console = Tail::new(directory.join("console.log"));
        Ok(Self { directory, child, console, detached: shape.detached })
    }

    /// An error once the machine is lost: QEMU ended, or Xen or dom0 panicked.
    pub fn check(&mut self) -> Result<()> {
        let mut lost = None;
        while let Some(line) = self.console.line()? {
            if lost.is_none() && FATAL.iter().any(|text| line.contains(text)) {
                lost = Some(line);
            }
        }
        let ended = self.child.try_wait()?;
        let why = match (lost, ended) {
            (Some(line), _) => format!("the box crashed: {}", line.trim()),
            (None, Some(status)) => format!("the box went down early (QEMU {status})"),
            (None, None) => return Ok(()),
        };
        bail!("{why}\n{}", self.evidence())
    }

    /// The last words of everything that may know why it went wrong.
    pub fn evidence(&self) -> String {
        let mut text = String::new();
        for name in ["qemu.log", "console.log", "runner.log"] {
            let path = self.directory.join(name);
            let lines = share::last_lines(&path, 12);
            if !lines.is_empty() {
                text.push_str(&format!("  last lines of {}:\n{lines}", path.display()));
            }
        }
        text
    }

    /// Waits for QEMU to end by itself, as after `exit` in the interactive shell.
    pub fn wait(&mut self) -> Result<()> {
        self.child.wait().context("waiting for QEMU")?;
        Ok(())
    }

    /// Lets it run on after this program.
    pub fn leave(mut self) {
        self.detached = true;
    }
}

impl Drop for Machine {
    /// Everything worth keeping is on the share by now, so there is no shutdown to wait for.
    fn drop(&mut self) {
        if !self.detached {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Copies a program to where dom0 finds it; a running one is replaced, not overwritten.
pub fn put_program(directory: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let to = directory.join("bin").join(name);
    let new = to.with_extension("new");
    fs::copy(program, &new).with_context(|| format!("copying {}", program.display()))?;
    fs::rename(&new, &to).with_context(|| format!("writing {}", to.display()))
}

fn qemu(tree: &Tree, images: &Images, shape: &Shape, directory: &Path) -> Command {
    let emulator = tree.command("usr/bin/qemu-system-x86_64");
    // Without a parent QEMU would run for ever, so the kernel is asked to end it with us.
    let mut command = Command::new("setpriv");
    if shape.detached {
        command.arg("--nnp");
    } else {
        command.args(["--pdeathsig", "KILL"]);
    }
    command.arg(emulator.get_program()).args(emulator.get_args());
    command.env("QEMU_MODULE_DIR", tree.root.join("usr/lib/x86_64-linux-gnu/qemu"));
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tree.root.join(data));
    }

    // One thread for all CPUs would not do: when it turns from one to the next right after Xen has given a guest
    // an interrupt, TCG delivers that interrupt twice.
    // RDTSCP: Xen intercepts it, and TCG gives no instruction length with the exit, so the guest would crash.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-rdtscp", "-M", "q35", "-no-reboot"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
    command.args(["-smp", &shape.cpus.to_string(), "-m", &shape.memory_mib.to_string()]);
    let serial = if shape.shell {
        "stdio,id=serial,signal=off".to_string()
    } else {
        format!("file,id=serial,path={}", escape(&directory.join("console.log")))
    };
    command.args(["-chardev", &serial, "-serial", "chardev:serial"]);
    command
        .arg("-virtfs")
        .arg(format!("local,path={},mount_tag=share,security_model=none,multidevs=remap", escape(directory)));

    // Each vCPU has a CPU to itself. When a CPU switches between dom0 and a guest, or between guests, TCG's
    // emulation of SVM mixes up their state: the guest dies of a triple fault and programs in dom0 crash.
    command.arg("-kernel").arg(&images.xen);
    command.arg("-append").arg(format!(
        "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all bootscrub=0 spec-ctrl=no \
         dom0_mem={DOM0_MEMORY_MIB}M,max:{DOM0_MEMORY_MIB}M dom0_max_vcpus=1 dom0_vcpus_pin sched=null"
    ));
    let initrd = if shape.with_peers { &images.dom0_with_peers } else { &images.dom0 };
    command.arg("-initrd").arg(format!(
        "{} console=hvc0 quiet mitigations=off audit=0 apparmor=0 panic=-1,{}",
        escape(&images.kernel),
        escape(initrd)
    ));
    command
}

/// QEMU takes a comma for the end of a value unless it is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
