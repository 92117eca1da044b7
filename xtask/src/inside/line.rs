//! The command line of QEMU's xenpvh page, for a guest of ours.

/// Where the documented line puts things.
#[derive(Clone, Debug)]
pub struct Layout {
    pub ram_low_size: u64,
    pub ram_high_size: u64,
    pub ecam_base: u64,
    pub mmio_base: u64,
    pub mmio_high_base: u64,
}

const ECAM_SIZE: u64 = 256 << 20;
const MMIO_SIZE: u64 = 32 << 20;
const MMIO_HIGH_SIZE: u64 = 64 << 30;

impl Layout {
    /// The documented addresses, for a guest whose RAM ends below 4 GiB.
    pub fn documented(memory_mib: u32) -> Self {
        Self {
            ram_low_size: u64::from(memory_mib) << 20,
            ram_high_size: 0,
            ecam_base: 0xc0_0000_0000,
            mmio_base: 0xf000_0000,
            mmio_high_base: 0xc0_1000_0000,
        }
    }

    pub fn machine(&self) -> String {
        format!(
            "xenpvh,ram-low-base=0,ram-low-size={},ram-high-base=4294967296,ram-high-size={},pci-ecam-base={},\
             pci-ecam-size={ECAM_SIZE},pci-mmio-base={},pci-mmio-size={MMIO_SIZE},pci-mmio-high-base={},\
             pci-mmio-high-size={MMIO_HIGH_SIZE}",
            self.ram_low_size, self.ram_high_size, self.ecam_base, self.mmio_base, self.mmio_high_base
        )
    }
}

/// The whole line, in the documented order, with `devices` where the page has its network card.
pub fn arguments(domid: &str, name: &str, vcpus: u32, layout: &Layout, devices: &str) -> Vec<String> {
    let monitor = |id: &str, socket: &str| {
        format!(
            "-chardev socket,id={id},path=/var/run/xen/qmp-{socket}-{domid},server=on,wait=off \
             -mon chardev={id},mode=control"
        )
    };
    format!(
        "-xen-domid {domid} -no-shutdown {} {} -nodefaults -no-user-config -xen-attach -name {name} -vnc none \
         -display none {devices} -smp {vcpus},maxcpus={vcpus} -nographic -machine {} -m {}",
        monitor("libxl-cmd", "libxl"),
        monitor("libxenstat-cmd", "libxenstat"),
        layout.machine(),
        (layout.ram_low_size + layout.ram_high_size) >> 20
    )
    .split_whitespace()
    .map(String::from)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_documented_numbers() {
        let line = arguments("3", "g0", 4, &Layout::documented(2048), "").join(" ");
        assert!(line.starts_with(
            "-xen-domid 3 -no-shutdown -chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-3,"
        ));
        assert!(line.contains("ram-low-size=2147483648,"));
        assert!(
            line.contains("pci-ecam-base=824633720832,pci-ecam-size=268435456,pci-mmio-base=4026531840,")
        );
        assert!(line.contains("pci-mmio-high-base=824902156288,pci-mmio-high-size=68719476736"));
    }
}
