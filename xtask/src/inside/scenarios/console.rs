//! A console and a port: a shell on hvc1 through a pty, bytes both ways through a socket.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::inside::guest::{Plan, SHORT};
use crate::inside::{checks, shell};
use crate::share::Reporter;

const SOCKET: &str = "/tmp/port.socket";
const NAME: &str = "org.qemu.guest_agent.0";
const LOG: &str = "/var/log/xen/qemu-dm-console.log";
const KIB: usize = 256;
/// From fcntl.h of Linux on x86: the terminal is not to become ours, nor to be waited for.
const FLAGS: i32 = 0o400 | 0o4000;

pub fn test(report: &Reporter) -> Result<()> {
    let options = format!(
        "-device virtio-serial-pci,id=vs0 -chardev pty,id=con -device virtconsole,chardev=con \
         -chardev socket,id=port,path={SOCKET},server=on,wait=off \
         -device virtserialport,bus=vs0.0,chardev=port,name={NAME}"
    );
    let mut guest = Plan::new("console").xenpvh(&options).boot()?;
    checks::pci(&mut guest, 1)?;

    report.step("the guest's ports");
    let seen = guest.run(
        "n=0; until test -c /dev/hvc1 && ls /dev/vport*p1 >/dev/null 2>&1
         do n=$((n + 1)); test $n -lt 100 || exit 1; sleep 0.2; done
         cat /sys/class/virtio-ports/vport*p1/name",
    )?;
    ensure!(seen.trim() == NAME, "port 1 should be {NAME}: {seen:?}");

    report.step("a shell on hvc1");
    guest.run("setsid getty -n -l /bin/sh 0 hvc1 vt100 >/dev/null 2>&1 &")?;
    let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
    let pty = log.split_once("char device redirected to ").and_then(|(_, rest)| rest.split_once(' '));
    let (pty, _) = pty.with_context(|| format!("{LOG} names no pty:\n{log}"))?;
    let mut terminal = File::options().read(true).write(true).custom_flags(FLAGS).open(pty)?;
    let mut heard = String::new();
    shell::until("the answer of the shell", SHORT, || {
        // Until there is a shell nobody hears it.
        terminal.write_all(b"echo answer $((6 * 7))\r")?;
        std::thread::sleep(Duration::from_millis(500));
        let mut bytes = [0; 4096];
        match terminal.read(&mut bytes) {
            Ok(count) => heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(heard.contains("answer 42").then_some(()))
    })
    .with_context(|| format!("on {pty} was heard {heard:?}"))?;

    for turn in ["first", "second"] {
        report.step(format!("{KIB} KiB there and back through a socket, the {turn} time"));
        let echo =
            format!("exec 3<>$(echo /dev/vport*p1); head -c {} <&3 >/tmp/got && cat /tmp/got >&3", KIB << 10);
        let number = guest.start(&echo)?;
        let mut socket = UnixStream::connect(SOCKET)?;
        socket.set_read_timeout(Some(SHORT))?;
        socket.set_write_timeout(Some(SHORT))?;
        let sent: Vec<u8> = (0..KIB << 10).map(|index| ((index / 3) ^ (index >> 10)) as u8).collect();
        socket.write_all(&sent)?;
        let mut back = vec![0; sent.len()];
        socket.read_exact(&mut back)?;
        ensure!(back == sent, "what came back is not what was sent");
        let (status, text) = guest.finish(number, SHORT)?;
        ensure!(status == 0, "the guest's end failed with {status}: {text}");
    }
    guest.power_off()
}
