//! Sockets of the node's own processes that asked for a publish and were connected to its container:
//! maps `SOCKETS4` and `SOCKETS6`, which the programs write.

use std::{collections::HashSet, net::SocketAddr};

use netfw_common::{
    addr::{Ip4, Ip6},
    record::SocketPeer,
};

use super::{BpfError, DataPlane, Family};

/// A socket, by its cookie (`SO_COOKIE`), and the container's address and port that it speaks to.
pub type Connected = (u64, SocketAddr);

impl DataPlane {
    /// The sockets of which `is_meant` says so, by the container's address and port, and by those that
    /// were asked for. Many may be closed already, and protocols are not told apart.
    pub fn sockets(
        &self,
        is_meant: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> Result<HashSet<Connected>, BpfError> {
        let mut found = self.sockets_of::<Ip4>(&is_meant)?;
        found.extend(self.sockets_of::<Ip6>(&is_meant)?);
        Ok(found)
    }

    fn sockets_of<A: Family>(
        &self,
        is_meant: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> Result<HashSet<Connected>, BpfError> {
        let entries = A::maps(&self.maps).sockets.entries()?;
        let connected = entries.into_iter().filter_map(|(key, asked)| {
            let container = socket_addr(&key.peer);
            let [low, high] = key.cookie.map(u64::from);
            is_meant(container, socket_addr(&asked)).then_some((low | high << 32, container))
        });
        Ok(connected.collect())
    }
}

fn socket_addr<A: Family>(peer: &SocketPeer<A>) -> SocketAddr {
    SocketAddr::new(peer.addr.ip(), peer.port.get())
}
