//! Being told when links, addresses or routes of the node change.
//!
//! The monitor says only *what kind* of thing changed, and on which interfaces ([`Touched`]): the reader
//! looks at the present state anyway, since more may have happened meanwhile. Changes of one kind that came before anybody asked are
//! one change. Where the kernel had to throw messages away (`ENOBUFS`), the answer is
//! [`Change::Lost`]: look at everything again.

use std::{collections::BTreeSet, io};

use nix::libc;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

use super::NetError;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    Links,
    Addresses,
    /// Routes, next hops or routing rules.
    Routes,
    /// A neighbour is gone, cannot be reached, or has been heard of.
    Neighbours,
    /// A traffic filter or queueing discipline was removed.
    Filters,
    /// Forwarding was switched off on an interface.
    Forwarding,
    /// Some messages were lost, of whatever kind; or the socket failed.
    Lost,
}

/// The indexes of interfaces to which something happened.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Touched {
    /// Made or changed.
    pub links: BTreeSet<u32>,
    /// Deleted, or moved to another namespace.
    pub gone: BTreeSet<u32>,
    /// Given an address, or one was taken.
    pub addresses: BTreeSet<u32>,
    /// Of those made or changed, those that are down.
    pub down: BTreeSet<u32>,
    /// Taken out of their bridge.
    pub left: BTreeSet<u32>,
    /// They forward no more, in either family.
    pub unforwarded: BTreeSet<u32>,
    /// A traffic filter or queueing discipline was taken off.
    pub unfiltered: BTreeSet<u32>,
}

/// Changes of the namespace in which it was made.
pub struct Monitor {
    socket: TokioSocket,
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    links: bool,
    addresses: bool,
    routes: bool,
    neighbours: bool,
    filters: bool,
    forwarding: bool,
    touched: Touched,
}

impl Monitor {
    /// In the calling thread's namespace. Needs a tokio runtime.
    pub fn current() -> Result<Self, NetError> {
        let asked = "watch the node's interfaces";
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(NetError::NoRuntime {
                asked: asked.into(),
            });
        }
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let groups = [
                libc::RTNLGRP_LINK,
                libc::RTNLGRP_IPV4_IFADDR,
                libc::RTNLGRP_IPV6_IFADDR,
                libc::RTNLGRP_IPV4_ROUTE,
                libc::RTNLGRP_IPV6_ROUTE,
                libc::RTNLGRP_IPV4_RULE,
                libc::RTNLGRP_IPV6_RULE,
                libc::RTNLGRP_NEIGH,
                libc::RTNLGRP_TC,
                RTNLGRP_IPV4_NETCONF,
                RTNLGRP_IPV6_NETCONF,
                RTNLGRP_NEXTHOP,
            ];
            let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
            socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(NetError::system(asked))?,
            pending: Pending::default(),
        })
    }

    /// The next change. May be dropped at any time without losing one.
    pub async fn changed(&mut self) -> Change {
        loop {
            if let Some(change) = self.pending.take() {
                return change;
            }
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) => self.pending.note(&bytes),
                // ENOBUFS is the usual one; after any other the state is as unknown. The pause
                // keeps a socket that fails for good from being asked in a tight loop.
                Err(error) => {
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        tracing::warn!(%error, "watching the node's interfaces");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                    self.pending = Pending::default();
                    return Change::Lost;
                }
            }
        }
    }

    /// Those of [`Touched::unfiltered`] alone, once.
    pub fn unfiltered(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.pending.touched.unfiltered)
    }

    /// Those of [`Touched::unforwarded`] alone, once.
    pub fn unforwarded(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.pending.touched.unforwarded)
    }

    /// What has been touched since this was last asked, [`Change::Lost`] aside.
    pub fn touched(&mut self) -> Touched {
        std::mem::take(&mut self.pending.touched)
    }
}

impl Pending {
    fn take(&mut self) -> Option<Change> {
        for (flag, change) in [
            (&mut self.filters, Change::Filters),
            (&mut self.forwarding, Change::Forwarding),
            (&mut self.links, Change::Links),
            (&mut self.addresses, Change::Addresses),
            (&mut self.routes, Change::Routes),
            (&mut self.neighbours, Change::Neighbours),
        ] {
            if std::mem::take(flag) {
                return Some(change);
            }
        }
        None
    }

