//! The `virtio-drivers` crate drives our devices: other people's reading of the specification, by the way a
//! guest takes. Every access is an ioreq, served by the loop that serves Xen's.

mod platform;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use platform::{Configuration, Dma, Platform};
use proofs::{GUEST_MAC, HOST_MAC, MMIO, MMIO_HIGH, datagram, in_network, mac, set_up};
use tempfile::NamedTempFile;
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, DeviceFunction, DeviceFunctionInfo, MemoryBarType, PciRoot, Status,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};

const SECTORS: usize = 4096;

fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len((SECTORS * SECTOR_SIZE) as u64).expect("a size");
    file
}

fn disk(image: &NamedTempFile, drive: &str, device: &str) -> String {
    let path = image.path().display();
    format!(
        "-drive file={path},if=none,id=d,format=raw{drive} -device virtio-blk-pci,drive=d,serial=PROOF-1{device}"
    )
}

/// What is on bus 0.
fn enumerate(way: Configuration) -> Vec<(DeviceFunction, DeviceFunctionInfo)> {
    PciRoot::new(way).enumerate_bus(0).collect()
}

/// Gives a function's BARs addresses, above 4 GiB if they can go there, and turns it on.
fn place(root: &mut PciRoot<Configuration>, function: DeviceFunction) {
    let (mut low, mut high) = (MMIO, MMIO_HIGH + (u64::from(function.device) << 32));
    low += u64::from(function.device) << 20;
    let take = |from: &mut u64, size: u64| {
        let at = from.next_multiple_of(size);
        *from = at + size;
        at
    };
    for (index, bar) in (0..).zip(root.bars(function).expect("BARs")) {
        match bar {
            Some(BarInfo::Memory { address_type: MemoryBarType::Width64, size, .. }) => {
                root.set_bar_64(function, index, take(&mut high, size));
            }
            Some(BarInfo::Memory { size, .. }) => {
                root.set_bar_32(function, index, take(&mut low, size) as u32);
            }
            Some(other) => panic!("a BAR for ports: {other:?}"),
            None => {}
        }
    }
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
}

/// The first device of a type.
fn transport(kind: DeviceType, way: Configuration) -> PciTransport {
    let found = enumerate(way);
    let found = found.into_iter().find(|(_, info)| virtio_device_type(info) == Some(kind));
    let (function, _) = found.expect("the device is on the bus");
    let mut root = PciRoot::new(way);
    place(&mut root, function);
    let transport = PciTransport::new::<Dma, _>(&mut root, function).expect("a virtio function");
    assert_eq!(transport.device_type(), kind);
    transport
}

#[test]
fn finds_the_functions() {
    let file = image();
    let platform =
        Platform::new(&arguments(&format!("{} -device virtio-rng-pci,addr=7", disk(&file, "", ",addr=3"))));
    let seen = enumerate(Configuration::Ecam);
    let kinds: Vec<_> =
        seen.iter().map(|(at, info)| (at.device, at.function, virtio_device_type(info))).collect();
    assert_eq!(
        kinds,
        [(0, 0, None), (3, 0, Some(DeviceType::Block)), (7, 0, Some(DeviceType::EntropySource))]
    );
    assert_eq!(enumerate(Configuration::Ports), seen);
    let bridge = &seen[0].1;
    assert_eq!((bridge.class, bridge.subclass), (6, 0));
    let mut root = PciRoot::new(Configuration::Ecam);
    for (function, _) in &seen[1..] {
        let (status, command) = root.get_status_command(*function);
        assert_eq!((status, command), (Status::CAPABILITIES_LIST, Command::empty()));
        let bars = root.bars(*function).expect("BARs");
        let sizes: Vec<_> = bars.iter().flatten().filter_map(BarInfo::memory_address_size).collect();
        assert_eq!(sizes, [(0, 64 << 10)], "one BAR, nowhere yet");
    }
    drop(platform);
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| ((index / 7) ^ index ^ (seed.wrapping_mul(0x9e37_79b9) >> (index % 24))) as u8)
        .collect()
}

