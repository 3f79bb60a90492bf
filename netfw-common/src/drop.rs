//! Why a packet was dropped: one list for the programs, the counters and what people read.

use crate::named::named;

named! {
    /// Why the data plane dropped a packet. The number is the index into `DROPS` (per-CPU array of
    /// `u64`).
    pub enum Drop: u32 {
        /// A container sent from a MAC address that is not its own.
        SpoofedMac = 0, "spoofed-mac";
        /// A container sent from an IP address that is not its own.
        SpoofedAddress = 1, "spoofed-address";
        /// Somebody outside addressed a container directly, not through a publish.
        DirectAccess = 2, "direct-access";
        /// A container addressed a container of another network directly.
        Isolated = 3, "isolated";
        /// The destination lies in a network of netfw, but no endpoint has it.
        NoEndpoint = 4, "no-endpoint";
        /// A container's packet that belongs to no flow and can start none (a TCP segment without
        /// SYN, an ICMP reply nobody asked for): it must not leave untranslated.
        NoFlow = 5, "no-flow";
        /// A protocol or ICMP type that cannot be translated.
        Untranslatable = 6, "untranslatable";
        /// Broken or truncated header, bad IP checksum.
        Malformed = 7, "malformed";
        /// The source can never be answered (loopback, multicast, broadcast, the node's own).
        Martian = 8, "martian";
        /// Time to live ran out.
        TtlExceeded = 9, "ttl-exceeded";
        /// The node has no route or no address towards the destination, or the way out is an interface
        /// that netfw does not serve.
        NoRoute = 10, "no-route";
        /// Every port tried for masquerade was taken.
        PortsExhausted = 11, "ports-exhausted";
        /// The flow table is full; flows that exist go on.
        TableFull = 12, "table-full";
        /// A packet with a container's own address as source was about to leave through an uplink.
        Leak = 13, "leak";
        /// The network is internal: no way out or in.
        Internal = 14, "internal";
        /// A fragment that overlaps another one, or a first one too short to hold the ports.
        BadFragment = 15, "bad-fragment";
        /// A fragment whose first part did not come, or of more than can be held until it does.
        LostFragment = 16, "lost-fragment";
        /// Too big for the way on, and not to be fragmented: its sender is told.
        TooBig = 17, "too-big";
        /// A protocol without ports, and another container speaks it with the same destination.
        Ambiguous = 18, "ambiguous";
        /// Sent to the endpoint-independent mapping of a container whose network does not let the
        /// sender in.
        Filtered = 19, "filtered";
        /// Sent to a publish by somebody whom its list of sources (`--allow-from`) does not name.
        NotAllowed = 20, "not-allowed";
        /// Its endpoint or publish has most of the flow table already; others are to find room.
        FlowShare = 21, "flow-share";
        /// The container begins too many flows that nobody answers.
        Unanswered = 22, "unanswered";
    }
}

/// Slots in the map `DROPS`.
pub const SLOTS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_and_names_are_unique() {
        for (i, a) in Drop::ALL.iter().enumerate() {
            assert!((*a as u32) < SLOTS);
            assert!(!a.description().is_empty());
            for b in &Drop::ALL[i + 1..] {
                assert!(*a as u32 != *b as u32 && a.name() != b.name());
            }
        }
    }
}
