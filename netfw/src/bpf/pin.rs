//! Where the data plane's pins lie: `<bpffs>/<instance>/v<ABI>/{maps,links}`.
//!
//! Pins are what makes the data plane outlive the agent: programs run from pinned links and flows
//! stay in pinned maps. Two versions of the layout never share a directory.
//!
//! bpffs refuses names with a dot, so an instance's name must not have one.

use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
};

use netfw_common::ABI;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::BpfError;

/// Where the BPF file system is, by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// The directories of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    instance: String,
    root: PathBuf,
}

impl Pins {
    pub fn of(instance: &str) -> Result<Self, BpfError> {
        let reason = match instance {
            "" => "it is empty",
            _ if instance.len() > 64 => "it is longer than 64 bytes",
            _ if instance.contains(['/', '.', '\0']) => {
                "it contains a slash, a dot or a NUL, which the BPF file system refuses"
            }
            _ => {
                return Ok(Self {
                    instance: instance.into(),
                    root: Path::new(BPFFS).join(instance),
                });
            }
        };
        Err(BpfError::BadInstance {
            name: instance.into(),
            reason,
        })
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What is pinned by this version of the layout.
    pub fn own(&self) -> Layout {
        Layout::new(&self.root, ABI)
    }

    pub fn maps(&self) -> PathBuf {
        self.own().maps()
    }

    pub fn links(&self) -> PathBuf {
        self.own().links()
    }

    /// Mounts bpffs where it is missing and makes the directories.
    pub fn prepare(&self) -> Result<(), BpfError> {
        mount_bpffs()?;
        for path in [self.maps(), self.links()] {
            fs::create_dir_all(&path).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => BpfError::NotPermitted,
                _ => BpfError::Directory {
                    call: "make directory",
                    path,
                    source,
                },
            })?;
        }
        Ok(())
    }

    /// All versions of the layout that have a directory, also those of older or newer netfw; the newest first.
    pub fn layouts(&self) -> Vec<Layout> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let version = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix('v')?.parse().ok()
        };
        let versions = entries.flatten().filter_map(version);
        let mut layouts: Vec<_> = versions.map(|v| Layout::new(&self.root, v)).collect();
        layouts.sort_unstable_by_key(|layout| Reverse(layout.version));
        layouts
    }

    /// Is anything pinned?
    pub fn exist(&self) -> bool {
        self.layouts().iter().any(Layout::is_used)
    }

    /// The data planes of other layouts that are there, the newest first: they may run.
    pub fn others(&self) -> Vec<Layout> {
        let mut others = self.layouts();
        others.retain(|layout| layout.version != ABI && layout.is_used());
        others
    }

    /// Removes all files and directories of the instance, past errors. Links must have been
    /// detached before: unlinking does that only where nobody else holds them.
    pub fn remove(&self) -> Vec<BpfError> {
        let mut errors: Vec<_> = self.layouts().iter().flat_map(Layout::remove).collect();
        errors.extend(self.remove_root());
        errors
    }

    /// Removes those of this version of the layout alone, past errors.
    pub fn remove_own(&self) {
        self.own().remove();
        self.remove_root();
    }

    fn remove_root(&self) -> Option<BpfError> {
        match fs::remove_dir(&self.root) {
            // Others' files lie beside ours.
            Err(error) if error.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => None,
            done => failure("remove directory", &self.root, done),
        }
    }
}

/// The pins of one version of the layout.
#[derive(Clone, Debug)]
pub struct Layout {
    pub version: u32,
    pub path: PathBuf,
}

impl Layout {
    fn new(root: &Path, version: u32) -> Self {
        Self {
            version,
            path: root.join(format!("v{version}")),
        }
    }

    pub fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// Is anything pinned here?
    pub fn is_used(&self) -> bool {
        let mut parts = [self.maps(), self.links()].into_iter();
        parts.any(|part| !entries(&part).is_empty())
    }

    /// Removes its files and directories, past errors.
    pub fn remove(&self) -> Vec<BpfError> {
        let mut errors = Vec::new();
        for part in [self.links(), self.maps()] {
            for path in entries(&part) {
                errors.extend(failure("remove", &path, fs::remove_file(&path)));
            }
            errors.extend(failure("remove directory", &part, fs::remove_dir(&part)));
        }
        errors.extend(failure(
            "remove directory",
            &self.path,
            fs::remove_dir(&self.path),
        ));
        errors
    }
}

/// Removes one pin, if it is there.
pub fn remove(path: &Path) -> Result<(), BpfError> {
    failure("remove", path, fs::remove_file(path)).map_or(Ok(()), Err)
}

/// The paths in a directory; none where there is no such directory.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// What went wrong; nothing did where the thing was gone already.
fn failure(call: &'static str, path: &Path, done: io::Result<()>) -> Option<BpfError> {
    match done {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Some(BpfError::Directory {
            call,
            path: path.into(),
            source,
        }),
        _ => None,
    }
}

/// Is the BPF file system mounted where it belongs?
pub fn is_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs() -> Result<(), BpfError> {
    if is_mounted() {
        return Ok(());
    }
    let path = Path::new(BPFFS);
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| match errno {
        Errno::EPERM if !nix::unistd::geteuid().is_root() => BpfError::NotPermitted,
        _ => BpfError::Mount {
            path: path.into(),
            source: errno.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_names_that_bpffs_takes() {
        for bad in ["", "a/b", "..", "a.b", &"x".repeat(65)] {
            assert!(
                matches!(Pins::of(bad), Err(BpfError::BadInstance { .. })),
                "{bad:?}"
            );
        }
        let pins = Pins::of("netfw").unwrap();
        assert_eq!(
            pins.maps(),
            Path::new(&format!("/sys/fs/bpf/netfw/v{ABI}/maps"))
        );
        assert!(!Pins::of("no-such-instance").unwrap().exist());
    }
}
