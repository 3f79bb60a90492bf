//! What `monitor` and `trace` are told, a line of JSON each.

use serde::{Deserialize, Serialize};

use super::types::Tuple;
use crate::name::Name;

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// A packet that was dropped.
    Drop {
        #[serde(flatten)]
        packet: Packet,
        /// As in `netfw stats --drops`.
        reason: String,
        /// Was its sender told, by ICMP?
        answered: bool,
    },
    /// A packet at one of the programs, and what came of it there.
    Packet {
        #[serde(flatten)]
        packet: Packet,
        #[serde(flatten)]
        decision: Box<Decision>,
    },
    /// So many events were left out, because there were too many.
    Suppressed { events: u64 },
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Packet {
    /// RFC 3339, in UTC.
    pub time: String,
    /// `xdp`, `uplink`, `tunnel`, `container`, `guard`; of a process of the node, `connect` or `send`.
    pub hook: String,
    /// Null where there is none, or it is gone.
    pub interface: Option<String>,
    /// Whose it is, where that can be told.
    pub endpoint: Option<Name>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number; `arp`, or an EtherType (`0x88cc`).
    pub protocol: String,
    /// As it was received. Null where it could not be read.
    pub tuple: Option<Tuple>,
    /// Null of other protocols.
    pub icmp: Option<Icmp>,
    /// Bytes of the IP packet.
    pub length: u32,
}

/// The head of an ICMP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Icmp {
    pub r#type: u8,
    pub code: u8,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// What the packet was made; null: it is as it was.
    pub translated: Option<Tuple>,
    /// `pass`, `drop`, `answer`, `hold`, `container`, `out`, `again`, `connected`.
    pub action: String,
    /// `known-flow`, `new-flow`, …; of what was dropped, the reason.
    pub why: String,
    /// Null where it went by none.
    pub flow: Option<FlowOf>,
    /// The interface that it was sent to.
    pub to: Option<String>,
    /// All that, for people.
    pub sentence: String,
}

/// The flow that a packet went by.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FlowOf {
    /// As in `netfw flow ls`.
    pub origin: String,
    /// Likewise.
    pub state: String,
    /// `original` or `reply`.
    pub direction: String,
    pub endpoint: Option<Name>,
    /// The publish that made it.
    pub publish: Option<String>,
}
