//! A private apt: own state, cache and sources below one directory, the machine's own settings for the rest.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sources::{self, Source};
use crate::progress::Progress;

/// Where Debian keeps the keys of its archive, when the machine's configuration names none.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

struct Apt<'a> {
    root: &'a Path,
}

impl Apt<'_> {
    fn get(&self, archives: &Path) -> Command {
        let root = self.root;
        let mut command = Command::new("apt-get");
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| root.join(name).display().to_string();
        option("Dir::State", &path("state"));
        // Nothing is installed, as far as this apt knows: so it fetches every dependency.
        option("Dir::State::status", &path("state/status"));
        option("Dir::Cache", &path("cache"));
        option("Dir::Cache::archives", &archives.display().to_string());
        option("Dir::Etc::sourcelist", &path("etc/sources.list"));
        option("Dir::Etc::sourceparts", &path("etc/empty"));
        option("Dir::Etc::preferences", &path("etc/preferences"));
        option("Dir::Etc::preferencesparts", &path("etc/empty"));
        option("Debug::NoLocking", "true");
        option("APT::Sandbox::User", "root");
        option("APT::Architecture", "amd64");
        option("APT::Architectures::", "amd64");
        option("APT::Install-Recommends", "false");
        option("APT::Update::Post-Invoke::", "true");
        option("Acquire::Languages", "none");
        option("Acquire::Retries", "3");
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, mut command: Command, what: &str) -> Result<String> {
        let output = command
            .output()
            .context("running apt-get: the box needs a Debian (or a relative) to build on")?;
        let log = self.root.join("apt.log");
        let mut text = output.stdout.clone();
        text.extend_from_slice(&output.stderr);
        fs::write(&log, &text)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("E:")).collect();
            bail!(
                "{what} failed (the whole output is in {}):\n{}\nIs the network up, and does `apt-get update` work \
                 on this machine?",
                log.display(),
                errors.join("\n")
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Resolves `packages` with all they depend on, and downloads what is not there yet.
pub fn download(root: &Path, packages: &[&str], progress: &Progress) -> Result<Vec<PathBuf>> {
    let empty = root.join("none");
    let archives = root.join("archives");
    let directories = ["state/lists/partial", "cache", "etc/empty", "none/partial", "archives/partial"];
    for directory in directories {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("state/status"), "")?;
    fs::write(root.join("etc/preferences"), "")?;
    fs::write(root.join("etc/sources.list"), sources_list(root)?)?;

    let apt = Apt { root };
    progress.step("asking the Debian mirror what there is");
    let mut update = apt.get(&archives);
    update.arg("update");
    apt.run(update, "updating the package lists")?;

    // Against an empty archive directory this names every file, those already downloaded too.
    let mut resolve = apt.get(&empty);
    resolve.args(["--print-uris", "-y", "install"]).args(packages);
    let listing = apt.run(resolve, "resolving the packages")?;
    let files: Vec<(String, u64)> = listing.lines().filter_map(parse_uri_line).collect();
    let missing: u64 =
        files.iter().filter(|(name, _)| !archives.join(name).exists()).map(|(_, size)| size).sum();
    if missing > 0 {
        progress.step(&format!("downloading {} MB of Debian packages, once", missing.div_ceil(1_000_000)));
        let mut download = apt.get(&archives);
        download.args(["--download-only", "-y", "install"]).args(packages);
        apt.run(download, "downloading the packages")?;
    }
    let debs: Vec<PathBuf> = files.into_iter().map(|(name, _)| archives.join(name)).collect();
    match debs.iter().find(|deb| !deb.exists()) {
        Some(deb) => {
            bail!("apt-get did not leave {}: remove {} and run again", deb.display(), root.display())
        }
        None => Ok(debs),
    }
}

/// `'URI' file size hash` as `--print-uris` writes it.
fn parse_uri_line(line: &str) -> Option<(String, u64)> {
    let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
    Some((words.next()?.to_string(), words.next()?.parse().ok()?))
}

fn sources_list(root: &Path) -> Result<String> {
    let sources = match env::var("XENPVH_BOX_MIRROR") {
        Ok(uri) => {
            let main = "main".to_string();
            sources::for_box(&[Source {
                uri,
                suites: vec![sources::SUITE.into()],
                components: vec![main],
                signed_by: None,
            }])?
        }
        Err(_) => sources::for_box(&sources::of_machine(Path::new("/etc/apt")))?,
    };
    let mut list = String::new();
    for (index, source) in sources.iter().enumerate() {
        let keyring = match &source.signed_by {
            Some(key) if key.contains("BEGIN PGP") => {
                let file = root.join(format!("etc/key{index}.asc"));
                fs::write(&file, format!("{key}\n"))?;
                Some(file)
            }
            Some(path) => Some(path.into()),
            None => Some(PathBuf::from(KEYRING)).filter(|path| path.exists()),
        };
        let options = keyring.map(|path| format!("[signed-by={}] ", path.display())).unwrap_or_default();
        for suite in &source.suites {
            list.push_str(&format!("deb {options}{} {suite} {}\n", source.uri, source.components.join(" ")));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_lines() {
        let line = "'http://mirror.example/x/bash_5.2%2b1_amd64.deb' bash_5.2+1_amd64.deb 123 SHA256:00";
        assert_eq!(parse_uri_line(line), Some(("bash_5.2+1_amd64.deb".to_string(), 123)));
        assert_eq!(parse_uri_line("Reading package lists..."), None);
    }
}
