use std::path::{Path, PathBuf};

use super::*;

/// The line of QEMU's xenpvh page.
const DOCUMENTED: &str = "-xen-domid 3 -no-shutdown \
    -chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-3,server=on,wait=off \
    -mon chardev=libxl-cmd,mode=control \
    -chardev socket,id=libxenstat-cmd,path=/var/run/xen/qmp-libxenstat-3,server=on,wait=off \
    -mon chardev=libxenstat-cmd,mode=control \
    -nodefaults -no-user-config -xen-attach -name g0 -vnc none -display none \
    -device virtio-net-pci,id=nic0,netdev=net0,mac=00:16:3e:5c:81:78 \
    -netdev type=tap,id=net0,ifname=vif3.0-emu,br=xenbr0,script=no,downscript=no \
    -smp 4,maxcpus=4 -nographic \
    -machine xenpvh,ram-low-base=0,ram-low-size=2147483648,ram-high-base=4294967296,ram-high-size=2147483648,\
pci-ecam-base=824633720832,pci-ecam-size=268435456,pci-mmio-base=4026531840,pci-mmio-size=33554432,\
pci-mmio-high-base=824902156288,pci-mmio-high-size=68719476736 -m 4096";

/// What libxl puts before and after a user's own options for a PVH guest.
const LIBXL_HEAD: &str = "-xen-domid 7 -no-shutdown \
    -chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-7,server=on,wait=off \
    -mon chardev=libxl-cmd,mode=control \
    -chardev socket,id=libxenstat-cmd,path=/var/run/xen/qmp-libxenstat-7,server=on,wait=off \
    -mon chardev=libxenstat-cmd,mode=control -nodefaults -no-user-config -xen-attach -name g0 \
    -vnc none -display none -nographic";

fn socket(id: &str, path: &str) -> Chardev {
    let address = SocketAddress::Path(PathBuf::from(path));
    Chardev {
        typed: String::new(),
        id: id.to_owned(),
        backend: CharBackend::Socket(SocketChardev { address, wait: false }),
    }
}

fn untyped(chardevs: &[Chardev]) -> Vec<Chardev> {
    chardevs.iter().map(|chardev| Chardev { typed: String::new(), ..chardev.clone() }).collect()
}

