//! Attaching the socket programs to the root of the cgroup hierarchy, where they see every process
//! of the machine; which network namespace they serve is loaded with them.
//!
//! Each link is pinned as `links/cgroup-<program>` and outlives the agent, as those of interfaces do.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, links::FdLink},
};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{
    BpfError, btf,
    insn::{ADD_NUMBER, CALL, EXIT, MOV_NUMBER, MOV_REGISTER, instruction},
    pin, sys,
};

/// The programs, by name.
pub const PROGRAMS: [&str; 10] = [
    "netfw_bind4",
    "netfw_bind6",
    "netfw_connect4",
    "netfw_connect6",
    "netfw_sendmsg4",
    "netfw_sendmsg6",
    "netfw_recvmsg4",
    "netfw_recvmsg6",
    "netfw_getpeername4",
    "netfw_getpeername6",
];

const PREFIX: &str = "cgroup-";

fn pin_of(links: &Path, program: &str) -> PathBuf {
    links.join(format!("{PREFIX}{program}"))
}

pub fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut CgroupSockAddr, BpfError> {
    let lacks = BpfError::Lacks {
        kind: "program",
        name,
    };
    match ebpf.program_mut(name) {
        Some(program) => program.try_into().map_err(|_| lacks),
        None => Err(lacks),
    }
}

/// Attaches the programs, in place of those that are there from us.
pub fn attach(ebpf: &mut Ebpf, links: &Path) -> Result<(), BpfError> {
    let path = mounted()?;
    let root = File::open(&path).map_err(|source| BpfError::Directory {
        call: "open",
        path: path.clone(),
        source,
    })?;
    for name in PROGRAMS {
        let failed = |source: ProgramError| BpfError::AttachCgroup {
            program: name,
            path: path.clone(),
            source: Box::new(source),
        };
        let program = program(ebpf, name)?;
        let pin = pin_of(links, name);
        if let Some(link) = open(&pin)? {
            let there = program
                .fd()
                .map_err(io::Error::other)
                .and_then(|program| sys::update_link(link.as_fd(), program.as_fd()));
            match there {
                Ok(()) => continue,
                // The hierarchy was unmounted and mounted again.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => pin::remove(&pin)?,
                Err(error) => return Err(failed(error.into())),
            }
        }
        let link = program
            .attach(&root, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(failed)?;
        let link =
            FdLink::try_from(link).map_err(|error| failed(io::Error::other(error).into()))?;
        // Until it is pinned the link lives with us only; killed here, nothing stays behind.
        link.pin(&pin)
            .map(drop)
            .map_err(|source| BpfError::Pin { path: pin, source })?;
    }
    Ok(())
}

/// Takes the programs off, past errors; their pins go with the directory.
pub fn detach(links: &Path) -> Vec<BpfError> {
    PROGRAMS
        .iter()
        .filter_map(|name| {
            let link = match open(&pin_of(links, name)) {
                Ok(link) => link?,
                Err(error) => return Some(error),
            };
            match sys::detach_link(link.as_fd()) {
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => None,
                Err(source) => Some(BpfError::Detach {
                    program: name,
                    ifindex: 0,
                    source,
                }),
                Ok(()) => None,
            }
        })
        .collect()
}

/// Has somebody detached one of the programs (`bpftool link detach`), or removed its pin?
pub fn lacks_program(links: &Path) -> bool {
    let lacks = |name: &str| match open(&pin_of(links, name)) {
        Ok(Some(link)) => sys::link_info(link.as_fd()).is_ok_and(|info| !info.is_on_cgroup()),
        Ok(None) => true,
        // Nothing is known of it.
        Err(_) => false,
    };
    PROGRAMS.into_iter().any(lacks)
}

/// Those that are not pinned, and so not attached.
pub fn missing(links: &Path) -> Vec<&'static str> {
    let is_missing = |name: &&str| !pin_of(links, name).exists();
    PROGRAMS.into_iter().filter(is_missing).collect()
}

fn open(pin: &Path) -> Result<Option<OwnedFd>, BpfError> {
    match sys::object(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BpfError::Pinned {
            path: pin.into(),
            source,
        }),
        Ok(link) => Ok(Some(link)),
    }
}

/// May the programs of `bind` say with which error they refuse (`bpf_set_retval`)? From 6.1 on.
pub fn may_say_why() -> bool {
    const SET_RETVAL: i32 = 187;
    let refusal = [
        instruction(MOV_NUMBER, 1, 0, -libc::EADDRINUSE),
        instruction(CALL, 0, 0, SET_RETVAL),
        instruction(MOV_NUMBER, 0, 0, 0),
        instruction(EXIT, 0, 0, 0),
    ];
    sys::takes_bind_program(&refusal)
}

/// The bit of a socket in the kernel's memory that is `IPV6_V6ONLY`. None where it is not known, or the
/// programs may not read it (a kernel that is locked down for confidentiality).
pub fn v6only_bit() -> Option<u32> {
    const PROBE_READ_KERNEL: i32 = 113;
    let look = [
        instruction(MOV_REGISTER, 1, 10, 0),
        instruction(ADD_NUMBER, 1, 0, -8),
        instruction(MOV_NUMBER, 2, 0, 8),
        instruction(MOV_NUMBER, 3, 0, 0),
        instruction(CALL, 0, 0, PROBE_READ_KERNEL),
        instruction(MOV_NUMBER, 0, 0, 1),
        instruction(EXIT, 0, 0, 0),
    ];
    // `struct sock` begins with it.
    let bit = btf::bit_of("sock_common", "skc_ipv6only")?;
    sys::takes_bind_program(&look).then_some(bit)
}

/// Where the cgroup v2 hierarchy is mounted: plainly, or beside v1 (`/sys/fs/cgroup/unified`).
pub fn mounted() -> Result<PathBuf, BpfError> {
    const MOUNTS: &str = "/proc/self/mounts";
    let mounts = std::fs::read_to_string(MOUNTS).map_err(|source| BpfError::Directory {
        call: "read",
        path: MOUNTS.into(),
        source,
    })?;
    find(&mounts).ok_or(BpfError::NoCgroup)
}

/// The mount point of the first line of type `cgroup2`.
fn find(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_device, point, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// `SO_NETNS_COOKIE` (5.14) of the calling thread's network namespace.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_wherever_it_is() {
        let beside_v1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                         cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                         cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            find(beside_v1),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let plain = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(find(plain), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(find("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_namespace_has_a_cookie() {
        assert_ne!(netns_cookie().unwrap(), 0);
    }
}
