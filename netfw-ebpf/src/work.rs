//! What is known of the packet at hand.
//!
//! It lies in a per-CPU map, not on the stack, for two reasons: the stack of a program and all it
//! calls is 512 bytes; and the verifier follows the values on the stack but not those in a map, so
//! that paths which differ in nothing but what they found (TCP or UDP, which header length, which
//! table) are one path to it from there on. Without this the programs exceed a million verified
//! instructions; with it they stay below a tenth of that, most of it the search for a port.
//!
//! A program's run owns its CPU's record: programs of this kind do not nest, and nothing in it but
//! [`Work::uplink`] is read before it was written in the same run.

use netfw_common::{
    addr::{Address, Be16},
    csum::fold,
    flow::{Flow, Segment},
    fragment::{FragmentKey, Units},
    record::{Mapping, MappingKey},
    tuple::{Tuple, proto},
};

use crate::{
    nat::answer::Header,
    parse::{Tcp, Udp},
};

/// What part of its datagram a packet is.
pub mod fragment {
    pub const NONE: u8 = 0;
    /// The one with the transport header.
    pub const FIRST: u8 = 1;
    pub const LATER: u8 = 2;

    /// By offset and "more fragments".
    #[inline(always)]
    pub fn kind(offset: u16, more: bool) -> u8 {
        match (offset, more) {
            (0, false) => NONE,
            (0, true) => FIRST,
            _ => LATER,
        }
    }
}

/// The container that a packet asks for at an address of the node, by a publish or a mapping.
#[repr(C)]
pub struct Target<A> {
    /// Its own address.
    pub addr: A,
    /// Index of the counter.
    pub counter: u32,
    pub port: Be16,
    /// Those of [`netfw_common::flow::flag`] that tell how it was found.
    pub flags: u8,
    /// It is a publish's, and the sender is none of those who may use it.
    pub refused: bool,
}

/// The MAC address of an uplink, kept as a flow keeps its way to the world: for the rest of the tick
/// in which it was looked up, or until the epoch is raised.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KeptUplink {
    pub ifindex: u32,
    pub now: u32,
    pub epoch: u16,
    /// In words, as they lie in memory.
    pub mac: [u16; 3],
}

