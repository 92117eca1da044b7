use proptest::prelude::*;

use super::super::options::OPTIONS;
use super::*;

/// Checks that each line, after `-xen-domid 1`, is refused with `-LINE: message` of its last
/// option, or with the message as it is when it starts with a bar.
fn refused(table: &[(&str, &str)]) {
    for (line, message) in table {
        let expected = match message.strip_prefix('|') {
            Some(whole) => format!("xenpvh: {whole}"),
            None => {
                let last = line.rfind(" -").map_or(*line, |space| &line[space + 1..]);
                format!("xenpvh: {last}: {message}")
            }
        };
        assert_eq!(complaint(&format!("-xen-domid 1 {line}")), expected, "{line}");
    }
}

#[test]
fn options() {
    refused(&[
        ("-foo", "invalid option"),
        ("--foo", "invalid option"),
        ("-", "invalid option"),
        ("--", "invalid option"),
        ("-S=3", "invalid option"),
        ("-m", "requires an argument"),
        ("extra", "unexpected argument, disks are given with -drive or -blockdev"),
        ("-name a,foo=1", "Invalid parameter 'foo'"),
        ("-vnc :1", "there is no display here, only 'none' is accepted"),
        ("-display sdl", "Parameter 'type' does not accept value 'sdl'"),
        ("-net nic", "only 'none' is supported, use -netdev and -device virtio-net-pci"),
        ("-incoming foo", "Parameter 'channel-type' does not accept value 'foo'"),
        ("-incoming fd:x", "Invalid file descriptor number 'x'"),
        ("-incoming tcp:0:1", "incoming 'tcp' is not supported, only defer and fd:N"),
        ("-run-with foo=1", "Invalid parameter 'foo'"),
        ("-runas 0:x", "User \"0:x\" doesn't exist (and is not <uid>:<gid>)"),
        ("-enable-kvm", "invalid accelerator kvm"),
        ("-accel kvm", "invalid accelerator kvm"),
        ("-daemonize", "not supported, let the shell or the service manager put it in the background"),
        ("-action shutdown=foo", "Parameter 'shutdown' does not accept value 'foo'"),
        ("-global foo", "Invalid parameter 'foo'"),
        ("-global driver=a,property=b", "options 'driver', 'property', and 'value' are required"),
        ("-monitor stdio", "the human monitor is not served, use -qmp"),
    ]);
}

#[test]
fn domains() {
    for (line, message) in [
        ("", "-xen-domid is missing: which domain is to be served?"),
        ("-xen-domid x", "-xen-domid x: not a domain id, which is a number ('xl list' shows them)"),
        ("-xen-domid -1", "-xen-domid -1: not a domain id, which is a number ('xl list' shows them)"),
        ("-xen-domid 0", "-xen-domid 0: domain 0 is the host, not a guest"),
        ("-xen-domid 32752", "-xen-domid 32752: out of range, a guest's domain id is 1 to 32751"),
        ("-xen-domid", "-xen-domid: requires an argument"),
    ] {
        assert_eq!(complaint(line), format!("xenpvh: {message}"));
    }
}

