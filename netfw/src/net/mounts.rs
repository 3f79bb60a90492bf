//! Are our mounts the machine's?
//!
//! Programs are kept by their pins in bpffs, and namespaces by the files that they are mounted on.
//! A process in a mount namespace of its own (`ip netns exec`, `unshare --mount`, a unit with
//! `PrivateMounts=`) makes both where nobody else sees them, and they go with its last process:
//! packets stop when the agent dies, and no other agent finds what it left.
//!
//! A mount namespace of one's own does no harm where its mounts are shared with the machine's (a
//! container with `rshared` volumes): there, what one mounts the other sees. So that is what is
//! asked, by `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): do both have one mount there, and is it
//! of one peer group?

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Namespace, NetError, namespace};

/// Fails where what we mount at `bpffs` or as a named network namespace is hidden from the machine's
/// first process. Where that process cannot be looked at, nobody can tell, and it passes.
pub fn check(bpffs: &Path) -> Result<(), NetError> {
    let table = |process: &str| fs::read_to_string(format!("/proc/{process}/mountinfo"));
    let (Ok(machine), Ok(own)) = (table("1"), table("self")) else {
        return Ok(());
    };
    for path in [bpffs, Path::new(namespace::DIRECTORY)] {
        if !is_seen(&own, &machine, path) {
            return Err(NetError::PrivateMounts {
                path: path.to_owned(),
                netns: name_of_current(),
            });
        }
    }
    Ok(())
}

/// What `/run/netns` calls the namespace that we are in: what `--netns` should have named.
fn name_of_current() -> Option<String> {
    let current = Namespace::current().ok()?;
    fs::read_dir(namespace::DIRECTORY)
        .ok()?
        .flatten()
        .find(|entry| Namespace::at_path(&entry.path()).is_ok_and(|found| found == current))
        .and_then(|entry| entry.file_name().into_string().ok())
}

/// Is what one mounts or pins at or below `path` there for the other as well? `own` and `other` are
/// mountinfo files; one that is empty is no answer.
fn is_seen(own: &str, other: &str, path: &Path) -> bool {
    let (Some(own), Some(other)) = (covering(own, path), covering(other, path)) else {
        return true;
    };
    let same_mount = own.id == other.id;
    // What is mounted on a directory goes to all mounts of the group that show it, wherever (mount_namespaces(7)):
    // a container may have `/run/netns` alone where the machine has `/run`.
    let peers =
        own.peers.is_some() && own.peers == other.peers && own.shown(path) == other.shown(path);
    // Pins lie in the file system itself, whichever mount shows it.
    let pins = own.kind == Some("bpf") && own.device == other.device;
    same_mount || peers || pins
}

#[derive(PartialEq, Eq, Debug)]
struct Mount<'a> {
    /// Of this mount alone, in all mount namespaces.
    id: &'a str,
    device: &'a str,
    /// What of its file system is mounted.
    root: &'a str,
    point: &'a str,
    /// The peer group, if mounts made here go to others.
    peers: Option<&'a str>,
    kind: Option<&'a str>,
}

impl Mount<'_> {
    /// What `path`, which lies on it, is in its file system.
    fn shown(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(self.point).ok()?;
        // Not joined with nothing, which would add a slash.
        Some(
            Path::new(self.root)
                .components()
                .chain(below.components())
                .collect(),
        )
    }
}

/// The mount that `path` lies on: the innermost, and of those at one place the last.
fn covering<'a>(mountinfo: &'a str, path: &Path) -> Option<Mount<'a>> {
    mountinfo
        .lines()
        .filter_map(parse)
        .filter(|mount| path.starts_with(mount.point))
        .max_by_key(|mount| Path::new(mount.point).components().count())
}

/// `36 35 98:0 ROOT POINT OPTIONS [shared:N] [master:N] - TYPE SOURCE OPTIONS`. Blanks in paths are
/// escaped, and there are none in those that are looked for.
fn parse(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    Some(Mount {
        id: fields.next()?,
        device: fields.nth(1)?,
        root: fields.next()?,
        point: fields.next()?,
        peers: fields.find_map(|field| field.strip_prefix("shared:")),
        kind: after.split(' ').next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "\
22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
23 22 0:22 / /sys rw shared:2 - sysfs sysfs rw
24 23 0:39 / /sys/fs/bpf rw,nosuid shared:3 - bpf bpf rw
25 22 0:40 / /run rw shared:4 - tmpfs tmpfs rw
26 25 0:40 /netns /run/netns rw shared:4 - tmpfs tmpfs rw
";
    /// What `ip netns exec` makes of it: slaves, and another /sys with nothing on it.
    const NETNS_EXEC: &str = "\
82 81 254:0 / / rw master:1 - ext4 /dev/vda rw
85 82 0:40 / /run rw master:4 - tmpfs tmpfs rw
86 85 0:40 /netns /run/netns rw master:4 - tmpfs tmpfs rw
87 82 0:50 / /sys rw - sysfs node rw
";

    #[test]
    fn the_innermost_and_last_mount_counts() {
        let point = |table, path: &str| covering(table, Path::new(path)).unwrap().point;
        assert_eq!(point(MACHINE, "/sys/fs/bpf"), "/sys/fs/bpf");
        assert_eq!(point(MACHINE, "/sys/fs/bpffs"), "/sys");
        assert_eq!(point(MACHINE, "/var"), "/");
        let twice =
            "1 0 0:1 / /a rw shared:1 - t t rw\n2 1 0:2 / /a rw shared:2 master:9 - t t rw\n";
        assert_eq!(covering(twice, Path::new("/a/b")).unwrap().peers, Some("2"));
        assert_eq!(covering("", Path::new("/a")), None);
    }

    #[test]
    fn slaves_and_private_mounts_are_hidden() {
        let (bpffs, netns) = (Path::new("/sys/fs/bpf"), Path::new("/run/netns"));
        for path in [bpffs, netns] {
            assert!(is_seen(MACHINE, MACHINE, path));
            assert!(!is_seen(NETNS_EXEC, MACHINE, path), "{path:?}");
        }
        // `unshare --mount`: everything private, but the same bpffs.
        let private: String = MACHINE
            .lines()
            .map(|line| format!("1{line}\n").replace(" shared:", " x:"))
            .collect();
        assert!(is_seen(&private, MACHINE, bpffs));
        assert!(!is_seen(&private, MACHINE, netns));
        // All is private, and it is the machine's own table.
        assert!(is_seen(&private, &private, netns));
    }

    #[test]
    fn mounts_of_one_peer_group_are_seen() {
        let netns = Path::new("/run/netns");
        let other: String = MACHINE.lines().map(|line| format!("1{line}\n")).collect();
        assert!(is_seen(&other, MACHINE, netns));
        // A volume of the machine's /run/netns, which is no mount there; and one of something else.
        let without: String = MACHINE.lines().take(4).map(|l| format!("{l}\n")).collect();
        assert!(is_seen(&other, &without, netns));
        let elsewhere = other.replace("/netns /run/netns", "/lab/netns /run/netns");
        assert!(!is_seen(&elsewhere, &without, netns));
        assert!(!is_seen(&elsewhere, MACHINE, netns));
        let private = other.replace("/run/netns rw shared:4", "/run/netns rw");
        assert!(!is_seen(&private, &without, netns));
        assert!(is_seen("", MACHINE, netns), "nobody can tell");
    }

    #[test]
    fn our_own_mounts_are_the_machine_s_or_are_refused() {
        // Whatever is true of this process: one of the two, and no panic.
        let _ = check(Path::new("/sys/fs/bpf"));
    }
}
