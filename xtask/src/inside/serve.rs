//! Runs shell scripts that arrive on the share, several at once if need be.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::share;

const POLL: Duration = Duration::from_millis(200);

/// Never returns by itself: the box is switched off from outside.
pub fn serve(share: &Path) -> Result<ExitCode> {
    let mut seen = BTreeSet::new();
    loop {
        for entry in fs::read_dir(share.join(share::COMMANDS))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sh") && seen.insert(path.clone()) {
                let bin = share.join("bin");
                thread::spawn(move || {
                    let status = run(&path, &bin).unwrap_or_else(|error| {
                        eprintln!("{}: {error:#}", path.display());
                        u8::MAX
                    });
                    if let Err(error) =
                        share::write_whole(&path.with_extension("status"), status.to_string().as_bytes())
                    {
                        eprintln!("{error:#}");
                    }
                });
            }
        }
        thread::sleep(POLL);
    }
}

fn run(script: &PathBuf, programs: &Path) -> Result<u8> {
    let output = File::create(script.with_extension("out"))?;
    // A program built anew since the boot replaces the one in dom0; a running copy keeps its file.
    Command::new("sh")
        .args(["-c", "for p in \"$1\"/*; do n=/usr/bin/${p##*/}; cmp -s $p $n || { cp $p $n.new && mv $n.new $n; }; done"])
        .arg("refresh")
        .arg(programs)
        .status()?;
    let status = Command::new("sh")
        .arg(script)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
