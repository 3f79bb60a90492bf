//! Where the data plane's pins lie: `<bpffs>/<instance>/v<ABI>/{maps,links}`.
//!
//! Pins are what makes the data plane outlive the agent: programs run from pinned links and flows
//! stay in pinned maps. Two versions of the layout never share a directory.
//!
//! bpffs refuses names with a dot, so an instance's name must not have one.

use std::{
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

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI}"))
    }

    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub fn links(&self) -> PathBuf {
        self.version().join("links")
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

    /// The directories of all layout versions, also those of older or newer netfw.
    pub fn versions(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| {
                    name.strip_prefix('v')
                        .is_some_and(|number| number.parse::<u32>().is_ok())
                })
            })
            .map(|entry| entry.path())
            .collect()
    }

    /// Is anything pinned?
    pub fn exist(&self) -> bool {
        self.versions().iter().any(|version| is_used(version))
    }

    /// The directory of another layout's data plane, if one is there: it may run.
    pub fn other_layout(&self) -> Option<PathBuf> {
        let own = self.version();
        self.versions()
            .into_iter()
            .find(|version| *version != own && is_used(version))
    }

    /// Removes all files and directories of the instance, past errors. Links must have been
    /// detached before: unlinking does that only where nobody else holds them.
    pub fn remove(&self) -> Vec<BpfError> {
        let mut errors = Vec::new();
        for version in self.versions() {
            for part in ["links", "maps"] {
                let directory = version.join(part);
                for path in entries(&directory) {
                    note(&mut errors, "remove", &path, fs::remove_file(&path));
                }
                remove_directory(&mut errors, &directory);
            }
            remove_directory(&mut errors, &version);
        }
        // Others' files may lie beside ours.
        if let Err(source) = fs::remove_dir(&self.root)
            && source.raw_os_error() != Some(Errno::ENOTEMPTY as i32)
        {
            note(&mut errors, "remove directory", &self.root, Err(source));
        }
        errors
    }
}

/// Is anything pinned in the directory of this layout version?
fn is_used(version: &Path) -> bool {
    ["maps", "links"].iter().any(|part| {
        fs::read_dir(version.join(part)).is_ok_and(|mut entries| entries.next().is_some())
    })
}

/// Removes one pin, if it is there.
pub fn remove(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BpfError::Directory {
            call: "remove",
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The paths in a directory; none where there is no such directory.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn remove_directory(errors: &mut Vec<BpfError>, path: &Path) {
    note(errors, "remove directory", path, fs::remove_dir(path));
}

/// Notes a failure, unless the thing was gone already.
fn note(errors: &mut Vec<BpfError>, call: &'static str, path: &Path, done: io::Result<()>) {
    match done {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            errors.push(BpfError::Directory {
                call,
                path: path.into(),
                source,
            });
        }
        _ => {}
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
