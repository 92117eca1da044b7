//! The command line: arguments apart by newlines.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use xenpvh::cli::{self, Machine, Outcome};
use xenpvh::layout::Layout;

/// What libxl begins with, so that what follows gets far.
const USUAL: &[&str] = &[
    "-xen-domid",
    "7",
    "-no-shutdown",
    "-chardev",
    "socket,id=libxl-cmd,path=/run/qmp,server=on,wait=off",
    "-mon",
    "chardev=libxl-cmd,mode=control",
    "-m",
    "512",
];

/// Parses, and parses once more.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut arguments = vec![OsString::from("/usr/bin/xenpvh")];
    if *first != b'!' {
        arguments.extend(USUAL.iter().map(OsString::from));
    }
    arguments.extend(rest.split(|byte| *byte == b'\n').map(|bytes| OsString::from_vec(bytes.to_vec())));
    let outcome = cli::parse(arguments.clone());
    assert_eq!(outcome, cli::parse(arguments), "not the same the second time");
    match outcome {
        Err(error) => {
            assert_eq!(error.program, "xenpvh");
            assert!(!error.message.is_empty());
        }
        Ok(Outcome::Print(text)) => assert!(text.ends_with('\n')),
        Ok(Outcome::Run(config)) => {
            assert!(config.domid.is_none_or(|domid| (1..0x7ff0).contains(&domid)));
            let memory = config.memory.unwrap_or(128 << 20);
            let layout = match &config.machine {
                Machine::Xenpvh(options) => Layout::from_options(options, memory),
                _ => Ok(Layout::stock(memory, 46)),
            };
            if let Ok(layout) = layout
                && layout.check(46).is_ok()
            {
                let sizes = layout.windows().map(|window| window.size);
                assert!(sizes.sum::<u64>() <= 1 << 46, "windows that overlap");
                assert!(layout.buses() <= 256);
            }
            let mut slots: Vec<_> = config.devices.iter().map(|device| device.addr).collect();
            let count = slots.len();
            slots.sort_by_key(|slot| (slot.device, slot.function));
            slots.dedup();
            assert_eq!(slots.len(), count, "two devices in one place");
            for device in &config.devices {
                assert!(device.addr.device < 32 && device.addr.function < 8);
            }
        }
    }
}