#[test]
fn reads_and_writes_a_disk() {
    for (drive, way) in [
        ("", Configuration::Ecam),
        (",cache=writethrough", Configuration::Ports),
        (",cache=none", Configuration::Ecam),
    ] {
        let file = image();
        let platform = Platform::new(&arguments(&disk(&file, drive, "")));
        let mut blk = VirtIOBlk::<Dma, _>::new(transport(DeviceType::Block, way)).expect("a driver");
        assert_eq!(blk.capacity(), SECTORS as u64);
        assert!(!blk.readonly());
        let mut id = [0; 20];
        let len = blk.device_id(&mut id).expect("an id");
        assert_eq!(&id[..len], b"PROOF-1");

        let mut wanted = vec![0; SECTORS * SECTOR_SIZE];
        for (seed, sectors) in [1, 2, 3, 8, 31, 128, 255, 1, 64].into_iter().enumerate() {
            let sector = seed * 397 % (SECTORS - 256);
            let data = pattern(seed, sectors * SECTOR_SIZE);
            blk.write_blocks(sector, &data).expect("written");
            wanted[sector * SECTOR_SIZE..][..data.len()].copy_from_slice(&data);
        }
        blk.write_blocks(SECTORS - 1, &[0xa5; SECTOR_SIZE]).expect("the last sector");
        wanted[(SECTORS - 1) * SECTOR_SIZE..].fill(0xa5);
        blk.flush().expect("flushed");
        let mut found = vec![0; wanted.len()];
        file.as_file().read_exact_at(&mut found, 0).expect("the image");
        assert!(found == wanted, "the image is not what the driver wrote{drive}");

        // What is changed behind its back is there too, and at once as well as in pieces.
        file.as_file().write_all_at(&pattern(77, 4096), 512).expect("the image");
        wanted[512..][..4096].copy_from_slice(&pattern(77, 4096));
        for sectors in [1, 16, 512] {
            for (index, piece) in wanted.chunks(sectors * SECTOR_SIZE).enumerate() {
                if sectors == 1 && index % 61 != 0 {
                    continue;
                }
                let mut found = vec![0x11; piece.len()];
                blk.read_blocks(index * sectors, &mut found).expect("read");
                assert!(found == piece, "sector {}{drive}", index * sectors);
            }
        }
        let mut data = [0; 2 * SECTOR_SIZE];
        assert_eq!(blk.read_blocks(SECTORS - 1, &mut data), Err(Error::IoError), "beyond the end");
        assert_eq!(blk.write_blocks(SECTORS, &data), Err(Error::IoError), "beyond the end");
        assert_eq!(blk.read_blocks(usize::MAX, &mut data), Err(Error::IoError), "far beyond");
        blk.read_blocks(SECTORS - 2, &mut data).expect("it goes on");
        drop(blk);
        assert_eq!(platform.pages_in_use(), 0, "the driver gave all back");
    }
}

#[test]
fn keeps_many_requests_apart() {
    /// The driver's queue has this many entries; with indirect tables each request takes one.
    const DEPTH: usize = 16;
    const PIECE: usize = 8 * SECTOR_SIZE;

    let file = image();
    let content = pattern(5, SECTORS * SECTOR_SIZE);
    file.as_file().write_all_at(&content, 0).expect("the image");
    let platform = Platform::new(&arguments(&disk(&file, "", "")));
    let mut blk =
        VirtIOBlk::<Dma, _>::new(transport(DeviceType::Block, Configuration::Ecam)).expect("a driver");
    blk.ack_interrupt();
    for round in 0..40 {
        let mut headers: Vec<_> = (0..DEPTH).map(|_| BlkReq::default()).collect();
        let mut buffers = vec![vec![0; PIECE]; DEPTH];
        let mut answers: Vec<_> = (0..DEPTH).map(|_| BlkResp::default()).collect();
        let sector = |index: usize| (round * 131 + index * 67) * 8 % SECTORS;
        let mut tokens = Vec::new();
        for index in 0..DEPTH {
            let (header, buffer, answer) = (&mut headers[index], &mut buffers[index], &mut answers[index]);
            // SAFETY: the three are left alone until the request is completed below.
            let token = unsafe { blk.read_blocks_nb(sector(index), header, buffer, answer) };
            tokens.push(token.expect("room in the queue"));
        }
        let (mut header, mut buffer, mut answer) = (BlkReq::default(), [0; 512], BlkResp::default());
        // SAFETY: refused, so nobody keeps the three.
        let more = unsafe { blk.read_blocks_nb(0, &mut header, &mut buffer, &mut answer) };
        assert_eq!(more, Err(Error::QueueFull));
        for _ in 0..DEPTH {
            let done = loop {
                if let Some(done) = blk.peek_used() {
                    break done;
                }
                std::thread::yield_now();
            };
            let index = tokens.iter().position(|token| *token == done).expect("a request of this round");
            let (header, buffer, answer) = (&headers[index], &mut buffers[index], &mut answers[index]);
            // SAFETY: the same three as above.
            unsafe { blk.complete_read_blocks(done, header, buffer, answer) }.expect("completed");
            assert_eq!(answers[index].status(), RespStatus::OK);
            assert!(buffers[index] == content[sector(index) * SECTOR_SIZE..][..PIECE], "request {index}");
        }
        assert!(blk.ack_interrupt() == InterruptStatus::QUEUE_INTERRUPT, "round {round}");
        assert!(blk.ack_interrupt() == InterruptStatus::empty(), "reading clears it");
    }
    drop(blk);
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn takes_over_after_a_reset() {
    let file = image();
    let platform = Platform::new(&arguments(&disk(&file, "", "")));
    for round in 0..20 {
        let mut blk =
            VirtIOBlk::<Dma, _>::new(transport(DeviceType::Block, Configuration::Ecam)).expect("a driver");
        let data = pattern(round, 512);
        blk.write_blocks(round, &data).expect("written");
        let mut found = [0; 512];
        blk.read_blocks(round, &mut found).expect("read");
        assert_eq!(found[..], data);
        if round % 2 == 1 {
            // The guest reboots without a word to its devices.
            std::mem::forget(blk);
            platform.ours.reset();
        }
    }
}

#[test]
fn cannot_write_a_read_only_disk() {
    let file = image();
    file.as_file().write_all_at(&[0x3c; 512], 0).expect("the image");
    let _platform = Platform::new(&arguments(&disk(&file, ",readonly=on", "")));
    let mut blk =
        VirtIOBlk::<Dma, _>::new(transport(DeviceType::Block, Configuration::Ecam)).expect("a driver");
    assert!(blk.readonly());
    assert_eq!(blk.write_blocks(0, &[0; 512]), Err(Error::IoError));
    let mut found = [0; 512];
    blk.read_blocks(0, &mut found).expect("read");
    assert_eq!(found, [0x3c; 512]);
}

#[test]
fn gives_entropy() {
    let _platform = Platform::new(&arguments("-device virtio-rng-pci"));
    let transport = transport(DeviceType::EntropySource, Configuration::Ecam);
    let mut rng = VirtIORng::<Dma, _>::new(transport).expect("a driver");
    let mut counts = [0u32; 256];
    let mut total = 0;
    for len in [1, 2, 16, 4096, 5000, 30000] {
        let mut bytes = vec![0; len];
        assert_eq!(rng.request_entropy(&mut bytes), Ok(len));
        bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        total += len as u32;
    }
    let expected = total / 256;
    assert!(counts.iter().all(|count| (expected / 3..expected * 3).contains(count)), "{counts:?}");
}

/// It is a driver of one port, without control queues.
#[test]
fn talks_on_a_console() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let line = format!(
        "-chardev socket,id=c,path={},server=on,wait=off -device virtio-serial-pci -device virtconsole,chardev=c",
        path.display()
    );
    let platform = Platform::new(&arguments(&line));
    let mut console =
        VirtIOConsole::<Dma, _>::new(transport(DeviceType::Console, Configuration::Ecam)).expect("a driver");
    assert_eq!(console.size(), Ok(None));
    // Nobody hears it.
    console.send_bytes(b"lost").expect("sent");
    for round in 0..20 {
        let mut host = UnixStream::connect(&path).expect("a connection");
        host.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let sent = pattern(round, 1 + round * 500);
        host.write_all(&sent).expect("sent");
        let end = Instant::now() + Duration::from_secs(10);
        let mut found = Vec::new();
        while found.len() < sent.len() {
            assert!(Instant::now() < end, "{} of {} bytes came", found.len(), sent.len());
            match console.recv(true).expect("received") {
                Some(byte) => found.push(byte),
                None => std::thread::yield_now(),
            }
        }
        assert!(found == sent, "round {round}");
        console.send_bytes(&sent[..sent.len().min(4096)]).expect("sent");
        let mut back = vec![0; sent.len().min(4096)];
        host.read_exact(&mut back).expect("the guest's bytes");
        assert!(back[..] == sent[..back.len()], "round {round}");
    }
    drop(console);
    // It forgets to give back the buffer that it had lent for reception, and the table that says where that is.
    assert!(platform.pages_in_use() <= 3, "{} pages", platform.pages_in_use());
}

