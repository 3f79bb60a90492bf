//! What a demo leaves that was killed (SIGKILL, which nobody can see coming): the next one removes it.
//!
//! A demo holds a lock on `/run/netfw/demo-PID/demo.lock` from before it makes anything until all is
//! removed; the kernel lets go of it whenever and however the process ends. A file that can be locked
//! is thus a dead demo's. Process ids alone would not do: they are used again, and differ between
//! process namespaces.
//!
//! Its agent ends by itself (`PR_SET_PDEATHSIG`).

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use super::lab::{complain, down};
use crate::{
    agent::paths::{Paths, RUN},
    name::Name,
    net::{Namespace, namespace},
};

const INSTANCE: &str = "demo-";

/// The instance of the demo that is (or was) process `pid`.
pub fn instance(pid: u32) -> Name {
    format!("{INSTANCE}{pid}")
        .parse()
        .expect("letters, a dash and digits are a name")
}

/// What the names of its namespaces begin with.
pub fn prefix(pid: u32) -> String {
    format!("netfw-demo-{pid}-")
}

fn lock_file(instance: &Name) -> PathBuf {
    Paths::of(instance).run.join("demo.lock")
}

/// Says that this demo lives.
pub struct Mark {
    instance: Name,
    _lock: Flock<File>,
}

impl Mark {
    pub fn make(instance: &Name) -> anyhow::Result<Self> {
        let path = lock_file(instance);
        let context = || path.display().to_string();
        fs::create_dir_all(Paths::of(instance).run).with_context(context)?;
        // Under its name only once it is locked: another demo may be looking.
        let quiet = path.with_extension("new");
        let file = File::create(&quiet).with_context(context)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .with_context(context)?;
        fs::rename(&quiet, &path).with_context(context)?;
        Ok(Self {
            instance: instance.clone(),
            _lock: lock,
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // `netfw down` removed them, unless it never came to that.
        let _ = fs::remove_file(lock_file(&self.instance));
        let _ = fs::remove_dir(Paths::of(&self.instance).run);
    }
}

/// Removes what dead demos left. What cannot be removed is told, and no reason not to go on.
pub fn remove() {
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(demo) else {
            continue;
        };
        if is_dead(&instance(pid)) {
            // First: nothing else knows these names once the instance is gone.
            for name in named(Path::new(namespace::DIRECTORY), &prefix(pid)) {
                if let Err(error) = Namespace::delete(&name) {
                    complain(&error.to_string());
                }
            }
            down(&instance(pid));
        }
    }
}

/// The process whose demo has (or had) an instance of that name.
fn demo(instance: &str) -> Option<u32> {
    instance.strip_prefix(INSTANCE)?.parse().ok()
}

fn is_dead(instance: &Name) -> bool {
    // Not a demo's where there is no such file: anybody may call an instance so.
    let file = OpenOptions::new().read(true).open(lock_file(instance));
    file.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
}

fn named(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_demos_are_taken_for_demos() {
        assert_eq!(demo(instance(4711).as_str()), Some(4711));
        for other in ["netfw", "demo", "demo-", "demo-x", "demo-1-2", "xdemo-1"] {
            assert_eq!(demo(other), None, "{other}");
        }
        assert!(!is_dead(&instance(u32::MAX)), "it never was");
    }

    #[test]
    fn one_demo_s_names_are_not_another_s() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["netfw-demo-1-web", "netfw-demo-11-web", "web"] {
            File::create(directory.path().join(name)).unwrap();
        }
        assert_eq!(named(directory.path(), &prefix(1)), ["netfw-demo-1-web"]);
    }
}