#[test]
fn the_documented_line() {
    let config = config(DOCUMENTED);
    assert_eq!((config.program.as_str(), config.domid, config.name.as_str()), ("xenpvh", Some(3), "g0"));
    assert_eq!(config.memory, Some(4 << 30));
    assert_eq!(config.smp, Some(Smp { cpus: 4, maxcpus: 4 }));
    assert!(config.no_shutdown && !config.paused && !config.restrict);
    let layout = XenpvhLayout {
        ram_low_base: 0,
        ram_low_size: 0x8000_0000,
        ram_high_base: 0x1_0000_0000,
        ram_high_size: 0x8000_0000,
        ecam_base: 0xc0_0000_0000,
        ecam_size: 0x1000_0000,
        mmio_base: 0xf000_0000,
        mmio_size: 0x200_0000,
        mmio_high_base: 0xc0_1000_0000,
        mmio_high_size: 0x10_0000_0000,
    };
    assert_eq!(config.machine, Machine::Xenpvh(layout));
    assert_eq!(
        untyped(&config.chardevs),
        [
            socket("libxl-cmd", "/var/run/xen/qmp-libxl-3"),
            socket("libxenstat-cmd", "/var/run/xen/qmp-libxenstat-3")
        ]
    );
    let monitors: Vec<_> = config.monitors.iter().map(|monitor| monitor.chardev.as_str()).collect();
    assert_eq!(monitors, ["libxl-cmd", "libxenstat-cmd"]);
    let NetBackend::Tap(tap) = &config.netdev("net0").unwrap().backend;
    assert_eq!(tap.source, TapSource::Name("vif3.0-emu".to_owned()));
    assert_eq!((tap.queues, tap.vnet_hdr, tap.bridge.as_deref()), (1, true, Some("xenbr0")));
    assert_eq!((&tap.script, &tap.downscript), (&Script::No, &Script::No));
    let [device] = &config.devices[..] else { panic!("{:?}", config.devices) };
    assert_eq!((device.id.as_str(), device.driver), ("nic0", "virtio-net-pci"));
    assert_eq!(device.addr, Addr { device: 1, function: 0 });
    let Model::Net(nic) = &device.model else { panic!("{device:?}") };
    assert_eq!(nic.mac, [0x00, 0x16, 0x3e, 0x5c, 0x81, 0x78]);
    assert_eq!(nic.netdev.as_deref(), Some("net0"));
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn two_dashes_are_as_good_as_one() {
    let doubled = config(&DOCUMENTED.replace(" -", " --").replace("-xen-domid", "--xen-domid"));
    let plain = config(DOCUMENTED);
    assert_eq!((doubled.machine, doubled.monitors), (plain.machine, plain.monitors));
    assert_eq!(doubled.devices[0].model, plain.devices[0].model);
}

#[test]
fn what_libxl_passes() {
    let plain = config(&format!("{LIBXL_HEAD} -machine xenpv -m 512"));
    assert_eq!((plain.machine, plain.domid, plain.memory), (Machine::Xenpv, Some(7), Some(512 << 20)));
    // device_model_args come before -machine xenpv, device_model_args_pv right after it.
    let devices =
        "-device virtio-rng-pci -drive file=/d,if=none,id=d,format=raw -device virtio-blk-pci,drive=d";
    let with =
        config(&format!("{LIBXL_HEAD} -global virtio-net-pci.romfile= -machine xenpv {devices} -m 512"));
    assert_eq!(with.devices.len(), 2);
    assert_eq!(with.warnings, ["global virtio-net-pci.romfile= not used"]);
    let over = config(&format!(
        "{LIBXL_HEAD} -machine xenpv -machine xenpvh,pci-ecam-size=1M,pci-ecam-base=3G -m 512"
    ));
    let Machine::Xenpvh(layout) = over.machine else { panic!("{:?}", over.machine) };
    assert_eq!((layout.ecam_base, layout.ecam_size), (3 << 30, 1 << 20));
    // A frame buffer, a channel and a restricted device model.
    let more = config(&format!(
        "{LIBXL_HEAD} -chardev pty,id=libxl-channel0 -xen-domid-restrict \
        -run-with chroot=/var/run/xen/qemu-root-7 -S -k en-us -incoming fd:5 -machine xenpv -m 512"
    ));
    assert!(more.restrict && more.paused);
    assert_eq!(more.chroot.as_deref(), Some(Path::new("/var/run/xen/qemu-root-7")));
    assert_eq!(more.incoming, Some(Incoming::Fd(5)));
    assert_eq!(more.chardev("libxl-channel0").unwrap().backend, CharBackend::Pty);
    assert_eq!(
        config("-xen-domid 7 -machine xenpv -chroot /c -runas u").user,
        Some(User::Name("u".to_owned()))
    );
    assert_eq!(config("-xen-domid 7 -run-with user=3:4").user, Some(User::Ids(3, 4)));
}

#[test]
fn the_probe() {
    let config = config(
        "-S -no-user-config -nodefaults -nographic -machine none,accel=xen \
         -chardev socket,id=libxl-cmd,fd=16,server=on,wait=off -mon chardev=libxl-cmd,mode=control",
    );
    assert_eq!((config.machine, config.domid, config.paused), (Machine::Probe, None, true));
    let CharBackend::Socket(socket) = &config.chardevs[0].backend else { panic!("{:?}", config.chardevs) };
    assert_eq!(socket.address, SocketAddress::Fd(16));
}

#[test]
fn what_the_driver_domain_daemon_passes() {
    let line = "-xen-domid 4 -xen-attach -name domain-4 -nographic -M xenpv \
                -monitor /dev/null -serial /dev/null -parallel /dev/null";
    assert_eq!(config(line).name, "domain-4");
}

#[test]
fn names_may_hold_commas() {
    assert_eq!(config("-xen-domid 1 -name a,,b").name, "a,b");
    assert_eq!(config("-xen-domid 1 -name guest=x,process=y,debug-threads=on").name, "x");
}

#[test]
fn memory() {
    for (text, bytes) in
        [("128", 128 << 20), ("4G", 4 << 30), ("size=1.5G,slots=2,maxmem=8G", 3 << 29), ("1k", 8192)]
    {
        assert_eq!(config(&format!("-xen-domid 1 -m {text}")).memory, Some(bytes), "{text}");
    }
    assert_eq!(config("-xen-domid 1 -m 0").memory, None);
    assert_eq!(config("-xen-domid 1 -m 1 -m 2").memory, Some(2 << 20));
}

#[test]
fn cpus() {
    for (text, cpus, maxcpus) in [
        ("4", 4, 4),
        ("4,maxcpus=8", 4, 8),
        ("maxcpus=4", 4, 4),
        ("cpus=2,sockets=2", 2, 2),
        ("cores=2,threads=2", 4, 4),
        ("128", 128, 128),
        ("2,maxcpus=8,sockets=2,cores=2,threads=2", 2, 8),
    ] {
        assert_eq!(config(&format!("-xen-domid 1 -smp {text}")).smp, Some(Smp { cpus, maxcpus }), "{text}");
    }
}

fn disk(rest: &str) -> BlockNode {
    config(&format!("-xen-domid 1 {rest}")).block("d").unwrap_or_else(|| panic!("{rest}")).clone()
}

#[test]
fn drives() {
    let plain = disk("-drive file=/a,,b,if=none,id=d,format=raw");
    assert_eq!(plain.filename, Path::new("/a,b"));
    assert_eq!(
        (plain.origin, plain.kind, plain.cache),
        (BlockOrigin::Drive, FileKind::Any, Cache::default())
    );
    assert!(!plain.read_only && !plain.discard);
    for (mode, writeback, direct, no_flush) in [
        ("writeback", true, false, false),
        ("writethrough", false, false, false),
        ("none", true, true, false),
        ("directsync", false, true, false),
        ("unsafe", true, false, true),
    ] {
        let node =
            disk(&format!("-drive if=none,id=d,format=raw,cache={mode},readonly=on,discard=unmap,file=/d"));
        assert_eq!(node.cache, Cache { writeback, direct, no_flush }, "{mode}");
        assert!(node.read_only && node.discard);
    }
    let parts =
        disk("-drive if=none,id=d,format=raw,cache.direct=on,cache.no-flush=on,file=file:/d,aio=native");
    assert_eq!(parts.cache, Cache { writeback: true, direct: true, no_flush: true });
    assert_eq!(parts.filename, Path::new("/d"));
    let nested = disk(
        "-drive if=none,id=d,driver=raw,file.driver=host_device,file.filename=/dev/x,file.locking=off,werror=stop",
    );
    assert_eq!((nested.kind, nested.locking), (FileKind::HostDevice, Locking::Off));
    assert_eq!((nested.write_error, nested.read_error), (ErrorAction::Stop, ErrorAction::Report));
}

#[test]
fn a_virtio_drive_brings_its_device_after_the_others() {
    let config = config("-xen-domid 1 -drive file=/d,if=virtio,format=raw -device virtio-rng-pci");
    assert_eq!(config.devices[0].driver, "virtio-rng-pci");
    let Model::Blk(disk) = &config.devices[1].model else { panic!("{:?}", config.devices) };
    assert_eq!(disk.drive, "virtio0");
}

#[test]
fn blockdevs() {
    let flat = disk("-blockdev driver=host_device,node-name=d,filename=/dev/x,cache.direct=on,aio=native");
    assert_eq!((flat.origin, flat.kind), (BlockOrigin::Blockdev, FileKind::HostDevice));
    assert_eq!(flat.cache, Cache { writeback: true, direct: true, no_flush: false });
    for line in [
        "-blockdev raw,node-name=d,read-only=on,discard=unmap,file.driver=file,file.filename=/x,cache.no-flush=on",
        r#"-blockdev {"driver":"raw","node-name":"d","read-only":true,"discard":"unmap","cache":{"no-flush":true},"file":{"driver":"file","filename":"/x"}}"#,
        // In any order, unlike QEMU.
        "-blockdev raw,node-name=d,read-only=on,discard=unmap,file=f \
         -blockdev file,node-name=f,filename=/x,discard=unmap,cache.no-flush=on",
    ] {
        let node = disk(line);
        assert_eq!((node.filename.as_path(), node.kind), (Path::new("/x"), FileKind::Regular), "{line}");
        assert!(node.read_only && node.discard && node.cache.no_flush && !node.cache.direct, "{line}");
    }
}

#[test]
fn disks() {
    let config = config(
        "-xen-domid 1 -device virtio-blk,drive=d,serial=abc,num-queues=2,queue-size=128,logical_block_size=4k,\
         write-cache=off,rerror=stop,addr=5.0,bus=pcie.0,bootindex=1,id=x \
         -device {\"driver\":\"virtio-blk-pci-non-transitional\",\"drive\":\"e\",\"num-queues\":3,\"share-rw\":true,\"addr\":\"4\"} \
         -blockdev file,node-name=e,filename=/e -drive file=/d,id=d,if=none,format=raw,werror=report",
    );
    let Model::Blk(first) = &config.devices[0].model else { panic!("{:?}", config.devices) };
    assert_eq!((first.serial.as_str(), first.num_queues, first.queue_size), ("abc", Some(2), 128));
    assert_eq!((first.logical_block_size, first.physical_block_size), (Some(4096), None));
    assert_eq!(
        (first.write_cache, first.write_error, first.read_error),
        (false, ErrorAction::Report, ErrorAction::Stop)
    );
    assert_eq!(config.devices[0].addr, Addr { device: 5, function: 0 });
    let Model::Blk(second) = &config.devices[1].model else { panic!("{:?}", config.devices) };
    assert_eq!((second.num_queues, second.share_rw, second.write_cache), (Some(3), true, true));
    assert_eq!(config.devices[1].addr, Addr { device: 4, function: 0 });
}

#[test]
fn addresses_of_nics() {
    let config = config(
        "-xen-domid 1 -device virtio-net-pci -device virtio-net-pci,mac=52-54-00-12-34-57 \
         -device virtio-net-pci,mac=00:00:00:00:00:00 -global virtio-net-device.mq=on",
    );
    let last = |index: usize| match &config.devices[index].model {
        Model::Net(nic) => (nic.mac[5], nic.mq),
        other => panic!("{other:?}"),
    };
    assert_eq!([last(0), last(1), last(2)], [(0x56, true), (0x57, true), (0x58, true)]);
}

#[test]
fn globals_reach_the_devices_that_they_name() {
    let config = config(
        "-xen-domid 1 -global virtio-net-pci.host_mtu=9000 -global driver=virtio-pci,property=vectors,value=3 \
         -device virtio-net -device virtio-net-pci-non-transitional,host_mtu=1400 -device virtio-rng-pci,vectors=0 \
         -global nosuch.foo=1 -global virtio-blk-pci.serial=x",
    );
    let mtus: Vec<_> = config
        .devices
        .iter()
        .filter_map(|device| if let Model::Net(nic) = &device.model { Some(nic.host_mtu) } else { None })
        .collect();
    assert_eq!(mtus, [Some(9000), Some(1400)]);
    let vectors: Vec<_> = config.devices.iter().map(|device| device.vectors).collect();
    assert_eq!(vectors, [Some(3), Some(3), Some(0)]);
    assert_eq!(
        config.warnings,
        ["global nosuch.foo has invalid class name", "global virtio-blk-pci.serial=x not used"]
    );
}

#[test]
fn features_of_queues_and_transport() {
    let config = config(
        "-xen-domid 1 -device virtio-rng-pci \
         -device virtio-rng-pci,packed=on,in_order=on,iommu_platform=on,notification_data=on \
         -device virtio-rng-pci,event_idx=off,indirect_desc=off,queue_reset=off",
    );
    let usual = Transport {
        event_idx: true,
        in_order: false,
        indirect_desc: true,
        iommu_platform: false,
        notification_data: false,
        packed: false,
        queue_reset: true,
    };
    let more =
        Transport { in_order: true, iommu_platform: true, notification_data: true, packed: true, ..usual };
    let less = Transport { event_idx: false, indirect_desc: false, queue_reset: false, ..usual };
    let transports: Vec<_> = config.devices.iter().map(|device| device.transport).collect();
    assert_eq!(transports, [usual, more, less]);
}

#[test]
fn randomness() {
    let config = config(
        "-xen-domid 1 -device virtio-rng-pci,rng=r,max-bytes=1024,period=1000 -object rng-random,id=r,filename=/x \
         -object {\"qom-type\":\"rng-builtin\",\"id\":\"s\"} -object rng-random,id=t -device virtio-rng-pci",
    );
    let Model::Rng(first) = &config.devices[0].model else { panic!("{:?}", config.devices) };
    assert_eq!(first.source, RngSource::File(PathBuf::from("/x")));
    assert_eq!((first.max_bytes, first.period), (Some(1024), 1000));
    let Model::Rng(second) = &config.devices[1].model else { panic!("{:?}", config.devices) };
    assert_eq!((&second.source, second.max_bytes, second.period), (&RngSource::Builtin, None, 65536));
    assert_eq!(config.rng("t").unwrap().source, RngSource::File(PathBuf::from("/dev/urandom")));
}

#[test]
fn several_functions_in_one_slot() {
    let config = config(
        "-xen-domid 1 -device virtio-rng-pci,addr=2.1 -device virtio-rng-pci,addr=2,multifunction=on \
         -device virtio-rng-pci -device virtio-rng-pci",
    );
    let addrs: Vec<_> = config.devices.iter().map(|device| device.addr.to_string()).collect();
    assert_eq!(addrs, ["02.1", "02.0", "01.0", "03.0"]);
}

#[test]
fn taps() {
    let config = config(
        "-xen-domid 1 -netdev tap,id=a,fds=3:4:5 -netdev tap,id=b,fd=6 -netdev tap,id=c,ifname=t%d,queues=4,sndbuf=1M \
         -netdev {\"type\":\"tap\",\"id\":\"d\",\"vnet_hdr\":false,\"queues\":2,\"script\":\"/s\"}",
    );
    let tap = |id: &str| {
        let NetBackend::Tap(tap) = &config.netdev(id).unwrap().backend;
        tap
    };
    assert_eq!((tap("a").queues, &tap("a").source), (3, &TapSource::Fds(vec![3, 4, 5])));
    assert_eq!(tap("b").source, TapSource::Fds(vec![6]));
    assert_eq!((tap("c").queues, tap("c").sndbuf), (4, Some(1 << 20)));
    assert_eq!((tap("d").vnet_hdr, &tap("d").script), (false, &Script::Path(PathBuf::from("/s"))));
    assert_eq!(tap("d").source, TapSource::Name("tap%d".to_owned()));
}

#[test]
fn qmp_the_short_way() {
    let config = config("-xen-domid 1 -qmp unix:/s,server,nowait -qmp-pretty none");
    assert_eq!(config.chardevs[0].typed, "-qmp unix:/s,server,nowait");
    assert_eq!(untyped(&config.chardevs)[0], socket("compat_monitor0", "/s"));
    assert_eq!(config.monitors[1], Monitor { chardev: "compat_monitor1".to_owned(), pretty: true });
}

#[test]
fn serial_ports() {
    let config = config(
        "-xen-domid 1 -chardev pty,id=c0 -chardev socket,id=c1,path=/qga,server=on,wait=off -chardev stdio,id=c2 \
         -device virtio-serial-pci,id=vs0,max_ports=5 -device virtio-serial,emergency-write=off \
         -device virtserialport,chardev=c1,name=org.qemu.guest_agent.0,bus=vs0.0,id=qga \
         -device virtconsole,chardev=c0,bus=vs0.0 -device virtconsole,bus=vs0.0 -device virtconsole,chardev=c2 \
         -device virtserialport,nr=4,bus=vs0.0 -device virtserialport,bus=virtio-serial-bus.0",
    );
    let serial = |index: usize| {
        let device = &config.devices[index];
        let Model::Serial(serial) = &device.model else { panic!("{device:?}") };
        let ports = serial.ports.iter().map(|port| (port.console, port.number, port.chardev.as_deref()));
        (device.driver, device.vectors, serial.emergency_write, ports.collect::<Vec<_>>())
    };
    assert_eq!(config.devices.len(), 2);
    assert_eq!(
        serial(0),
        (
            "virtio-serial-pci",
            Some(6),
            true,
            vec![(false, 1, Some("c1")), (true, 0, Some("c0")), (true, 2, None), (false, 4, None)]
        )
    );
    // Those that name no bus go to the last device.
    assert_eq!(
        serial(1),
        ("virtio-serial-pci", Some(32), false, vec![(true, 0, Some("c2")), (false, 1, None)])
    );
    let Model::Serial(first) = &config.devices[0].model else { panic!("{:?}", config.devices) };
    assert_eq!((first.max_ports, first.ports[0].name.as_str()), (5, "org.qemu.guest_agent.0"));
    assert!(first.ports[1].typed.starts_with("-device virtconsole,chardev=c0"));
}

#[test]
fn kinds_of_chardev() {
    let config = config(
        "-xen-domid 1 -chardev socket,id=a,host=::1,port=4444 -chardev socket,id=b,host=,port=0,server \
         -chardev file,id=c,path=/f,append=on -chardev stdio,id=d,signal=off -chardev socket,id=e,fd=5 \
         -chardev ringbuf,id=f,size=64K -chardev null,id=g -chardev pty,id=h",
    );
    let backends: Vec<_> = config.chardevs.iter().map(|chardev| chardev.backend.clone()).collect();
    let any = SocketAddress::Tcp("0.0.0.0".to_owned(), 0);
    assert_eq!(
        backends,
        [
            CharBackend::Client(SocketAddress::Tcp("::1".to_owned(), 4444)),
            CharBackend::Socket(SocketChardev { address: any, wait: true }),
            CharBackend::File { path: PathBuf::from("/f"), append: true },
            CharBackend::Stdio { signals: false },
            CharBackend::Client(SocketAddress::Fd(5)),
            CharBackend::Unused("ringbuf"),
            CharBackend::Null,
            CharBackend::Pty,
        ]
    );
}

#[test]
fn the_hidden_option() {
    assert!(!config("-xen-domid 1 -nic none -net none").acpi_only);
    assert!(config("-xen-domid 1 -x-acpi-only").acpi_only);
}
