//! Kernel modules: picks the named ones with all they depend on, unpacked, with the tables modprobe reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::elf;
use crate::packages::Tree;

pub struct Module {
    pub data: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Modules of one kernel, by name (with underscores), complete with their dependencies.
pub struct Modules {
    pub release: String,
    pub by_name: BTreeMap<String, Module>,
}

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    Some(file.split_once(".ko")?.0.replace('-', "_"))
}

fn find(directory: &Path, into: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, into)?;
        } else if let Some(name) = name_of(&path) {
            into.insert(name, path);
        }
    }
    Ok(())
}

impl Modules {
    /// Takes `wanted` from the kernel package unpacked in `tree`. A name the kernel has built in is fine.
    pub fn select(tree: &Tree, wanted: &[&str]) -> Result<Self> {
        let root = tree.root.join("usr/lib/modules");
        let release = single_entry(&root)?;
        let root = root.join(&release);
        let builtin = fs::read_to_string(root.join("modules.builtin")).context("reading modules.builtin")?;
        let builtin: Vec<String> = builtin.lines().filter_map(|line| name_of(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        find(&root.join("kernel"), &mut files)?;

        let mut by_name = BTreeMap::new();
        let mut queue: Vec<String> = wanted.iter().map(|name| name.replace('-', "_")).collect();
        while let Some(name) = queue.pop() {
            if by_name.contains_key(&name) || builtin.contains(&name) {
                continue;
            }
            let Some(file) = files.get(&name) else { bail!("kernel {release} has no module {name}") };
            let module = load(tree, file)?;
            queue.extend(module.depends.iter().cloned());
            by_name.insert(name, module);
        }
        Ok(Self { release, by_name })
    }

    pub fn directory(&self) -> String {
        format!("usr/lib/modules/{}", self.release)
    }

    /// `modules.dep`: each module with everything it needs, nearest first, as modprobe wants it.
    pub fn dep(&self) -> String {
        let mut lines = String::new();
        for name in self.by_name.keys() {
            let mut order = Vec::new();
            self.collect(name, &mut order);
            order.retain(|dependency| dependency != name);
            order.reverse();
            let files: Vec<String> = order.iter().map(|name| format!("kernel/{name}.ko")).collect();
            lines.push_str(&format!("kernel/{name}.ko: {}\n", files.join(" ")));
        }
        lines
    }

    /// Deepest dependency first.
    fn collect(&self, name: &str, order: &mut Vec<String>) {
        let Some(module) = self.by_name.get(name) else { return };
        if order.iter().any(|known| known == name) {
            return;
        }
        for dependency in &module.depends {
            self.collect(dependency, order);
        }
        order.push(name.to_string());
    }

    pub fn alias(&self) -> String {
        self.by_name
            .iter()
            .flat_map(|(name, module)| {
                module.aliases.iter().map(move |alias| format!("alias {alias} {name}\n"))
            })
            .collect()
    }
}

/// The one kernel release in the tree: the packages are resolved together, so there is exactly one.
fn single_entry(directory: &Path) -> Result<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .with_context(|| format!("listing {}", directory.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    ensure!(names.len() == 1, "expected one kernel in {}, found {names:?}", directory.display());
    Ok(names.remove(0))
}

fn load(tree: &Tree, file: &Path) -> Result<Module> {
    let data = if file.extension().is_some_and(|extension| extension == "xz") {
        tree.run("usr/bin/xz", &["-dc".as_ref(), file.as_ref()])?
    } else {
        fs::read(file).with_context(|| format!("reading {}", file.display()))?
    };
    let info = elf::modinfo(&data).with_context(|| format!("{} is no kernel module", file.display()))?;
    let values = |key: &'static str| {
        info.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let depends = values("depends")
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect();
    Ok(Module { depends, aliases: values("alias"), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &[&str]) -> Module {
        Module {
            data: Vec::new(),
            depends: depends.iter().map(|name| name.to_string()).collect(),
            aliases: vec![],
        }
    }

    #[test]
    fn dependencies_are_listed_nearest_first() {
        let by_name = BTreeMap::from([
            ("a".to_string(), module(&["b"])),
            ("b".to_string(), module(&["c"])),
            ("c".to_string(), module(&[])),
        ]);
        let modules = Modules { release: "1".into(), by_name };
        assert!(modules.dep().contains("kernel/a.ko: kernel/b.ko kernel/c.ko\n"));
    }

    #[test]
    fn names_use_underscores() {
        assert_eq!(name_of(Path::new("/x/xen-blkfront.ko.xz")).as_deref(), Some("xen_blkfront"));
    }
}
