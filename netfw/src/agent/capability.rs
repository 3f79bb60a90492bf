//! What root may do, and the agent does not need: given up for good, before there are other threads.
//!
//! Whoever takes the agent over by a fault in it then has no more than these. They are much all the same:
//! `CAP_SYS_ADMIN`, which entering a namespace takes, is next to root. The commands that work without an
//! agent (`down`, `exec`, `demo`) keep what they are started with.

use std::collections::HashSet;

use caps::{CapSet, Capability, errors::CapsError};
use nix::{errno::Errno, sys::prctl};

/// What the agent keeps, and what it is for.
pub const NEEDED: [(Capability, &str); 7] = [
    (
        Capability::CAP_SYS_ADMIN,
        "entering and naming network namespaces, bpffs, programs and maps",
    ),
    (
        Capability::CAP_NET_ADMIN,
        "interfaces, addresses, routes, filters, /proc/sys/net",
    ),
    (
        Capability::CAP_NET_RAW,
        "answers of name servers from an address and port that others may have",
    ),
    (
        Capability::CAP_NET_BIND_SERVICE,
        "name servers at port 53, where the kernel takes no program that hands them what comes there",
    ),
    (
        Capability::CAP_SYS_PTRACE,
        "namespaces of other users' processes, and who holds a port",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "namespaces below other users' directories, and who holds a port",
    ),
    (Capability::CAP_CHOWN, "the socket's group (socket_group)"),
];

#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    #[error(
        "the agent needs {capability}, for {purpose}: start it with that too (CapabilityBoundingSet= of a unit, \
         a container's capabilities)"
    )]
    Missing {
        capability: Capability,
        purpose: &'static str,
    },
    #[error("the {set:?} capabilities cannot be {what}: {source}")]
    Set {
        what: &'static str,
        set: CapSet,
        source: CapsError,
    },
    #[error("set PR_SET_NO_NEW_PRIVS: {0}")]
    NoNewPrivileges(Errno),
}

/// Gives up all but [`NEEDED`], for this thread and those that it starts. Fails, with nothing given up,
/// where one of them is not there.
pub fn keep_needed() -> Result<(), CapabilityError> {
    let read = |set| {
        let read = caps::read(None, set);
        read.map_err(|source| CapabilityError::Set {
            what: "read",
            set,
            source,
        })
    };
    if let Some((capability, purpose)) = missing(&read(CapSet::Permitted)?) {
        return Err(CapabilityError::Missing {
            capability,
            purpose,
        });
    }
    let changed = |set| {
        move |source| CapabilityError::Set {
            what: "given up",
            set,
            source,
        }
    };
    let needed: HashSet<Capability> = NEEDED.map(|(capability, _)| capability).into();
    // Before CAP_SETPCAP is given up, which it takes; systemd may have done it already.
    for capability in read(CapSet::Bounding)?.difference(&needed) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(changed(CapSet::Bounding))?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(changed(CapSet::Inheritable))?;
    // In this order: what is effective must be permitted.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &needed).map_err(changed(set))?;
    }
    prctl::set_no_new_privs().map_err(CapabilityError::NoNewPrivileges)
}

fn missing(permitted: &HashSet<Capability>) -> Option<(Capability, &'static str)> {
    let mut needed = NEEDED.into_iter();
    needed.find(|(capability, _)| !permitted.contains(capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_missing_is_named() {
        let mut permitted: HashSet<Capability> = NEEDED.map(|(capability, _)| capability).into();
        permitted.insert(Capability::CAP_SETPCAP);
        assert_eq!(missing(&permitted), None);
        permitted.remove(&Capability::CAP_NET_RAW);
        let (capability, purpose) = missing(&permitted).unwrap();
        let error = CapabilityError::Missing {
            capability,
            purpose,
        };
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    }

    #[test]
    fn the_unit_and_the_documentation_name_the_same_set() {
        let unit = include_str!("../../../packaging/netfw.service");
        let bounding: HashSet<&str> = unit
            .lines()
            .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            .flat_map(str::split_whitespace)
            .collect();
        let names = NEEDED.map(|(capability, _)| capability.to_string());
        assert_eq!(bounding, names.iter().map(String::as_str).collect());
        let page = include_str!("../../../docs/packaging.md");
        let table: HashSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next())
            .collect();
        let tails = names.iter().map(|name| name.trim_start_matches("CAP_"));
        assert_eq!(table, tails.collect());
    }
}
