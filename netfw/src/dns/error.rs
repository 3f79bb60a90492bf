//! What can go wrong with serving names, with the facts.

use std::{io, net::IpAddr};

use crate::{bpf::BpfError, name::Name};

/// An error of [`crate::dns`]: one gateway address is not served. Others are.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("network {network} has no names at {gateway}: cannot {call}: {source}")]
    Socket {
        network: Name,
        gateway: IpAddr,
        call: &'static str,
        source: io::Error,
    },

    #[error("network {network} has no names at {gateway}: {source}")]
    Lookup {
        network: Name,
        gateway: IpAddr,
        source: Box<BpfError>,
    },
}
