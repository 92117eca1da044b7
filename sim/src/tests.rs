use std::io;
use std::thread;
use std::time::{Duration, Instant};

use domain::{
    Access, Direction, Domain, Extent, Frames, Gfn, Gpa, Ioreq, IoreqChannel, Msi, PAGE_SIZE, Shutdown,
};

use crate::{MAX_EXTENTS, SimDomain};

const MIB: u64 = 1 << 20;

fn byte(frames: &Frames, page: usize) -> u8 {
    assert!(frames.is_present(page));
    // SAFETY: a page that is there, and nobody writes now.
    unsafe { frames.base().add(page * PAGE_SIZE).read_volatile() }
}

fn set_byte(frames: &Frames, page: usize, value: u8) {
    assert!(frames.is_present(page));
    // SAFETY: as above.
    unsafe { frames.base().add(page * PAGE_SIZE).write_volatile(value) }
}

/// Answers each access with what `answer` says, until the domain stops.
fn serve(
    mut channel: Box<dyn IoreqChannel>,
    mut answer: impl FnMut(Ioreq) -> u64 + Send + 'static,
) -> thread::JoinHandle<io::Result<()>> {
    thread::spawn(move || {
        while channel.wait()? {
            if let Some(request) = channel.slot().take() {
                channel.slot().finish(answer(request));
                channel.notify()?;
            }
        }
        Ok(())
    })
}

#[test]
fn bad_domains_are_refused() {
    for (vcpus, regions) in [
        (0, &[(Gpa(0), MIB)][..]),
        (129, &[(Gpa(0), MIB)]),
        (1, &[(Gpa(0), 0)]),
        (1, &[(Gpa(0), 100)]),
        (1, &[(Gpa(100), MIB)]),
        (1, &[(Gpa(0), MIB), (Gpa(MIB - 4096), MIB)]),
        (1, &[(Gpa(u64::MAX - 4095), 4096)]),
    ] {
        assert_eq!(SimDomain::new(vcpus, regions).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(SimDomain::new(128, &[]).unwrap().vcpus(), 128);
}

#[test]
fn the_guest_and_the_device_model_see_the_same_ram() {
    let sim = SimDomain::new(1, &[(Gpa(1 << 32), MIB), (Gpa(0), MIB)]).unwrap();
    let low = sim.map(Gfn(255), 1).unwrap();
    let high = sim.map(Gfn(1 << 20), 2).unwrap();
    assert!(low.is_complete() && high.is_complete());
    for size in [1, 2, 3, 4, 8, 9] {
        let bytes: Vec<u8> = (size..2 * size).collect();
        for addr in [0xff000, 0xff001] {
            sim.ram_write(Gpa(addr), &bytes);
            let mut seen = vec![0; bytes.len()];
            sim.ram_read(Gpa(addr), &mut seen);
            assert_eq!(seen, bytes);
        }
        sim.ram_write(Gpa(0xff000), &bytes);
        assert_eq!(byte(&low, 0), size);
    }
    set_byte(&high, 1, 7);
    // SAFETY: RAM of a live domain.
    assert_eq!(unsafe { sim.ram_ptr(Gpa(0x1_0000_1000), 1).read_volatile() }, 7);
}

#[test]
fn frames_outside_ram_are_missing() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB), (Gpa(2 * MIB), MIB)]).unwrap();
    let frames = sim.map(Gfn(250), 512).unwrap();
    for page in 0..512 {
        assert_eq!(frames.is_present(page), !(6..262).contains(&page), "{page}");
    }
    assert_eq!(sim.mapped_frames(), 6 + 250);
    assert!(!sim.map(Gfn(1 << 51), 1).unwrap().is_present(0));
    assert!(sim.map(Gfn(0), 0).is_err());
    assert!(sim.map(Gfn(u64::MAX), 2).is_err());
    drop(frames);
    assert_eq!((sim.mapped_frames(), sim.maps()), (0, 4));
    sim.fail_next_map();
    assert_eq!(sim.map(Gfn(0), 1).unwrap_err().raw_os_error(), Some(rustix::io::Errno::NOMEM.raw_os_error()));
    sim.map(Gfn(0), 1).unwrap();
}

