//! One script, played to QEMU's virtio-pci devices and to ours: the same command line, the same accesses, the
//! same rings. Whatever is answered is compared; what differs on purpose is in a table, with the reason.

mod blocks;
mod differences;
mod interrupts;
mod log;
mod network;
mod shape;
mod states;

use std::os::unix::fs::FileExt;

use log::{Difference, Log, compare};
use proofs::{OurSubject, Qemu, Subject, in_network};
use tempfile::NamedTempFile;

/// Bytes of each disk.
const DISK: u64 = 1 << 20;

/// Devices for most scripts.
const DEVICES: &str = "-drive file={image},if=none,id=d,format=raw \
    -device virtio-blk-pci,drive=d,addr=2,disable-legacy=on,serial=ORACLE,num-queues=2 \
    -object rng-random,id=r,filename=/dev/zero -device virtio-rng-pci,rng=r,addr=3,disable-legacy=on";

/// The same with packed rings.
const PACKED: &str = "-drive file={image},if=none,id=d,format=raw \
    -device virtio-blk-pci,drive=d,addr=2,disable-legacy=on,serial=ORACLE,num-queues=2,packed=on \
    -object rng-random,id=r,filename=/dev/zero \
    -device virtio-rng-pci,rng=r,addr=3,disable-legacy=on,packed=on";

/// A network device, on a tap that each machine makes for itself, one after the other.
const NETWORK: &str = "-netdev tap,id=n,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=n,addr=4,mac=00:16:3e:01:02:03,disable-legacy=on,romfile=";

/// A disk for one of the machines; both begin alike.
fn image() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    let content: Vec<u8> = (0..DISK).map(|at| (at / 512 * 7 + at % 251) as u8).collect();
    file.as_file().write_all_at(&content, 0).expect("the image");
    file
}

fn arguments(line: &str, image: &NamedTempFile) -> Vec<String> {
    let path = image.path().display().to_string();
    line.split_whitespace().map(|word| word.replace("{image}", &path)).collect()
}

/// Plays a script to both machines and compares what they answer, and their disks in the end.
#[track_caller]
fn both(devices: &str, script: fn(&mut dyn Subject, &mut Log), known: &[Difference]) {
    let Some(prefix) = Qemu::find() else { return };
    let images = [image(), image()];
    let mut logs = [Log::default(), Log::default()];
    {
        let [mine, theirs] = &mut logs;
        script(&mut OurSubject::new(&arguments(devices, &images[0])), mine);
        script(&mut Qemu::new(&prefix, &arguments(devices, &images[1])), theirs);
    }
    let [mine, theirs] = &logs;
    compare(mine, theirs, known);
    let [mine, theirs] = images.map(|image| std::fs::read(image.path()).expect("the image"));
    assert!(mine == theirs, "the disks differ");
}

#[test]
fn functions_look_alike() {
    both(DEVICES, shape::configuration, &differences::functions());
}

#[test]
fn status_is_handled_alike() {
    both(DEVICES, states::status, &differences::STATUS);
}

#[test]
fn queues_are_set_up_alike() {
    both(DEVICES, states::queues, &differences::QUEUES);
}

#[test]
fn enabled_queues_stay_alike() {
    both(DEVICES, states::enabled_queues, &differences::ENABLED_QUEUES);
}

#[test]
fn disks_are_described_alike() {
    both(DEVICES, blocks::configuration, &differences::DISKS);
}

#[test]
fn requests_end_alike() {
    both(DEVICES, blocks::requests, &differences::REQUESTS);
}

#[test]
fn packed_rings_are_alike() {
    both(PACKED, shape::configuration, &differences::functions());
    both(PACKED, blocks::packed_requests, &differences::REQUESTS);
}

#[test]
fn order_is_kept_alike() {
    for devices in [DEVICES, PACKED] {
        let devices = devices.replace("disable-legacy=on", "disable-legacy=on,in_order=on");
        both(&devices, shape::configuration, &differences::functions());
        both(&devices, blocks::requests, &differences::REQUESTS);
    }
}

/// Needs no QEMU: what is right in a split ring is right in a packed one.
#[test]
fn packed_rings_are_like_split_rings() {
    let images = [image(), image()];
    let mut logs = [Log::default(), Log::default()];
    let [split, packed] = &mut logs;
    blocks::requests(&mut OurSubject::new(&arguments(DEVICES, &images[0])), split);
    blocks::packed_requests(&mut OurSubject::new(&arguments(PACKED, &images[1])), packed);
    compare(packed, split, &[]);
    let [split, packed] = images.map(|image| std::fs::read(image.path()).expect("the image"));
    assert!(split == packed, "the disks differ");
}

#[test]
fn queues_are_reset_alike() {
    both(DEVICES, states::queue_reset, &differences::QUEUE_RESET);
}

#[test]
fn broken_rings_break_alike() {
    both(DEVICES, blocks::broken, &differences::BROKEN);
}

#[test]
fn entropy_comes_alike() {
    both(DEVICES, interrupts::entropy, &differences::ENTROPY);
}

#[test]
fn interrupts_come_alike() {
    both(DEVICES, interrupts::msix, &differences::MSIX);
}

#[test]
fn devices_are_held_back_alike() {
    both(DEVICES, interrupts::suppression, &differences::HELD_BACK);
}

#[test]
fn network_devices_look_alike() {
    in_network(|| both(NETWORK, network::shape, &differences::network()));
}

#[test]
fn frames_pass_alike() {
    in_network(|| {
        both(NETWORK, network::frames, &[]);
        both(&format!("{NETWORK},packed=on"), network::frames, &[]);
    });
}

#[test]
fn commands_are_obeyed_alike() {
    in_network(|| both(NETWORK, network::commands, &differences::COMMANDS));
}
