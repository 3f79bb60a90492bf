//! Where an instance keeps its things, and the lock that lets one agent have them.
//!
//! | what | where |
//! |---|---|
//! | lock, socket | `/run/netfw/<instance>/` |
//! | store | `/var/lib/netfw/<instance>/state.redb` |
//! | pins | `<bpffs>/<instance>/v<ABI>/` (module `bpf`) |

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use crate::name::Name;

/// Below it each instance has a directory.
pub const RUN: &str = "/run/netfw";

/// How long a process that was killed gets to let go of the lock.
const DYING: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "an agent for instance \"{instance}\" is running already (process {}): stop it first, or choose another --instance", pid.map_or("unknown".into(), |p| p.to_string())
    )]
    Held { instance: Name, pid: Option<u32> },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Clone, Debug)]
pub struct Paths {
    pub instance: Name,
    pub run: PathBuf,
    pub state: PathBuf,
}

impl Paths {
    pub fn of(instance: &Name) -> Self {
        Self {
            instance: instance.clone(),
            run: PathBuf::from(RUN).join(instance.as_str()),
            state: PathBuf::from("/var/lib/netfw").join(instance.as_str()),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    pub fn store(&self) -> PathBuf {
        self.state.join("state.redb")
    }

    fn lock_file(&self) -> PathBuf {
        self.run.join("agent.lock")
    }

    /// Has a process the instance's lock? Looked at without taking it, which could be in the way of an
    /// agent that starts this moment. False where nobody can tell.
    pub fn is_locked(&self) -> bool {
        let (Ok(file), Ok(locks)) = (
            fs::metadata(self.lock_file()),
            fs::read_to_string("/proc/locks"),
        ) else {
            return false;
        };
        is_listed(&locks, file.ino())
    }

    /// Takes the instance, or says which process has it.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.lock_file();
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let deadline = Instant::now() + DYING;
        loop {
            // Traversable: whether somebody may connect is the socket's mode to say.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&self.run)
                .map_err(io)?;
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io)?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((mut file, nix::errno::Errno::EAGAIN)) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    let pid = text.trim().parse().ok();
                    if pid.is_some_and(is_dying) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(10));
                        continue;
                    }
                    return Err(LockError::Held {
                        instance: self.instance.clone(),
                        pid,
                    });
                }
                Err((_, errno)) => return Err(io(errno.into())),
            };
            // `netfw down` may have removed the file between our opening and locking it: then
            // somebody else can lock another file of this name, and we have nothing.
            let ours = lock.metadata().map_err(io)?.ino();
            if fs::metadata(&path).is_ok_and(|now| now.ino() == ours) {
                lock.set_len(0).map_err(io)?;
                lock.rewind().map_err(io)?;
                writeln!(lock, "{}", std::process::id()).map_err(io)?;
                return Ok(Lock { _file: lock });
            }
        }
    }
}

/// Lines of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE PID MAJOR:MINOR:INODE 0 EOF`. Devices are left
/// out: some file systems have another one here than stat(2) says. Those with `->` only wait.
fn is_listed(locks: &str, inode: u64) -> bool {
    let inode = inode.to_string();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        matches!(words[..], [_, "FLOCK", _, _, _, file, ..] if file.rsplit(':').next() == Some(&*inode))
    })
}

/// Killed, and not quite gone: it holds its files until the kernel has put its memory away.
fn is_dying(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // `PID (COMMAND) STATE …`, and a command may hold parentheses.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// The instance is ours while this lives; the kernel frees it with the process.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Paths::of(&"x".parse().unwrap());
        paths.run = dir.path().join("run");
        assert!(!paths.is_locked());
        let first = paths.lock().unwrap();
        assert!(paths.is_locked());
        let pid = std::process::id();
        assert!(matches!(
            paths.lock(),
            Err(LockError::Held { pid: Some(p), .. }) if p == pid
        ));
        drop(first);
        assert!(!paths.is_locked());
        paths.lock().unwrap();
    }

    #[test]
    fn a_lock_is_listed_by_its_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:17:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 8 fe:00:43 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fe:00:44 0 EOF\n";
        let listed: Vec<u64> = (40..46).filter(|inode| is_listed(locks, *inode)).collect();
        assert_eq!(listed, [43]);
    }
}
