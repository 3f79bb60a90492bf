//! What somebody who listens is told of single packets: the events, and who wants which.
//!
//! `netfw monitor` asks for drops, `netfw trace` for whatever the programs decide. Each of them has a
//! [`Filter`], and the programs send an event where one of them wants it, so often and no more.

use crate::{
    addr::{Be16, Be32, Ip6},
    drop::Drop,
    named::named,
};

/// Filters that there is room for: monitors and traces at a time.
pub const FILTERS: u32 = 16;

/// Bytes of the ring buffer `EVENTS`.
pub const RING: u32 = 1 << 18;

/// Source and destination. 36 bytes.
///
/// Addresses of IPv4 are mapped ones. Of an echo request the identifier is the source's port, of a reply
/// the destination's, as in a [`crate::tuple::Tuple`]; 0 where there are none.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ends {
    pub src: Ip6,
    pub dst: Ip6,
    pub sport: Be16,
    pub dport: Be16,
}

/// A packet at one program, and what came of it there. Ring buffer `EVENTS`; 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// As it was received.
    pub before: Ends,
    /// As it went on.
    pub after: Ends,
    /// The interface of the hook; 0: a socket's.
    pub ifindex: u32,
    /// The interface that it was sent to, or 0.
    pub to: u32,
    /// Bytes of the IP packet; where that cannot be read, of the frame.
    pub len: u32,
    /// Index into `COUNTERS` of the endpoint that has part in it, or 0: not known.
    pub endpoint: u32,
    /// A bit for each filter that wants it.
    pub filters: u32,
    /// Index into `COUNTERS` of the flow that it belongs to.
    pub counter: u16,
    /// Of the Ethernet header.
    pub ethertype: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Of ICMP.
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// One of [`Hook`].
    pub hook: u8,
    /// One of [`Action`].
    pub action: u8,
    /// Of what was dropped, the [`Drop`].
    pub reason: u8,
    /// One of [`Why`]: of what was not.
    pub why: u8,
    /// [`crate::flow::flag`] of the flow, and its [`crate::flow::state`].
    pub flow: u8,
    pub state: u8,
    /// Not 0 in what a trace is told.
    pub traced: u8,
    pub reserved: [u8; 14],
}

const _: () = assert!(size_of::<Ends>() == 36 && size_of::<Event>() == 128);

named! {
    /// Where a packet was.
    pub enum Hook: u8 {
        /// XDP of an uplink.
        Xdp = 1, "xdp";
        /// TC ingress of an uplink.
        Uplink = 2, "uplink";
        /// TC ingress of an uplink without Ethernet.
        Tunnel = 3, "tunnel";
        /// What a container sends: TC ingress of the host side of its veth pair.
        Container = 4, "container";
        /// TC egress of an uplink.
        Guard = 5, "guard";
        /// A process of the node calls connect(2).
        Connect = 6, "connect";
        /// A process of the node sends a datagram.
        Send = 7, "send";
    }
}

named! {
    /// What a program did with a packet.
    pub enum Action: u8 {
        /// handed on to other programs and the node's stack
        Pass = 0, "pass";
        /// dropped
        Drop = 1, "drop";
        /// dropped, and its sender told by ICMP
        Answer = 2, "answer";
        /// kept until the first fragment of its datagram comes
        Hold = 3, "hold";
        /// sent into a container
        Container = 4, "container";
        /// sent out
        Out = 5, "out";
        /// received once more, without the tag that names no VLAN
        Again = 6, "again";
        /// the socket is connected to the container itself
        Connected = 7, "connected";
    }
}

named! {
    /// Why a program did with a packet what it did.
    pub enum Why: u8 {
        /// no flow, and nothing that netfw translates
        NotOurs = 0, "not-ours";
        /// it belongs to a flow
        Known = 1, "known-flow";
        /// it made a flow
        New = 2, "new-flow";
        /// it speaks of a packet of a flow
        Related = 3, "related";
        /// the container is of the same network
        Neighbour = 4, "neighbour";
        /// translated by netfw, and looked at before
        Vouched = 5, "translated";
        /// XDP leaves it to TC
        Left = 6, "left-to-tc";
        /// a socket of the node waits for it
        Socket = 7, "socket";
        /// it is not addressed to this interface, or is part of a VLAN
        NotForUs = 8, "not-for-us";
        /// the interface is not served
        Closed = 9, "closed";
        /// the port is published
        Published = 10, "published";
        /// not from a container's own address
        NoLeak = 11, "no-leak";
    }
}