/// The packet, what its flow does to it, and the flow while it is being made.
#[repr(C)]
pub struct Work<A> {
    /// The packet's tuple; without a transport header that netfw translates, ports are 0.
    pub key: Tuple<A>,
    /// Copy of the flow entry by which the packet goes.
    pub flow: Flow<A>,
    /// The reply half of a flow that is being made, and its key.
    pub reply: Flow<A>,
    pub reply_key: Tuple<A>,
    /// Source and destination of an ICMP error.
    pub outer: [A; 2],
    /// An ICMP error of our own.
    pub answer: Header,
    /// Is it of a kind that is sent so often and no more?
    pub limited: bool,
    /// Offsets from the start of the frame: of the packet that an ICMP error quotes, and of that
    /// one's transport header; see [`Work::quoted`].
    pub quote: u32,
    pub quote_l4: u32,
    /// TCP's and SCTP's numbers; of other protocols, whatever was there.
    pub segment: Segment,
    /// What names a fragment's datagram, and the hash of that.
    pub datagram: FragmentKey<A>,
    pub datagram_hash: u64,
    /// Which part of it the fragment is.
    pub units: Units,
    /// Copy of another entry that is to be judged: the flow's other half, or whoever holds a tuple.
    pub other: Flow<A>,
    /// The entry of a holder that has to give way, and the key of its other half.
    pub flow_of_holder: Flow<A>,
    pub holder_key: Tuple<A>,
    /// Whom the packet asks for.
    pub target: Target<A>,
    /// The sender's address as the world knows it.
    pub remote: A,
    /// The sides of an endpoint-independent mapping that is looked for, and one that is being made.
    pub internal_key: MappingKey<A>,
    pub external_key: MappingKey<A>,
    pub side: Mapping<A>,
    /// Names whoever may send to a mapping, see `PERMITS4`.
    pub permit: Tuple<A>,
    /// Of [`netfw_common::record::network_flag`]: what the sender's network says of mappings, or 0
    /// where the flow that is being made has no use for one.
    pub rules: u32,
    /// The sender's port as the world knows it, or 0.
    pub remote_port: Be16,
    /// That of the sender's mapping, if it has one.
    pub mapped_port: Be16,
    /// The uplink of the last packet that XDP saw here.
    pub uplink: KeptUplink,
    /// The tick of now.
    pub now: u32,
    /// Low bits of tick and epoch: ways to the world that were looked up in another are asked for
    /// again.
    pub epoch: u16,
    /// By how much the quote's sum changed, folded.
    pub quote_change: u16,
    /// A port that the flow which is being made could have if one that is over gave way; or 0.
    pub fallback: Be16,
    /// Bytes of the packet, network header included.
    pub len: u32,
    /// Offset of the transport header from the start of the frame; see [`Work::transport`].
    pub l4: u32,
    /// Hash of the internal endpoint, see [`netfw_common::port`].
    pub hash: u32,
    /// Names the datagram that a fragment is part of, among those of its source and destination.
    pub id: u32,
    /// Offset, from the start of the frame, of what a fragment holds of its datagram.
    pub fragment_at: u32,
    /// Where that belongs in the datagram.
    pub fragment_offset: u16,
    /// One of [`fragment`].
    pub fragment: u8,
    pub more_fragments: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// TCP's flags, or what SCTP's chunk comes to; else 0.
    pub flags: u8,
    /// May it open a flow: a TCP SYN, an SCTP INIT, an ICMP echo request, any packet of UDP or of a
    /// protocol without ports?
    pub opens: bool,
    /// Has it a transport header that netfw translates?
    pub translatable: bool,
    /// It is an ICMP error, and the flow is that of the packet it quotes.
    pub related: bool,
    /// The flow that is being made sends from an address of the node, which sockets and publishes
    /// use as well.
    pub from_node: bool,
    /// The sender has a mapping.
    pub mapped: bool,
    /// No port was free for it: flows that are over give way.
    pub pressed: bool,
}

impl<A> Work<A> {
    /// Largest offset of a transport header, for the verifier: it cannot know what was stored.
    const MAX_L4: usize = 0x1ff;

    /// Largest offset of anything in the packet that an ICMP error quotes.
    pub const MAX_QUOTE: usize = 0x3ff;

    /// Offset of the packet that an ICMP error quotes, from the start of the frame.
    #[inline(always)]
    pub fn quoted(&self) -> usize {
        self.quote as usize & Self::MAX_QUOTE
    }

    /// Offset of the quoted packet's transport header from the start of the frame.
    #[inline(always)]
    pub fn quoted_transport(&self) -> usize {
        self.quote_l4 as usize & Self::MAX_QUOTE
    }

    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment != fragment::NONE
    }

    /// Is it a fragment without transport header?
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment == fragment::LATER
    }

    /// Is it the fragment with the transport header?
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.fragment == fragment::FIRST
    }

    /// Offset of the transport header from the start of the frame.
    #[inline(always)]
    pub fn transport(&self) -> usize {
        self.l4 as usize & Self::MAX_L4
    }
}

impl<A: Address> Work<A> {
    /// Where the packet's checksum is, from the start of the frame, and the sum of its pseudo-header
    /// (RFC 9293 3.1, 8200 8.1): all that the field holds where hardware should have filled it in
    /// (`CHECKSUM_PARTIAL`). `network` is the offset of the network header.
    #[inline(always)]
    pub fn pseudo(&self, network: usize) -> Option<(usize, u16)> {
        let at = match self.key.proto {
            proto::TCP => Tcp::CHECKSUM,
            proto::UDP => Udp::CHECKSUM,
            _ => return None,
        };
        let len = (self.len + network as u32).saturating_sub(self.l4);
        // All are words of 16 bits in network order.
        let sum = self.key.src.sum()
            + self.key.dst.sum()
            + u64::from(u16::from(self.key.proto).to_be())
            + u64::from((len as u16).to_be());
        Some((self.transport() + at, fold(sum)))
    }
}
