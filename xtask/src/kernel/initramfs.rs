//! An initramfs: a cpio archive in the "newc" format, which the kernel unpacks into its first root
//! file system (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written here rather than by cpio(1): files keep their places on this machine without a copy of
//! them all, and belong to root whoever writes them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// What is in it: each file once, each directory before what is in it.
    names: BTreeSet<PathBuf>,
}

impl Archive {
    pub fn directory(&mut self, path: &str) {
        self.add_directory(Path::new(path));
    }

    pub fn file(&mut self, path: impl AsRef<Path>, content: &[u8], permissions: u32) {
        self.entry(path.as_ref(), 0o100_000 | permissions, content);
    }

    /// `path` leads to `target`.
    pub fn link(&mut self, path: impl AsRef<Path>, target: &Path) {
        self.entry(path.as_ref(), 0o120_777, target.as_os_str().as_bytes());
    }

    /// The file `from`, whatever links lead to it, as `path`.
    pub fn copy(&mut self, from: &Path, path: impl AsRef<Path>) -> Result<()> {
        let failed = || format!("cannot read {}", from.display());
        let content = fs::read(from).with_context(failed)?;
        let permissions = fs::metadata(from).with_context(failed)?.permissions();
        self.file(path, &content, permissions.mode() & 0o777);
        Ok(())
    }

    pub fn write(mut self, file: &Path) -> Result<()> {
        self.header("TRAILER!!!".as_bytes(), 0, 0);
        fs::write(file, &self.bytes).with_context(|| format!("cannot write {}", file.display()))?;
        println!(
            "initramfs: {} files, {} MiB ({})",
            self.names.len(),
            self.bytes.len() >> 20,
            file.display()
        );
        Ok(())
    }

    fn add_directory(&mut self, path: &Path) {
        if path != Path::new("/") {
            self.entry(path, 0o040_755, &[]);
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        if self.names.contains(path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.add_directory(parent);
        }
        self.names.insert(path.to_owned());
        let name = path.strip_prefix("/").unwrap_or(path);
        self.header(name.as_os_str().as_bytes(), mode, content.len());
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn header(&mut self, name: &[u8], mode: u32, len: usize) {
        // Inode, mode, user, group, links, time, length, two device numbers, length of the name
        // with its end, checksum (which this format has not). Inodes of 0 are no hard links.
        let fields = [
            0,
            mode as usize,
            0,
            0,
            1,
            0,
            len,
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
    }

    /// Names and contents end at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/file", b"12345", 0o644);
        archive.link("/a/link", Path::new("b/file"));
        let names: Vec<_> = archive
            .names
            .iter()
            .map(|name| name.display().to_string())
            .collect();
        assert_eq!(names, ["/a", "/a/b", "/a/b/file", "/a/link"]);
        assert_eq!(archive.bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive.bytes);
        let at = |name: &str| text.find(name).expect(name);
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/file\0"));
        // Header, name with its end, padding, content, padding.
        let file = &archive.bytes[at("a/b/file\0") - 110..];
        assert_eq!(&file[..14], b"07070100000000");
        assert_eq!(&file[54..62], b"00000005");
        assert_eq!(&file[120..128], b"12345\0\0\0");
    }
}
