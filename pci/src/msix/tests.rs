use std::io;
use std::sync::Arc;

use domain::{Domain, Extent, Frames, Gfn, IoreqChannel, Shutdown};

use super::*;
use crate::{Bars, Header};

#[derive(Default)]
struct Sent(Mutex<Vec<Msi>>);

impl Sent {
    fn take(&self) -> Vec<u32> {
        self.0.lock().unwrap().drain(..).map(|msi| msi.data).collect()
    }
}

impl Domain for Sent {
    fn vcpus(&self) -> u32 {
        1
    }
    fn take_channels(&self) -> Vec<Box<dyn IoreqChannel>> {
        Vec::new()
    }
    fn map(&self, _: Gfn, _: usize) -> io::Result<Frames> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn inject_msi(&self, msi: Msi) -> io::Result<()> {
        self.0.lock().unwrap().push(msi);
        if msi.data == 0x66 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
    fn mark_dirty(&self, _: &[Extent]) -> io::Result<()> {
        Ok(())
    }
    fn shutdown(&self, _: Shutdown) -> io::Result<()> {
        Ok(())
    }
}

const ADDRESS: u64 = 0xfee0_1000;

/// Three vectors with messages 0x31, 0x32, 0x33, unmasked; enabled, bus master.
fn table() -> (Arc<Sent>, Msix) {
    let sent = Arc::new(Sent::default());
    let msix = Msix::new(3, sent.clone());
    for vector in 0..3 {
        msix.table_write(vector * 16, 8, ADDRESS);
        msix.table_write(vector * 16 + 8, 4, 0x31 + vector);
        msix.table_write(vector * 16 + 12, 4, 0);
    }
    msix.set_control(true, false);
    msix.set_bus_master(true);
    (sent, msix)
}

#[test]
fn sends() {
    let (sent, msix) = table();
    msix.fire(1);
    assert_eq!(sent.0.lock().unwrap().as_slice(), [Msi { address: ADDRESS, data: 0x32 }]);
    sent.take();
    for vector in [3, 64, 0x7ff, 0xffff] {
        msix.fire(vector);
    }
    assert_eq!(sent.take(), []);
    msix.table_write(8, 4, 0x66);
    msix.fire(0);
    assert_eq!(sent.take(), [0x66], "an error of the domain is not ours");
}

#[test]
fn masked_is_pending_until_unmasked() {
    let (sent, msix) = table();
    msix.table_write(16 + 12, 4, 1);
    msix.fire(1);
    msix.fire(1);
    assert_eq!(
        (sent.take(), msix.pba_read(0, 8), msix.pba_read(0, 4), msix.pba_read(0, 1)),
        (vec![], 2, 2, 2)
    );
    // A new message while masked is the one sent.
    msix.table_write(16 + 8, 4, 0x41);
    assert_eq!(sent.take(), []);
    msix.table_write(16 + 12, 4, 0);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![0x41], 0));
    // Message and mask in one qword.
    msix.table_write(16 + 8, 8, 1 << 32 | 0x42);
    msix.fire(1);
    msix.table_write(16 + 8, 8, 0x43);
    assert_eq!(sent.take(), [0x43]);
}

#[test]
fn function_mask_and_bus_master() {
    let (sent, msix) = table();
    msix.set_control(true, true);
    msix.fire(0);
    msix.fire(2);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![], 5));
    msix.set_bus_master(false);
    msix.set_control(true, false);
    assert_eq!(sent.take(), []);
    msix.set_bus_master(true);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![0x31, 0x33], 0));
}

#[test]
fn disabled_is_dropped() {
    let (sent, msix) = table();
    msix.set_control(true, true);
    msix.fire(0);
    msix.set_control(false, true);
    assert_eq!(msix.pba_read(0, 8), 0);
    msix.fire(1);
    msix.set_control(true, false);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![], 0));
}

#[test]
fn vector_zero_is_never_sent() {
    let (sent, msix) = table();
    msix.table_write(8, 4, 0);
    msix.fire(0);
    msix.table_write(8, 4, 0x100);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![], 1));
    msix.table_write(8, 4, 0x50);
    assert_eq!((sent.take(), msix.pba_read(0, 8)), (vec![0x50], 0));
}