    /// Notes the kinds of all messages in a datagram. Of most, only headers are read: length (u32,
    /// with header, host order), then type (u16); messages begin at multiples of 4.
    fn note(&mut self, mut bytes: &[u8]) {
        while let Some((header, rest)) = bytes.split_first_chunk::<16>() {
            let [l0, l1, l2, l3, t0, t1, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            match u16::from_ne_bytes([t0, t1]) {
                libc::RTM_NEWLINK => {
                    self.links = true;
                    self.touched.links.extend(index(rest));
                    // As it was last.
                    match (index(rest), is_up(rest)) {
                        (Some(index), true) => drop(self.touched.down.remove(&index)),
                        (index, _) => self.touched.down.extend(index),
                    }
                }
                // Of family AF_BRIDGE: a port has left its bridge.
                libc::RTM_DELLINK if rest.first() == Some(&AF_BRIDGE) => {
                    self.links = true;
                    self.touched.links.extend(index(rest));
                    self.touched.left.extend(index(rest));
                }
                libc::RTM_DELLINK => {
                    self.links = true;
                    self.touched.gone.extend(index(rest));
                }
                libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                    self.addresses = true;
                    self.touched.addresses.extend(index(rest));
                }
                libc::RTM_NEWROUTE
                | libc::RTM_DELROUTE
                | libc::RTM_NEWRULE
                | libc::RTM_DELRULE
                | RTM_NEWNEXTHOP
                | RTM_DELNEXTHOP => self.routes = true,
                kind @ (libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH) => {
                    self.neighbours |= matters(kind, rest);
                }
                libc::RTM_DELQDISC | libc::RTM_DELTFILTER => {
                    self.filters = true;
                    self.touched.unfiltered.extend(index(rest));
                }
                RTM_NEWNETCONF => {
                    let end = length.saturating_sub(header.len()).min(rest.len());
                    if let Some(index) = unforwarded(&rest[..end]) {
                        self.forwarding = true;
                        self.touched.unforwarded.insert(index);
                    }
                }
                _ => {}
            }
            let next = length.max(header.len()).next_multiple_of(4);
            bytes = bytes.get(next..).unwrap_or_default();
        }
    }
}