/// One side of a tuple that somebody wants to see. 36 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Side {
    pub addr: Ip6,
    /// The bits of the address that count.
    pub mask: Ip6,
    pub port: Be16,
    /// Those of the port: all or none.
    pub port_mask: u16,
}

/// What somebody wants to see; all of it must hold. Map `FILTERS`: array. 104 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Filter {
    /// A bit for each [`Drop`].
    pub reasons: u64,
    pub from: Side,
    pub to: Side,
    /// Index into `COUNTERS`; 0: any.
    pub endpoint: u32,
    /// Events in a tick at most.
    pub rate: u32,
    /// The tick of the last event, and how many there were in it. The programs write these.
    pub tick: u32,
    pub sent: u32,
    pub proto: u8,
    /// The bits of the protocol that count: all or none.
    pub proto_mask: u8,
    /// One of [`wants`].
    pub wants: u8,
    pub reserved: [u8; 5],
}

const _: () = assert!(size_of::<Side>() == 36 && size_of::<Filter>() == 104);

/// Values of [`Filter::wants`].
pub mod wants {
    /// Nobody's filter.
    pub const NOTHING: u8 = 0;
    /// Packets that are dropped.
    pub const DROPS: u8 = 1;
    /// Whatever becomes of packets, in programs that trace.
    pub const TRACES: u8 = 2;
}

/// The bits in which two addresses differ, of those that count.
#[inline(always)]
fn differs(a: &Ip6, b: &Ip6, mask: &Ip6) -> u32 {
    let word = |n: usize| (a.0[n].wire() ^ b.0[n].wire()) & mask.0[n].wire();
    word(0) | word(1) | word(2) | word(3)
}

impl Side {
    /// Any address, any port.
    pub const ANY: Self = Self {
        addr: Ip6([Be32::new(0); 4]),
        mask: Ip6([Be32::new(0); 4]),
        port: Be16::new(0),
        port_mask: 0,
    };

    /// Not 0 where it is another one.
    #[inline(always)]
    fn differs(&self, addr: &Ip6, port: Be16) -> u32 {
        let ports = (self.port.wire() ^ port.wire()) & self.port_mask;
        differs(&self.addr, addr, &self.mask) | u32::from(ports)
    }
}

impl Filter {
    /// Every drop, however many.
    pub const ALL_DROPS: Self = Self {
        reasons: u64::MAX,
        from: Side::ANY,
        to: Side::ANY,
        endpoint: 0,
        rate: u32::MAX,
        tick: 0,
        sent: 0,
        proto: 0,
        proto_mask: 0,
        wants: wants::DROPS,
        reserved: [0; 5],
    };

    /// Are these the ends that are wanted? With `back`, those of what answers them.
    ///
    /// Out of line: no stack of the callers'.
    #[inline(never)]
    fn meets(&self, ends: &Ends, back: bool) -> bool {
        let (from, to) = if back {
            (&self.to, &self.from)
        } else {
            (&self.from, &self.to)
        };
        from.differs(&ends.src, ends.sport) | to.differs(&ends.dst, ends.dport) == 0
    }

    /// Does the filter's owner want this event? A trace also wants the tuple's other direction, on either
    /// side of a translation.
    #[inline(always)]
    pub fn suits(&self, event: &Event) -> bool {
        if (self.proto ^ event.proto) & self.proto_mask != 0
            || (self.endpoint != 0 && self.endpoint != event.endpoint)
        {
            return false;
        }
        match self.wants {
            wants::DROPS => {
                event.is_drop()
                    && self.reasons >> (event.reason & 63) & 1 != 0
                    && self.meets(&event.before, false)
            }
            wants::TRACES => {
                event.traced != 0
                    && (self.meets(&event.before, false)
                        || self.meets(&event.before, true)
                        || self.meets(&event.after, false)
                        || self.meets(&event.after, true))
            }
            _ => false,
        }
    }
}