#[test]
fn a_frame_taken_and_given_back_has_a_new_page() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap();
    sim.ram_write(Gpa(0x3000), &[1]);
    let before = sim.map(Gfn(0), 8).unwrap();
    sim.punch(Gfn(3));
    assert_eq!(byte(&before, 3), 1);
    let between = sim.map(Gfn(0), 8).unwrap();
    assert_eq!((0..8).filter(|page| between.is_present(*page)).collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7]);
    sim.refill(Gfn(3));
    let mut seen = [9];
    sim.ram_read(Gpa(0x3000), &mut seen);
    assert_eq!(seen, [0]);
    sim.ram_write(Gpa(0x2fff), &[2, 2, 2]);
    let after = sim.map(Gfn(0), 8).unwrap();
    assert!(after.is_complete());
    assert_eq!((byte(&before, 3), byte(&after, 3)), (1, 2));
    set_byte(&after, 4, 4);
    assert_eq!((byte(&before, 4), byte(&between, 4)), (4, 4));
    assert_eq!(sim.mapped_frames(), 8 + 7 + 8);
}

#[test]
fn mappings_outlive_the_domain() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap();
    sim.ram_write(Gpa(0), &[5]);
    let frames = sim.map(Gfn(0), 1).unwrap();
    drop(sim);
    assert_eq!(byte(&frames, 0), 5);
}

#[test]
#[should_panic(expected = "2 bytes at 0xfffff are not RAM")]
fn ram_ends_where_it_ends() {
    SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap().ram_write(Gpa(MIB - 1), &[0, 0]);
}

#[test]
#[should_panic(expected = "touch a missing page")]
fn the_guest_does_not_use_pages_it_gave_away() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap();
    sim.punch(Gfn(1));
    sim.ram_read(Gpa(0xfff), &mut [0, 0]);
}

#[test]
#[should_panic(expected = "frame 0x100 is not RAM")]
fn only_ram_is_taken_away() {
    SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap().punch(Gfn(0x100));
}

#[test]
#[should_panic(expected = "no vCPU 1")]
fn vcpus_are_counted() {
    SimDomain::new(1, &[]).unwrap().vcpu(1);
}

#[test]
fn accesses_arrive_as_they_were_made() {
    let sim = SimDomain::new(2, &[]).unwrap();
    let mut channels = sim.take_channels();
    assert_eq!((channels.len(), sim.take_channels().len()), (2, 0));
    let (sender, requests) = std::sync::mpsc::channel();
    let mut count = 0;
    let server = serve(channels.remove(1), move |request| {
        sender.send(request).unwrap();
        count += 1;
        count
    });
    let vcpu = sim.vcpu(1);
    let expect = |access, direction, address, size, data| {
        let expected = Ioreq {
            access,
            direction,
            address,
            data,
            count: 1,
            size,
            data_is_pointer: false,
            downwards: false,
        };
        assert_eq!(requests.recv().unwrap(), expected);
    };
    assert_eq!(vcpu.mmio_read(0xf000_0000, 8).unwrap(), 1);
    expect(Access::Memory, Direction::Read, 0xf000_0000, 8, 0);
    vcpu.mmio_write(0xf000_0004, 4, 0x1234).unwrap();
    expect(Access::Memory, Direction::Write, 0xf000_0004, 4, 0x1234);
    assert_eq!(vcpu.port_read(0xcf8, 4).unwrap(), 3);
    expect(Access::Port, Direction::Read, 0xcf8, 4, 0);
    vcpu.port_write(0xcf9, 1, 6).unwrap();
    expect(Access::Port, Direction::Write, 0xcf9, 1, 6);
    assert_eq!(vcpu.config_read(0x0008, 0x10, 2).unwrap(), 5);
    expect(Access::Config, Direction::Read, 0x8_0000_0010, 2, 0);
    vcpu.config_write(0x0008, 0x04, 2, 7).unwrap();
    expect(Access::Config, Direction::Write, 0x8_0000_0004, 2, 7);
    vcpu.invalidate().unwrap();
    expect(Access::Invalidate, Direction::Write, 0, 4, u64::MAX);
    sim.stop();
    server.join().unwrap().unwrap();
    let error = vcpu.mmio_read(0, 4).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}