/// The interface that a message is about: `struct ifinfomsg`, `ifaddrmsg` and `tcmsg` all have its index
/// at 4 (int, host order).
fn index(payload: &[u8]) -> Option<u32> {
    let bytes = payload.get(4..8)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// `struct ifinfomsg`: flags at 8 (u32, host order).
fn is_up(payload: &[u8]) -> bool {
    let flags = payload.get(8..12).and_then(|bytes| bytes.first_chunk());
    flags.is_some_and(|flags| u32::from_ne_bytes(*flags) & libc::IFF_UP as u32 != 0)
}

/// The interface that forwards no more, if the message is about one: `struct netconfmsg`, a byte, and
/// attributes from 4 on.
fn unforwarded(payload: &[u8]) -> Option<u32> {
    let (mut index, mut off) = (None, false);
    let mut rest = payload.get(4..)?;
    // Length (u16, with these four bytes), kind (u16), value (i32); all in host order.
    while let Some(&[l0, l1, k0, k1]) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4);
        let value = rest.get(4..8).and_then(|bytes| bytes.first_chunk());
        match (u16::from_ne_bytes([k0, k1]), value) {
            (NETCONFA_IFINDEX, Some(value)) => index = Some(i32::from_ne_bytes(*value)),
            (NETCONFA_FORWARDING, Some(value)) => off = i32::from_ne_bytes(*value) == 0,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    // Negative ones are `all` and `default`.
    index
        .and_then(|index| u32::try_from(index).ok())
        .filter(|_| off)
}

const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// Can the MAC address have changed by which somebody is reached? `struct ndmsg`: the family first,
/// the state at 8 (u16, host order).
fn matters(kind: u16, neighbour: &[u8]) -> bool {
    let Some(head) = neighbour.first_chunk::<12>() else {
        return false;
    };
    let state = u16::from_ne_bytes([head[8], head[9]]);
    // Other families are the MAC tables of bridges.
    matches!(i32::from(head[0]), libc::AF_INET | libc::AF_INET6)
        // Those in which the kernel only asks, with the address as it was.
        && (kind == libc::RTM_DELNEIGH
            || state & (libc::NUD_INCOMPLETE | libc::NUD_DELAY | libc::NUD_PROBE) == 0)
}

// linux/rtnetlink.h and linux/netconf.h; libc lacks them.
const RTM_NEWNETCONF: u16 = 80;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;

// linux/rtnetlink.h, since Linux 5.3; libc lacks them.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTNLGRP_NEXTHOP: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; (16 + payload).next_multiple_of(4)];
        bytes[..4].copy_from_slice(&(16 + payload as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn changes_coalesce() {
        let mut pending = Pending::default();
        let bytes = [
            message(libc::RTM_NEWROUTE, 13),
            message(libc::RTM_DELLINK, 32),
            message(libc::RTM_NEWLINK, 0),
        ]
        .concat();
        pending.note(&bytes);
        assert_eq!(pending.take(), Some(Change::Links));
        assert_eq!(pending.take(), Some(Change::Routes));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn a_neighbour_matters_when_its_address_may_be_another() {
        for (kind, family, state, want) in [
            (libc::RTM_DELNEIGH, libc::AF_INET, libc::NUD_STALE, true),
            (libc::RTM_NEWNEIGH, libc::AF_INET6, libc::NUD_FAILED, true),
            (libc::RTM_NEWNEIGH, libc::AF_INET, libc::NUD_REACHABLE, true),
            (libc::RTM_NEWNEIGH, libc::AF_INET, libc::NUD_PROBE, false),
            (
                libc::RTM_NEWNEIGH,
                libc::AF_BRIDGE,
                libc::NUD_REACHABLE,
                false,
            ),
        ] {
            let mut bytes = message(kind, 12);
            bytes[16] = family as u8;
            bytes[24..26].copy_from_slice(&state.to_ne_bytes());
            let mut pending = Pending::default();
            pending.note(&bytes);
            assert_eq!(pending.neighbours, want, "{kind} {family} {state}");
        }
    }

    #[test]
    fn what_is_touched_is_named() {
        let mut pending = Pending::default();
        for (kind, family, index) in [
            (libc::RTM_NEWTFILTER, 0, 3u32),
            (libc::RTM_DELTFILTER, 0, 300),
            (libc::RTM_DELQDISC, 0, 7),
            (libc::RTM_NEWLINK, 0, 4),
            (libc::RTM_DELLINK, 0, 5),
            (libc::RTM_DELLINK, AF_BRIDGE, 6),
            (libc::RTM_DELADDR, libc::AF_INET as u8, 8),
        ] {
            let mut bytes = message(kind, 20);
            bytes[16] = family;
            bytes[20..24].copy_from_slice(&index.to_ne_bytes());
            pending.note(&bytes);
        }
        for change in [Change::Filters, Change::Links, Change::Addresses] {
            assert_eq!(pending.take(), Some(change));
        }
        assert_eq!(pending.take(), None);
        let want = Touched {
            links: [4, 6].into(),
            gone: [5].into(),
            addresses: [8].into(),
            down: [4].into(),
            left: [6].into(),
            unforwarded: [].into(),
            unfiltered: [7, 300].into(),
        };
        assert_eq!(pending.touched, want);
        // It comes up.
        let mut bytes = message(libc::RTM_NEWLINK, 20);
        bytes[20..24].copy_from_slice(&4u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        pending.note(&bytes);
        assert_eq!(pending.touched.down, [].into());
    }

    #[test]
    fn who_forwards_no_more_is_named() {
        for (attributes, want) in [
            (&[(1u16, 7i32), (2, 0)][..], Some(7)),
            (&[(2, 0), (1, 7)], Some(7)),
            (&[(1, 7), (2, 1)], None),
            (&[(1, 7), (3, 0)], None),
            (&[(1, -1), (2, 0)], None),
            (&[(2, 0)], None),
        ] {
            let mut bytes = message(RTM_NEWNETCONF, 4 + 8 * attributes.len());
            for ((kind, value), at) in attributes.iter().zip((20..).step_by(8)) {
                bytes[at..at + 2].copy_from_slice(&8u16.to_ne_bytes());
                bytes[at + 2..at + 4].copy_from_slice(&kind.to_ne_bytes());
                bytes[at + 4..at + 8].copy_from_slice(&value.to_ne_bytes());
            }
            let mut pending = Pending::default();
            pending.note(&bytes);
            let changed = want.map(|_| Change::Forwarding);
            assert_eq!(pending.take(), changed, "{attributes:?}");
            assert_eq!(pending.touched.unforwarded, want.into_iter().collect());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            Pending::default().note(&bytes);
        }
    }
}