#[test]
fn exchanges_frames_with_a_tap() {
    in_network(|| {
        let line = format!(
            "-netdev tap,id=n,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n,mac={}",
            mac(GUEST_MAC)
        );
        let platform = Platform::new(&arguments(&line));
        set_up("tap0");
        let host = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        host.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let port = host.local_addr().expect("an address").port();
        let transport = transport(DeviceType::Network, Configuration::Ecam);
        let mut net = VirtIONet::<Dma, _, 64>::new(transport, 2048).expect("a driver");
        assert_eq!(net.mac_address(), GUEST_MAC);

        for round in 0..200u32 {
            let payload = pattern(round as usize, 1 + round as usize * 7);
            let sent = datagram(port, &payload);
            let mut buffer = net.new_tx_buffer(sent.len());
            buffer.packet_mut().copy_from_slice(&sent);
            net.send(buffer).expect("sent");
            let mut found = [0; 2048];
            let (len, from) = host.recv_from(&mut found).expect("the guest's datagram");
            assert_eq!((&found[..len], from.to_string().as_str()), (&payload[..], "192.0.2.2:9"));

            host.send_to(&payload, "192.0.2.2:9").expect("sent");
            let end = Instant::now() + Duration::from_secs(10);
            // The host's kernel may have something else to say.
            loop {
                assert!(Instant::now() < end, "no frame came");
                let Ok(received) = net.receive() else {
                    std::thread::yield_now();
                    continue;
                };
                let packet = received.packet();
                let ours = packet.len() == 42 + payload.len() && packet[42..] == payload;
                if ours {
                    assert_eq!(
                        (&packet[..6], &packet[6..12]),
                        (&[0, 0x16, 0x3e, 1, 2, 3][..], &HOST_MAC[..])
                    );
                }
                net.recycle_rx_buffer(received).expect("recycled");
                if ours {
                    break;
                }
            }
        }
        drop(net);
        // It forgets to give back the buffers it had lent for reception, and the transport needs no page now.
        assert!(platform.pages_in_use() <= 64 * 2);
    });
}
