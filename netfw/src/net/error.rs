//! What can go wrong with the node's network, with the facts.
//!
//! A message names what was asked and what is in the way; where there is something to do about it,
//! it says that too. Callers match on variants and on [`NetError::errno`], never on words.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// An error of [`crate::net`].
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error(
        "there is no network namespace {name}: /run/netns/{name} does not exist \
         (`ip netns add {name}` makes it)"
    )]
    NoNamespace { name: String },

    #[error("network namespace {name} exists already: /run/netns/{name} is there")]
    NamespaceExists { name: String },

    #[error("{name:?} cannot be the name of a network namespace: {reason}")]
    BadNamespaceName { name: String, reason: &'static str },

    #[error("{} does not exist, so it is no network namespace", path.display())]
    NoSuchPath { path: PathBuf },

    #[error("{} is not a network namespace: {found}", path.display())]
    NotANamespace { path: PathBuf, found: &'static str },

    #[error("there is no process {pid}, so its network namespace cannot be used")]
    NoProcess { pid: u32 },

    #[error(
        "{} may not be opened, by root neither: it is that of a process outside of the container or user namespace \
         that netfw runs in, or is protected otherwise; name another namespace",
        path.display()
    )]
    Protected { path: PathBuf },

    #[error("{key:?} is not a sysctl: keys are paths below /proc/sys, such as net/ipv4/ip_forward")]
    BadSysctl { key: String },

    /// What is mounted there would be seen by nobody else, and go with the last of our processes.
    #[error(
        "{} is hidden in here from the rest of the machine (a mount namespace of its own, as \
         `ip netns exec` makes one), so what netfw keeps there would not outlive it: start netfw \
         outside of it, and name the node's namespace with `--netns {}`",
        path.display(), netns.as_deref().unwrap_or("NAME")
    )]
    PrivateMounts {
        path: PathBuf,
        netns: Option<String>,
    },

    /// The kernel refused a netlink request.
    #[error("cannot {asked}: {source}{}", advice(source))]
    Netlink { asked: String, source: io::Error },

    /// A system call failed.
    #[error("cannot {asked}: {source}{}", advice(source))]
    System { asked: String, source: io::Error },

    #[error("cannot {asked}: the kernel's answer makes no sense ({found})")]
    Answer { asked: String, found: String },

    #[error("cannot {asked}: a netlink socket needs a tokio runtime")]
    NoRuntime { asked: String },
}

impl NetError {
    pub(super) fn system(asked: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let asked = asked.into();
        move |source| Self::System { asked, source }
    }

    pub(super) fn errno_of(asked: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let asked = asked.into();
        move |errno| Self::System {
            asked,
            source: errno.into(),
        }
    }

    /// What rtnetlink reports, with what was asked of it.
    pub(super) fn netlink(asked: impl Into<String>, error: rtnetlink::Error) -> Self {
        let asked = asked.into();
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Netlink {
                asked,
                source: message.to_io(),
            },
            rtnetlink::Error::RequestFailed => Self::Netlink {
                asked,
                source: io::ErrorKind::BrokenPipe.into(),
            },
            other => Self::Answer {
                asked,
                found: other.to_string(),
            },
        }
    }

    /// The kernel's error number, where one is behind the error.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } | Self::System { source, .. } => {
                source.raw_os_error().map(Errno::from_raw)
            }
            _ => None,
        }
    }

    /// Is it only that what was asked for is not there (any more)?
    pub fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::NoNamespace { .. } | Self::NoSuchPath { .. } | Self::NoProcess { .. }
        ) || matches!(
            self.errno(),
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ENXIO | Errno::EADDRNOTAVAIL)
        )
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => " (this needs root: CAP_NET_ADMIN and CAP_SYS_ADMIN)",
        _ => "",
    }
}