#[test]
fn machines() {
    refused(&[
        ("-M pc", "|unsupported machine type: \"pc\"\nUse -machine help to list supported machines"),
        ("-M xenpvh,foo=1", "|Property 'xenpvh-machine.foo' not found"),
        ("-M xenpv,ram-low-base=0", "|Property 'xenpv-machine.ram-low-base' not found"),
        ("-M xenpvh,ram-low-base=0 -M xenpv", "|Property 'xenpv-machine.ram-low-base' not found"),
        ("-M xenpvh,ram-low-size=x", "|Parameter 'ram-low-size' expects size"),
        ("-M xenpvh,ram-low-base=0x10G", "|Parameter 'ram-low-base' expects size"),
        ("-M xenpvh,pci-intx-irq-base=x", "|Parameter 'pci-intx-irq-base' expects integer"),
        ("-M xenpvh,pci-ecam-size=1M,pci-intx-irq-base=0", "|PCI enabled but pci-intx-irq-base not set"),
        ("-M xenpvh,usb", "Expected '=' after parameter 'usb'"),
        ("-M none,accel=kvm", "|invalid accelerator kvm"),
        ("-M xenpvh -device virtio-net-pci", "No 'PCI' bus found for device 'virtio-net-pci'"),
        ("-M none -device virtio-rng-pci", "No 'PCI' bus found for device 'virtio-rng-pci'"),
        (
            "-m x",
            "Parameter 'size' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively.",
        ),
        ("-m 99999999999999999999", "Value '99999999999999999999' is out of range for parameter 'size'"),
        ("-m -1", "|-m -1: Value '-1' is out of range for parameter 'size'"),
        ("-m foo=1,size=3", "Invalid parameter 'foo'"),
        (
            "-m 4,maxmem=1",
            "invalid value of maxmem: maximum memory size (0x1) must be at least the initial memory size (0x400000)",
        ),
        ("-smp 0", "|Invalid CPU topology: CPU topology parameters must be greater than zero"),
        ("-smp x", "|Parameter 'smp.cpus' expects integer"),
        ("-smp 129", "|Invalid SMP CPUs 129. The max CPUs supported by machine 'xenpvh' is 128"),
        ("-smp 4,foo=1", "|Parameter 'smp.foo' is unexpected"),
        (
            "-smp 4,maxcpus=2",
            "|Invalid CPU topology: maxcpus must be equal to or greater than smp: maxcpus (2) < smp_cpus (4)",
        ),
        (
            "-smp 2,sockets=3,maxcpus=2",
            "|Invalid CPU topology: product of the hierarchy must match maxcpus: 0 != maxcpus (2)",
        ),
    ]);
}

