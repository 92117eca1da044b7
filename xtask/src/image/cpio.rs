//! Initramfs archives: cpio in the "newc" format.
//!
//! Written here rather than by cpio(1) so that nobody needs root, fakeroot or cpio, and so that the same input
//! gives the same bytes. Device nodes are not needed: the kernel's devtmpfs provides them.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

pub struct Archive<W> {
    out: W,
    inode: u32,
    offset: usize,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, offset: 0, directories: BTreeSet::new() }
    }

    /// A directory with all its parents; asking twice is harmless.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.directories.insert(path.to_string());
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    pub fn file(&mut self, path: &str, executable: bool, data: &[u8]) -> io::Result<()> {
        self.parent_of(path)?;
        self.entry(path.trim_matches('/'), FILE | if executable { 0o755 } else { 0o644 }, data)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parent_of(path)?;
        self.entry(path.trim_matches('/'), SYMLINK | 0o777, target.as_bytes())
    }

    /// Ends the archive, padded to 512 bytes: the kernel accepts several such archives one after the other.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[])?;
        self.pad(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parent_of(&mut self, path: &str) -> io::Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let size =
            u32::try_from(data.len()).map_err(|_| io::Error::other(format!("{name} is over 4 GiB")))?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), rdevice (2), name length with NUL, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: usize) -> io::Result<()> {
        let zeros = [0u8; 512];
        self.put(&zeros[..self.offset.next_multiple_of(to) - self.offset])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/c", true, b"hello").unwrap();
        archive.symlink("a/b/d", "c").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5, "two directories, a file, a link and the trailer");
        assert!(text.find("a/b/c\0").unwrap() < text.find("hello").unwrap());
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let build = || {
            let mut archive = Archive::new(Vec::new());
            archive.file("x", false, b"1").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(build(), build());
    }
}
