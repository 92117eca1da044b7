//! Guests: written down as data, created by unmodified xl, driven through their console.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::console::Console;
use super::{shell, xenstore};

pub const XENPVH: &str = "/usr/bin/xenpvh";

/// The same stock Debian kernel as `/boot/vmlinuz`, unpacked: xl takes it several seconds faster.
const KERNEL: &str = "/boot/vmlinux";
const INITRD: &str = "/boot/guest.cpio";

const XL_LIMIT: Duration = Duration::from_secs(180);
const READY_LIMIT: Duration = Duration::from_secs(300);
pub const SHORT: Duration = Duration::from_secs(60);

/// Who gives the guest its devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Devices {
    /// xenpvh, started by xl through `device_model_override`, with these options.
    Xenpvh(Vec<String>),
    /// Nobody yet: the guest is created paused and the scenario starts a device model by hand.
    #[default]
    ByHand,
    /// The kernel's PV backends: lines for xl's configuration file.
    Pv(Vec<String>),
}

/// A guest, as it is written into xl's configuration file.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub devices: Devices,
    pub initrd: String,
    pub kernel: String,
    pub extra: String,
    pub restarts: bool,
}

impl Plan {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            memory_mib: 512,
            vcpus: 1,
            devices: Devices::default(),
            initrd: INITRD.into(),
            kernel: KERNEL.into(),
            extra: String::new(),
            restarts: false,
        }
    }

    /// Devices by xenpvh, one shell-like string of options.
    pub fn xenpvh(mut self, options: &str) -> Self {
        self.devices = Devices::Xenpvh(options.split_whitespace().map(String::from).collect());
        self
    }

    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    pub fn restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    pub fn configuration(&self) -> String {
        let Self { name, memory_mib, vcpus, kernel, initrd, .. } = self;
        let on_reboot = if self.restarts { "restart" } else { "destroy" };
        let mut text = format!(
            "name = \"{name}\"\ntype = \"pvh\"\nkernel = \"{kernel}\"\nramdisk = \"{initrd}\"\n\
             memory = {memory_mib}\nmaxmem = {memory_mib}\nvcpus = {vcpus}\n\
             extra = \"console=hvc0 loglevel=7 {}\"\n\
             on_poweroff = \"destroy\"\non_reboot = \"{on_reboot}\"\non_crash = \"destroy\"\n",
            self.extra
        );
        match &self.devices {
            Devices::Xenpvh(options) => {
                let quoted: Vec<String> = options.iter().map(|option| format!("    '{option}',\n")).collect();
                text.push_str(&format!(
                    "device_model_version = \"qemu-xen\"\ndevice_model_override = \"{XENPVH}\"\n\
                     vfb = [\"vnc=0\"]\ndevice_model_args_pv = [\n{}]\n",
                    quoted.concat()
                ));
            }
            Devices::Pv(lines) => text.push_str(&(lines.join("\n") + "\n")),
            Devices::ByHand => {}
        }
        text
    }

    /// Creates the guest and leaves it paused if a device model is to be started by hand.
    pub fn create(self) -> Result<Guest> {
        let file = format!("/tmp/{}.cfg", self.name);
        fs::write(&file, self.configuration())?;
        let mut command = Command::new("xl");
        command
            .arg("create")
            .args(if self.devices == Devices::ByHand { &["-p"][..] } else { &[] })
            .arg(&file);
        shell::run(&mut command, XL_LIMIT)
            .with_context(|| format!("xl create of {} (its log: xl/qemu-dm-{0}.log)", self.name))?;
        let domid =
            domid(&self.name)?.with_context(|| format!("{} is gone right after xl create", self.name))?;
        Ok(Guest { plan: self, domid, console: None })
    }

    /// Creates the guest and waits until its init listens.
    pub fn boot(self) -> Result<Guest> {
        let mut guest = self.create()?;
        guest.wait_ready()?;
        Ok(guest)
    }
}

/// The domain's number by its name.
pub fn domid(name: &str) -> Result<Option<u32>> {
    let outcome = shell::outcome(Command::new("xl").args(["domid", name]), SHORT)?;
    if !outcome.status.success() {
        return Ok(None);
    }
    Ok(Some(outcome.text.trim().parse()?))
}

/// A domain that exists; it is destroyed when the scenario lets go of it.
pub struct Guest {
    pub plan: Plan,
    pub domid: u32,
    console: Option<Console>,
}

impl Guest {
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    pub fn unpause(&self) -> Result<()> {
        shell::run(Command::new("xl").args(["unpause", self.name()]), SHORT)?;
        Ok(())
    }

    /// Waits until the guest's init listens on the console.
    pub fn wait_ready(&mut self) -> Result<()> {
        let path = format!("/local/domain/{}/console/tty", self.domid);
        let tty = shell::until("the guest's console", SHORT, || {
            Ok(xenstore::read(&path)?.filter(|tty| !tty.is_empty()))
        })?;
        let mut console = Console::open(&tty)?;
        console.ready(READY_LIMIT).with_context(|| format!("guest {}", self.name()))?;
        self.console = Some(console);
        Ok(())
    }

