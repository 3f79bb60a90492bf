//! Network namespaces: by name as `ip netns` keeps them, by path, by process.
//!
//! A [`Namespace`] is an open file, so it outlives its name. Its identity is the file's device and
//! inode; two values are the same namespace exactly where these agree.
//!
//! Only the network namespace of a thread is ever changed. `ip netns exec` also gives its child
//! a mount namespace with another `/sys`, and would hide bpffs and cgroups.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, fstatfs},
    unistd::geteuid,
};

use super::{NetError, netlink};

/// Where `ip netns` keeps namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// `NSFS_MAGIC` (linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// `NS_GET_NSTYPE` (linux/nsfs.h, kernel 4.11): `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    label: String,
    id: (u64, u64),
}

/// The label of the calling thread's.
const CURRENT: &str = "current";

impl Namespace {
    /// The calling thread's.
    pub fn current() -> Result<Self, NetError> {
        Self::open(Path::new("/proc/thread-self/ns/net"), CURRENT.into())
    }

    /// `/run/netns/NAME`.
    pub fn named(name: &str) -> Result<Self, NetError> {
        let path = path_of(name)?;
        Self::open(&path, name.into()).map_err(|error| match error {
            NetError::NoSuchPath { .. } => NetError::NoNamespace { name: name.into() },
            // What `ip netns add` leaves when it is killed half way: a file with nothing on it.
            other => other,
        })
    }

    /// The namespace whose file `path` is: a bind mount, or `/proc/PID/ns/net`.
    pub fn at_path(path: &Path) -> Result<Self, NetError> {
        Self::open(path, path.display().to_string())
    }

