//! Every abuse by its name. The number is that of the list of bad inputs that broke other device models.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::mapping::Mapping;
use crate::virtio::{Device, Kind};
use crate::{devices, machine, pci, ring, transport, virtio};

/// One way to misbehave. What it checks itself is how the device must take it; that the device can be used
/// again afterwards is checked for all of them alike.
pub struct Abuse {
    pub number: u32,
    pub name: &'static str,
    fit: Fit,
    run: Run,
}

/// Which devices an abuse is for.
enum Fit {
    Any,
    Of(Kind),
    /// Those with such a feature.
    With(u64),
    WritableDisk,
}

type Run = fn(&World, &Device) -> Result<()>;

pub const fn any_device(number: u32, name: &'static str, run: Run) -> Abuse {
    Abuse { number, name, fit: Fit::Any, run }
}

pub const fn only(kind: Kind, number: u32, name: &'static str, run: Run) -> Abuse {
    Abuse { number, name, fit: Fit::Of(kind), run }
}

pub const fn with(feature: u64, number: u32, name: &'static str, run: Run) -> Abuse {
    Abuse { number, name, fit: Fit::With(feature), run }
}

pub const fn writable_disk(number: u32, name: &'static str, run: Run) -> Abuse {
    Abuse { number, name, fit: Fit::WritableDisk, run }
}

/// What there is to abuse.
pub struct World {
    pub devices: Vec<Device>,
    pub ecam: Mapping,
    pub ecam_at: u64,
}

impl World {
    pub fn new() -> Result<Self> {
        let (ecam_at, _) = pci::ecam()?;
        Ok(Self { devices: virtio::all()?, ecam: pci::map_ecam()?, ecam_at })
    }

    /// Every device starts from whatever state it is in, and serves.
    pub fn recover(&self) -> Result<()> {
        // First all BARs: one may lie over another.
        self.devices.iter().for_each(|device| device.function.restore());
        self.devices.iter().try_for_each(|device| recover(device).with_context(|| device.name()))
    }
}

fn recover(device: &Device) -> Result<()> {
    device.function.restore();
    device.restart()?;
    device.is_well()
}

pub fn all() -> impl Iterator<Item = &'static Abuse> {
    [transport::ABUSES, ring::ABUSES, devices::ABUSES, machine::ABUSES].into_iter().flatten()
}

impl Abuse {
    pub fn is_for(&self, device: &Device) -> bool {
        match self.fit {
            Fit::Any => true,
            Fit::Of(kind) => kind == device.kind,
            Fit::With(feature) => device.offered & feature != 0,
            Fit::WritableDisk => device.kind == Kind::Blk && !device.is_read_only(),
        }
    }

    /// The abuse alone, on a device in whatever state.
    pub fn commit(&self, world: &World, device: &Device) -> Result<()> {
        (self.run)(world, device)
    }

    /// The abuse on a device that serves, and after it the proof that it cost no more than a reset.
    pub fn carry_out(&self, world: &World, device: &Device) -> Result<Duration> {
        let begin = Instant::now();
        let outcome = self.commit(world, device);
        recover(device).context("the device is lost for good")?;
        outcome?;
        Ok(begin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_tell_abuses_apart() {
        let names: BTreeSet<_> = all().map(|abuse| abuse.name).collect();
        assert_eq!(names.len(), all().count());
    }

    /// What a guest can do at all: 24 and 26 to 34 are of devices and files that there are not here, 36 and 40 of
    /// calls to Xen that the device model does not make, and grants (37) are among the addresses of 16.
    #[test]
    fn nothing_on_the_list_is_left_out() {
        let numbers: BTreeSet<_> = all().map(|abuse| abuse.number).collect();
        let wanted: BTreeSet<_> = (1..=23).chain([25, 35, 38, 39]).collect();
        assert_eq!(numbers, wanted);
    }
}
