//! The last look at what leaves an uplink: whatever went wrong before, no packet leaves with the
//! own address of a masqueraded container as its source.

use netfw_common::{drop::Drop, record::network_flag};

use crate::{family::Family, verdict::Verdict};

/// Decides by the source address of an IP packet.
#[inline(always)]
pub fn send<F: Family>(src: F::Addr) -> Verdict {
    match F::subnet(src) {
        // The gateway's address is the node's own.
        Some(subnet) if subnet.flags & network_flag::MASQUERADE != 0 && !F::is_local(&src) => {
            Verdict::Drop(Drop::Leak)
        }
        _ => Verdict::Pass,
    }
}
