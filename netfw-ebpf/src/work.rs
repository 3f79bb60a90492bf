//! What is known of the packet at hand.
//!
//! It lies in a per-CPU map, not on the stack, for two reasons: the stack of a program and all it
//! calls is 512 bytes; and the verifier follows the values on the stack but not those in a map, so
//! that paths which differ in nothing but what they found (TCP or UDP, which header length, which
//! table) are one path to it from there on. Without this the programs exceed a million verified
//! instructions; with it they stay below a tenth of that, most of it the search for a port.
//!
//! A program's run owns its CPU's record: programs of this kind do not nest, and nothing in it is
//! read before it was written in the same run.

use netfw_common::{
    addr::Be16,
    flow::{Flow, Segment},
    fragment::{FragmentKey, Units},
    tuple::Tuple,
};

use crate::nat::answer::Header;

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
    /// Offsets from the start of the frame: of the packet that an ICMP error quotes, and of that
    /// one's transport header; see [`Work::quoted`].
    pub quote: u32,
    pub quote_l4: u32,
    /// By how much the quote's sum changed.
    pub quote_change: u32,
    /// TCP's numbers; of other protocols, whatever was there.
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
    /// The tick of now.
    pub now: u32,
    /// Low bits of tick and epoch: ways to the world that were looked up in another are asked for
    /// again.
    pub epoch: u16,
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
    /// TCP's flags, else 0.
    pub flags: u8,
    /// May it open a flow: a TCP SYN, any UDP packet, an ICMP echo request?
    pub opens: bool,
    /// Has it a transport header that netfw translates?
    pub translatable: bool,
    /// It is an ICMP error, and the flow is that of the packet it quotes.
    pub related: bool,
    /// The flow that is being made sends from an address of the node, which sockets and publishes
    /// use as well.
    pub from_node: bool,
    /// No port was free for it: flows that are over give way.
    pub pressed: bool,
}

impl<A> Work<A> {
    /// Largest offset of a transport header, for the verifier: it cannot know what was stored.
    const MAX_L4: usize = 0x1ff;

    /// Largest offset of anything in the packet that an ICMP error quotes.
    const MAX_QUOTE: usize = 0x3ff;

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
