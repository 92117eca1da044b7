use super::*;

#[test]
fn help_starts_with_usage_and_is_not_taken_for_the_old_qemu() {
    for line in ["-help", "--help", "-h", "-xen-domid 3 -help -nonsense"] {
        let text = printed(line);
        assert!(text.starts_with("usage: xenpvh "), "{text}");
        // libvirt takes a device model whose help says this for qemu-traditional.
        assert!(!text.contains("Options specific to the Xen version:"));
        assert!(text.contains("-xen-domid id"));
        assert!(text.contains("-nographic"));
        assert!(!text.contains("acpi-only"));
        assert!(text.lines().all(|line| line.len() <= 110 && line.trim_end() == line), "{text}");
    }
}

#[test]
fn version() {
    assert_eq!(printed("-version"), format!("xenpvh version {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn lists() {
    let machines = printed("-machine help");
    assert!(machines.starts_with("Supported machines are:\nnone "), "{machines}");
    assert!(machines.contains("\nxenpvh "), "{machines}");
    assert!(
        printed("-M xenpvh,help").contains("\n  pci-ecam-base=<size>   - Set base address for pci-ecam\n")
    );
    let devices = printed("-device help");
    assert!(
        devices.contains("Network devices:\nname \"virtio-net-pci\", bus PCI, alias \"virtio-net\"\n"),
        "{devices}"
    );
    assert!(
        devices.contains("Input devices:\nname \"virtio-serial-pci\", bus PCI, alias \"virtio-serial\"\n"),
        "{devices}"
    );
    assert!(devices.contains("\nname \"virtconsole\", bus virtio-serial-bus\n"), "{devices}");
    assert!(printed("-netdev help").contains("  tap\n"));
    assert!(printed("-chardev help").contains("  socket\n"));
    assert!(printed("-object help").contains("  rng-random\n"));
}

#[test]
fn help_on_a_device_names_each_property_with_its_type_and_default() {
    let text = printed("-device virtio-net,help");
    assert!(text.starts_with("virtio-net-pci options:\n  acpi-index=<uint32> "), "{text}");
    assert!(
        text.contains(
            "\n  mq=<bool>              - Offer all queue pairs that the netdev has (default: off)\n"
        )
    );
    assert!(
        text.contains("\n  aer=<bool>             - on/off (default: off); can only be off: not supported\n")
    );
    assert!(printed("-device virtio-serial,help").contains(" 1 to 31 (default: 31)\n"));
    assert_eq!(
        printed("-device virtserialport,help"),
        "virtserialport options:\n  \
         chardev=<str>          - ID of a chardev to use as a backend\n  \
         name=<str>             - What the guest calls the port\n  \
         nr=<uint32>            - Number of the port, by default the first that is free\n"
    );
    assert!(printed("-device virtio-blk-pci,help").contains("\n  drive=<str> "));
    assert!(printed("-device driver=virtio-rng-pci,help").contains("\n  rng=<str> "));
    assert_eq!(complaint("-device nosuch,help"), "xenpvh: -device nosuch,help: Device 'nosuch' not found");
}