#[test]
fn an_answer_that_comes_late_is_not_the_next_ones() {
    let sim = SimDomain::new(1, &[]).unwrap();
    let mut channel = sim.take_channels().remove(0);
    let vcpu = sim.vcpu(0).with_timeout(Duration::from_millis(20));
    for _ in 0..2 {
        assert_eq!(vcpu.mmio_read(1, 4).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
    assert!(channel.wait().unwrap());
    assert_eq!(channel.slot().take().unwrap().address, 1);
    channel.slot().finish(1);
    channel.notify().unwrap();
    let server = serve(channel, |request| request.address);
    assert_eq!(sim.vcpu(0).mmio_read(2, 4).unwrap(), 2);
    sim.stop();
    server.join().unwrap().unwrap();
}

#[test]
fn stop_wakes_both_ends() {
    let sim = SimDomain::new(1, &[]).unwrap();
    let mut channel = sim.take_channels().remove(0);
    let began = Instant::now();
    thread::scope(|scope| {
        let guest = scope.spawn(|| sim.vcpu(0).mmio_read(0, 4));
        let waits = scope.spawn(move || while channel.wait().unwrap() {});
        thread::sleep(Duration::from_millis(20));
        sim.stop();
        assert_eq!(guest.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        waits.join().unwrap();
    });
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_slot_is_idle_in_each_new_domain() {
    // Pages for slots are used again; what one domain left in them is not the next one's.
    for _ in 0..100 {
        let sim = SimDomain::new(1, &[]).unwrap();
        let channel = sim.take_channels().remove(0);
        assert!(!channel.slot().is_ready());
        let vcpu = sim.vcpu(0).with_timeout(Duration::ZERO);
        assert_eq!(vcpu.mmio_read(0, 4).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(channel.slot().is_ready());
    }
}

#[test]
fn interrupts_come_in_order() {
    let sim = SimDomain::new(1, &[]).unwrap();
    let message = |data| Msi { address: 0xfee0_0000, data };
    assert_eq!(sim.wait_message(Duration::from_millis(1)), None);
    for data in 0x40..0x43 {
        sim.inject_msi(message(data)).unwrap();
    }
    sim.inject_msi(message(0x100)).unwrap_err();
    assert_eq!(sim.wait_message(Duration::ZERO), Some(message(0x40)));
    assert_eq!(sim.messages(), [message(0x41), message(0x42)]);
    thread::scope(|scope| {
        let waits = scope.spawn(|| sim.wait_message(Duration::from_secs(10)));
        thread::sleep(Duration::from_millis(10));
        sim.inject_msi(message(0x50)).unwrap();
        assert_eq!(waits.join().unwrap(), Some(message(0x50)));
    });
    assert_eq!(sim.messages(), []);
}

#[test]
fn dirty_reports_are_checked_and_kept() {
    let sim = SimDomain::new(1, &[(Gpa(0), MIB)]).unwrap();
    let extent = |first, count| Extent { first: Gfn(first), count };
    sim.mark_dirty(&[extent(3, 1), extent(0, 256)]).unwrap();
    sim.mark_dirty(&[]).unwrap();
    sim.mark_dirty(&[extent(255, 2)]).unwrap_err();
    sim.mark_dirty(&[extent(0, 0)]).unwrap_err();
    sim.mark_dirty(&[extent(0, 1); MAX_EXTENTS + 1]).unwrap_err();
    sim.mark_dirty(&[extent(1, 1); MAX_EXTENTS]).unwrap();
    sim.fail_next_dirty();
    sim.mark_dirty(&[extent(9, 1)]).unwrap_err();
    let dirty = sim.dirty();
    assert_eq!((dirty.len(), dirty[0], dirty[1]), (2 + MAX_EXTENTS, extent(3, 1), extent(0, 256)));
    assert_eq!(sim.dirty(), []);
}

#[test]
fn a_shutdown_is_remembered() {
    let sim = SimDomain::new(1, &[]).unwrap();
    assert_eq!(sim.shutdown_asked(), None);
    sim.shutdown(Shutdown::Reboot).unwrap();
    assert_eq!(sim.shutdown_asked(), Some(Shutdown::Reboot));
}
