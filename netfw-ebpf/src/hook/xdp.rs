//! XDP, on uplinks with Ethernet: what comes from the world and goes into a container.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};

use crate::{
    event,
    family::{V4, V6},
    maps::VETHS,
    nat,
    packet::{Frame, Packet as _},
    parse::{Ethernet, ethertype},
    verdict::Verdict,
};

/// What comes from the world, before the kernel makes an skb of it.
#[xdp]
pub fn netfw_uplink_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Frame::new(ctx);
    let verdict = match packet.read::<Ethernet>(0).map(|header| header.ethertype) {
        Some(ethertype::IPV4) => nat::world::receive::<_, V4>(&mut packet),
        Some(ethertype::IPV6) => nat::world::receive::<_, V6>(&mut packet),
        _ => Verdict::Pass,
    };
    match verdict {
        Verdict::Drop(reason) => {
            event::dropped(reason, packet.ifindex());
            XDP_DROP
        }
        // Of the flags, the action where the map has no such interface: it is rewritten already.
        Verdict::Peer { ifindex } => VETHS
            .redirect(ifindex, u64::from(XDP_DROP))
            .unwrap_or_else(|action| action),
        // Only what comes from containers goes elsewhere, and TC is it that answers and looks at
        // fragments.
        Verdict::Pass
        | Verdict::Answer(_)
        | Verdict::Held
        | Verdict::Redirect { .. }
        | Verdict::Neighbour { .. } => XDP_PASS,
    }
}
