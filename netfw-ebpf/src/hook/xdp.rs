//! XDP, on uplinks with Ethernet: what comes from the world and goes into a container.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use netfw_common::event::Hook;

use crate::{
    event::{self, watch},
    family::{V4, V6},
    maps::VETHS,
    nat,
    packet::{Frame, Packet as _},
    parse::ethertype,
    verdict::Verdict,
};

/// What comes from the world, before the kernel makes an skb of it.
#[xdp]
pub fn netfw_uplink_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Frame::new(ctx);
    watch::begin(&packet);
    let verdict = match packet.protocol() {
        ethertype::IPV4 => nat::world::receive::<_, V4>(&mut packet),
        ethertype::IPV6 => nat::world::receive::<_, V6>(&mut packet),
        _ => Verdict::Pass,
    };
    watch::end(&packet, Hook::Xdp, &verdict);
    match verdict {
        Verdict::Drop(reason) => {
            event::dropped(reason, packet.ifindex(), None);
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
