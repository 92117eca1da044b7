//! The program as it is typed at a shell, where there is no Xen: one line, status 1, nothing left behind.
#![allow(clippy::pedantic, clippy::restriction, reason = "a test that panics has failed")]

use std::path::Path;
use std::process::{Command, Output};

const ATTACH: [&str; 6] = ["-xen-domid", "3", "-machine", "xenpv", "-m", "512"];

fn xenpvh(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xenpvh")).args(arguments).output().unwrap()
}

/// The one line that the program ends with.
fn refused(arguments: &[&str]) -> String {
    let output = xenpvh(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(output.stdout, b"");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

#[test]
fn a_plain_linux_is_told_in_one_line() {
    if !Path::new("/dev/xen").exists() {
        assert_eq!(
            refused(&ATTACH),
            "xenpvh: cannot open /dev/xen/privcmd: No such file or directory (is this a Xen dom0?)"
        );
    }
}

#[test]
fn what_is_wrong_with_the_command_line_comes_first() {
    assert_eq!(refused(&["-bogus"]), "xenpvh: -bogus: invalid option");
    let device = [&ATTACH[..], &["-device", "virtio-blk-pci,drive=d0"]].concat();
    assert!(refused(&device).contains("'d0'"));
}

#[test]
fn questions_are_answered_without_xen() {
    for (question, answer) in [
        (&["-version"][..], "xenpvh version "),
        (&["--version"], "xenpvh version "),
        (&["-help"], "-xen-domid"),
        (&["-machine", "help"], "xenpvh"),
        (&["-device", "help"], "virtio-blk-pci"),
        (&["-device", "virtio-net-pci,help"], "mac="),
    ] {
        let output = xenpvh(question);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(answer), "{question:?}: {text}");
    }
}
