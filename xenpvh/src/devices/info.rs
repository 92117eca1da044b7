//! What QMP shows of the devices.

use pci::width::low16;
use pci::{BarKind, Bus, Function};
use virtio::Device;
use virtio::blk::{Kind, Statistics};

use super::{Devices, Drive, Nic};
use crate::cli::{BlockOrigin, DetectZeroes};
use crate::qmp::{BlockInfo, BlockStats, FunctionInfo, NicInfo, OperationStats, RegionInfo};

impl Devices {
    /// The disks, in command-line order.
    pub fn block_infos(&self) -> Vec<BlockInfo> {
        self.drives.iter().map(block_info).collect()
    }

    /// The NICs, in command-line order.
    pub fn nic_infos(&self) -> Vec<NicInfo> {
        self.nics.iter().enumerate().map(|(index, nic)| nic_info(index, nic)).collect()
    }

    /// Every function on the bus, the host bridge too.
    pub fn function_infos(&self, bus: &Bus) -> Vec<FunctionInfo> {
        let mut infos = Vec::new();
        for (at, function) in bus.functions() {
            let id = self.functions.iter().find(|placed| placed.at == at).map(|placed| placed.id.clone());
            let word = |offset: u16| low16(function.config_read(offset, 2).into());
            infos.push(FunctionInfo {
                bus: at.bus(),
                slot: at.device(),
                function: at.function(),
                id: id.unwrap_or_default(),
                class: word(0x0a),
                vendor: word(0x00),
                device: word(0x02),
                subsystem_vendor: word(0x2c),
                subsystem: word(0x2e),
                regions: regions(&*function),
            });
        }
        infos
    }
}

fn regions(function: &dyn Function) -> Vec<RegionInfo> {
    let bars = function.bars();
    let region = |bar: u8| {
        let (kind, size) = bars.get(bar)?;
        let (prefetch, wide) = match kind {
            BarKind::Memory32 { prefetch } => (prefetch, false),
            BarKind::Memory64 { prefetch } => (prefetch, true),
        };
        Some(RegionInfo { bar, size, address: bars.base(bar), prefetch, wide })
    };
    (0..6).filter_map(region).collect()
}

fn block_info(drive: &Drive) -> BlockInfo {
    let node = &drive.node;
    let named = |origin| if node.origin == origin { node.name.clone() } else { String::new() };
    BlockInfo {
        device: named(BlockOrigin::Drive),
        node_name: named(BlockOrigin::Blockdev),
        qdev: drive.device.clone(),
        filename: node.filename.display().to_string(),
        size: drive.disk.size(),
        actual_size: rustix::fs::fstat(&drive.disk)
            .map_or(0, |file| u64::try_from(file.st_blocks).unwrap_or_default().saturating_mul(512)),
        read_only: drive.disk.is_read_only(),
        cache: node.cache,
        detect_zeroes: match node.detect_zeroes {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        },
        stats: block_stats(&drive.statistics),
    }
}

fn block_stats(statistics: &Statistics) -> BlockStats {
    let stats = |kind| {
        let count = statistics.count(kind);
        OperationStats {
            bytes: count.bytes,
            operations: count.operations,
            failed: count.failed,
            invalid: 0,
            total_time_ns: u64::try_from(count.time.as_nanos()).unwrap_or(u64::MAX),
        }
    };
    BlockStats {
        // Requests that make no sense are not told apart; they are shown as reads.
        read: OperationStats { invalid: statistics.invalid(), ..stats(Kind::Read) },
        write: stats(Kind::Write),
        flush: stats(Kind::Flush),
        unmap: stats(Kind::Discard),
        highest_offset: statistics.highest_offset(),
    }
}

fn nic_info(index: usize, nic: &Nic) -> NicInfo {
    const MODEL: &str = "virtio-net-pci";
    let mut mac = [0; 6];
    nic.net.config().read(0, &mut mac);
    NicInfo {
        name: if nic.device.is_empty() { format!("{MODEL}.{index}") } else { nic.device.clone() },
        model: MODEL.to_owned(),
        mac,
        netdev: nic.netdev.clone(),
        netdev_about: format!("type=tap,ifname={}", nic.end.name()),
        link_up: nic.net.link(),
    }
}
