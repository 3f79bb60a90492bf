//! What can go wrong with the data plane, with the facts.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, tc::TcError},
};
use nix::libc;

/// An error of [`crate::bpf`].
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("{name:?} cannot be the name of an instance: {reason}")]
    BadInstance { name: String, reason: &'static str },

    #[error("cannot load the data plane: this needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)")]
    NotPermitted,

    #[error("cannot load the data plane: this kernel has no bpf system call (CONFIG_BPF_SYSCALL)")]
    NoBpf,

    #[error("cannot mount the BPF file system at {}: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },

    #[error("cannot {call} {}: {source}", path.display())]
    Directory {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// A map that is pinned already is not the one that the programs need.
    #[error(
        "the map pinned at {} has {what} {found}, but {wanted} is needed; \
         `netfw down --instance {instance}` removes it, and all flows with it",
        path.display()
    )]
    IncompatibleMap {
        path: PathBuf,
        what: &'static str,
        found: String,
        wanted: String,
        instance: String,
    },

    /// The size of a table is that of its making.
    #[error(
        "{option} = {wanted}, but the table in use was made for {found} flows and keeps its size \
         while it is pinned: set {option} = {found}, or `netfw down --instance {instance}` removes \
         it, and all flows with it"
    )]
    FlowRoom {
        option: &'static str,
        found: u32,
        wanted: u32,
        instance: String,
    },

    /// Two data planes on one interface would both translate.
    #[error(
        "the data plane of {} netfw is in use ({}; this netfw has layout v{own}), and its flows cannot be \
         taken over: {}`netfw down --instance {instance}` removes it, and all flows with it",
        if *newer { "a newer" } else { "a much older" },
        path.display(),
        if *newer { "install that one again, or " } else { "" }
    )]
    OtherLayout {
        path: PathBuf,
        own: u32,
        newer: bool,
        instance: String,
    },

    #[error("cannot read what is pinned at {}: {source}", path.display())]
    Pinned { path: PathBuf, source: io::Error },

    #[error("cannot pin {}: {source}", path.display())]
    Pin { path: PathBuf, source: PinError },

    #[error("cannot load the data plane's object: {source}")]
    Object { source: Box<EbpfError> },

    /// The log has all of what the verifier said.
    #[error("cannot load program {program}: {reason}")]
    Load {
        program: &'static str,
        reason: String,
    },

    #[error("the data plane's object lacks {kind} {name}: netfw was built wrongly")]
    Lacks {
        kind: &'static str,
        name: &'static str,
    },

    #[error("there is no interface {name} of index {ifindex}: it is gone")]
    NoInterface { name: String, ifindex: u32 },

    #[error("cannot attach {program} to {interface}: {source}")]
    Attach {
        program: &'static str,
        interface: String,
        source: Box<ProgramError>,
    },

    /// `why` is the kernel's error in words, or empty.
    #[error("{}{source}", if why.is_empty() { String::new() } else { format!("{why}: ") })]
    AttachXdp {
        interface: String,
        mode: super::XdpMode,
        why: &'static str,
        source: io::Error,
    },

    /// It was asked before, and would say the same.
    #[error("{program} could not be loaded: {reason}")]
    Refused {
        program: &'static str,
        reason: String,
    },

    #[error(transparent)]
    Look { source: crate::net::NetError },

    #[error("cannot ask for the programs on {interface}: {source}")]
    Query {
        interface: String,
        source: Box<ProgramError>,
    },

    #[error("cannot pin {}: {source}", path.display())]
    PinLink { path: PathBuf, source: io::Error },

    #[error("cannot attach {program} to the cgroup at {}: {source}", path.display())]
    AttachCgroup {
        program: &'static str,
        path: PathBuf,
        source: Box<ProgramError>,
    },

    #[error("cannot attach {program} to this network namespace: {source}")]
    AttachLookup {
        program: &'static str,
        source: Box<ProgramError>,
    },

    #[error("no cgroup v2 hierarchy is mounted (`mount -t cgroup2 none /sys/fs/cgroup`)")]
    NoCgroup,

    #[error("cannot tell how many CPUs there are ({path}): {source}")]
    Cpus {
        path: &'static str,
        source: io::Error,
    },

    #[error("cannot tell this network namespace's cookie: {source}")]
    Cookie { source: io::Error },

    #[error("cannot attach {program} to {interface}: clsact queueing discipline: {source}")]
    Clsact {
        program: &'static str,
        interface: String,
        source: TcError,
    },

    #[error("cannot detach {program} from the interface of index {ifindex}: {source}")]
    Detach {
        program: &'static str,
        ifindex: u32,
        source: io::Error,
    },

    #[error(transparent)]
    RemoveClsact { source: crate::net::NetError },

    #[error("map {map} is full: {asked} more do not fit, it holds {max} entries")]
    Full {
        map: &'static str,
        asked: usize,
        max: u32,
    },

    #[error("cannot {call} map {map}: {source}")]
    Map {
        call: &'static str,
        map: &'static str,
        source: MapError,
    },

    #[error("cannot {call} map VETHS: {source}")]
    Veths {
        call: &'static str,
        source: Box<aya::maps::xdp::XdpMapError>,
    },

    #[error("cannot have the kernel measure programs: {source}")]
    Stats { source: io::Error },

    #[error("cannot read the programs' log: {source}")]
    Log { source: aya_log::Error },
}