    fn console(&mut self) -> Result<&mut Console> {
        self.console.as_mut().with_context(|| format!("guest {} was not waited for", self.plan.name))
    }

    /// Starts a script in the guest; `finish` waits for it.
    pub fn start(&mut self, script: &str) -> Result<u32> {
        eprintln!("{}# {script}", self.plan.name);
        self.console()?.start(script)
    }

    pub fn finish(&mut self, number: u32, limit: Duration) -> Result<(i32, String)> {
        let result = self.console()?.finish(number, limit);
        let (status, text) = result.with_context(|| format!("guest {}", self.plan.name))?;
        eprintln!("{text}\n[{}: {status}]", self.plan.name);
        Ok((status, text))
    }

    /// Runs a script in the guest, however it ends.
    pub fn outcome(&mut self, script: &str, limit: Duration) -> Result<(i32, String)> {
        let number = self.start(script)?;
        self.finish(number, limit)
    }

    /// Runs a script in the guest that must succeed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.run_within(script, Duration::from_secs(180))
    }

    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        let (status, text) = self.outcome(script, limit)?;
        ensure!(status == 0, "in guest {}: `{script}` failed with {status}:\n{text}", self.name());
        Ok(text)
    }

    /// The process that xl started as this guest's device model.
    pub fn device_model(&self) -> Result<u32> {
        let path = format!("/local/domain/{}/image/device-model-pid", self.domid);
        let pid = xenstore::read(&path)?
            .with_context(|| format!("{path} is missing: xl started no device model"))?;
        Ok(pid.parse()?)
    }

    /// Switches the guest off from inside and waits until nothing is left of it and of its device model.
    pub fn power_off(mut self) -> Result<()> {
        let device_model = self.device_model().ok();
        self.start("poweroff -f")?;
        self.wait_gone(Duration::from_secs(90))?;
        match device_model {
            Some(pid) => wait_process_gone(pid),
            None => Ok(()),
        }
    }

    /// Waits until Xen knows the domain no more, not even as a zombie.
    pub fn wait_gone(&self, limit: Duration) -> Result<()> {
        let number = self.domid.to_string();
        shell::until(&format!("the end of domain {number}"), limit, || {
            let list = shell::run(Command::new("xl").arg("list"), SHORT)?;
            let there =
                list.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some(number.as_str()));
            Ok((!there).then_some(()))
        })
    }

    /// `xl destroy`, and nothing may be left.
    pub fn destroy(self) -> Result<()> {
        shell::run(Command::new("xl").args(["destroy", &self.domid.to_string()]), XL_LIMIT)?;
        self.wait_gone(SHORT)
    }

    /// Finds the domain again after a reboot: same name, new number.
    pub fn wait_rebooted(&mut self, limit: Duration) -> Result<()> {
        let old = self.domid;
        self.console = None;
        self.domid = shell::until("the rebooted domain", limit, || {
            Ok(domid(&self.plan.name)?.filter(|domid| *domid != old))
        })?;
        self.wait_ready()
    }
}

impl Drop for Guest {
    /// A scenario that failed leaves its guest behind; the next one must not find it.
    fn drop(&mut self) {
        let Ok(Some(domid)) = domid(&self.plan.name) else { return };
        if let Err(error) = shell::run(Command::new("xl").args(["destroy", &domid.to_string()]), XL_LIMIT) {
            eprintln!("{error:#}");
        }
    }
}

/// Waits until a process is gone (a zombie counts as gone: its parent is xl's business).
pub fn wait_process_gone(pid: u32) -> Result<()> {
    shell::until(&format!("the end of process {pid}"), Duration::from_secs(30), || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let alive = state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"));
        Ok((!alive).then_some(()))
    })
}

/// A device model started by hand on a paused domain.
pub struct ByHand {
    child: Child,
    log: String,
}

impl ByHand {
    pub fn start(program: &str, arguments: &[String], log: &Path) -> Result<Self> {
        let file = fs::File::create(log)?;
        eprintln!("+ {program} {}", arguments.join(" "));
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Self { child, log: log.display().to_string() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `running` in xenstore.
    pub fn wait_running(&mut self, domid: u32) -> Result<()> {
        let path = format!("/local/domain/0/device-model/{domid}/state");
        shell::until("`running` in xenstore", SHORT, || {
            if let Some(status) = self.child.try_wait()? {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the device model ended early ({status}): {}", said.trim());
            }
            Ok(xenstore::read(&path)?.filter(|state| state == "running").map(drop))
        })
    }

    pub fn wait_end(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        shell::wait(&mut self.child, limit)?
            .with_context(|| format!("the device model did not end within {} s", limit.as_secs()))
    }

    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