impl Event {
    /// Was the packet dropped?
    #[inline(always)]
    pub fn is_drop(&self) -> bool {
        self.action == Action::Drop as u8 || self.action == Action::Answer as u8
    }

    /// Why it was dropped, if it was.
    pub fn drop(&self) -> Option<Drop> {
        self.is_drop()
            .then(|| Drop::of(self.reason.into()))
            .flatten()
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` over integers without padding, as the assertion of its size says.
    unsafe impl aya::Pod for super::Filter {}
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::{addr::Ip4, tuple::proto};

    fn addr(last: u8) -> Ip6 {
        Ip6::from_mapped(Ip4::from(Ipv4Addr::new(192, 0, 2, last)))
    }

    fn ends(src: u8, sport: u16, dst: u8, dport: u16) -> Ends {
        Ends {
            src: addr(src),
            dst: addr(dst),
            sport: Be16::new(sport),
            dport: Be16::new(dport),
        }
    }

    fn side(last: u8, port: u16) -> Side {
        Side {
            addr: addr(last),
            mask: Ip6([Be32::new(u32::MAX); 4]),
            port: Be16::new(port),
            port_mask: u16::MAX,
        }
    }

    fn drop_event(reason: Drop) -> Event {
        Event {
            before: ends(1, 1000, 2, 80),
            after: ends(1, 1000, 2, 80),
            endpoint: 7,
            proto: proto::TCP,
            action: Action::Drop as u8,
            reason: reason as u8,
            ..Event::default()
        }
    }

    #[test]
    fn a_filter_names_what_is_wanted() {
        let event = drop_event(Drop::Leak);
        let all = Filter::ALL_DROPS;
        let wanted = [
            all,
            Filter {
                reasons: 1 << Drop::Leak as u32,
                ..all
            },
            Filter { endpoint: 7, ..all },
            Filter {
                proto: proto::TCP,
                proto_mask: 0xff,
                ..all
            },
            Filter {
                from: side(1, 1000),
                to: side(2, 80),
                ..all
            },
        ];
        for filter in wanted {
            assert!(filter.suits(&event), "{filter:?}");
        }
        let others = [
            Filter {
                wants: wants::NOTHING,
                ..all
            },
            Filter {
                wants: wants::TRACES,
                ..all
            },
            Filter {
                reasons: !(1 << Drop::Leak as u32),
                ..all
            },
            Filter { endpoint: 8, ..all },
            Filter {
                proto: proto::UDP,
                proto_mask: 0xff,
                ..all
            },
            Filter {
                from: side(2, 80),
                to: side(1, 1000),
                ..all
            },
            Filter {
                from: side(1, 1001),
                ..all
            },
            Filter {
                from: side(3, 1000),
                ..all
            },
        ];
        for filter in others {
            assert!(!filter.suits(&event), "{filter:?}");
        }
        assert!(!all.suits(&Event {
            action: Action::Pass as u8,
            ..event
        }));
    }

    #[test]
    fn a_trace_follows_both_directions_on_both_sides() {
        let trace = Filter {
            wants: wants::TRACES,
            from: side(1, 1000),
            to: side(2, 80),
            ..Filter::ALL_DROPS
        };
        let (there, back) = (ends(1, 1000, 2, 80), ends(2, 80, 1, 1000));
        let elsewhere = ends(8, 8, 9, 9);
        let event = |before, after| Event {
            before,
            after,
            traced: 1,
            ..Event::default()
        };
        for wanted in [
            event(there, elsewhere),
            event(back, elsewhere),
            event(elsewhere, there),
            event(elsewhere, back),
        ] {
            assert!(trace.suits(&wanted), "{wanted:?}");
        }
        assert!(!trace.suits(&event(elsewhere, elsewhere)));
        assert!(!trace.suits(&Event {
            traced: 0,
            ..event(there, there)
        }));
    }

    #[test]
    fn numbers_have_names() {
        for hook in Hook::ALL {
            assert_eq!(Hook::of(*hook as u8), Some(*hook));
        }
        for action in Action::ALL {
            assert_eq!(Action::of(*action as u8), Some(*action));
        }
        for why in Why::ALL {
            assert_eq!(Why::of(*why as u8), Some(*why));
        }
        assert_eq!(Drop::of(u32::MAX), None);
    }
}
