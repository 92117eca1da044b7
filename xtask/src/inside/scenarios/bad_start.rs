//! Start errors that only a real Xen can give: exit status 1, one line, and the domain untouched.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::inside::guest::{self, ByHand, Plan, SHORT};
use crate::inside::line::{self, Layout};
use crate::inside::shell;
use crate::share::Reporter;

const MEMORY_MIB: u32 = 256;

/// Fails unless xenpvh ends with status 1 and exactly one line; returns the line.
fn refused(what: &str, arguments: &[String]) -> Result<String> {
    let outcome =
        shell::outcome(Command::new(guest::XENPVH).args(arguments), SHORT).context(what.to_string())?;
    let lines: Vec<&str> = outcome.text.lines().collect();
    ensure!(
        outcome.status.code() == Some(1),
        "{what}: ended with {}, not 1:\n{}",
        outcome.status,
        outcome.text
    );
    ensure!(lines.len() == 1, "{what}: one line expected, not:\n{}", outcome.text);
    Ok(lines[0].to_string())
}

pub fn test(report: &Reporter) -> Result<()> {
    let victim = Plan::new("victim").memory(MEMORY_MIB).create()?;
    let domid = victim.domid.to_string();
    let good = Layout::documented(MEMORY_MIB);
    let line = |domid: &str, layout: &Layout| line::arguments(domid, "victim", 1, layout, "");

    report.step("domains that are not there or not ours");
    let pv = pv_domain()?;
    refused("no -xen-domid", &line(&domid, &good)[2..])?;
    let cases =
        [("a dead domain", "4321"), ("not a number", "victim"), ("dom0", "0"), ("a PV domain", pv.as_str())];
    for (what, domid) in cases {
        refused(what, &line(domid, &good))?;
    }
    shell::run(Command::new("xl").args(["destroy", &pv]), SHORT)?;

    report.step("addresses that cannot be");
    let layouts = [
        ("ECAM over the high window", Layout { ecam_base: good.mmio_high_base, ..good.clone() }),
        ("low window over RAM", Layout { mmio_base: 64 << 20, ..good.clone() }),
        ("high window over the low one", Layout { mmio_high_base: good.mmio_base, ..good.clone() }),
        ("less RAM than the domain has", Layout { ram_low_size: 128 << 20, ..good.clone() }),
        ("more RAM than the domain has", Layout { ram_low_size: 1 << 30, ..good.clone() }),
        ("high RAM that the domain has not", Layout { ram_high_size: 1 << 30, ..good.clone() }),
    ];
    for (what, layout) in &layouts {
        refused(what, &line(&domid, layout))?;
    }

    report.step("after all that the domain takes a good device model, and one only");
    let log = Path::new("/share/xl/bad-start.log");
    let mut first = ByHand::start(guest::XENPVH, &line(&domid, &good), log)?;
    first.wait_running(victim.domid)?;
    refused("a domain already served", &line(&domid, &good))?;

    report.step("SIGTERM ends it with status 0, SIGHUP and SIGINT too");
    for signal in ["TERM", "HUP", "INT"] {
        shell::run(Command::new("kill").arg(format!("-{signal}")).arg(first.id().to_string()), SHORT)?;
        let status = first.wait_end(Duration::from_secs(20)).context(signal)?;
        ensure!(status.code() == Some(0), "SIG{signal} ended it with {status}");
        shell::sh(&format!("xenstore-rm /local/domain/0/device-model/{domid}/state || true"))?;
        first = ByHand::start(guest::XENPVH, &line(&domid, &good), log)?;
        first.wait_running(victim.domid)?;
    }

    report.step("the domain's death ends it without a signal");
    victim.destroy()?;
    first.wait_end(Duration::from_secs(20))?;
    Ok(())
}

/// A paused PV domain; its number.
fn pv_domain() -> Result<String> {
    let configuration = "name = \"pv\"\ntype = \"pv\"\nkernel = \"/boot/vmlinux\"\nmemory = 128\nvcpus = 1\n";
    std::fs::write("/tmp/pv.cfg", configuration)?;
    shell::run(Command::new("xl").args(["create", "-p", "/tmp/pv.cfg"]), Duration::from_secs(120))?;
    Ok(guest::domid("pv")?.context("the PV domain is gone")?.to_string())
}