#[test]
fn elsewhere_is_no_interrupt() {
    let (sent, msix) = table();
    for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
        msix.table_write(0, 8, address);
        msix.fire(0);
    }
    assert_eq!(sent.take(), []);
}

#[test]
fn table_registers() {
    let (_, msix) = table();
    assert_eq!(msix.table_read(16, 8), ADDRESS);
    assert_eq!((msix.table_read(24, 4), msix.table_read(28, 4), msix.table_read(24, 8)), (0x32, 0, 0x32));
    assert_eq!(
        (msix.table_read(17, 1), msix.table_read(18, 2), msix.table_read(17, 4)),
        (0x10, 0xfee0, 0x00fe_e010)
    );
    // Odd widths and places are not written; neither is what is reserved.
    for (offset, size) in [(16, 1), (16, 2), (18, 4), (20, 8), (17, 1), (16, 3), (16, 0)] {
        msix.table_write(offset, size, u64::MAX);
    }
    assert_eq!(msix.table_read(16, 8), ADDRESS);
    msix.table_write(16, 4, u64::MAX);
    msix.table_write(28, 4, u64::MAX);
    assert_eq!((msix.table_read(16, 4), msix.table_read(28, 4)), (0xffff_fffc, 1));
    // Past the end.
    for offset in [48, 0x7ff8, !7] {
        msix.table_write(offset, 8, u64::MAX);
        assert_eq!((msix.table_read(offset, 8), msix.pba_read(offset, 8)), (0, 0), "{offset:#x}");
    }
    msix.reset();
    assert_eq!((msix.table_read(16, 8), msix.table_read(24, 8), msix.enabled()), (0, 1 << 32, false));
}

#[test]
fn capability() {
    let msix = Msix::new(2048, Arc::new(Sent::default()));
    let mut config = ConfigSpace::new(Header::default(), Bars::none());
    let at = u16::from(msix.add_capability(&mut config, 0, 0x8000, 0x4000).unwrap());
    let dwords: Vec<u32> = (0..3).map(|index| config.read(at + index * 4, 4)).collect();
    assert_eq!(dwords, [0x07ff_0011, 0x8000, 0x4000]);
    let written = config.write(at + 2, 2, 0xffff).unwrap();
    assert_eq!(written.after, 0xc7ff_0011);
    msix.control_written(written.after);
    assert!(msix.enabled());
    assert_eq!(
        (
            Msix::new(0, Arc::new(Sent::default())).vectors(),
            Msix::new(u16::MAX, Arc::new(Sent::default())).vectors()
        ),
        (1, 2048)
    );
}

#[test]
fn last_of_many_vectors() {
    let sent = Arc::new(Sent::default());
    let msix = Msix::new(2048, sent.clone());
    msix.set_control(true, false);
    msix.fire(2047);
    assert_eq!(
        (msix.pba_read(248, 8), msix.pba_read(252, 4), msix.pba_read(255, 1)),
        (1 << 63, 1 << 31, 0x80)
    );
    msix.clear_pending();
    assert_eq!(msix.pba_read(248, 8), 0);
}

proptest::proptest! {
    #[test]
    fn never_sends_what_it_must_not(
        steps in proptest::collection::vec((0u8..6, 0u64..80, 0u8..9, proptest::num::u64::ANY), 0..200),
    ) {
        let (sent, msix) = table();
        for (what, offset, size, value) in steps {
            match what {
                0 => msix.table_write(offset, size, value),
                1 => { msix.table_read(offset, size); }
                2 => { msix.pba_read(offset, size); }
                3 => msix.set_control(value & 1 != 0, value & 2 != 0),
                4 => msix.set_bus_master(value & 1 != 0),
                _ => msix.fire(offset as u16 % 5),
            }
        }
        for msi in sent.0.lock().unwrap().iter() {
            assert!(msi.data & 0xff != 0 && msi.address >> 20 == 0xfee);
        }
    }
}
