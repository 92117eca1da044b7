//! What must be there before a box can boot: the programs built, the packages fetched, the images made.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::image::{self, Images};
use crate::machine::{Machine, Shape};
use crate::packages::{self, Tree};
use crate::paths;
use crate::progress::Progress;
use crate::share::Plan;

/// All that is needed to boot.
pub struct Parts {
    pub directory: PathBuf,
    tree: Tree,
    images: Images,
    programs: Vec<PathBuf>,
}

impl Parts {
    pub fn new(progress: &Progress, tolerant: bool) -> Result<Self> {
        let directory = paths::box_directory();
        std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let tree = packages::tree(&directory, progress)?;
        let images = image::build(&directory, &tree, progress)?;
        let programs = programs(progress, tolerant)?;
        Ok(Self { directory, tree, images, programs })
    }

    pub fn boot(&self, shape: &Shape, plan: &Plan) -> Result<Machine> {
        Machine::start(&self.directory, &self.tree, &self.images, shape, &self.programs, plan)
    }
}

/// Builds xenpvh, a small copy of this program for dom0, and what hostile guests run. Whoever debugs the box may do so without xenpvh.
pub fn programs(progress: &Progress, tolerant: bool) -> Result<Vec<PathBuf>> {
    progress.step("building xenpvh");
    let mut programs = vec![build("xtask")?, build("abuse")?];
    match build("xenpvh") {
        Ok(xenpvh) => programs.push(xenpvh),
        Err(error) if tolerant => progress.step(&format!("going on without xenpvh: {error:#}")),
        Err(error) => return Err(error),
    }
    Ok(programs)
}

fn build(program: &str) -> Result<PathBuf> {
    let built =
        cargo::succeeds(cargo::command().args(["build", "--release", "--quiet", "--package", program]))?;
    ensure!(built, "cargo build --release of {program} failed, see above");
    Ok(paths::target().join("release").join(program))
}