#[test]
fn chardevs_and_monitors() {
    let long = format!("/{}", "a".repeat(107));
    refused(&[
        ("-chardev socket", "chardev: no id specified"),
        ("-chardev id=c", "chardev: \"c\" missing backend"),
        ("-chardev nosuch,id=c", "'nosuch' is not a valid char driver name"),
        ("-chardev socket,id=c", "Unable to parse FD number "),
        ("-chardev socket,id=c,fd=x", "Unable to parse FD number x"),
        ("-chardev socket,id=c,path=/s,server=x", "Parameter 'server' expects 'on' or 'off'"),
        ("-chardev socket,id=c,path=/s,server=on,foo=1", "Invalid parameter 'foo'"),
        ("-chardev socket,id=c,path=/s,fd=3", "None or one of 'path', 'fd' or 'host' option required."),
        (
            "-chardev socket,id=c,path=/s,wait=off",
            "'wait' option is incompatible with socket in client connect mode",
        ),
        (
            "-chardev socket,id=c,path=/s -mon c,mode=control",
            "client sockets are not supported, use server=on",
        ),
        ("-chardev socket,id=c,host=h,path=/s", "None or one of 'path', 'fd' or 'host' option required."),
        ("-chardev socket,id=c,host=h", "chardev: socket: no port given"),
        ("-chardev socket,id=c,host=h,port=http", "port 'http' is not a number from 0 to 65535"),
        ("-chardev socket,id=c,host=h,port=65536", "port '65536' is not a number from 0 to 65535"),
        ("-chardev socket,id=c,path=/s,reconnect=1", "'reconnect' is not supported"),
        ("-chardev file,id=c", "chardev: file: no filename given"),
        ("-chardev file,id=c,path=/f,append=maybe", "Parameter 'append' expects 'on' or 'off'"),
        (
            "-chardev file,id=c,path=/f,input-path=/g",
            "'input-path' is not supported: a file is written to only",
        ),
        ("-chardev pty,id=c,foo=1", "Invalid parameter 'foo'"),
        (
            "-chardev null,id=1c",
            "Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        ),
        (
            &format!("-chardev socket,id=c,server=on,path={long}"),
            &format!("UNIX socket path '{long}' is too long\nPath must be less than 108 bytes"),
        ),
        ("-chardev null,id=c -chardev null,id=c", "Duplicate ID 'c' for chardev"),
        ("-mon chardev=nope,mode=control", "chardev \"nope\" not found"),
        ("-mon mode=control", "Parameter 'chardev' is missing"),
        ("-chardev null,id=c -mon c,mode=foo", "Parameter 'mode' does not accept value 'foo'"),
        ("-chardev null,id=c -mon c", "only mode=control is supported (QMP has human-monitor-command)"),
        ("-chardev null,id=c -mon c,mode=control -mon c,mode=control", "chardev 'c' is already in use"),
        ("-chardev pty,id=c -mon c,mode=control", "chardev 'c' is a pty, only a socket is supported here"),
        ("-qmp stdio", "only unix:PATH,server=on,wait=off is supported"),
    ]);
}

#[test]
fn netdevs() {
    refused(&[
        ("-netdev type=tap", "Parameter 'id' is missing"),
        ("-netdev id=n", "Parameter 'type' is missing"),
        ("-netdev nosuch,id=n", "Parameter 'type' does not accept value 'nosuch'"),
        ("-netdev user,id=n", "network backend 'user' is not supported, use a tap"),
        ("-netdev tap,id=n,foo=1", "Invalid parameter 'foo'"),
        ("-netdev tap,id=n,fd=x", "Invalid file descriptor number 'x'"),
        (
            "-netdev tap,id=n,fd=3,ifname=x",
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd=",
        ),
        (
            "-netdev tap,id=n,fds=3:4,queues=2",
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with fds=",
        ),
        ("-netdev tap,id=n,queues=0", "Parameter 'queues' expects a number between 1 and 256"),
        ("-netdev tap,id=n,queues=x", "Parameter 'queues' expects a uint64 value"),
        ("-netdev tap,id=n,sndbuf=x", "Parameter 'sndbuf' expects a size value"),
        ("-netdev tap,id=n,vnet_hdr=x", "Parameter 'vnet_hdr' expects 'on' or 'off'"),
        (
            "-netdev tap,id=n,vhost=on",
            "vhost=on is not supported: a Xen domain's memory can not be given to vhost",
        ),
        (
            "-netdev tap,id=n,ifname=0123456789abcdef",
            "ifname=0123456789abcdef is not the name of a network interface (1 to 15 characters)",
        ),
        (r#"-netdev {"type":"tap","id":"n","queues":"2"}"#, "Parameter 'queues' expects uint64"),
        ("-netdev tap,id=n -netdev tap,id=n", "Duplicate ID 'n' for netdev"),
    ]);
}

#[test]
fn objects() {
    refused(&[
        ("-object rng-random", "Parameter 'id' is missing"),
        ("-object id=r", "Parameter 'qom-type' is missing"),
        ("-object nosuch,id=r", "Parameter 'qom-type' does not accept value 'nosuch'"),
        ("-object rng-random,id=r,foo=1", "Invalid parameter 'foo'"),
        ("-object rng-builtin,id=r -object rng-builtin,id=r", "Duplicate ID 'r' for object"),
    ]);
}

#[test]
fn drives() {
    refused(&[
        ("-drive if=none,id=d,format=raw,file=/f,cache=foo", "invalid cache option"),
        ("-drive if=none,id=d,format=raw,file=/f,format=nosuch", "Unknown driver 'nosuch'"),
        ("-drive if=none,id=d,format=qcow2,file=/f", "format 'qcow2' is not supported, only raw"),
        ("-drive if=none,id=d,file=/f", "format=raw is required: the format of an image is never guessed"),
        ("-drive if=none,id=d,format=raw", "Device needs media, but drive is empty"),
        (
            "-drive if=none,id=d,format=raw,file=/f,foo=1",
            "Block format 'raw' does not support the option 'foo'",
        ),
        ("-drive if=none,id=d,format=raw,file=/f,read-only=x", "Parameter 'read-only' expects 'on' or 'off'"),
        ("-drive if=none,id=d,format=raw,file=/f,discard=x", "Invalid discard option"),
        ("-drive if=none,id=d,format=raw,file=/f,werror=x", "'x' invalid write error action"),
        ("-drive if=none,id=d,format=raw,file=/f,rerror=enospc", "'enospc' invalid read error action"),
        (
            "-drive if=none,id=d,format=raw,file=/f,aio=native",
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        ("-drive if=none,id=d,format=raw,file=/f,aio=x", "invalid aio option"),
        ("-drive if=foo,id=d,format=raw,file=/f", "unsupported bus type 'foo'"),
        (
            "-drive id=d,format=raw,file=/f",
            "machine type does not support if=ide, use if=none with -device virtio-blk-pci, or if=virtio",
        ),
        ("-drive if=none,id=d,format=raw,file=/f,file.locking=x", "invalid parameter value: x"),
        ("-drive if=none,id=d,format=raw,file=nbd:localhost:1", "Unknown protocol 'nbd'"),
        ("-drive if=none,id=d,format=raw,file=/f,snapshot=on", "snapshot=on is not supported"),
        (
            "-drive if=none,id=d,format=raw,file=/f -drive if=none,id=d,format=raw,file=/f",
            "Duplicate ID 'd' for drive",
        ),
        ("-blockdev driver=raw,node-name=d", "Parameter 'file' is missing"),
        (
            "-blockdev raw,file.driver=file,file.filename=/f",
            "'node-name' must be specified for the root node",
        ),
        ("-blockdev node-name=d", "Parameter 'driver' is missing"),
        ("-blockdev nosuch,node-name=d", "Parameter 'driver' does not accept value 'nosuch'"),
        ("-blockdev file,node-name=d", "Parameter 'filename' is missing"),
        ("-blockdev raw,node-name=d,file.driver=file", "Parameter 'file.filename' is missing"),
        ("-blockdev file,filename=/f,node-name=d,foo=1", "Parameter 'foo' is unexpected"),
        (
            "-blockdev file,filename=/f,node-name=d,cache=none",
            "Invalid parameter type for 'cache', expected: object",
        ),
        ("-blockdev raw,file=nope,node-name=d", "Cannot find device='nope' nor node-name='nope'"),
        ("-blockdev raw,file=d,node-name=d", "node 'd' lies over itself"),
        (
            r#"-blockdev {"driver":"raw","node-name":"d","file":{"driver":"file","filename":3}}"#,
            "Invalid parameter type for 'file.filename', expected: string",
        ),
        ("-blockdev file,node-name=1d,filename=/f", "Invalid node-name: '1d'"),
        ("-blockdev raw,file=a,file.driver=b,node-name=d", "Parameters 'file.*' used inconsistently"),
        (
            "-blockdev file,filename=/f,node-name=d,detect-zeroes=unmap",
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ),
        (
            "-blockdev file,node-name=d,filename=/f -blockdev file,node-name=d,filename=/f",
            "Duplicate nodes with node-name='d'",
        ),
    ]);
    let deep = "file.".repeat(20_000);
    let message = complaint(&format!("-xen-domid 1 -blockdev raw,node-name=d,{deep}driver=file"));
    assert!(message.ends_with("Parameter 'file.driver' is missing"), "{}", message.len());
}

#[test]
fn serial_ports() {
    let serial = "-device virtio-serial-pci,id=vs";
    let second = "-chardev null,id=c -device virtio-serial,max_ports=2";
    refused(&[
        ("-device virtio-serial-pci,max_ports=0", "Maximum number of serial ports not specified"),
        ("-device virtio-serial-pci,max_ports=32", "maximum ports supported: 31"),
        ("-device virtio-serial-pci,emergency-write=x", "Parameter 'emergency-write' expects 'on' or 'off'"),
        ("-device virtconsole", "No 'virtio-serial-bus' bus found for device 'virtconsole'"),
        ("-device virtserialport,bus=vs.0", "Bus 'vs.0' not found"),
        ("-device virtserialport,bus=pcie.0", "Device 'virtserialport' can't go on PCIE bus"),
        ("-device virtio-rng-pci,bus=vs.0", "Bus 'vs.0' not found"),
        (&format!("{serial} -device virtconsole,bus=vs.1"), "Bus 'vs.1' not found"),
        (&format!("{serial} -device virtconsole,foo=1"), "Property 'virtconsole.foo' not found"),
        (&format!("{serial} -device virtconsole,addr=3"), "Property 'virtconsole.addr' not found"),
        (&format!("{serial} -device virtconsole,nr=x"), "Parameter 'nr' expects integer"),
        (
            &format!("{serial} -device virtconsole,chardev=nope"),
            "Property 'virtconsole.chardev' can't find value 'nope'",
        ),
        (
            &format!("{second} -device virtconsole,chardev=c -device virtserialport,chardev=c"),
            "Property 'virtserialport.chardev' can't take value 'c': chardev 'c' is already in use",
        ),
        (
            &format!("{second} -mon c,mode=control -device virtconsole,chardev=c"),
            "Property 'virtconsole.chardev' can't take value 'c': chardev 'c' is already in use",
        ),
        (
            &format!("-chardev ringbuf,id=r {serial} -device virtconsole,chardev=r"),
            "Property 'virtconsole.chardev' can't take value 'r': a ringbuf is not supported",
        ),
        (
            &format!("{second} -device virtserialport -device virtserialport"),
            "virtio-serial-bus: Maximum port limit for this device reached",
        ),
        (
            &format!("{second} -device virtconsole,nr=2"),
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 1",
        ),
        (
            &format!("{second} -device virtconsole,nr=1 -device virtserialport,nr=1"),
            "virtio-serial-bus: A port already exists at id 1",
        ),
        (
            &format!("{serial} -device virtserialport,name=a -device virtserialport,name=a"),
            "virtio-serial-bus: A port already exists by name a",
        ),
        (
            &format!("{serial} -device virtserialport,nr=0"),
            "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility.",
        ),
        (&format!("{serial} -device virtconsole,id=vs"), "Duplicate ID 'vs' for device"),
    ]);
}

#[test]
fn devices() {
    refused(&[
        ("-device nosuch", "'nosuch' is not a valid device model name"),
        ("-device id=x", "Parameter 'driver' is missing"),
        ("-device {}", "Parameter 'driver' is missing"),
        (r#"-device {"driver":"virtio-rng-pci""#, "JSON parse error, premature EOI"),
        ("-device virtio-net-pci,foo=1", "Property 'virtio-net-pci.foo' not found"),
        ("-device virtio-net,foo=1", "Property 'virtio-net-pci.foo' not found"),
        ("-device virtio-net-pci,vectors=x", "Parameter 'vectors' expects integer"),
        ("-device virtio-net-pci,vectors=-1", "Parameter 'vectors' expects uint32_t"),
        ("-device virtio-net-pci,vectors=99999999999", "Parameter 'vectors' expects uint32_t"),
        ("-device virtio-net-pci,vectors=2049", "Parameter 'vectors' expects at most 2048"),
        ("-device virtio-net-pci,host_mtu=70000", "Parameter 'host_mtu' expects uint16_t"),
        ("-device virtio-net-pci,mq=foo", "Parameter 'mq' expects 'on' or 'off'"),
        (
            r#"-device {"driver":"virtio-net-pci","mq":"on"}"#,
            "Invalid parameter type for 'mq', expected: boolean",
        ),
        (r#"-device {"driver":"virtio-net-pci","vectors":3.5}"#, "Parameter 'vectors' expects uint64"),
        ("-device virtio-net-pci,mac=1", "Property 'virtio-net-device.mac' doesn't take value '1'"),
        ("-device virtio-net-pci,addr=99", "Property 'virtio-net-pci.addr' doesn't take value '99'"),
        ("-device virtio-net-pci,addr=1.9", "Property 'virtio-net-pci.addr' doesn't take value '1.9'"),
        (
            "-device virtio-net-pci,addr=0",
            "PCI: slot 0 function 0 not available for virtio-net-pci, in use by gpex-root",
        ),
        ("-device virtio-net-pci,bus=foo", "Bus 'foo' not found"),
        ("-device virtio-net-pci,netdev=nope", "Property 'virtio-net-device.netdev' can't find value 'nope'"),
        (
            "-netdev tap,id=n -device virtio-net,netdev=n -device virtio-net,netdev=n",
            "Property 'virtio-net-device.netdev' can't take value 'n', it's in use",
        ),
        (
            "-device virtio-net-pci,rx_queue_size=3",
            "Invalid rx_queue_size (= 3), must be a power of 2 between 256 and 1024.",
        ),
        (
            "-device virtio-net-pci,disable-legacy=yes",
            "Parameter 'disable-legacy' does not accept value 'yes'",
        ),
        (
            "-device virtio-net-pci,disable-legacy=off",
            "Property 'virtio-net-pci.disable-legacy' can only be on: \
             legacy virtio needs I/O ports, and a PVH guest's devices have none",
        ),
        (
            "-device virtio-net-pci,disable-modern=on",
            "Property 'virtio-net-pci.disable-modern' can only be off: \
             legacy virtio needs I/O ports, and a PVH guest's devices have none",
        ),
        (
            "-device virtio-blk-pci-transitional",
            "'virtio-blk-pci-transitional' is not supported: \
             legacy virtio needs I/O ports, and a PVH guest's devices have none",
        ),
        ("-device virtio-rng-pci,aer=on", "Property 'virtio-rng-pci.aer' can only be off: not supported"),
        (
            "-device virtio-net-pci,page-per-vq=on",
            "Property 'virtio-net-pci.page-per-vq' can only be off: not supported",
        ),
        ("-device virtio-rng-pci,packed=maybe", "Parameter 'packed' expects 'on' or 'off'"),
        ("-device virtio-blk-pci", "drive property not set"),
        ("-device virtio-blk-pci,drive=nope", "Property 'virtio-blk-device.drive' can't find value 'nope'"),
        ("-device virtio-rng-pci,rng=nope", "Device 'nope' not found"),
        ("-device virtio-rng-pci,period=0", "'period' parameter expects a positive integer"),
        ("-device virtio-rng-pci,max-bytes=0", "'max-bytes' parameter must be positive, and less than 2^63"),
        ("-device virtio-rng-pci,id=a -device virtio-rng-pci,id=a", "Duplicate ID 'a' for device"),
        (
            "-device virtio-rng-pci,id=a,addr=1 -device virtio-net-pci,addr=1",
            "PCI: slot 1 function 0 not available for virtio-net-pci, in use by virtio-rng-pci,id=a",
        ),
        (
            "-device virtio-rng-pci,addr=1 -device virtio-rng-pci,addr=1.1",
            "PCI: single function device can't be populated in function 1.1",
        ),
        (
            "-device virtio-rng-pci,addr=1.1 -device virtio-rng-pci,addr=1",
            "PCI: 1.0 indicates single function, but 1.1 is already populated.",
        ),
        (
            "-device virtio-rng-pci ".repeat(32).trim_end(),
            "PCI: no slot/function available for virtio-rng-pci, all in use or reserved",
        ),
        (
            "-global virtio-net-pci.nosuch=1 -device virtio-net-pci",
            "can't apply global virtio-net-pci.nosuch=1: Property 'virtio-net-pci.nosuch' not found",
        ),
        (
            "-global virtio-net-pci.mq=x -device virtio-net-pci",
            "can't apply global virtio-net-pci.mq=x: Parameter 'mq' expects 'on' or 'off'",
        ),
    ]);
}

#[test]
fn disk_properties() {
    let with = |property: &str| {
        complaint(&format!(
            "-xen-domid 1 -drive if=none,id=d,format=raw,file=/f -device virtio-blk-pci,drive=d,{property}"
        ))
    };
    for (property, message) in [
        ("num-queues=0", "num-queues property must be larger than 0"),
        ("num-queues=70000", "Parameter 'num-queues' expects uint16_t"),
        ("queue-size=3", "invalid queue-size property (3), must be a power of 2 (max 1024)"),
        ("queue-size=2048", "invalid queue-size property (2048), must be a power of 2 (max 1024)"),
        ("queue-size=2", "invalid queue-size property (2), must be > 2"),
        (
            "logical_block_size=513",
            "parameter logical_block_size must be a power of 2 between 512 and 2097152",
        ),
        (
            "logical_block_size=4096,physical_block_size=512",
            "logical_block_size > physical_block_size not supported",
        ),
        ("min_io_size=513", "min_io_size must be a multiple of logical_block_size"),
        ("discard_granularity=100", "discard_granularity must be a multiple of logical_block_size"),
        ("write-cache=x", "Parameter 'write-cache' does not accept value 'x'"),
        ("max-discard-sectors=0", "invalid max-discard-sectors property (0), must be between 1 and 4194303"),
        ("bootindex=x", "Parameter 'bootindex' expects integer"),
    ] {
        assert_eq!(with(property), format!("xenpvh: -device virtio-blk-pci,drive=d,{property}: {message}"));
    }
    let d = "-drive if=none,id=d,format=raw,file=/f";
    refused(&[
        (
            &format!("{d} -device virtio-blk,drive=d -device virtio-blk,drive=d"),
            "Drive 'd' is already in use by another device",
        ),
        (
            "-blockdev raw,node-name=d,file=f -blockdev file,node-name=f,filename=/f -device virtio-blk,drive=f",
            "Drive 'f' is already in use by node 'd'",
        ),
        (
            &format!("{d} -blockdev file,node-name=d,filename=/f"),
            "node-name=d is conflicting with a device id",
        ),
    ]);
}

fn argument() -> impl Strategy<Value = String> {
    let names: Vec<_> = OPTIONS.iter().map(|spec| format!("-{}", spec.name)).collect();
    let words = [
        "xenpvh",
        "xenpv",
        "none",
        "virtio-net-pci",
        "virtio-blk-pci",
        "virtio-rng-pci",
        "tap",
        "socket",
        "raw",
        "file",
        "id=a",
        "drive=a",
        "netdev=a",
        "node-name=a",
        "file.driver=file",
        "file.filename=/a",
        "file=a",
        "file=/a",
        "if=none",
        "if=virtio",
        "format=raw",
        "addr=1.1",
        "mq=on",
        "fds=1:2",
        "path=/s",
        "server=on",
        "{\"driver\":",
        "1",
        "0",
        "-1",
        "18446744073709551615",
        "0x",
        "1.5G",
        ",,",
        "=",
        "help",
        "pci-ecam-size=1M",
        "ram-low-size=1E",
        "maxcpus=3",
        "cores=2",
        "queue-size=8",
        "vectors=4",
        "rng=a",
        "é",
        "size=16E",
    ];
    prop_oneof![
        3 => prop::sample::select(names),
        5 => prop::collection::vec(prop::sample::select(words.to_vec()), 0..6).prop_map(|words| words.join(",")),
        1 => any::<String>(),
    ]
}

proptest! {
    #[test]
    fn no_argv_makes_it_panic(args in prop::collection::vec(argument(), 0..12)) {
        let argv = ["xenpvh".to_owned(), "-xen-domid".to_owned(), "1".to_owned()].into_iter().chain(args);
        match parse(argv.map(OsString::from)) {
            Ok(_) => {}
            Err(error) => prop_assert!(error.to_string().starts_with("xenpvh: ")),
        }
    }

    #[test]
    fn no_argument_of_an_option_makes_it_panic(index in 0..OPTIONS.len(), value in any::<String>()) {
        let option = format!("-{}", OPTIONS[index].name);
        let _ = parse([OsString::new(), option.into(), value.into()]);
    }
}