    /// The namespace of process `pid`.
    pub fn of_pid(pid: u32) -> Result<Self, NetError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Self::open(&path, format!("pid {pid}")).map_err(|error| match error {
            NetError::NoSuchPath { .. } => NetError::NoProcess { pid },
            other => other,
        })
    }

    /// The machine's own: that of kernel threads, or of the first process where those are hidden
    /// (in a container). None where neither can be looked at.
    pub fn of_machine() -> Option<Self> {
        let kernel = fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n");
        Self::of_pid(if kernel { 2 } else { 1 }).ok()
    }

    /// Makes a namespace as `ip netns add` does, with its loopback interface up.
    pub fn create(name: &str) -> Result<Self, NetError> {
        Beside::start(Self::leave)?.wait()?.bind(name)
    }

    /// Moves the calling thread into a new namespace, its loopback interface up. It has no name, and goes
    /// with the last open file of it. The kernel takes a millisecond for it.
    pub fn leave() -> Result<Self, NetError> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| netlink::raise_loopback())
            .map_err(NetError::system("create a network namespace"))?;
        Self::current()
    }

    /// Gives it a name, as `ip netns attach` does.
    pub fn bind(self, name: &str) -> Result<Self, NetError> {
        let path = path_of(name)?;
        let asked = || format!("create network namespace {name}");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(DIRECTORY)
            .map_err(NetError::system(asked()))?;
        share_directory().map_err(NetError::system(asked()))?;
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path)
        {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(NetError::NamespaceExists { name: name.into() });
            }
            other => other.map_err(NetError::system(asked()))?,
        };
        let file = format!("/proc/thread-self/fd/{}", self.fd.as_raw_fd());
        let bound = mount(
            Some(file.as_str()),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        if let Err(errno) = bound {
            // The name must not stay behind without a namespace.
            let _ = fs::remove_file(&path);
            return Err(NetError::errno_of(asked())(errno));
        }
        Ok(Self {
            label: name.into(),
            ..self
        })
    }

    /// Takes the name away, as `ip netns delete` does; the namespace itself lives on while a
    /// process or an open file holds it. Nothing to do where there is no such name.
    pub fn delete(name: &str) -> Result<(), NetError> {
        let path = path_of(name)?;
        let asked = || format!("delete network namespace {name}");
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(errno) => return Err(NetError::errno_of(asked())(errno)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetError::system(asked())(error))
            }
            _ => Ok(()),
        }
    }

    /// Is there a name with no namespace, as a kill between the two leaves it? A file in [`DIRECTORY`]
    /// itself, that is, with nothing in it.
    pub fn is_bare(name: &str) -> bool {
        let Ok(path) = path_of(name) else {
            return false;
        };
        let (Ok(file), Ok(directory)) = (fs::symlink_metadata(path), fs::metadata(DIRECTORY))
        else {
            return false;
        };
        file.is_file() && file.len() == 0 && file.dev() == directory.dev()
    }

    fn open(path: &Path, label: String) -> Result<Self, NetError> {
        let asked = || format!("open network namespace {}", path.display());
        // Non-blocking: the path may be anything, a pipe too.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
                // ESRCH: the process ended between look-up and open.
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => {
                    NetError::NoSuchPath { path: path.into() }
                }
                // Of a process, this takes what ptrace(2) does.
                Some(Errno::EACCES) if geteuid().is_root() => {
                    NetError::Protected { path: path.into() }
                }
                _ => NetError::system(asked())(error),
            })?;
        let refuse = |found| NetError::NotANamespace {
            path: path.into(),
            found,
        };
        let filesystem = fstatfs(&file).map_err(NetError::errno_of(asked()))?;
        if filesystem.filesystem_type() != NSFS_MAGIC {
            return Err(refuse("it is another kind of file"));
        }
        // SAFETY: the file is open, and NS_GET_NSTYPE takes no argument and writes no memory.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if Errno::result(kind).map_err(NetError::errno_of(asked()))? != libc::CLONE_NEWNET {
            return Err(refuse("it is a namespace of another kind"));
        }
        let metadata = file.metadata().map_err(NetError::system(asked()))?;
        Ok(Self {
            id: (metadata.dev(), metadata.ino()),
            fd: file.into(),
            label,
        })
    }

    /// Device and inode: the namespace's identity for as long as it lives.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Was it asked for as the calling thread's ([`current`](Self::current))?
    pub fn is_current(&self) -> bool {
        self.label == CURRENT
    }

    /// How it was asked for: its name, path, or `pid N`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Moves the calling thread into the namespace. Threads started from it later are there too;
    /// others stay where they are.
    pub fn enter(&self) -> Result<(), NetError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(NetError::errno_of(format!(
            "enter network namespace {}",
            self.label
        )))
    }

    /// Runs `f` on a fresh thread inside the namespace, and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetError> {
        self.start(f)?.wait()
    }

    /// Runs `f` on a fresh thread inside the namespace.
    pub fn start<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Beside<Result<T, NetError>>, NetError> {
        let within = self.try_clone()?;
        Beside::start(move || within.enter().map(|()| f()))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn try_clone(&self) -> Result<Self, NetError> {
        Ok(Self {
            fd: self.fd.try_clone().map_err(NetError::system(format!(
                "open network namespace {}",
                self.label
            )))?,
            label: self.label.clone(),
            id: self.id,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Namespace {}

/// Work on a thread of its own, beside what its starter does. Who drops it lets it run on.
pub struct Beside<T>(thread::JoinHandle<T>);

impl<T: Send + 'static> Beside<T> {
    pub fn start(f: impl FnOnce() -> T + Send + 'static) -> Result<Self, NetError> {
        let thread = thread::Builder::new().name("netns".into());
        let started = thread.spawn(f);
        Ok(Self(started.map_err(NetError::system("start a thread"))?))
    }

    /// What came of it; a panic is handed on.
    pub fn wait(self) -> T {
        self.0
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Where a namespace of this name lies, if that can be a name at all.
fn path_of(name: &str) -> Result<PathBuf, NetError> {
    let reason = match name {
        "" => "it is empty",
        "." | ".." => "it is no file name",
        _ if name.contains('/') => "it contains a slash (--netns takes a path that begins with /)",
        _ if name.contains('\0') => "it contains a NUL",
        _ if name.len() > 255 => "it is longer than 255 bytes",
        _ => return Ok(Path::new(DIRECTORY).join(name)),
    };
    Err(NetError::BadNamespaceName {
        name: name.into(),
        reason,
    })
}

/// Makes mounts under [`DIRECTORY`] appear in all mount namespaces, as iproute2 does it: the
/// directory becomes a shared mount, of itself where it is none yet. Otherwise a process in another
/// mount namespace would keep a deleted namespace alive and its name busy.
fn share_directory() -> io::Result<()> {
    // iproute2 takes the same lock, so that two of us do not both mount.
    let _lock =
        Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let share = || {
        mount(
            None::<&str>,
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    match share() {
        Err(Errno::EINVAL) => {
            mount(
                Some(DIRECTORY),
                DIRECTORY,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            share()?;
        }
        other => other?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names() {
        for bad in ["", ".", "..", "a/b", "/run/netns/a", "a\0b"] {
            assert!(
                matches!(
                    Namespace::named(bad),
                    Err(NetError::BadNamespaceName { .. })
                ),
                "{bad:?}"
            );
        }
        assert!(matches!(
            Namespace::named("netfw-no-such-namespace"),
            Err(NetError::NoNamespace { .. })
        ));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(
            Namespace::at_path(Path::new("/proc/self/ns/mnt")),
            Err(NetError::NotANamespace { .. })
        ));
        assert!(matches!(
            Namespace::at_path(Path::new("/dev/null")),
            Err(NetError::NotANamespace { .. })
        ));
        assert!(matches!(
            Namespace::at_path(Path::new("/no/such/path")),
            Err(NetError::NoSuchPath { .. })
        ));
        assert!(matches!(
            Namespace::of_pid(u32::MAX),
            Err(NetError::NoProcess { .. })
        ));
    }

    #[test]
    fn identity() {
        let here = Namespace::current().unwrap();
        assert_eq!(here, Namespace::of_pid(std::process::id()).unwrap());
        assert_eq!(here.id(), here.try_clone().unwrap().id());
    }
}