impl BpfError {
    pub(super) fn map(map: &'static str, call: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { call, map, source }
    }

    /// The usual reasons why nothing at all can be loaded get words of their own.
    pub(super) fn object(source: EbpfError) -> Self {
        match root_errno(&source) {
            Some(nix::libc::EPERM | nix::libc::EACCES) if !nix::unistd::geteuid().is_root() => {
                Self::NotPermitted
            }
            Some(nix::libc::ENOSYS) => Self::NoBpf,
            _ => Self::Object {
                source: Box::new(source),
            },
        }
    }
}

/// The error number at the bottom of an error, if one is.
/// The kernel takes it not.
pub(super) fn refused(program: &'static str, error: &ProgramError) -> BpfError {
    let words = crate::chain(error);
    tracing::debug!(program, "not loaded: {words}");
    BpfError::Load {
        program,
        reason: match root_errno(error) {
            Some(libc::EPERM) => {
                "the kernel does not permit it (EPERM): it takes CAP_SYS_ADMIN, and no lockdown or security module \
                 that keeps root from bpf(2)"
                    .into()
            }
            _ => in_short(&words),
        },
    }
}

/// Of an error that may hold the verifier's log, thousands of lines: what the kernel said, and the log's last
/// words, which say why.
pub(super) fn in_short(text: &str) -> String {
    let (said, log) = text.split_once("Verifier output:").unwrap_or((text, ""));
    let said = said.lines().next().unwrap_or_default().trim();
    let numbers = ["processed ", "verification time ", "stack depth "];
    let telling = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !numbers.iter().any(|number| line.starts_with(number)));
    let telling: Vec<&str> = telling.collect();
    match &telling[telling.len().saturating_sub(2)..] {
        [] => said.into(),
        last => format!("{} (… {})", said.trim_end_matches('.'), last.join(" / ")),
    }
}

pub(super) fn root_errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        if let Some(netlink) = error.downcast_ref::<aya::sys::NetlinkError>() {
            return netlink.raw_os_error();
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_verifiers_log_the_last_words_are_told() {
        let log = "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: \
                   0: R1=ctx()\n1: (85) call unknown#4242\ninvalid func unknown#4242\n\
                   verification time 17 usec\nstack depth 0\nprocessed 2 insns (limit 1000000)\n";
        assert_eq!(
            in_short(log),
            "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22) (… 1: (85) call unknown#4242 / invalid \
             func unknown#4242)"
        );
        assert_eq!(in_short("no\n0: R1=ctx\n1: …"), "no");
        assert_eq!(in_short(""), "");
    }
}
